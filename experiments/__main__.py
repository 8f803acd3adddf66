"""Run every config in full; write experiments/RESULTS.md and the figures in docs/images/.

A config in configs/ is all that a study needs to be run here; `ddln new` makes one.

Every config is a `ddln run` in a process of its own, one after the other. An interrupted run
continues where it stopped, and a finished one is not repeated. The page lists the configs that have
run so far. A failed theorem or claim, or a refused run, does not stop the others; the exit status
is then 1.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ddln._internal.files import write_whole
from ddln.sweeps.run_folder import RunFolder
from ddln.verification import tables

ROOT = Path(__file__).parent.parent
COLOURS = 64
"""Of a page's figure: enough for a few hues and smooth edges, in a third of the bytes."""


class Result(NamedTuple):
    """The tables of a config's run, empty if it was refused, and its seconds if known."""

    claims: dict[str, list[dict[str, Any]]]
    seconds: float | None


def main() -> int:
    """Run all configs and write the page; return the exit status."""
    results, status = {}, 0
    for config in sorted((ROOT / "configs").glob("*.toml")):
        print(f"→ {config.stem}", file=sys.stderr, flush=True)
        code, events, seconds = run(config)
        if code < 0 or code > 2:  # a signal, or a fault of ours: the same command goes on
            return abs(code)
        status = max(status, min(code, 1))
        results[config.stem] = Result({}, None)
        if events and events[-1]["event"] == "finished":
            folder = RunFolder(ROOT / events[-1]["run"])
            results[config.stem] = Result(folder.read_claims(), clock(folder, events, seconds))
            for figure in sorted((folder.path / "figures").glob("*.png")):
                shrink(figure, ROOT / "docs" / "images" / figure.name)
        text = page(results)
        target = Path(__file__).with_name("RESULTS.md")
        write_whole(target, lambda path, text=text: path.write_text(text, "utf-8"))
    return status


def run(config: Path) -> tuple[int, list[dict[str, Any]], float]:
    """Run `ddln run CONFIG`; return its exit status, its events and its seconds."""
    command = [sys.executable, "-m", "ddln.cli", "run", str(config), "--json-lines"]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        events = [json.loads(line) for line in process.stdout or ()]
    return process.returncode, events, time.monotonic() - began


def clock(folder: RunFolder, events: list[dict[str, Any]], seconds: float) -> float | None:
    """Total seconds of a run, stored beside the run folders; None if part of it was not timed."""
    path = folder.path.parent / "seconds.json"
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    first = events[0]
    # Otherwise it had finished before, or only its claims and figures were made again.
    worked = first["event"] == "plan" and first["chunks_done"] < first["chunks"]
    if worked and (folder.path.name in kept or first["chunks_done"] == 0):
        kept[folder.path.name] = kept.get(folder.path.name, 0.0) + seconds
        write_whole(path, lambda path: path.write_text(json.dumps(kept, indent=1), "utf-8"))
    return kept.get(folder.path.name)


def shrink(figure: Path, target: Path) -> None:
    """Write a figure for a page, with fewer colours."""
    image = Image.open(figure).convert("RGB").quantize(COLOURS)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda path: image.save(path, "png", optimize=True))


def page(results: dict[str, Result]) -> str:
    """The page: one line per study, then its claims and the certificates that fail."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "diffrax", "numpy"))
    head = [
        "# Results",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, {packages}. Written by `make experiments`; the time of "
        "a run that another command started is not known.",
        "",
        "| study | claims that hold | certificates that hold | time |",
        "|---|---|---|--:|",
    ]
    sections = []
    for name, (claims, seconds) in results.items():
        own, certificates = claims.get("claims", []), claims.get("certificates", [])
        took = "–" if seconds is None else f"{seconds:.0f} s"
        counts = f"{held(own)} | {held(certificates)} | {took}" if claims else "did not run | |"
        head.append(f"| [{name}](../docs/experiments/{name}.md) | {counts} |")
        failing = [row for row in certificates if tables.verdict(row) == "fails"]
        sections += ["", f"## {name}", "", *tables.markdown([*own, *failing])]
    return "\n".join([*head, *sections]) + "\n"


def held(rows: list[dict[str, Any]]) -> str:
    """Number of claims that hold, of those that apply."""
    verdicts = [tables.verdict(row) for row in rows]
    return f"{verdicts.count('holds')} of {len(verdicts) - verdicts.count('open')}"


if __name__ == "__main__":
    sys.exit(main())
