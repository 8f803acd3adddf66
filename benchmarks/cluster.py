"""What does a cluster cost and gain? `python -m benchmarks.cluster` writes benchmarks/cluster.png.

Workers have one core each, which stands for machines of their own. The sweep is that of Figure 4,
16 chunks of 256 networks. Then a schedule of up to a thousand workers is simulated from what was
measured: a scheduler that hands out one chunk after the other, workers, and storage that takes one
chunk after the other.
"""

import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ddln import execution
from ddln.cluster import way_to_compute
from ddln.config import load
from ddln.plan import make_plan
from ddln.runtime import start_jax
from ddln.store import RunFolder

CHUNKS, LANES = 16, 256
WORKERS = np.unique(np.geomspace(1, 1000, 25).astype(int))


def sweep(seed: int):
    """A plan of its own for every seed: nothing is there already."""
    seeds = f"sweep={{network.init.seed={{range=[{seed}, {seed + CHUNKS * LANES}]}}}}"
    return make_plan(load("configs/figure4.toml", [seeds]))


def measure(root: Path, workers: int) -> dict[str, float]:
    """Seconds a chunk, computed and already there, with so many workers of a core each."""
    where = root / f"{workers}.json"
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"),
            *("--port", "0", "--no-dashboard", "--scheduler-file", str(where)),
        ],
        stderr=subprocess.DEVNULL,
    ) as scheduler:
        while not where.exists():
            time.sleep(0.1)
        own = sorted(os.sched_getaffinity(0))[:workers]
        started = [_worker(where, core) for core in own]
        try:
            with way_to_compute(str(where)) as way:
                start_jax()
                _timed(root, sweep(10**6 * workers), way)  # compiles
                plan = sweep(10**6 * workers + 10**5)
                return {"computed": _timed(root, plan, way), "there": _there(root, plan, way)}
        finally:
            for process in (*started, scheduler):
                process.kill()


def _worker(where: Path, core: int) -> subprocess.Popen:
    options = ("--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--no-dashboard")
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(where)]
    return subprocess.Popen(
        [*command, *options],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def _timed(root: Path, plan, way) -> float:
    folder = RunFolder.of(plan.experiment, root)
    with execution.begun(folder, plan, way):
        began = time.perf_counter()
        for _ in way.compute(folder, plan.chunks, lambda *_: None):
            pass
        return (time.perf_counter() - began) / len(plan.chunks)


def _there(root: Path, plan, way) -> float:
    """Of chunks that workers find in the folder: what is not computing."""
    return min(_timed(root, plan, way) for _ in range(3))


def schedule(
    workers: int, chunks: int, compute: np.ndarray, dispatch: float, write: float
) -> float:
    """Seconds that a sweep takes.

    Args:
        workers: how many.
        chunks: how many.
        compute: seconds that chunks were seen to take; the k-th takes one of them.
        dispatch: seconds of the scheduler for a chunk, one after the other.
        write: seconds of the storage for a chunk, one after the other.

    >>> schedule(2, 4, np.array([1.0]), 0.0, 0.0)
    2.0
    """
    free, scheduler, storage, end = [0.0] * workers, 0.0, 0.0, 0.0
    for k in range(chunks):
        began = scheduler = max(heapq.heappop(free), scheduler) + dispatch
        computed = began + float(compute[k % compute.size])
        storage = end = max(storage, computed) + write
        heapq.heappush(free, end)
    return end


def draw(compute: np.ndarray, dispatch: float, nbytes: float, path: Path) -> None:
    """Chunks a second against workers, for storage of several speeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="workers", ylabel="chunks per second"
    )
    for bandwidth, colour in ((1e8, "C1"), (1e9, "C0"), (1e10, "C2")):
        rates = [
            40 * n / schedule(n, 40 * n, compute, dispatch, nbytes / bandwidth) for n in WORKERS
        ]
        axes.plot(WORKERS, rates, "o-", ms=3, color=colour, label=f"storage {bandwidth:.0e} B/s")
    axes.plot(WORKERS, WORKERS / compute.mean(), ":", color="0.4", label="no overhead")
    axes.axhline(1 / dispatch, ls="--", color="0.4", lw=1)
    axes.annotate("scheduler", (1, 1 / dispatch), va="bottom", fontsize=8)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)


def main() -> None:
    """Measure, print, draw."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measured = {workers: measure(root, workers) for workers in (1, 2)}
        sizes = [path.stat().st_size for path in root.glob("*/chunks/*.nc")]
    one, two = measured[1], measured[2]
    facts = {
        "seconds a chunk, 1 worker": one["computed"],
        "seconds a chunk, 2 workers": two["computed"],
        "speed-up": one["computed"] / two["computed"],
        "seconds a chunk that is not computing": one["there"],
        "bytes a chunk": float(np.mean(sizes)),
    }
    print(json.dumps(facts, indent=1))
    draw(
        np.array([one["computed"] - one["there"]]),
        two["there"],
        facts["bytes a chunk"],
        Path(__file__).with_name("cluster.png"),
    )


if __name__ == "__main__":
    main()
