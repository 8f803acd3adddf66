"""Run folders: writes are atomic, damage is detected, one process works at a time."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from ddln.config.experiment import load
from ddln.sweeps import _manifest, assemble, saved_runs
from ddln.sweeps import plan as plan_module
from ddln.sweeps.dataset_schema import accuracy_in_words, status_counts
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder, StoreError

FIGURE4 = load(Path(__file__).parent.parent / "configs" / "figure4.toml")
STUDY = "5" * 64
PLAN = make_plan(FIGURE4, chunk_lanes=1)


def lanes_of(chunk):
    """A chunk as `compute` returns it, with the number of the network as its loss."""
    count = chunk.lanes.size
    status = {"flag_values": [0, 1], "flag_meanings": "ok diverged"}
    in_time = np.ones((count, 301))
    return xr.Dataset(
        {
            "flow_time": (("lane", "time"), in_time * np.arange(301.0), {"units": "flow time"}),
            "loss": (("lane", "time"), in_time * chunk.lanes[:, None]),
            "status": ("lane", np.zeros(count, int), status),
            "steps": ("lane", np.full(count, 3)),
            "rounds": ("lane", np.full(count, 4)),
            "hypothesis_holds": (("lane", "hypothesis"), np.ones((count, 1), bool)),
        },
        coords={"lane": chunk.lanes, "hypothesis": ["convex"], "certificate": ["bound"]},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The parent of a run folder with all its chunks."""
    runs = tmp_path_factory.mktemp("written")
    folder = RunFolder.of(FIGURE4, runs)
    with folder.locked():
        folder.open(PLAN, versions={"jax": "0"})
        for chunk in PLAN.chunks:
            folder.write_chunk(chunk, lanes_of(chunk))
    return runs


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "runs")
    folder = RunFolder.of(FIGURE4, tmp_path / "runs")
    with folder.locked():
        yield folder


def finish(folder):
    folder.write_dataset(PLAN)
    folder.write_claims({"claims": []})
    folder.finish(STUDY)


def contents(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def test_recomputed_networks_are_counted_and_inexact_ones_reported(folder):
    assert folder.count_recomputed() == (0, 0)
    for chunk, off in zip(PLAN.chunks, (0.5, np.nan, 1.5), strict=True):
        folder.write_chunk(chunk, lanes_of(chunk).assign(discrepancy=("lane", [off])))
    assert folder.count_recomputed() == (2, 1)
    assert accuracy_in_words(2, 1) == (
        "2 networks recomputed at tolerances 30 times finer, "
        "1 less exact than expected: lower dynamics.rtol"
    )


def test_folder_is_made_when_it_is_locked(tmp_path):
    folder = RunFolder.of(FIGURE4, tmp_path / "runs")
    assert folder.manifest() == {}
    assert folder.missing(PLAN) == list(PLAN.chunks)
    assert not folder.is_complete(PLAN)
    assert not any(tmp_path.iterdir())


def test_data_set_joins_the_chunks_and_is_read_lazily(folder):
    folder.write_dataset(PLAN)
    chunks = {chunk.index: lanes_of(chunk) for chunk in PLAN.chunks}
    with folder.read_dataset() as dataset:
        assert not dataset["loss"].variable._in_memory
        assert dataset["hypothesis_holds"].dtype == bool
        xr.testing.assert_identical(
            dataset, assemble.assemble(PLAN, lambda chunk: chunks[chunk.index])
        )
    assert folder.status_counts() == {"ok": 3}
    assert folder.status_counts(but=PLAN.chunks[:1]) == {"ok": 2}
    assert folder.efficiency() == 0.75
    assert load(folder.path / "config.toml") == FIGURE4


def test_large_run_is_read_from_its_chunks_and_exported_on_request(folder, monkeypatch):
    monkeypatch.setattr(plan_module, "PORTABLE", 0)
    monkeypatch.setattr(RunFolder, "_plan", lambda folder: PLAN)
    folder.write_claims({"claims": []})
    folder.finish(STUDY)
    assert folder.is_complete(PLAN, STUDY)
    in_chunks = folder.read_dataset()
    assert not in_chunks["loss"].variable._in_memory
    assert folder.export() == folder.path / "dataset.nc"
    with folder.read_dataset() as in_one_file:
        xr.testing.assert_identical(in_one_file.load(), in_chunks.load())


def test_large_run_without_a_chunk_is_refused(folder, monkeypatch):
    monkeypatch.setattr(plan_module, "PORTABLE", 0)
    monkeypatch.setattr(RunFolder, "_plan", lambda folder: PLAN)
    (folder.path / "chunks" / "00001.nc").unlink()
    with pytest.raises(StoreError, match="1 of 3 chunks are missing or damaged"):
        folder.read_dataset()


@pytest.mark.parametrize("kind", ["nc", "json"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "emptied", "removed"])
def test_damaged_chunk_or_chunk_record_is_detected(folder, damage, kind):
    finish(folder)
    path = folder.path / "chunks" / f"00001.{kind}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "removed":
        path.unlink()
    else:
        kept = {"altered": len(content), "truncated": len(content) - 1, "emptied": 0}[damage]
        path.write_bytes(content[:kept])
    assert [chunk.index for chunk in folder.missing(PLAN)] == [1]
    assert not folder.is_complete(PLAN, STUDY)
    folder.write_dataset(PLAN)
    with folder.read_dataset() as dataset:
        assert dataset["status"].values.tolist() == [0, -1, 0]
        assert dataset["loss"].isel(time=0).values.tolist() == pytest.approx(
            [0, math.nan, 2], nan_ok=True
        )
        assert not dataset["hypothesis_holds"].values[1]
    folder.open(PLAN)
    folder.write_chunk(PLAN.chunks[1], lanes_of(PLAN.chunks[1]))
    assert folder.missing(PLAN) == []
    with pytest.raises(StoreError, match=r"dataset\.nc is missing or damaged"):
        folder.read_dataset()


def test_chunk_with_missing_networks_is_refused(folder):
    short = lanes_of(PLAN.chunks[0]).isel(lane=slice(0, 0))
    with pytest.raises(StoreError, match="chunk 0: must have 1 networks, got 0"):
        folder.write_chunk(PLAN.chunks[0], short)


def test_failed_write_leaves_only_the_old_file(folder, monkeypatch):
    before = sorted(folder.path.rglob("*"))
    figure = Figure()
    folder.write_figures({"curve": figure})
    png = (folder.path / "figures" / "curve.png").read_bytes()

    def fail(self, path, **_):
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.write_figures({"curve": figure})
    assert (folder.path / "figures" / "curve.png").read_bytes() == png
    names = {path.name for path in set(folder.path.rglob("*")) - set(before)}
    assert names == {"figures", "curve.png", "curve.svg", "curve.pdf"}


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "chunks").mkdir(parents=True)
    (folder.path / "chunks" / "00000.nc.part").write_text("half")
    with folder.locked():
        assert not list(folder.path.rglob("*.part"))


