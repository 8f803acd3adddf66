"""What does a cluster cost and gain? `python -m benchmarks.cluster` draws docs/images/cluster.png.

Workers have one core each, which stands for machines of their own. The sweep is that of Figure 4,
16 chunks of 256 networks. Then a schedule of up to a thousand workers is simulated from what was
measured: a scheduler that hands out one chunk after the other, workers, and storage that takes one
chunk after the other. Needs a quiet machine of two cores, and some minutes.
"""

import contextlib
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddln.config.experiment import load
from ddln.sweeps import executor
from ddln.sweeps.dask_executor import DaskExecutor, open_executor
from ddln.sweeps.environment import start_jax
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder

CHUNKS, LANES, TASKS = 16, 256, 2000
WORKERS = np.unique(np.geomspace(1, 1000, 25).astype(int))
STORAGE = {1e8: "C1", 1e9: "C0", 1e10: "C2"}
"""Assumed bytes per second, and the colour of the curve."""
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "cluster.png"


def sweep(number: int):
    """A separate plan for every number, so that no chunk exists already."""
    first = number * CHUNKS * LANES
    seeds = f"sweep={{network.init.seed={{range=[{first}, {first + CHUNKS * LANES}]}}}}"
    return make_plan(load("configs/figure4.toml", [seeds]))


def seconds_of_chunks(root: Path, plan, workers: executor.Executor) -> np.ndarray:
    """Seconds from the end of each chunk to that of the next; the first counts from the start."""
    folder = RunFolder.of(plan.experiment, root)
    with executor.open_run(folder, plan, workers):
        ends = [time.perf_counter()]
        ends += [time.perf_counter() for _ in workers.compute(folder, plan.chunks, lambda *_: None)]
    return np.diff(ends)


@contextlib.contextmanager
def cluster(root: Path, cores: list[int]) -> Iterator[DaskExecutor]:
    """A scheduler, and a worker on each of these cores."""
    where = root / f"{len(cores)}.json"
    scheduler = _start(
        *("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
        *("--scheduler-file", str(where)),
    )
    while not where.exists():
        time.sleep(0.1)
    options = ("--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--no-dashboard")
    workers = [_start("worker", "--scheduler-file", str(where), *options) for _ in cores]
    for worker, core in zip(workers, cores, strict=True):
        os.sched_setaffinity(worker.pid, {core})
    try:
        with open_executor(str(where)) as remote:
            assert isinstance(remote, DaskExecutor)
            remote._connected().wait_for_workers(len(cores))
            yield remote
    finally:
        for process in (*workers, scheduler):
            process.kill()


def _start(verb: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", f"distributed.cli.dask_{verb}", *options]
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"}
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)


def seconds_of_a_task(workers: DaskExecutor) -> float:
    """Overhead of an empty task in scheduler, client and workers."""
    client = workers._connected()
    began = time.perf_counter()
    client.gather(client.map(abs, range(TASKS), pure=False))
    return (time.perf_counter() - began) / TASKS


def measure(root: Path) -> tuple[dict[str, float], np.ndarray]:
    """The measured costs, and the seconds that each chunk took on a core."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    start_jax()
    os.sched_setaffinity(0, cores[:1])
    for number in (0, 1):  # the first compiles
        alone = seconds_of_chunks(root, sweep(number), executor.LocalExecutor())
    os.sched_setaffinity(0, cores)
    taken, there = {}, {}
    for count in (1, 2):
        with cluster(root, cores[:count]) as workers:
            plan = sweep(10 * count)
            seconds_of_chunks(root, plan, workers)  # compiles
            others = (sweep(10 * count + k) for k in (1, 2, 3))
            taken[count] = min(seconds_of_chunks(root, other, workers).mean() for other in others)
            there[count] = min(seconds_of_chunks(root, plan, workers).mean() for _ in range(3))
            task = seconds_of_a_task(workers)
    sizes = [path.stat().st_size for path in root.glob("*/chunks/*.nc")]
    return {
        "seconds a chunk, without a cluster": alone.mean(),
        "seconds a chunk, 1 worker": taken[1],
        "seconds a chunk, 2 workers": taken[2],
        "speed-up": taken[1] / taken[2],
        "seconds a chunk that is there already, 1 worker": there[1],
        "seconds a task that is nothing": task,
        "bytes a chunk": float(np.mean(sizes)),
    }, alone


def schedule(
    workers: int, chunks: int, compute: np.ndarray, dispatch: float, write: float
) -> float:
    """Seconds that a sweep takes.

    Args:
        workers: how many.
        chunks: how many.
        compute: seconds that chunks were seen to take; each takes one of them, at random.
        dispatch: seconds of the scheduler for a chunk, one after the other.
        write: seconds of the storage for a chunk, one after the other.

    >>> schedule(2, 4, np.array([1.0]), 0.0, 0.0)
    2.0
    >>> schedule(1000, 1000, np.array([1.0]), 1.0, 0.0)  # by the scheduler alone
    1001.0
    """
    free, scheduler, storage = [0.0] * workers, 0.0, 0.0
    for seconds in np.random.default_rng(0).choice(compute, chunks).tolist():
        scheduler = max(heapq.heappop(free), scheduler) + dispatch
        storage = max(storage, scheduler + seconds) + write
        heapq.heappush(free, storage)
    return storage


def draw(facts: dict[str, float], compute: np.ndarray, path: Path) -> None:
    """Chunks a second against workers, for storage of several speeds."""
    from matplotlib.figure import Figure

    task, nbytes = facts["seconds a task that is nothing"], facts["bytes a chunk"]
    each = compute + facts["seconds a chunk that is there already, 1 worker"]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(
        xscale="log",
        yscale="log",
        xlim=(0.8, 4 * WORKERS[-1]),
        xlabel="workers",
        ylabel="chunks per second",
    )
    axes.plot(WORKERS, WORKERS / each.mean(), ":", color="0.4")
    axes.annotate("no one waits ", (60, 60 / each.mean()), ha="right", va="bottom", fontsize=8)
    for bandwidth, colour in STORAGE.items():
        rates = [40 * n / schedule(n, 40 * n, each, task, nbytes / bandwidth) for n in WORKERS]
        axes.plot(WORKERS, rates, "o-", ms=3, color=colour)
        at, label = (WORKERS[-1], rates[-1]), f"  storage of\n  {bandwidth / 1e9:g} GB/s"
        axes.annotate(label, at, va="center", fontsize=8, color=colour)
    axes.axhline(1 / task, ls="--", color="0.4", lw=1)
    axes.annotate("the scheduler hands out no more", (1, 1 / task), va="bottom", fontsize=8)
    axes.set_ylim(0.5 / each.mean(), 2 / task)
    figure.savefig(path, dpi=160)


def main() -> None:
    """Measure, print, draw."""
    with tempfile.TemporaryDirectory() as folder:
        facts, compute = measure(Path(folder))
    print(json.dumps(facts, indent=1))
    draw(facts, compute, FIGURE)


if __name__ == "__main__":
    main()
