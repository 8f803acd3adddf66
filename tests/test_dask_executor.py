"""Sweeps on a Dask cluster of real processes, some of which are killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddln.config.experiment import load
from ddln.solvers import _batching
from ddln.solvers._steppers import Rodas5P, Tsit5
from ddln.sweeps import _dask_address, dask_executor, executor
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder
from tests import stand_in

ROOT = Path(__file__).parent.parent
PRELOAD = "cluster_worker"  # by name: given a path, Dask would run a copy of the file
PRELOADED = ("--preload", PRELOAD)
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
CHUNKS = 12
SWEEP = stand_in.sweep(CHUNKS)
PATIENT = 60.0  # seconds to wait on a busy machine


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("local:0", "local:N must have N ≥ 1, got local:0"),
        ("locl", "must be local, local:N, tls://HOST:PORT, tcp://HOST:PORT or a scheduler file"),
        *(
            (address, f"must be tls://HOST:PORT or tcp://HOST:PORT, got {address}")
            for address in ("http://a:1", "tcp://a", "tcp://a:b", "tcp://a:99999", "tls://:1")
        ),
    ],
)
def test_invalid_cluster_option_is_refused(where, message):
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match=re.escape(message)), dask_executor.open_executor(where):
        pass


def test_local_workers_that_do_not_start_are_reported(monkeypatch):
    distributed = pytest.importorskip("distributed")

    def start(**_):
        raise RuntimeError("Cluster failed to start: Nanny failed")

    monkeypatch.setattr(distributed, "LocalCluster", start)
    told = "2 local workers did not start: Cluster failed to start: Nanny failed"
    with pytest.raises(OSError, match=told), dask_executor.open_executor("local:2"):
        pass


def test_unreachable_scheduler_gives_advice():
    def connect():
        raise OSError("nobody there")

    message = "no scheduler answers at tcp://a:1: `dask scheduler` must be running there"
    with pytest.raises(ConnectionError, match=re.escape(message)):
        dask_executor.DaskExecutor(connect, "tcp://a:1")


def test_cluster_without_ddln_is_refused():
    class Broken:
        """Replaces a task that could not be unpickled."""

        def exception(self, timeout):
            return self.fault

        def done(self):
            return True

        def result(self):
            raise self.fault

        fault = RuntimeError("Error during deserialization of the task graph")

    client: Any = SimpleNamespace(submit=lambda *_, **__: Broken())
    message = (
        "at tcp://a:1 cannot compute: its scheduler and workers must have the versions of ddln"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        dask_executor.DaskExecutor(lambda: client, "tcp://a:1").provenance(None)


def test_only_public_unencrypted_addresses_give_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_dask_address, "_has_certificates", lambda: True)
    (tmp_path / "scheduler.json").write_text('{"address": "tcp://10.0.0.1:8786"}')
    for where in ("tcp://127.0.0.1:8786", "tcp://localhost:8786", "tls://10.0.0.1:8786"):
        assert _dask_address.scheduler_address(where) == where
    assert capsys.readouterr().err == ""
    assert (
        _dask_address.scheduler_address(str(tmp_path / "scheduler.json")) == "tcp://10.0.0.1:8786"
    )
    assert (
        "not encrypted, and whoever reaches it can run programs as you" in capsys.readouterr().err
    )


def test_local_workers_share_devices_and_ignore_ctrl_c(monkeypatch):
    heard = signal.getsignal(signal.SIGINT)
    try:
        for name, own in ((0, "4"), (1, "6"), (2, "4"), ("node-7", "4,6")):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
            dask_executor.dask_setup(SimpleNamespace(name=name))
            assert os.environ["CUDA_VISIBLE_DEVICES"] == own
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, heard)


def test_width_of_batches_does_not_depend_on_cores(monkeypatch):
    widths = []
    for cores in (1, 2, 64):
        monkeypatch.setattr(_batching, "_concurrency", lambda cores=cores: cores)
        places = len(_batching.concurrent_devices(None))
        widths.append(
            [
                _batching.batch_width(n, 8, way, places)
                for n in (1, 3, 64, 999)
                for way in (Tsit5, Rodas5P)
            ]
        )
    assert widths[0] == widths[1] == widths[2]


def test_lost_chunks_are_listed_up_to_a_limit():
    error = executor.LostChunks(9, {k: ValueError(f"no {k}") for k in (7, 1, 2, 3, 4, 5)})
    assert str(error).splitlines()[1:] == [
        *(f"chunk {k}: ValueError: no {k}" for k in (1, 2, 3, 4, 5)),
        "and 1 more",
    ]


def surroundings():
    """The environment of a started process."""
    return {**os.environ, "PYTHONPATH": PATHS, "MPLBACKEND": "Agg"}


UNWATCHED = "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"


class Machines:
    """A scheduler, its workers and clients, each in its own process."""

    def __init__(self, folder, plain, protocol="tcp", host="127.0.0.1"):
        self.folder, self.plain, self.processes, self.workers = folder, plain, [], []
        self.protocol, self.host = protocol, host
        with socket.socket() as free:
            free.bind((host, 0))
            self.port = str(free.getsockname()[1])
        self.address = f"{protocol}://{host}:{self.port}"
        self.clients = stand_in.Processes(folder)

    def start(self, name, *arguments, **environment):
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *arguments]
        environment = {**surroundings(), **environment}
        with (self.folder / f"{name}{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.folder
            )
        self.processes.append(process)
        return process

    def scheduler(self):
        return self.start(
            *("scheduler", "--protocol", self.protocol, "--host", self.host, "--port", self.port),
            "--no-dashboard",
            DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="2",
        )

    def worker(self, **environment):
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard")
        environment = {UNWATCHED: "false", **environment}
        worker = self.start("worker", self.address, *options, *PRELOADED, **environment)
        self.workers.append(worker)
        return worker

    def client(self, *overrides, out="runs"):
        run = ("run", stand_in.CONFIG, *SWEEP, *overrides)
        return self.clients.start(*run, "--out", out, "--cluster", self.address)

    def close(self):
        self.clients.close()
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The files of a run without a cluster, by name."""
    processes = stand_in.Processes(tmp_path_factory.mktemp("plain"))
    code, said = processes.call("run", stand_in.CONFIG, *SWEEP, "--out", "runs")
    processes.close()
    assert code == 0, said
    (folder,) = (processes.folder / "runs").iterdir()
    return contents(folder)


