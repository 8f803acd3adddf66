"""Whole processes: `ddln run` and `ddln verify` on Figure 4, beside a plain diffrax script.

`python -m benchmarks.latency` prints the table. Each command runs in turn with the script, so that
both see the same machine; the ratios of such pairs are compared, not the times.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SCRIPT = Path(__file__).with_name("plain_figure4.py")
PAIRS = 7
NEW_DEPTH = "network.depth=7"
SCALES = "sweep.network.scale={linspace=[0.7,1.8,8000]}"


class Cost(NamedTuple):
    """What a process took, in seconds."""

    elapsed: float
    processor: float
    """User and system time of all its threads."""


def cost(command: list[str], folder: Path, cache: Path) -> Cost:
    """Run a command in a folder, with its own cache of programs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit status {process.returncode}")
    return Cost(elapsed, usage.ru_utime + usage.ru_stime)


def pairs(folder: Path) -> Iterator[tuple[str, list[tuple[Cost, Cost]]]]:
    """Each measurement's name, and the costs of ddln and of the script in each pair."""
    ddln, config = [sys.executable, "-m", "ddln.cli"], str(ROOT / "configs" / "figure4.toml")
    cache, fresh = folder / "cache", folder / "fresh"

    def run(seed: int) -> Cost:
        return cost([*ddln, "run", config, f"network.init.seed={seed}"], folder, cache)

    def run_new_depth(seed: int) -> Cost:
        shutil.copytree(cache, fresh)
        return run_first(seed)

    def run_first(seed: int) -> Cost:
        try:
            numbers = [NEW_DEPTH, f"network.init.seed={seed}"]
            return cost([*ddln, "run", config, *numbers], folder, fresh)
        finally:
            shutil.rmtree(fresh)

    def sweep(seed: int) -> Cost:
        return cost([*ddln, "run", config, SCALES, f"network.init.seed={seed}"], folder, cache)

    def verify(seed: int) -> Cost:
        return cost([*ddln, "verify", config, f"network.init.seed={seed}"], folder, cache)

    measured: dict[str, Callable[[int], Cost]] = {
        "`ddln run figure4`, all compiled before": run,
        "`ddln run figure4`, a depth never compiled": run_new_depth,
        "`ddln run figure4`, the first on a machine": run_first,
        "`ddln verify figure4`, all compiled before": verify,
        "`ddln run figure4`, 8,000 scales": sweep,
    }
    for compile_all in (run, sweep):
        compile_all(100)
    for name, measure in measured.items():
        script = [sys.executable, str(SCRIPT)]
        yield name, [(measure(k), cost(script, folder, cache)) for k in range(1, 1 + PAIRS)]


def table() -> str:
    """A table in Markdown."""
    lines = [
        "## From command to figure: whole processes",
        "",
        "| | seconds | the plain script | ratio, median (least–most) | ratio of processor time |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, costs in pairs(Path(folder)):
            ratios = [ours.elapsed / plain.elapsed for ours, plain in costs]
            used = statistics.median(ours.processor / plain.processor for ours, plain in costs)
            ours, plain = (
                statistics.median(each.elapsed for each in side)
                for side in zip(*costs, strict=True)
            )
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            lines.append(f"| {name} | {ours:.1f} | {plain:.1f} | {spread} | {used:.2f} |")
    lines += [
        "",
        f"Medians of {PAIRS}, in turn with the script, `benchmarks/plain_figure4.py`, which solves",
        "the same three networks with diffrax and saves three files, without certificates.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
