"""Runs that are killed, stopped, or compete for a folder: real processes, real folders.

The quick tests replace the computing, to test run folders and the command line; the slow ones
compute.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ddln.config.experiment import load
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
FIGURE4 = str(ROOT / "configs" / "figure4.toml")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
RETURNS_WITHIN = 2.0  # seconds from the signal to the end of the process
GIB = 2**30

FILL = """
import sys, time
import numpy as np, xarray as xr
from ddln.sweeps import progress
from ddln.config.experiment import load
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder

def compute(chunk):
    print(chunk.index, flush=True)
    time.sleep(0.03)
    count = chunk.lanes.size
    noise = np.random.default_rng(chunk.index).normal(size=(count, 301))
    flags = {"flag_values": [0, 1], "flag_meanings": "ok diverged"}
    return xr.Dataset(
        {
            "flow_time": (("lane", "time"), np.ones((count, 1)) * np.arange(301)),
            "loss": (("lane", "time"), noise),
            "status": ("lane", np.zeros(count, int), flags),
            "steps": ("lane", np.ones(count, int)),
            "rounds": ("lane", np.ones(count, int)),
        },
        coords={"lane": chunk.lanes, "certificate": ["bound"], "hypothesis": ["convex"]},
    )

plan = make_plan(load(sys.argv[1], sys.argv[3:]))
folder = RunFolder.of(plan.experiment, sys.argv[2])
with folder.locked():
    folder.open(plan)
    for chunk, dataset in progress.prefetch(compute, folder.missing(plan)):
        folder.write_chunk(chunk, dataset)
    folder.write_dataset(plan)
    folder.finish()
"""
SEEDS = ["sweep={}", "sweep.network.init.seed={range=[0, 40]}", "memory=0.003"]


def fill(root):
    """Start a process that fills the run folder below `root` and prints each chunk it begins."""
    command = [sys.executable, "-c", FILL, FIGURE4, str(root), *SEEDS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    plan = make_plan(load(FIGURE4, SEEDS))
    assert len(plan.chunks) == 20
    with fill(tmp_path / "whole") as process:
        process.communicate()
    moments = np.random.default_rng(0).uniform(0.0, 0.5, 2)
    folder = RunFolder.of(plan.experiment, tmp_path / "killed")
    finished, computed = {}, []
    for moment in [*moments, None]:
        with fill(tmp_path / "killed") as process:
            assert process.stdout is not None
            computed.append(process.stdout.readline())
            if moment is not None:
                time.sleep(moment)
                process.send_signal(signal.SIGKILL)
            computed.extend(process.stdout)
        recomputed = set(map(int, filter(None, computed))) & set(finished)
        assert not recomputed
        computed.clear()
        for record in folder._chunk_records():
            finished.setdefault(record.chunk, record.sha256)
            assert finished[record.chunk] == record.sha256
    assert not folder.missing(plan)
    whole = RunFolder.of(plan.experiment, tmp_path / "whole").path
    killed, expected = files_of(folder.path), files_of(whole)
    assert killed.keys() == expected.keys()
    assert [name for name in killed if killed[name] != expected[name]] == []


STUCK = """
import ctypes, sys, time
from types import ModuleType, SimpleNamespace
import ddln.sweeps
from ddln.cli import main as cli

lanes = ModuleType("ddln.sweeps.compute")
lanes.validate = lambda chunk: None
lanes.compute = lambda chunk, report: ctypes.CDLL(None).sleep(60)  # deaf to signals, like XLA
sys.modules["ddln.sweeps.compute"] = ddln.sweeps.compute = lanes
cli.start_jax = lambda *_: None
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_exits_at_once_with_advice(number, tmp_path):
    command = [sys.executable, "-c", STUCK, "run", FIGURE4, "--json-lines"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "plan"
        time.sleep(0.2)
        sent = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate()
        assert time.monotonic() - sent < RETURNS_WITHIN
    assert process.returncode == 128 + number
    assert err == "\nstopped; the same command resumes the run\n"
    assert json.loads(out) == {"event": "stopped", "exit": 128 + number}


SWALLOW = """
import os, signal, time, weakref
from ddln.cli import signals

class Held:
    pass

with signals.interruptible():
    held = Held()
    reference = weakref.ref(held, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del held
    print("swallowed", flush=True)
    time.sleep(60)
"""


def test_stop_signal_swallowed_by_a_finaliser_still_stops():
    command = [sys.executable, "-c", SWALLOW]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=50)
    assert time.monotonic() - began < 50
    assert done.stdout == "swallowed\n"
    assert done.stderr.startswith("\nstopped; the same command resumes the run\n")