@pytest.fixture
def machines(tmp_path, plain):
    machines = Machines(tmp_path, plain)
    yield machines
    machines.close()


@pytest.fixture
def folder(tmp_path):
    return RunFolder.of(load(stand_in.CONFIG, SWEEP), tmp_path / "runs")


PLAN = make_plan(load(stand_in.CONFIG, SWEEP))


def finished(folder):
    """The time at which each finished chunk was written."""
    return {
        chunk.index: (folder.path / f"chunks/{chunk.index:05d}.nc").stat().st_mtime_ns
        for chunk in PLAN.chunks
        if folder.chunk_status(chunk) is not None
    }


def wait_for(folder, chunks):
    until = time.monotonic() + PATIENT
    while len(now := finished(folder)) < chunks:
        assert time.monotonic() < until
        time.sleep(0.05)
    return now


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_nothing_was_lost_or_computed_again(machines, folder, before):
    now = finished(folder)
    assert len(now) == CHUNKS
    assert before.items() <= now.items()
    assert contents(folder.path) == machines.plain


@pytest.mark.slow
def test_killed_worker_loses_no_chunk(machines, folder):
    machines.scheduler()
    first = machines.worker()
    machines.worker()
    client = machines.client()
    before = wait_for(folder, 3)
    first.kill()
    assert machines.clients.wait(client) == 0, machines.clients.said(client)
    assert_nothing_was_lost_or_computed_again(machines, folder, before)


@pytest.mark.slow
def test_run_continues_after_the_scheduler_restarts(machines, folder):
    scheduler = machines.scheduler()
    machines.worker()
    client = machines.client()
    wait_for(folder, 3)
    scheduler.kill()
    scheduler.wait()
    for worker in machines.workers:  # workers end when they lose their scheduler
        worker.wait(PATIENT)
    before = finished(folder)
    machines.scheduler()
    machines.worker()
    assert machines.clients.wait(client) == 0, machines.clients.said(client)
    assert "is gone or was restarted; submitting the missing" in machines.clients.said(client)
    assert_nothing_was_lost_or_computed_again(machines, folder, before)


@pytest.mark.slow
def test_run_continues_after_the_client_restarts(machines, folder):
    machines.scheduler()
    machines.worker()
    machines.worker()
    client = machines.client()
    wait_for(folder, 3)
    os.kill(client, signal.SIGKILL)
    assert machines.clients.wait(client) == -signal.SIGKILL
    before = finished(folder)
    again = machines.client()
    assert machines.clients.wait(again) == 0, machines.clients.said(again)
    assert_nothing_was_lost_or_computed_again(machines, folder, before)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["cluster", "plain"])
