"""What the command line prints of a run."""

import sys
from typing import TYPE_CHECKING, Any

import typer

from ddln.sweeps.environment import nearby

if TYPE_CHECKING:
    from ddln.sweeps.run_folder import RunFolder

REMEDIES = {
    "max_steps": "raise dynamics.max_steps, lower dynamics.until, or try dynamics.solver=kvaerno5",
    "diverged": "the numbers overflowed or the step shrank to nothing: lower network.scale, "
    "dynamics.until, or the step size of a descent",
}
ROWS = 40
"""Rows of a table that are printed."""


def print_run(folder: "RunFolder", tables: dict[str, Any]) -> None:
    """The tables of a run, and how its lanes ended.

    Args:
        folder: of the run.
        tables: rows by title, as `RunFolder.read_claims` gives them.
    """
    for title, rows in tables.items():
        if rows:
            print_table(rows, title.capitalize())
    ends = folder.endings()
    endings = ", ".join(f"{count:,} {name}" for name, count in ends.items())
    typer.echo(f"lanes: {endings}; lane efficiency {folder.efficiency():.0%}")
    print_accuracy(*folder.solved_again())
    if cut := folder.cut():
        typer.echo(f"memory ran out in {cut:,} chunk(s): computed with fewer lanes at once")
    for name, remedy in REMEDIES.items():
        if name in ends:
            typer.echo(f"{name}: {remedy}")
    typer.echo(nearby(folder.path))


def print_accuracy(lanes: int, off: int) -> None:
    """How many lanes were solved again, and how many of them differ."""
    from ddln.sweeps.dataset_schema import accuracy_in_words

    if lanes:
        typer.echo(f"accuracy: {accuracy_in_words(lanes, off)}")


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """The rows, in colour on a terminal; of very many those that fail, and some."""
    from ddln.verification import tables

    shown = rows
    if len(rows) > ROWS:
        shown = sorted(rows, key=lambda row: failed([row]), reverse=True)[:ROWS]
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(tables.table(shown, title))
    else:
        typer.echo(tables.render(shown, title))
    if len(rows) > ROWS:
        typer.echo(f"and {len(rows) - ROWS:,} more; those that fail come first")


def failed(rows: list[dict[str, Any]]) -> int:
    """1 if a row applies and does not hold, else 0: the exit status."""
    return int(any(row["applies"] and not row["holds"] for row in rows))