def test_run_is_complete_if_undamaged_and_of_the_same_study(folder):
    assert not folder.is_complete(PLAN, STUDY)
    finish(folder)
    assert folder.is_complete(PLAN, STUDY)
    assert not folder.is_complete(PLAN, "another study")
    (folder.path / "claims.json").write_text('{"claims": []}')
    assert not folder.is_complete(PLAN, STUDY)
    with pytest.raises(StoreError, match=r"claims\.json is missing or damaged"):
        folder.read_claims()


def test_reopening_keeps_files_and_another_plan_is_refused(folder):
    folder.open(PLAN)
    assert folder.missing(PLAN) == []
    before = contents(folder)
    other = make_plan(FIGURE4, chunk_lanes=2)
    with pytest.raises(StoreError, match="begun with its networks in other chunks"):
        folder.open(other)
    renamed = make_plan(FIGURE4.with_({"dynamics.points": 302}), chunk_lanes=1)
    with pytest.raises(StoreError, match=r"holds the run \w{10}, not \w{10}"):
        folder.open(renamed)
    assert contents(folder) == before


def test_other_versions_are_refused_while_chunks_are_missing(folder):
    newer = {"versions": {"jax": "1"}}
    folder.open(PLAN, **newer)
    (folder.path / "chunks" / "00001.nc").unlink()
    with pytest.raises(StoreError, match="begun with jax 0, now 1; its chunks would not be alike"):
        folder.open(PLAN, **newer)
    folder.open(PLAN, versions={"jax": "0"})


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ({}, {"XLA_FLAGS": "--fast"}, "begun with XLA_FLAGS as it comes, now --fast; its chunks"),
        ({"jax_disable_jit": "True"}, {}, "begun with jax_disable_jit True, now as it comes; its"),
    ],
)
def test_settings_that_change_numbers_are_refused(tmp_path, then, now, message):
    folder, provenance = RunFolder.of(FIGURE4, tmp_path), {"versions": {"jax": "0"}}
    with folder.locked():
        folder.open(PLAN, **provenance, settings=then)
        with pytest.raises(StoreError, match=message):
            folder.open(PLAN, **provenance, settings=now)
        folder.open(PLAN, **provenance, settings=then)


