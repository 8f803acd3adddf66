"""A config, a data file and a run folder from a stranger are data: nothing in them is run,
leads out of the folder, or exhausts memory or disk."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from ddln.config import _array_files
from ddln.config.data_files import DataError, read_table
from ddln.config.experiment import ConfigError, load
from ddln.sweeps import _netcdf, report
from ddln.sweeps.run_folder import RunFolder, StoreError
from ddln.verification import tables

PACKAGE = Path(report.__file__).parent.parent
SHIPPED = PACKAGE.parent / "configs" / "figure4.toml"
RUNS_CODE = ("pickle", "marshal", "shelve", "eval(", "exec(", "allow_pickle=True", "os.system")
HOSTILE = "\"><script>alert('x')</script>&\x1b[2J"


def test_nothing_in_the_package_unpickles_or_evaluates():
    """Only the user's own studies are executed; NumPy reads with `allow_pickle=False`. Compiled
    programs contain pickles: their folder is trusted as much as jax's own cache."""
    found = {
        (path.name, words)
        for path in PACKAGE.rglob("*.py")
        for words in RUNS_CODE
        if words in path.read_text(encoding="utf-8").replace("np.random", "")
    }
    # The first of them in a comment.
    names = ("studies.py", "data_files.py", "_array_files.py", "program_store.py")
    assert found == {(name, "pickle") for name in names}


