"""The command line: its output, exit statuses and files.

Stand-ins replace the computing modules, so that the tests concern the command line; the last tests
compute.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from typer.testing import CliRunner

from ddln.cli import main as cli
from ddln.sweeps import environment as runtime
from ddln.sweeps import studies
from ddln.sweeps.run_folder import RunFolder
from ddln.verification import tables

ROOT = Path(__file__).parent.parent
FIGURE4 = str(ROOT / "configs" / "figure4.toml")
DESCENT = "dynamics={kind='descent', steps=1000, optimiser={kind='sgd', learning_rate=1e-3}}"
SEEDS = ["sweep.network.init.seed={range=[0, 1_000_000]}", "sweep.problem.data.seed=[1, 2, 3, 4]"]
GROUPED = [DESCENT, "dynamics.sampling={batch=2}", "dynamics.sharpness_aware={rho=0.1, group=2}"]
ROW = {"name": "bound", "applies": True, "holds": True, "measured": 1.0}


class Fakes:
    """Stand-ins for the computing modules, which record the calls."""

    def __init__(self):
        self.computed = []
        self.interrupt_at = None
        self.refuse = None
        self.row = ROW
        self.claims = [SimpleNamespace(row=lambda: ROW)]

    def validate(self, chunk):
        if self.refuse:
            raise ValueError(self.refuse)

    def compute(self, chunk, report=None, recompute=None):
        if chunk.index == self.interrupt_at:
            raise KeyboardInterrupt
        self.computed.append(chunk.index)
        status = xr.Variable(
            "lane", 0 * chunk.lanes, {"flag_values": [0, 1], "flag_meanings": "ok diverged"}
        )
        times = ("lane", "time"), np.zeros((chunk.lanes.size, 1))
        return xr.Dataset(
            {"flow_time": times, "loss": ("lane", chunk.lanes * 1.0), "status": status}
            | dict.fromkeys(("steps", "rounds"), status),
            coords={"lane": chunk.lanes, "certificate": ["bound"], "hypothesis": ["convex"]},
        )

    def summary(self, dataset):
        return [self.row]

    def render(self, rows, title="Hypotheses", **look):
        return f"{title}: {[row['holds'] for row in rows]}"

    def write(self, folder, faults=(), dataset=None):
        path = folder / "report.html"
        path.write_text(f"<html>{faults}", encoding="utf-8")
        return path


@pytest.fixture
def fakes(tmp_path, tmp_path_factory, monkeypatch):
    fakes = Fakes()
    modules = {
        "sweeps.compute": ("validate", "compute"),
        "verification.certificates": ("summary",),
        "theory.assumptions": ("summary", "render"),
        "sweeps.report": ("write",),
    }
    for name, functions in modules.items():
        module = ModuleType(f"ddln.{name}")
        for function in functions:
            setattr(module, function, getattr(fakes, function))
        monkeypatch.setitem(sys.modules, f"ddln.{name}", module)
        package, _, base = name.partition(".")
        home = importlib.import_module(f"ddln.{package}")
        monkeypatch.setattr(home, base, module, raising=False)
    study = ModuleType("experiments.figure4")
    vars(study).update(claims=lambda _: fakes.claims, draw=lambda _: Figure())
    monkeypatch.setattr(tables, "render", fakes.render)
    monkeypatch.setattr(studies, "find", lambda *_: study)
    monkeypatch.setattr(cli, "start_jax", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path)
    return fakes


def call(*arguments):
    result = CliRunner().invoke(cli.app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def run_folder(tmp_path):
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def test_run_writes_all_files_and_prints_the_tables(fakes, tmp_path):
    done = call("run", FIGURE4)
    folder = run_folder(tmp_path)
    assert done.code == 0
    assert done.out.splitlines() == [
        "Certificates: [True]",
        "Claims: [True]",
        "networks: 3 ok; batch efficiency 0%",
        f"runs/{folder.name}",
    ]
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {
        ".lock",
        "config.toml",
        "manifest.json",
        "chunks/00000.nc",
        "chunks/00000.json",
        "dataset.nc",
        "claims.json",
        *(f"figures/figure4.{kind}" for kind in ("png", "svg", "pdf")),
        "report.html",
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["versions"].keys() >= {"python", "jax"}


def test_finished_run_is_printed_and_not_recomputed(fakes, tmp_path):
    first = call("run", FIGURE4)
    before = {path: path.stat().st_mtime_ns for path in run_folder(tmp_path).rglob("*")}
    again = call("run", FIGURE4)
    assert (again.out, again.code) == (first.out, 0)
    assert fakes.computed == [0]
    assert {path: path.stat().st_mtime_ns for path in run_folder(tmp_path).rglob("*")} == before


def test_interrupted_run_continues_where_it_stopped(fakes, tmp_path):
    depths = "sweep.network.depth=[2, 3, 4]"
    fakes.interrupt_at = 1
    stopped = call("run", FIGURE4, depths)
    assert stopped.code == 130
    assert "the same command resumes the run" in stopped.err
    fakes.interrupt_at = None
    assert call("run", FIGURE4, depths).code == 0
    # Chunks that had begun when the run stopped are computed again, finished ones are not.
    assert fakes.computed.count(0) == 1
    assert {*fakes.computed} == {0, 1, 2}


@pytest.mark.parametrize("name", ["chunks/00000.nc", "chunks/00000.json", "manifest.json"])
def test_only_damaged_chunks_and_records_are_recomputed(fakes, tmp_path, name):
    call("run", FIGURE4)
    path = run_folder(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-40])
    assert call("run", FIGURE4).code == 0
    assert fakes.computed == [0] * (1 if name == "manifest.json" else 2)


@pytest.mark.parametrize(
    "name", ["dataset.nc", "claims.json", "figures/figure4.pdf", "report.html"]
)
def test_other_damaged_files_are_rewritten_without_computing(fakes, tmp_path, name):
    call("run", FIGURE4)
    path = run_folder(tmp_path) / name
    path.write_text("damaged")
    assert call("run", FIGURE4).code == 0
    assert "damaged" not in path.read_text(errors="replace")
    assert fakes.computed == [0]


def test_failing_claim_or_certificate_gives_exit_status_1(fakes, tmp_path):
    failing = {**ROW, "holds": False}
    fakes.row = failing
    assert call("run", FIGURE4).code == 1
    assert call("run", FIGURE4).code == 1
    assert call("verify", FIGURE4).code == 1
    fakes.row = {**failing, "applies": False}
    assert call("verify", FIGURE4).code == 0
    fakes.claims = [SimpleNamespace(row=lambda: failing)]
    assert call("run", FIGURE4, "network.depth=3").code == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope.toml"], "nope.toml: no such file"),
        ([FIGURE4, "network.dept=3"], 'network.dept: unknown key, did you mean "depth"?'),
        ([FIGURE4, "network.depth=0"], "network.depth: must be ≥ 1, got 0"),
        ([FIGURE4, "study=none_such"], "study: no experiments/none_such.py"),
        ([FIGURE4, "problem.data={kind='file', path='nan.csv'}"], 'row 2, column "a": missing v'),
        ([FIGURE4, DESCENT, "dynamics.steps=-1"], "dynamics.steps: must be ≥ 1, got -1"),
        ([FIGURE4, DESCENT, "dynamics.optimiser.kind=adan"], 'kind "adan", did you mean "adam"?'),
        (
            [FIGURE4, *GROUPED, "sweep={}", "sweep.dynamics.sampling.batch=[2, 3, 4]"],
            "  dynamics.sharpness_aware.group: must divide the batch of 3, got 2 (swept to dyn",
        ),
        (
            [FIGURE4, *SEEDS],  # times the three scales of the config
            "  sweep: 12,000,000 networks, more than 10,000,000",
        ),
        (
            [FIGURE4, "sweep={}", "sweep.network.depth={range=[2, 6000]}"],
            "  sweep: 5,998 shapes by network.depth, each compiled alone, more than 5,000",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["run", "check"])
def test_bad_input_gives_one_message_and_exit_status_2(fakes, tmp_path, verb, arguments, expected):
    (tmp_path / "nan.csv").write_text("a,target\nnan,1\n")
    refused = call(verb, *arguments)
    assert refused.code == 2
    assert refused.out == ""
    assert refused.err.startswith(f"ddln: {arguments[0]}:")
    assert expected in refused.err
    assert "Traceback" not in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["nan.csv"]


@pytest.mark.parametrize("verb", ["run", "verify"])
def test_invalid_network_is_rejected_before_anything_is_written(fakes, tmp_path, verb):
    fakes.refuse = "`layers`: coordinate 3 is frozen"
    refused = call(verb, FIGURE4)
    expected = f"ddln: {FIGURE4}:\n  `layers`: coordinate 3 is frozen\n"
    assert (refused.code, refused.err) == (2, expected)
    assert not any(tmp_path.iterdir())


def test_locked_run_is_an_error(fakes, tmp_path):
    call("run", FIGURE4)
    folder = run_folder(tmp_path)
    (folder / "report.html").unlink()
    with cli.contextlib.ExitStack() as stack:
        cli._open(str(folder), Path("runs"), stack)
        for arguments in (["run", FIGURE4], ["draw", "figure4"], ["report", "figure4"]):
            refused = call(*arguments)
            assert refused.code == 2
            assert "another process is working on this run" in refused.err


def test_verify_writes_nothing_and_prints_json(fakes, tmp_path):
    fakes.row = {**ROW, "measured": np.float64("nan"), "holds": np.True_}
    done = call("verify", FIGURE4, "--json")
    rows = [{**ROW, "measured": None}]
    assert json.loads(done.out) == {"hypotheses": rows, "certificates": rows}
    assert not any(tmp_path.iterdir())


def test_long_table_prints_failing_rows_first(fakes):
    rows = [{**ROW, "holds": i != 49} for i in range(50)]
    fakes.claims = [SimpleNamespace(row=lambda row=row: row) for row in rows]
    done = call("run", FIGURE4)
    assert done.code == 1
    assert f"Claims: {[False, *[True] * 39]}" in done.out
    assert "and 10 more; failing rows come first" in done.out


def test_check_prints_the_plan_and_writes_nothing(fakes, tmp_path):
    axes = "sweep={'network.depth' = [2, 4], 'network.scale' = {linspace = [1, 2, 1000]}}"
    seeds = "sweep.network.init.seed={values=[3, 4], zip='network.depth'}"
    done = call("check", FIGURE4, axes, seeds, "network.signed=true", "dynamics.save=loss")
    assert done.code == 0
    expected = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    assert expected["problem"] == "gaussian, 10 samples × 8 features"
    assert expected["network"] == "depth 2, 4; 16 coordinates, signed; zero_first_layer layers"
    assert expected["axes"] == (
        "network.depth (2 values, 2 … 4) with network.init.seed (2 values, 3 … 4)"
        " × network.scale (1,000 values, 1 … 2)"
    )
    assert expected["networks"] == "2,000"
    assert expected["chunks"] == "8 of up to 250 networks, 2 compiled program(s)"
    assert expected["memory"] == "0.55 GB a chunk, of 2 GB; about 0.94 GB in all"
    assert expected["files"] == "45.3 MB: loss of every network, in chunks and whole"
    assert expected["time"] == "measured by `run` once the first chunk is done"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["run", "check", "verify"])
def test_network_larger_than_memory_is_rejected_before_data_are_drawn(fakes, tmp_path, verb):
    fakes.refuse = "this is drawn"
    wide = 'problem.data={kind="gaussian", samples=100, features=100_000_000}'
    refused = call(verb, FIGURE4, wide, "sweep={}")
    expected = (
        "memory: a chunk takes about 1.8e+04 GB and cannot have fewer networks, "
        "more than memory = 2"
    )
    assert (refused.code, fakes.computed) == (2, [])
    assert refused.err.startswith(f"ddln: {FIGURE4}:\n  {expected}"), refused.err
    assert not any(tmp_path.iterdir())


def test_check_shows_the_ends_of_a_logspace_axis(fakes):
    swept = "sweep={'network.scale' = {logspace = [0.1, 10, 5]}}"
    assert "axes  network.scale (5 values, 1.25893 … 1e+10)\n" in call("check", FIGURE4, swept).out


def test_check_shows_the_rule_and_steps_of_a_descent(fakes):
    expected = call("check", FIGURE4, DESCENT, "dynamics.points=11").out
    assert " dynamics  descent by sgd, 1,000 steps, 11 points\n" in expected


def broken(study, kind):
    def fail(dataset):
        return dataset["no such variable"]

    if kind == "axes":
        study.draw = lambda _: Figure().subplots()
    else:
        setattr(study, kind, fail)


@pytest.mark.parametrize(
    ("kind", "claimed", "expected"),
    [
        ("claims", False, "experiments.figure4 cannot use this data set: KeyError"),
        ("draw", True, "experiments.figure4 cannot use this data set: KeyError"),
        ("axes", True, "draw(dataset) must give a Figure, or a dictionary of them by name, got A"),
    ],
)
def test_failing_study_leaves_certificates_and_report(
    fakes, tmp_path, monkeypatch, kind, claimed, expected
):
    study = studies.find("figure4")
    monkeypatch.setattr(study, "claims", study.claims)
    monkeypatch.setattr(study, "draw", study.draw)
    broken(study, kind)
    failed = call("run", FIGURE4)
    folder = run_folder(tmp_path)
    assert failed.code == 2
    assert expected in failed.err.splitlines()[-1]
    assert ("Certificates: [True]" in failed.out, "Claims: [True]" in failed.out) == (True, claimed)
    assert expected.split(":")[0] in (folder / "report.html").read_text(encoding="utf-8")
    assert call("report", folder.name).code == 0
    assert "says why" in (folder / "report.html").read_text(encoding="utf-8")
    event = json.loads(call("run", FIGURE4, "--json-lines").out.splitlines()[-1])
    assert (event["event"], expected in event["error"]) == ("failed", True)
    assert (folder / "figures" / "figure4.png").is_file() == (kind == "claims")
    assert not json.loads((folder / "manifest.json").read_text())["complete"]
    vars(study).update(claims=lambda _: fakes.claims, draw=lambda _: Figure())
    assert call("run", FIGURE4).code == 0
    assert fakes.computed == [0]


def test_study_import_error_is_printed_first_and_last(fakes, tmp_path, monkeypatch):
    def find(*_):
        raise studies.StudyError("mine.py:3: SyntaxError: invalid syntax")

    monkeypatch.setattr(studies, "find", find)
    failed = call("run", FIGURE4)
    expected = "ddln: mine.py:3: SyntaxError: invalid syntax"
    assert failed.code == 2
    assert (failed.err.splitlines()[0], failed.err.splitlines()[-1]) == (expected, expected)
    assert "Certificates: [True]" in failed.out
    assert (run_folder(tmp_path) / "report.html").is_file()


def test_newest_of_two_runs_is_shown_with_its_name(fakes, tmp_path):
    call("run", FIGURE4)
    (old,) = (tmp_path / "runs").iterdir()
    os.utime(old / "config.toml", (1, 1))
    call("run", FIGURE4, "network.depth=3")
    (new,) = set((tmp_path / "runs").iterdir()) - {old}
    shown = call("show", "figure4")
    assert (shown.code, shown.err) == (0, f"{new.name}, the newest of 2 runs\n")
    assert shown.out.endswith(f"runs/{new.name}\n")
    assert call("draw", "figure4").out.startswith(f"runs/{new.name}/figures/")
    assert call("report", "figure4").out == f"runs/{new.name}/report.html\n"
    assert call("show", old.name).err == ""


def test_list_runs_shows_what_each_run_has_come_to(fakes, tmp_path):
    assert call("list", "--runs").out == "no run in runs/\n"
    call("run", FIGURE4)
    (finished,) = (tmp_path / "runs").iterdir()
    os.utime(finished / "config.toml", (1, 1))
    fakes.interrupt_at = 1
    call("run", FIGURE4, "sweep.network.depth=[2, 3]")
    (stopped,) = set((tmp_path / "runs").iterdir()) - {finished}
    head, first, second = call("list", "--runs").out.splitlines()
    assert head.split() == ["run", "begun", "status", "networks", "size"]
    assert first.split()[:1] + first.split()[3:6] == [stopped.name, "not", "finished", "3"]
    assert second.split()[:1] + second.split()[3:7] == [finished.name, "all", "claims", "hold", "3"]
    (finished / "manifest.json").write_text("{")
    assert "damaged" in call("list", "--runs").out
    fakes.interrupt_at, fakes.row = None, {**ROW, "holds": False}
    call("run", FIGURE4, "network.depth=3")
    assert "1 of 2 claims fail" in call("list", "--runs").out


def test_rm_deletes_one_run_and_no_other(fakes, tmp_path):
    call("run", FIGURE4)
    (kept,) = (tmp_path / "runs").iterdir()
    call("run", FIGURE4, "network.depth=3")
    (gone,) = set((tmp_path / "runs").iterdir()) - {kept}
    several = call("rm", "figure4", "--yes")
    assert several.code == 2
    assert kept.name in several.err
    assert gone.name in several.err
    assert call("rm", gone.name).code == 1  # nothing confirms
    assert gone.is_dir()
    with RunFolder(gone).locked():
        busy = call("rm", gone.name, "--yes")
    assert busy.code == 2
    assert "another process is working on this run" in busy.err
    assert (gone / "manifest.json").is_file()
    link = tmp_path / "runs" / "link-1"
    link.symlink_to(gone, target_is_directory=True)
    linked = call("rm", link.name, "--yes")
    assert linked.code == 2
    assert "must be a folder to be deleted, got a link" in linked.err
    assert (gone / "manifest.json").is_file()
    link.unlink()
    assert call("rm", gone.name, "--yes").code == 0
    assert list((tmp_path / "runs").iterdir()) == [kept]
    assert call("run", FIGURE4).code == 0


def test_progress_is_one_json_event_per_line(fakes, tmp_path):
    depths = "sweep.network.depth=[2, 3]"
    fakes.interrupt_at = 1
    stopped = call("run", FIGURE4, depths, "--json-lines")
    assert [json.loads(line)["event"] for line in stopped.out.splitlines()] == [
        *("plan", "chunk", "stopped")
    ]
    fakes.interrupt_at, fakes.row = None, {**ROW, "holds": False}
    done = call("run", FIGURE4, depths, "--json-lines")
    plan, chunk, finished = map(json.loads, done.out.splitlines())
    run = f"runs/{run_folder(tmp_path).name}"
    assert plan == {
        "event": "plan",
        "run": run,
        "lanes": 6,
        "chunks": 2,
        "lanes_done": 3,
        "chunks_done": 1,
    }
    assert chunk.pop("seconds") >= 0
    assert chunk == {
        "event": "chunk",
        "chunk": 1,
        "status": {"ok": 3},
        "lanes_done": 6,
        "lanes_failed": 0,
        "chunks_done": 2,
    }
    assert finished == {"event": "finished", "run": run, "ok": False, "failed": ["bound"]}
    assert done.code == 1


def test_run_is_shown_drawn_and_reported_again(fakes, tmp_path):
    run = call("run", FIGURE4)
    folder = run_folder(tmp_path)
    assert call("show", "figure4").out == run.out
    assert call("draw", folder.name).out.splitlines() == [
        f"runs/{folder.name}/figures/figure4.{kind}" for kind in ("png", "svg", "pdf")
    ]
    assert call("report", str(folder)).out == f"{folder}/report.html\n"
    assert call("run", FIGURE4).code == 0
    assert fakes.computed == [0]
    assert call("show", "nothing").code == 2


def test_schema_is_json_and_list_names_every_config(fakes):
    assert json.loads(call("schema").out)["title"] == "Experiment"
    names = [line.split()[0] for line in call("list").out.splitlines()[::2]]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))


def test_new_rejects_bad_names_and_existing_files(fakes, tmp_path):
    assert call("new", "../evil").code == 2
    assert not any(tmp_path.iterdir())
    assert call("new", "mine").code == 0
    assert call("check", "mine").code == 0
    assert "exists already" in call("new", "mine").err


def test_data_writes_the_arrays_of_a_study(fakes, tmp_path, monkeypatch):
    assert "must define data()" in call("data", "figure4").err
    study = studies.find("figure4")
    made = {"features": np.eye(2), "targets": np.ones(2)}
    monkeypatch.setattr(study, "data", lambda: made, raising=False)
    assert call("data", "figure4").out == "configs/data/figure4.npz\n"
    assert (tmp_path / "configs" / "data" / "figure4.npz").is_file()


def test_compilation_cache_is_per_processor_in_the_users_cache(monkeypatch, tmp_path):
    import jax

    changed = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name in ("EQX_ON_ERROR", "MPLBACKEND"):
        monkeypatch.setenv(name, os.environ.get(name, "kept"))
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    runtime.start_jax()
    folder = Path(changed["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path / "ddln"
    assert folder.name.startswith("xla-")
    assert changed["jax_enable_x64"] is True
    assert changed["jax_default_prng_impl"] == "threefry2x32"
    assert changed["jax_threefry_partitionable"] is True
    assert changed["jax_random_seed_offset"] == 0
    changed.clear()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    runtime.start_jax()
    assert "jax_compilation_cache_dir" not in changed


COMPUTE = """
import json, sys
from ddln.sweeps.environment import start_jax
start_jax()
import jax
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.split("/")[-1]))
from ddln.sweeps import compute
from ddln.config.experiment import load
from ddln.sweeps.plan import make_plan
compute.compute(make_plan(load(sys.argv[1], sys.argv[2:])).chunks[0])
print(json.dumps({name: seen.count(name) for name in ("cache_hits", "cache_misses")}))
"""


@pytest.mark.slow
def test_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    small = ["network.depth=2", "dynamics.points=5", "dynamics.until=0.5"]
    command = [sys.executable, "-c", COMPUTE, FIGURE4, *small]
    first, second = (
        json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        for _ in range(2)
    )
    assert first["cache_misses"] > 0
    assert second["cache_misses"] == 0
    assert second["cache_hits"] >= first["cache_misses"]


def process(*arguments, cwd, **variables):
    cache = str(cwd / ".cache")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": cache, **variables}
    return subprocess.run(
        [sys.executable, "-m", "ddln.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["check", FIGURE4], ["schema"], ["list"]])
def test_quick_verbs_import_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys; from ddln.cli import main as cli\n"
        "try: cli.app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print({'jax', 'xarray', 'matplotlib', 'scipy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stderr == "set()\n"
    assert done.stdout


@pytest.mark.slow  # quick as part of the quick start: tests/test_docs.py
def test_new_study_runs_and_is_not_recomputed(tmp_path):
    assert process("new", "mine", cwd=tmp_path).returncode == 0
    small = ["network.depth=2", "dynamics.points=101", "problem.data.features=3"]
    first = process("run", "mine", *small, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "networks: 3 ok" in first.stdout
    folder = tmp_path / first.stdout.splitlines()[-1]
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn == {"mine.png", "mine.svg", "mine.pdf"}
    assert (folder / "report.html").stat().st_size > 10_000
    again = process("run", "mine", *small, cwd=tmp_path)
    assert (again.stdout, again.stderr, again.returncode) == (first.stdout, "", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "small",
    [
        ("figure4", "network.depth=2", "problem.data.features=3", "dynamics.points=11"),
        ("large_steps", "dynamics.steps=2000"),
    ],
    ids=["flow", "descent"],
)
def test_run_works_under_strict_promotion_of_types(tmp_path, small):
    done = process("run", *small, cwd=tmp_path, JAX_NUMPY_DTYPE_PROMOTION="strict")
    assert "dtype promotion" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_overflowing_network_is_rejected_end_to_end(tmp_path):
    refused = process("run", "figure4", "sweep.network.scale=[1e200]", cwd=tmp_path)
    assert refused.returncode == 2
    *progress, head, fault = refused.stderr.splitlines()
    assert progress in ([], ["compiling the problem"])
    assert head == f"ddln: {FIGURE4}:"
    assert fault.startswith("  network.scale: the mobility M must be finite at the start, got ")
    assert not (tmp_path / "runs").exists()