def test_manifest_lists_the_seeds(folder):
    assert folder.manifest()["seeds"] == {"problem.data.seed": 0, "network.init.seed": 1}


@pytest.mark.parametrize("kept", [0, 1, 0.5, -1, "flipped", "removed"])
def test_damaged_manifest_loses_no_chunk(folder, kept):
    finish(folder)
    path = folder.path / "manifest.json"
    before, text = contents(folder), bytearray(path.read_bytes())
    if kept == "removed":
        path.unlink()
    elif kept == "flipped":
        text[text.index(b"complete") + 12] ^= 1
        path.write_bytes(text)
    else:
        path.write_bytes(text[: int(kept * len(text)) if kept == 0.5 else kept])
    assert folder.missing(PLAN) == []
    assert folder.status_counts() == {"ok": 3}
    assert not folder.is_complete(PLAN, "")
    folder.open(PLAN, versions={"jax": "0"})
    finish(folder)
    assert contents(folder) == before


def test_other_versions_are_refused_even_without_a_manifest(folder):
    (folder.path / "manifest.json").unlink()
    (folder.path / "chunks" / "00002.nc").unlink()
    with pytest.raises(StoreError, match="begun with jax 0, now 1"):
        folder.open(PLAN, versions={"jax": "1"})


def test_chunks_without_records_are_not_overwritten(folder):
    for path in folder.path.rglob("*.json"):
        path.unlink()
    with pytest.raises(StoreError, match="no record says which run its chunks belong to"):
        folder.open(PLAN)


def test_swapped_chunks_are_detected(folder):
    first, second = (folder.path / "chunks" / name for name in ("00000", "00001"))
    swap(first.with_suffix(".nc"), second.with_suffix(".nc"))
    assert [chunk.index for chunk in folder.missing(PLAN)] == [0, 1]
    swap(first.with_suffix(".json"), second.with_suffix(".json"))
    assert [chunk.index for chunk in folder.missing(PLAN)] == [0, 1]


def test_chunk_of_another_run_is_not_accepted(folder, tmp_path):
    other = FIGURE4.with_({"network.init.seed": 5})
    plan = make_plan(other, chunk_lanes=1)
    another = RunFolder.of(other, tmp_path / "runs")
    with another.locked():
        another.open(plan)
    for path in (folder.path / "chunks").iterdir():
        (another.path / "chunks" / path.name).write_bytes(path.read_bytes())
    assert another.missing(plan) == list(plan.chunks)
    assert another.status_counts() == {}


@pytest.mark.parametrize("content", ["{}", '{"format": 1, "complete": true}'])
def test_run_of_another_format_is_refused_and_unchanged(folder, content):
    (folder.path / "manifest.json").write_text(content)
    before = contents(folder)
    with pytest.raises(StoreError, match=r"written in format (None|1), this is 2; move the folder"):
        folder.open(PLAN)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("study", "../x", "manifest.json: study: must match"),
        ("files", {"../../etc/passwd": "0" * 64}, "manifest.json: files"),
        ("files", {"/etc/passwd": "0" * 64}, "manifest.json: files"),
        ("files", {"figures/../../x": "0" * 64}, "manifest.json: files"),
        ("complete", "yes", "must be true or false"),
        ("more", 1, "manifest.json: more"),
    ],
)
def test_manifest_with_impossible_values_is_refused_despite_its_checksum(
    folder, field, value, message
):
    path = folder.path / "manifest.json"
    facts = {**json.loads(path.read_text()), field: value}
    facts.pop("seal")
    path.write_text(json.dumps({**facts, "seal": _manifest.checksum(facts)}))
    with pytest.raises(StoreError, match=message):
        folder.manifest()


def test_manifest_too_large_or_too_deep_is_refused(folder, monkeypatch):
    path = folder.path / "manifest.json"
    path.write_text("[" * 100_000)
    with pytest.raises(StoreError, match="recursion"):
        folder.manifest()
    monkeypatch.setattr(_manifest, "LARGEST_FILE", 1000)
    with pytest.raises(StoreError, match=r"larger than 1,000 bytes"):
        folder.manifest()


