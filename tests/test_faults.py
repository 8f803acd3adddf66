"""Faults of a machine: kills, full disks, missing permissions, damaged files, too little memory.

Processes and files are real; `stand_in` replaces the computing. After each fault the finished
chunks are there, one message states the fault, and the same command ends with the bytes of an
undisturbed run.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddln.config.experiment import load
from ddln.sweeps import compute
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder
from tests import stand_in

CONFIG, CHUNKS = stand_in.CONFIG, 4
SWEEP = stand_in.sweep(CHUNKS)
FOLLOWS = "; finished chunks are kept, and the same command resumes the run"


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    processes = stand_in.Processes(tmp_path_factory.mktemp("processes"))
    yield processes
    processes.close()


class Runs:
    """Runs of one sweep into separate folders, compared with an undisturbed run."""

    def __init__(self, processes, chunks):
        self.processes, self.overrides = processes, stand_in.sweep(chunks)
        self.plan = make_plan(load(CONFIG, self.overrides))
        assert len(self.plan.chunks) == chunks
        began = time.monotonic()
        code, _ = self.call(f"whole{chunks}")
        assert code == 0
        self.seconds = time.monotonic() - began
        self.whole = self.files(f"whole{chunks}")

    def root(self, name):
        return self.processes.folder / name

    def folder(self, name):
        return RunFolder.of(self.plan.experiment, self.root(name))

    def arguments(self, name):
        return ["run", CONFIG, *self.overrides, "--out", str(self.root(name))]

    def call(self, name, **controls):
        return self.processes.call(*self.arguments(name), **controls)

    def files(self, name):
        folder = self.folder(name).path
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    def start_finished(self, name):
        """Begin with a copy of the undisturbed run."""
        shutil.copytree(self.root(f"whole{len(self.plan.chunks)}"), self.root(name))

    def finished(self, name):
        """The files of the finished chunks, by name."""
        folder = self.folder(name)
        if not folder.path.exists():
            return {}
        missing = {chunk.index for chunk in folder.missing(self.plan)}
        names = {f"chunks/{chunk.index:05d}.nc" for chunk in self.plan.chunks} - {
            f"chunks/{index:05d}.nc" for index in missing
        }
        return {name: content for name, content in self.files(name).items() if name in names}

    def assert_goes_on(self, name, finished):
        """Finished chunks stay, and the run ends with the bytes of an undisturbed one."""
        assert finished.items() <= self.whole.items()
        before = {path: path.stat().st_mtime_ns for path in self.chunk_files(name, finished)}
        code, message = self.call(name)
        assert (code, "Traceback" in message) == (0, False)
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert self.files(name) == self.whole

    def chunk_files(self, name, finished):
        return [self.folder(name).path / chunk for chunk in finished]


@pytest.fixture(scope="module")
def runs(processes):
    return Runs(processes, CHUNKS)


def kill_at_random_moments(runs, trials, rng):
    """Kill and resume runs until there are enough trials."""
    done = 0
    while done < trials:
        name, finished, code = f"killed{len(runs.plan.chunks)}-{done}", {}, None
        while code != 0 and done < trials:
            pid = runs.processes.start(*runs.arguments(name))
            time.sleep(rng.uniform(0.0, runs.seconds))
            sent = [signal.SIGKILL, signal.SIGTERM][done % 2]
            # A process that has ended can still be signalled: nobody has waited for it yet.
            os.kill(pid, sent)
            code, message = runs.processes.wait(pid), runs.processes.said(pid)
            # Before the command handles SIGTERM, the signal ends it.
            assert code in (0, -sent, 128 + sent), message
            assert "Traceback" not in message
            if code == 128 + sent:
                assert message.endswith("\nstopped; the same command resumes the run\n")
            now = runs.finished(name)
            assert finished.items() <= now.items() <= runs.whole.items()
            finished = now
            done += 1
        runs.assert_goes_on(name, finished)


def test_three_kills_lose_nothing_and_change_no_byte(runs):
    kill_at_random_moments(runs, 3, np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 4, 30])
def test_kills_at_random_moments_lose_nothing_and_change_no_byte(processes, chunks):
    rng = np.random.default_rng(chunks)
    kill_at_random_moments(Runs(processes, chunks), 70, rng)


@pytest.mark.parametrize(
    "file", ["config.toml", "manifest.json", "chunks/00000.nc", "dataset.nc", "figures/figure4.pdf"]
)
def test_file_too_large_for_the_disk_gives_one_message(runs, file):
    """HDF5 crashes if a write fails; `ddln` must report the error instead."""
    name = f"full {Path(file).name}"
    code, said = runs.call(name, fsize=len(runs.whole[file]) - 1)
    last = said.splitlines()[-1]
    assert (code, "Traceback" in said) == (2, False)
    assert last.startswith(f"ddln: {runs.folder(name).path}/")
    assert last.endswith(f": File too large{FOLLOWS}")
    assert not list(runs.folder(name).path.rglob("*.part"))
    runs.assert_goes_on(name, runs.finished(name))


def test_full_disk_gives_one_message(runs):
    name, room = "small", sum(map(len, runs.whole.values())) // 4
    runs.root(name).mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(runs.root(name))]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        code, said = runs.call(name)
        finished = runs.finished(name)
        again = runs.call(name)
        roomy = ["mount", "-o", "remount,size=16m", str(runs.root(name))]
        subprocess.run(roomy, check=True, capture_output=True)
        runs.assert_goes_on(name, finished)
    finally:
        subprocess.run(["umount", str(runs.root(name))], check=True, capture_output=True)
    assert 0 < len(finished) < CHUNKS
    for status, text in ((code, said), again):
        assert status == 2
        assert text.splitlines()[-1].endswith(f"No space left on device{FOLLOWS}")


REAL = [
    *("sweep={}", "sweep.network.scale={linspace=[0.7, 1.8, 64]}", "memory=0.0006"),
    *("network.depth=3", "dynamics.points=21"),
]


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [100, 300, 500])
def test_full_disk_gives_one_message_in_a_real_run(tmp_path, kilobytes):
    """HDF5 used to crash on data sets of real runs, but not on those of the stand-in."""
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(tmp_path)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    command = [sys.executable, "-m", "ddln.cli", "run", CONFIG, *REAL, "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, capture_output=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.splitlines()[-1].endswith(f"No space left on device{FOLLOWS}")


def test_read_only_folder_gives_one_message_and_is_unchanged(runs):
    name = "readonly"
    runs.root(name).mkdir()
    runs.root(name).chmod(0o555)
    code, said = runs.call(name, unprivileged=True)
    assert (code, said) == (2, f"ddln: {runs.folder(name).path}: Permission denied\n")
    runs.root(name).chmod(0o755)
    runs.call(name, fsize=len(runs.whole["dataset.nc"]) - 1)
    finished = runs.finished(name)
    assert len(finished) == CHUNKS
    folders = [runs.folder(name).path, *runs.folder(name).path.iterdir()]
    for path in folders:
        path.chmod(0o555 if path.is_dir() else 0o444)
    code, said = runs.call(name, unprivileged=True)
    assert (code, "Permission denied" in said, len(said.splitlines())) == (2, True, 1)
    for path in folders:
        path.chmod(0o755)
    runs.assert_goes_on(name, finished)


def test_finished_run_is_shown_from_a_read_only_folder(runs):
    name = "shown"
    runs.start_finished(name)
    for path in runs.folder(name).path.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert runs.call(name, unprivileged=True) == (0, "")
    assert runs.processes.call("show", str(runs.folder(name).path), unprivileged=True)[0] == 0


def test_clock_going_backwards_changes_nothing(runs):
    name = "clock"
    runs.call(name, fsize=len(runs.whole["dataset.nc"]) - 1)
    finished = runs.finished(name)
    for path in runs.folder(name).path.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert runs.call(name, clock=True)[0] == 0
    runs.assert_goes_on(name, finished)


def test_second_writer_is_refused_and_the_first_unaffected(runs):
    name = "two"
    first, second = (runs.processes.start(*runs.arguments(name)) for _ in range(2))
    codes = runs.processes.wait(first), runs.processes.wait(second)
    refused = [pid for pid, code in zip((first, second), codes, strict=True) if code]
    if refused:  # otherwise one ended before the other began
        assert sorted(codes) == [0, 2]
        message = "another process is working on this run; wait, or stop it\n"
        assert runs.processes.said(refused[0]) == f"ddln: {runs.folder(name).path}: {message}"
    runs.assert_goes_on(name, runs.finished(name))


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "manifest cut", "record cut"])
def test_damage_is_detected_and_repaired_to_the_last_byte(runs, damage):
    name = f"damaged {damage}"
    runs.start_finished(name)
    path = runs.folder(name).path
    chunk, other = path / "chunks" / "00001.nc", path / "chunks" / "00002.nc"
    content, kept = bytearray(chunk.read_bytes()), CHUNKS - 1
    if damage == "cut":
        chunk.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        chunk.write_bytes(content)
    elif damage == "swapped":
        chunk.write_bytes(other.read_bytes())
        other.write_bytes(content)
        kept = CHUNKS - 2
    else:
        record = path / {"manifest cut": "manifest.json"}.get(damage, "chunks/00001.json")
        record.write_bytes(record.read_bytes()[:-100])
        kept = CHUNKS if damage == "manifest cut" else kept
    finished = runs.finished(name)
    assert len(finished) == kept
    runs.assert_goes_on(name, finished)


def test_run_of_an_older_format_is_refused_by_the_command(runs):
    name = "older"
    runs.start_finished(name)
    (runs.folder(name).path / "manifest.json").write_text('{"format": 1, "chunks": {}}')
    before = runs.files(name)
    code, said = runs.call(name)
    assert code == 2
    assert said.endswith("written in format 1, this is 2; move the folder away to run again\n")
    assert runs.files(name) == before


def test_changed_config_makes_a_new_run(runs):
    name = "changed"
    runs.start_finished(name)
    config = runs.folder(name).path / "config.toml"
    config.write_text(config.read_text().replace("until = 3.0", "until = 2.0"))
    before = runs.files(name)
    assert before["config.toml"] != runs.whole["config.toml"]
    out = str(runs.root(name))
    assert runs.processes.call("run", str(config), "--out", out)[0] == 0
    assert len(list(runs.root(name).iterdir())) == 2
    assert runs.files(name) == before
    # A folder under another run's name must not be written to.
    (other,) = set(runs.root(name).iterdir()) - {runs.folder(name).path}
    runs.folder(name).path.rename(runs.root(name) / "away")
    other.rename(runs.folder(name).path)
    code, said = runs.call(name)
    assert code == 2
    assert f"holds the run {other.name[-10:]}, not {runs.plan.experiment.digest()}" in said


MEMORY = 3  # the largest number of networks that fit into memory


class Memory:
    """Replaces the computing of a chunk, and raises a real error for too many networks."""

    def __init__(self, lanes, refuse):
        self.lanes, self.refuse, self.widths = lanes, refuse, []

    def together(self, chunk, report, recompute):
        if chunk.width > self.lanes:
            self.refuse()
        assert chunk.lanes.size <= chunk.width
        self.widths.append(chunk.width)
        return stand_in._compute(chunk).assign_coords(lane=chunk.lanes)


def allocate_too_much():
    jax.jit(lambda: jnp.zeros(2**46))().block_until_ready()


def allocate_too_much_on_the_host():
    np.ones(2**50)


@pytest.mark.parametrize("refuse", [allocate_too_much, allocate_too_much_on_the_host])
def test_out_of_memory_splits_only_the_chunk_concerned(tmp_path, monkeypatch, refuse):
    experiment = load(CONFIG, ["sweep={network.init.seed={range=[0, 11]}}"])
    plan = make_plan(experiment, chunk_lanes=6)
    assert [chunk.lanes.size for chunk in plan.chunks] == [6, 5]
    roomy, tight = Memory(6, refuse), Memory(MEMORY, refuse)
    ran = {"roomy": [roomy, roomy], "one tight": [tight, roomy]}
    for name, memories in ran.items():
        folder = RunFolder.of(experiment, tmp_path / name)
        with folder.locked():
            folder.open(plan)
            for chunk, memory in zip(plan.chunks, memories, strict=True):
                monkeypatch.setattr(compute, "_compute_at_once", memory.together)
                message = "chunk 0: out of memory with 6 networks at once, continuing with 3"
                expected = pytest.warns(ResourceWarning, match=message)
                with expected if memory is tight else contextlib.nullcontext():
                    folder.write_chunk(chunk, compute.compute(chunk))
        assert folder.count_split_chunks() == int(name == "one tight")
        assert folder.status_counts() == {"ok": 11}
        assert not folder.missing(plan)
    assert tight.widths == [3, 3]
    roomy, tight = (
        RunFolder.of(experiment, tmp_path / name).path for name in ("roomy", "one tight")
    )
    for name in ("chunks/00001.nc", "chunks/00001.json"):
        assert (roomy / name).read_bytes() == (tight / name).read_bytes()


def test_out_of_memory_with_one_network_gives_one_message(monkeypatch):
    monkeypatch.setattr(compute, "_compute_at_once", Memory(0, allocate_too_much).together)
    chunk = make_plan(load(CONFIG), chunk_lanes=1).chunks[0]
    with pytest.raises(MemoryError, match="out of memory with a single network"):
        compute.compute(chunk)


def test_other_device_errors_are_not_treated_as_out_of_memory(monkeypatch):
    def fail(chunk, report, again):
        raise jax.errors.JaxRuntimeError("INTERNAL: no such thing")

    monkeypatch.setattr(compute, "_compute_at_once", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compute.compute(make_plan(load(CONFIG)).chunks[0])