AMID = """
import os, signal, sys, time
from pathlib import Path
from ddln.sweeps import _netcdf
from ddln.cli.signals import interruptible

class Half:
    def __del__(self):
        self.whole

def work(path):
    half = Half()
    with _netcdf.hdf5_writer(path) as file:
        os.kill(os.getpid(), signal.SIGTERM)
        file.write(b"all of it")
    time.sleep(60)

with interruptible():
    work(Path(sys.argv[1]))
"""


def test_stop_signal_while_writing_waits_for_the_file(tmp_path):
    command = [sys.executable, "-c", AMID, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=50)
    assert (tmp_path / "file").read_bytes() == b"all of it"
    # The half-made object raises nothing; the last lines are those of the exit status.
    message, _, ending = done.stderr.partition("Traceback")
    assert message == "\nstopped; the same command resumes the run\n"
    assert "Half" not in ending


OPENING = """
import os, signal, sys, time
from pathlib import Path
from ddln.sweeps import _netcdf
from ddln.cli.signals import interruptible

def stop_amid(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)

_netcdf.check_self_contained = stop_amid
with interruptible():
    _netcdf.open_dataset(Path(sys.argv[1]))
    print("opened", flush=True)
    time.sleep(60)
"""


def test_stop_signal_while_opening_waits_for_the_file(tmp_path):
    # h5py turned it into a SystemError, which was reported as a broken file.
    path = tmp_path / "data.nc"
    xr.Dataset({"x": 3.0}).to_netcdf(path, engine="h5netcdf")
    command = [sys.executable, "-c", OPENING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=50)
    assert done.stdout == "opened\n"
    assert done.stderr.startswith("\nstopped; the same command resumes the run\n")


LANES = 100_000
LARGE = [
    f"sweep.network.scale={{linspace=[0.7, 1.8, {LANES}]}}",
    *("dynamics.points=21", "dynamics.until=0.2", "dynamics.save=loss"),
]


def run_large(root, kill_after=None):
    """Run the large sweep; return its exit status and its peak memory in bytes.

    Args:
        root: the folder of run folders.
        kill_after: seconds from the beginning of computing.
    """
    command = [sys.executable, "-m", "ddln.cli", "run", FIGURE4, *LARGE, "--out", str(root)]
    as_users_run_it = {name: ENVIRONMENT[name] for name in ENVIRONMENT if name != "XLA_FLAGS"}
    process = subprocess.Popen(
        [*command, "--json-lines"], stdout=subprocess.PIPE, text=True, env=as_users_run_it
    )
    assert process.stdout is not None
    if kill_after is not None:
        assert json.loads(process.stdout.readline())["event"] == "plan"
        time.sleep(kill_after)
        process.kill()
    # Not by `os.wait4`: its peak includes that of this process, from which the run was forked.
    peak = max((peak_memory(process.pid) for _ in process.stdout), default=0)
    process.stdout.close()
    return process.wait(), peak


def peak_memory(pid):
    """The peak memory of a running process, in bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def written(folder):
    """The time at which each finished chunk's file was written."""
    return {
        record.chunk: (folder.path / f"chunks/{record.chunk:05d}.nc").stat().st_mtime_ns
        for record in folder._chunk_records()
    }


@pytest.mark.slow
def test_hundred_thousand_networks_survive_ten_kills_in_bounded_memory(tmp_path):
    plan = make_plan(load(FIGURE4, LARGE))
    folder = RunFolder.of(plan.experiment, tmp_path / "killed")
    began = time.monotonic()
    code, peak = run_large(tmp_path / "whole")
    seconds = time.monotonic() - began
    assert code == 0
    assert peak < 4 * GIB
    finished = {}
    # Together less than the whole run, of which each kill also loses a part.
    for moment in [*(seconds * np.random.default_rng(1).uniform(0.02, 0.15, 10)), None]:
        code, peak = run_large(tmp_path / "killed", moment)
        assert code == (0 if moment is None else -signal.SIGKILL)
        assert peak < 4 * GIB
        now = written(folder)
        assert finished.items() <= now.items()
        finished = now
    assert not folder.missing(plan)
    assert sum(folder.status_counts().values()) == LANES
    expected = files_of(RunFolder.of(plan.experiment, tmp_path / "whole").path)
    killed = files_of(folder.path)
    assert [name for name in expected if killed[name] != expected[name]] == []