@pytest.mark.parametrize("name", ["chunks", "chunks/00001.nc", "figures", "claims.json", ".lock"])
def test_link_in_a_run_folder_is_refused_and_its_target_unchanged(tmp_path, name):
    """Drawing removes figures of other names, but never through a link."""
    folder = RunFolder(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.png").write_text("mine")
    (folder.path / name).parent.mkdir(parents=True)
    (folder.path / name).symlink_to(outside if "." not in name else outside / "mine.png")
    with pytest.raises(StoreError, match=r"a link; the files of a run folder must be its own"):
        folder.locked().__enter__()
    if "." in name:
        with pytest.raises(StoreError, match="a link"):
            folder._own_path(name)
    else:
        with pytest.raises(StoreError, match="a link"):
            folder._own_path(f"{name}/00000.nc")
    assert [path.read_text() for path in outside.iterdir()] == ["mine"]


def test_non_finite_numbers_are_stored_as_null_and_read_as_nan(folder):
    plain = {"name": "a", "applies": True, "holds": True}
    row = {**plain, "measured": math.inf, "predicted": np.float64(2), "lanes": 1}
    folder.write_claims({"claims": [row]})
    stored = json.loads((folder.path / "claims.json").read_text())["claims"][0]
    assert stored == {**plain, "measured": None, "predicted": 2.0, "lanes": 1}
    assert math.isnan(folder.read_claims()["claims"][0]["measured"])


@pytest.mark.parametrize("text", ["[", "[1]", '{"claims": [{"name": 1}]}', "[" * 10_000, "\xff"])
def test_invalid_claims_are_refused(folder, text):
    (folder.path / "claims.json").write_text(text)
    folder.record(folder.path / "claims.json")
    with pytest.raises(StoreError, match=r"claims\.json: not tables of claims"):
        folder.read_claims()


def test_figures_are_reproducible_and_have_safe_names(folder):
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    paths = folder.write_figures({"a": figure})
    first = [path.read_bytes() for path in paths]
    assert [path.suffix for path in paths] == [".png", ".svg", ".pdf"]
    folder.write_figures({"a": figure})
    assert [path.read_bytes() for path in paths] == first
    folder.write_figures({"b": figure})
    assert not any(path.exists() for path in paths)
    assert set(folder.manifest()["files"]) == {
        f"figures/b.{kind}" for kind in ("png", "svg", "pdf")
    }
    with pytest.raises(StoreError, match="a figure cannot be called"):
        folder.write_figures({"../a": figure})


def test_figure_without_layout_engine_is_not_cropped(folder):
    """Labels exceed a figure without a layout engine: the edge of the image must stay blank."""
    figure = Figure(figsize=(2, 1.5))
    axes = figure.subplots()
    axes.plot([0, 1e6], [0, 1e-6])
    axes.set(xlabel="a label in two lines\nthe second", ylabel="another\nof these", title="$t^2$")
    (png, *_) = folder.write_figures({"a": figure})
    with Image.open(png) as image:
        ink = np.asarray(image.convert("L")) < 255
    assert ink.any()
    for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):
        assert not edge.any()


def test_status_codes_are_counted_by_name():
    dataset = lanes_of(make_plan(FIGURE4).chunks[0])
    dataset["status"][1:] = 1
    assert status_counts(dataset) == {"ok": 1, "diverged": 2}


def test_run_is_found_by_path_and_by_the_beginning_of_its_name(folder):
    root = folder.path.parent
    for name in (str(folder.path), folder.path.name, "figure4"):
        assert saved_runs.newest(name, root).path.samefile(folder.path)
    with pytest.raises(StoreError, match="not a run folder"):
        saved_runs.newest("figure5", root)


def begin(root, name, moment):
    (root / name).mkdir(parents=True)
    (root / name / "manifest.json").write_text("{}")
    (root / name / "config.toml").write_text("")
    os.utime(root / name / "config.toml", (moment, moment))


def test_newest_run_of_a_study_is_found(tmp_path):
    for name, moment in (("figure4-b", 1), ("figure4-a", 3), ("figure4-c", 2), ("figure40-d", 4)):
        begin(tmp_path, name, moment)
    (tmp_path / "figure4-b" / "manifest.json").write_text("{} ")  # as drawing rewrites it
    found = saved_runs.matching("figure4", tmp_path)
    assert [folder.path.name for folder in found] == ["figure4-a", "figure4-c", "figure4-b"]
    assert saved_runs.newest("figure4", tmp_path).path.name == "figure4-a"
    assert saved_runs.newest("figure4-", tmp_path).path.name == "figure4-a"
    with pytest.raises(StoreError, match="figure: which of figure4-a, figure4-b, figure4-c, figur"):
        saved_runs.newest("figure", tmp_path)


HOLD = """
import sys, time
from ddln.sweeps.run_folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_is_refused_until_the_first_ends(tmp_path):
    folder = RunFolder(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another process is working on this run"):
            folder.locked().__enter__()
        holder.kill()
    with folder.locked():
        pass