def test_run_continues_with_another_executor(machines, folder, first):
    machines.scheduler()
    machines.worker()
    plain = ("run", stand_in.CONFIG, *SWEEP, "--out", "runs")
    start = {"cluster": machines.client, "plain": lambda: machines.clients.start(*plain)}
    client = start.pop(first)()
    wait_for(folder, 3)
    os.kill(client, signal.SIGINT)
    assert machines.clients.wait(client) == 128 + signal.SIGINT
    assert "the same command resumes the run" in machines.clients.said(client)
    time.sleep(0.5)  # a worker finishes the chunk it has begun
    before = finished(folder)
    (other,) = start.values()
    assert machines.clients.wait(other()) == 0
    assert_nothing_was_lost_or_computed_again(machines, folder, before)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "message"), [("raise", "ValueError: poisoned"), ("die", "Killed")])
def test_failing_chunk_is_reported_and_the_others_finish(machines, folder, how, message):
    machines.scheduler()
    for _ in range(4 if how == "die" else 1):  # the chunk kills three of them
        machines.worker(POISON=f"3:{how}")
    client = machines.client()
    assert machines.clients.wait(client) == 2
    said = machines.clients.said(client)
    assert f"ddln: 1 of {CHUNKS} chunks could not be computed" in said
    assert f"chunk 3: {message}" in said
    before = finished(folder)
    assert set(range(CHUNKS)) - set(before) == {3}
    machines.worker()
    for worker in machines.workers[:-1]:
        worker.kill()
    again = machines.client()
    assert machines.clients.wait(again) == 0, machines.clients.said(again)
    assert_nothing_was_lost_or_computed_again(machines, folder, before)


PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def recipe(language, holds):
    """The code block of docs/cluster.md in this language that contains this text."""
    (block,) = (b for b in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holds in b)
    return block


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with the certificate and tls.sh from the page."""
    home, script = tmp_path_factory.mktemp("home"), recipe("bash", "openssl")
    (home / "tls").mkdir()
    (home / "tls.sh").write_text(script)
    (once,) = re.findall(r"openssl req .*", script)
    subprocess.run(once, shell=True, cwd=home / "tls", check=True, capture_output=True)
    return home


@pytest.fixture
def encrypted(home, monkeypatch):
    """Apply the settings of tls.sh to this process and its children."""
    monkeypatch.setenv("HOME", str(home))
    result = subprocess.run(
        ["bash", "-c", "source tls.sh; env"], cwd=home, capture_output=True, text=True, check=True
    )
    for line in result.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.startswith("DASK_"):
            monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_kubernetes_recipe_is_a_cluster_over_tls(encrypted, monkeypatch, tmp_path, folder, plain):
    yaml = pytest.importorskip("yaml")
    (container,) = yaml.safe_load(recipe("yaml", "Deployment"))["spec"]["template"]["spec"][
        "containers"
    ]
    program, verb, address, *options = container["command"]
    assert (program, verb, address) == ("dask", "worker", "tls://ddln-scheduler:8786")
    machines = Machines(tmp_path, plain, "tls")
    try:
        machines.scheduler()
        own = {variable["name"]: variable["value"] for variable in container["env"]}
        machines.start(verb, machines.address, *options, *PRELOADED, **own)
        client = machines.client()
        assert machines.clients.wait(client) == 0, machines.clients.said(client)
        assert "not encrypted" not in machines.clients.said(client)
        assert_nothing_was_lost_or_computed_again(machines, folder, {})
        for name in [name for name in os.environ if name.startswith("DASK_")]:
            monkeypatch.delenv(name)
        (tmp_path / "elsewhere").mkdir()
        strangers = stand_in.Processes(tmp_path / "elsewhere")
        code, said = strangers.call(
            *("run", stand_in.CONFIG, *SWEEP, "--cluster", machines.address, "--out", "runs")
        )
        strangers.close()
        assert code == 2, said
        assert said.startswith(f"ddln: {machines.address}: needs certificates"), said
    finally:
        machines.close()


@pytest.mark.slow
def test_slurm_recipe_runs_as_written(home, tmp_path, folder, plain):
    commands = {
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "dask": f'verb=$1; shift; exec {sys.executable} -m distributed.cli.dask_$verb "$@"',
        "ddln": f'exec {sys.executable} -c "import stand_in; stand_in._prepare().main()" "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, line in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "tls.sh").write_text((home / "tls.sh").read_text())
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "figure4.py").write_text(stand_in.STUDY)
    (tmp_path / "sweep.toml").write_text(load(stand_in.CONFIG, SWEEP).to_toml())
    script = recipe("bash", "dask scheduler --protocol tls").replace("ib0", "lo")
    environment = {
        **surroundings(),
        "HOME": str(home),
        "SCRATCH": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "DASK_DISTRIBUTED__WORKER__PRELOAD": f"['{PRELOAD}']",
    }
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            ["bash", "-c", script],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        assert job.wait(PATIENT) == 0, (tmp_path / "log").read_text()
    finally:
        os.killpg(job.pid, signal.SIGKILL)
    assert contents(folder.path) == plain


@pytest.mark.slow
def test_array_jobs_divide_a_sweep_and_its_parts_go_together(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program = f'#!/bin/bash\nexec {sys.executable} -m ddln.cli "$@"\n'
    (tmp_path / "bin" / "ddln").write_text(program)
    (tmp_path / "bin" / "ddln").chmod(0o755)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "figure4.py").write_text(
        '"""A study."""\nfrom ddln.plotting import figures\n\n'
        "def claims(dataset):\n    return []\n\n"
        "def draw(dataset):\n    return figures.canvas()[0]\n"
    )
    small = ["network.depth=2", "dynamics.points=5", "dynamics.until=0.1", "sweep={}"]
    (tmp_path / "sweep.toml").write_text(load(stand_in.CONFIG, small).to_toml())
    for task in (1, 0):
        environment = {
            **surroundings(),
            "SCRATCH": str(tmp_path),
            "SLURM_ARRAY_TASK_ID": str(task),
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }
        script = recipe("bash", "SLURM_ARRAY_TASK_ID")
        subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, check=True)
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    names = {}
    exec(recipe('python title="gather.py"', "xarray.concat"), names)
    dataset = names["dataset"]
    assert dataset["network.init.seed"].values.tolist() == list(range(32))
    assert dataset["gap"].dims == ("network.init.seed", "time")


@pytest.mark.slow
def test_worker_with_profiler_is_refused(machines, folder):
    machines.scheduler()
    machines.worker(**{UNWATCHED: "true"})
    client = machines.client()
    assert machines.clients.wait(client) == 2
    assert f"workers must be started with {UNWATCHED}=false" in machines.clients.said(client)
    assert not (folder.path / "manifest.json").exists()


@pytest.mark.slow
def test_public_cluster_gives_a_warning_and_is_used(tmp_path, folder, plain):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect(("203.0.113.1", 9))  # no packet is sent
        own = route.getsockname()[0]
    machines = Machines(tmp_path, plain, "tcp", own)
    try:
        machines.scheduler()
        machines.worker()
        client = machines.client()
        assert machines.clients.wait(client) == 0, machines.clients.said(client)
        assert f"{machines.address}: not encrypted" in machines.clients.said(client)
        assert_nothing_was_lost_or_computed_again(machines, folder, {})
    finally:
        machines.close()


REAL = ["sweep={}", "sweep.network.scale={linspace=[0.7, 1.8, 40]}", "memory=0.02"]


@pytest.mark.slow
def test_two_workers_give_the_same_bytes_as_a_local_run(tmp_path):
    small = ["network.depth=3", "dynamics.points=21"]
    command = [sys.executable, "-m", "ddln.cli", "run", stand_in.CONFIG, *REAL, *small]
    for out, where in (("plain", []), ("cluster", ["--cluster", "local:2"])):
        done = subprocess.run(
            [*command, "--out", str(tmp_path / out), *where],
            env=surroundings(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "computing 40 of 40 networks" in done.stderr.splitlines()
    (plain,), (shared,) = ((tmp_path / out).iterdir() for out in ("plain", "cluster"))
    assert contents(plain) == contents(shared)


def alive_in_group(group):
    """Running processes, without zombies."""
    listed = subprocess.run(
        ["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    )
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [row for row in rows if row[0] == str(group) and not row[1].startswith("Z")]


@pytest.mark.slow
def test_ctrl_c_ends_a_local_cluster_and_all_its_processes(tmp_path):
    command = [sys.executable, "-m", "ddln.cli", "run", stand_in.CONFIG, *REAL]
    where = ["--out", str(tmp_path), "--cluster", "local:2"]
    with subprocess.Popen(
        [*command, *where],
        env=surroundings(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert "computing 40 of 40 networks\n" in process.stderr  # reads up to this line
        time.sleep(3.0)
        sent = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait() == 130
        assert time.monotonic() - sent < 10.0
    assert said == "\nstopped; the same command resumes the run\n"
    time.sleep(1.0)
    assert alive_in_group(process.pid) == []
