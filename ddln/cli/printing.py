"""Printed plans and results: what `check`, `run`, `show` and `verify` print."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ddln.solvers.status import Status
from ddln.sweeps.environment import relative_path

if TYPE_CHECKING:
    from ddln.config.experiment import Experiment
    from ddln.sweeps.plan import Plan
    from ddln.sweeps.run_folder import RunFolder
    from ddln.sweeps.saved_runs import RunSummary

ROWS = 40
"""Most rows printed of one table."""


def print_plan(plan: "Plan") -> None:
    """A plan's problem, network, dynamics, axes and cost, one line each."""
    from ddln.config.datasets import describe_file, shape_of

    experiment = plan.experiment
    network, dynamics, data = experiment.network, experiment.dynamics, experiment.problem.data
    samples, features = shape_of(data)
    classes = f" × {experiment.outputs} classes" if experiment.outputs > 1 else ""
    programs = [chunk.experiment for chunk in plan.programs]
    depths = ", ".join(str(depth) for depth in dict.fromkeys(e.network.depth for e in programs))
    widths = ", ".join(str(width) for width in dict.fromkeys(e.width for e in programs))
    widest = max(chunk.width for chunk in plan.chunks)
    axes: dict[str, list[str]] = {name: [] for name in plan.sizes}
    for axis in sorted(plan.axes, key=lambda axis: axis.name != axis.dimension):
        axes[axis.dimension].append(f"{axis.name} ({axis.span})")
    for name, value in {
        "study": experiment.study,
        "digest": experiment.digest(),
        "problem": f"{data.kind}, {samples} samples × {features} features{classes}",
        **describe_file(data, experiment.problem.loss.kind),
        "network": f"depth {depths}; {widths} coordinates{', signed' * network.signed}; "
        f"{network.init.kind} layers",
        "dynamics": f"{dynamics.summary}, {dynamics.saved:,} points",
        "axes": " × ".join(" with ".join(names) for names in axes.values()) or "none",
        "networks": f"{plan.lanes:,}",
        "chunks": f"{len(plan.chunks):,} of up to {widest:,} networks, "
        f"{len(programs):,} compiled program(s)",
        **_devices(experiment),
        "memory": f"{plan.peak_bytes / 1e9:,.2g} GB a chunk, of {experiment.memory:g} GB; about "
        f"{plan.process_bytes / 1e9:,.2g} GB in all",
        "files": _files(plan),
        "time": _time(plan),
    }.items():
        typer.echo(f"{name:>9}  {value}")


def _files(plan: "Plan") -> str:
    """The bytes that a run writes, besides its figures."""
    saved = f"{plan.experiment.dynamics.save} of every network"
    if not plan.is_portable:
        return f"{plan.nbytes / 1e6:,.1f} MB: {saved}, in chunks"
    return f"{(plan.nbytes + plan.portable_nbytes) / 1e6:,.1f} MB: {saved}, in chunks and whole"


def _time(plan: "Plan") -> str:
    """How long the run will take, if one like it was run here before."""
    from ddln.sweeps import run_times
    from ddln.sweeps.progress import format_duration

    seconds = run_times.estimate(plan)
    if seconds is None:
        return "measured by `run` once the first chunk is done"
    return f"about {format_duration(seconds)}, by the last run like it"


def _devices(experiment: "Experiment") -> dict[str, str]:
    """The line on devices, if the config asks for several."""
    if (devices := experiment.devices) is None:
        return {}
    groups = f"{devices.lanes} group(s) with networks of their own"
    return {"devices": f"{groups}, of {devices.features} with columns of their own"}


def print_run(folder: "RunFolder", tables: dict[str, Any]) -> None:
    """The tables of a run, the statuses of its networks and the accuracy of its flows.

    Args:
        folder: the run folder.
        tables: rows by title, from `RunFolder.read_claims`.
    """
    for title, rows in tables.items():
        if rows:
            print_table(rows, title.capitalize())
    ends = folder.status_counts()
    endings = ", ".join(f"{count:,} {name}" for name, count in ends.items())
    typer.echo(f"networks: {endings}; batch efficiency {folder.efficiency():.0%}")
    print_accuracy(*folder.count_recomputed())
    if split := folder.count_split_chunks():
        typer.echo(f"memory ran out in {split:,} chunk(s): computed with fewer networks at once")
    for status in Status:
        if status.value in ends and not status.is_finished:
            typer.echo(f"{status.value}: {status.meaning}: {status.advice}")
    typer.echo(relative_path(folder.path))


def print_runs(runs: "list[RunSummary]", root: Path) -> None:
    """One line for each run: name, time, status, networks and size."""
    if not runs:
        typer.echo(f"no run in {relative_path(root)}/")
        return
    head = ("run", "begun", "status", "networks", "size")
    rows = [
        (
            run.name,
            f"{run.begun:%Y-%m-%d %H:%M}",
            run.status,
            f"{run.networks:,}",
            f"{run.nbytes / 1e6:,.1f} MB",
        )
        for run in runs
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        left = [text.ljust(width) for text, width in zip(row[:3], widths, strict=False)]
        right = [text.rjust(width) for text, width in zip(row[3:], widths[3:], strict=True)]
        typer.echo("  ".join(left + right))


def print_accuracy(recomputed: int, inexact: int) -> None:
    """How many networks were recomputed, and how many of these differ."""
    from ddln.sweeps.dataset_schema import accuracy_in_words

    if recomputed:
        typer.echo(f"accuracy: {accuracy_in_words(recomputed, inexact)}")


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """The rows, in colour on a terminal; `ROWS` rows of a longer table, failures first."""
    from ddln.verification import tables

    shown = rows
    if len(rows) > ROWS:
        shown = sorted(rows, key=lambda row: failed([row]), reverse=True)[:ROWS]
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else 80
    colour = is_terminal and not os.environ.get("NO_COLOR")
    typer.echo(tables.render(shown, title, width=width, colour=colour), color=colour)
    if len(rows) > ROWS:
        typer.echo(f"and {len(rows) - ROWS:,} more; failing rows come first")


def failed(rows: list[dict[str, Any]]) -> int:
    """The exit status: 1 if a claim that applies does not hold, else 0."""
    return int(any(row["applies"] and not row["holds"] for row in rows))