def test_code_beside_a_config_is_not_run(tmp_path):
    theirs = tmp_path / "theirs"
    for folder in ("configs", "experiments", "ddln", "configs/experiments"):
        (theirs / folder).mkdir(parents=True)
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    names = ("experiments/theirs.py", "configs/experiments/theirs.py", "ddln/__init__.py")
    for name in (*names, "configs/sitecustomize.py"):
        (theirs / name).write_text(code)
    config = theirs / "configs" / "theirs.toml"
    config.write_text(SHIPPED.read_text().replace('"figure4"', '"theirs"'))
    (tmp_path / "mine").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    for verb in ("check", "run"):
        command = [
            sys.executable,
            "-c",
            "from ddln.cli.main import main; main()",
            verb,
            str(config),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path / "mine", env=environment
        )
        assert done.returncode == 2
        assert "is code, which runs only from its own folder: cd " in done.stderr
        assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "9" * 5000, "4300 digits"),
        ("[" + "a." * 50_000 + "a]", "nested too deeply"),
        ("a = \x00", r"toml: \w"),
    ],
)
def test_config_that_exhausts_the_parser_gives_one_message(tmp_path, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_oversized_or_special_config_file_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.toml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="larger than 8,388,608 bytes"):
        load(path)
    os.mkfifo(tmp_path / "fifo.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load(tmp_path / "fifo.toml")
    with pytest.raises(ConfigError, match="null"):
        load("a\0.toml")


def test_oversized_csv_file_is_refused_unread(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        DataError, match="must have at most 268,435,456 bytes, got 1,099,511,627,776"
    ):
        read_table(path)


def header(shape):
    """An NPY header of this shape without numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_zip_bomb_is_refused_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(_array_files, "LARGEST_ARRAYS", 10**6)
    bomb = header((10**6, 1)) + bytes(8 * 10**6)
    path = zipped(tmp_path / "bomb.npz", features=bomb, targets=bomb)
    assert path.stat().st_size < 40_000
    with pytest.raises(DataError, match="must have at most 1,000,000 bytes, got 16,000,"):
        read_table(path)


def test_array_larger_than_its_file_is_refused(tmp_path):
    path = zipped(tmp_path / "a.npz", features=header((10**12, 10)), targets=header((10**12,)))
    with pytest.raises(DataError, match=r"shape \(1000000000000, 10\), more than it contains"):
        read_table(path)


def test_pickle_in_a_data_file_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    evil = np.array([Evil()], dtype=object)
    np.savez(tmp_path / "a.npz", features=evil, targets=np.ones(1))
    with pytest.raises(DataError, match="not an NPZ file of numbers"):
        read_table(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def as_netcdf(path, change):
    """A data set of ours, changed through h5py."""
    xr.Dataset({"loss": ("lane", np.ones(3))}).to_netcdf(path, engine="h5netcdf")
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def link(file):
    file["other"] = h5py.ExternalLink("secret.nc", "/loss")


def soft(file):
    file["other"] = h5py.SoftLink("/nowhere")


def external(file):
    file.create_dataset("other", (6,), "i1", external=[("secret.txt", 0, 6)])


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("secret.nc", "loss", (3,))
    file.create_virtual_dataset("other", layout)


def packed(file):
    file.create_dataset("other", (10**9,), "f8", chunks=(10**6,), compression="gzip")


def sparse(file):
    file.create_dataset("other", (10**12,), "f8", chunks=(10**6,))


def nested(file):
    file.create_group("other").create_dataset("more", (3,), "f8")


@pytest.mark.parametrize("change", [link, soft, external, virtual, packed, sparse, nested])
def test_data_set_with_external_storage_or_a_bomb_is_refused(tmp_path, change):
    (tmp_path / "secret.txt").write_text("secret")
    path = as_netcdf(tmp_path / "a.nc", change)
    with pytest.raises(_netcdf.NetCDFError, match="'other' is "):
        _netcdf.open_dataset(path)


def test_file_that_is_not_netcdf_is_refused(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"CDF\x01")
    with pytest.raises(_netcdf.NetCDFError, match=r"a\.nc: not a netCDF file of ours"):
        _netcdf.open_dataset(tmp_path / "a.nc")
    with h5netcdf.File(tmp_path / "b.nc", "w") as file:
        file.dimensions = {"lane": 3}
    assert dict(_netcdf.open_dataset(tmp_path / "b.nc").sizes) in ({"lane": 3}, {})


def test_control_characters_do_not_reach_the_terminal():
    row = {"name": HOSTILE, "source": "[link=http://x]y[/link]", "applies": True, "holds": True}
    numbers = {"measured": 1.0, "predicted": 1.0, "tolerance": 0.0, "relation": "<="}
    shown = tables.render([{**row, **numbers}], "Claims")
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown
    assert "[link" in shown


@pytest.fixture
def hostile_run(tmp_path):
    """A folder with valid checksums in which every text is hostile."""
    from ddln.sweeps import _manifest
    from ddln.sweeps.plan import make_plan

    plan = make_plan(load(SHIPPED))
    folder = RunFolder(tmp_path / "runs" / "x'; touch y; '")
    lanes = xr.Dataset(
        {"status": ("lane", [0, 0, 2], {"flag_values": [0, 2], "flag_meanings": "ok <i>"})}
        | {"flow_time": (("lane", "time"), np.zeros((3, 1)))}
        | dict.fromkeys(("steps", "rounds"), ("lane", [1, 1, 1])),
        {"lane": [0, 1, 2], "certificate": [HOSTILE], "hypothesis": [HOSTILE]},
        {"title": HOSTILE},
    )
    row = {"applies": True, "holds": False, "relation": "<=", "measured": 1.0, "predicted": 0.0}
    row |= dict.fromkeys(("name", "source", "statement", "reason"), HOSTILE)
    with folder.locked():
        folder.open(plan, versions={HOSTILE: HOSTILE}, device=HOSTILE, dtype=HOSTILE)
        (folder.path / "config.toml").write_text(HOSTILE)
        folder.write_chunk(plan.chunks[0], lanes)
        folder.write_dataset(plan)
        folder.write_claims({"certificates": [{**row, "tolerance": 0.0}], "claims": []})
        folder.write_figures({"a": Figure(figsize=(1, 1))})
        message = PngImagePlugin.PngInfo()
        message.add_text("Description", HOSTILE)
        Image.new("L", (2, 2)).save(folder.path / "figures" / "a.png", pnginfo=message)
    assert _manifest.FORMAT
    return folder


def test_every_text_of_a_run_is_escaped_in_its_page(hostile_run):
    page = report.page(hostile_run)
    assert "<script>" not in page
    assert "<i>" not in page
    assert page.count("&lt;script&gt;") >= 8
    assert "runs/x&#39;&#34;&#39;&#34;&#39;; touch y" in page  # quoted for a shell, then


def test_page_of_a_folder_that_is_no_run_gives_one_message(hostile_run):
    dataset = hostile_run.path / "dataset.nc"
    xr.Dataset({"status": ("lane", [1])}).to_netcdf(dataset, engine="h5netcdf")
    hostile_run.record(dataset)
    with pytest.raises(StoreError, match="not a ddln run: KeyError: 'flag_values'"):
        report.write(hostile_run.path)
    assert not list(hostile_run.path.glob("report*"))


def test_oversized_file_is_not_embedded_in_the_page(hostile_run, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_FILE", 1000)
    (hostile_run.path / "config.toml").write_bytes(bytes(2000))
    with pytest.raises(OSError, match="larger than 1,000 bytes"):
        report.write(hostile_run.path)


def test_study_name_in_a_manifest_cannot_leave_the_folder(hostile_run):
    manifest = hostile_run.path / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "study": "../x"}))
    assert hostile_run.manifest() == {}  # its seal does not hold; test_store: where it does
