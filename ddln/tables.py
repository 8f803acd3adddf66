"""Claims as a table for a terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_VERDICTS = {"holds": ("holds", "green"), "fails": ("FAILS", "bold red"), "open": ("n/a", "dim")}


def verdict(row: Mapping[str, Any]) -> str:
    """`holds`, `fails`, or `open` where the claim does not apply."""
    return "open" if not row["applies"] else "holds" if row["holds"] else "fails"


def table(rows: Iterable[Mapping[str, Any]], title: str) -> Table:
    """A rich table of claims, one row each; it fits 80 columns."""
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("claim", no_wrap=True)
    result.add_column("source", max_width=18)
    result.add_column("measured", justify="right", no_wrap=True)
    result.add_column("expected", no_wrap=True)
    result.add_column("", no_wrap=True)
    for row in rows:
        word, style = _VERDICTS[verdict(row)]
        if row.get("lanes_applicable") != row.get("lanes_holding"):
            word += f" {row['lanes_holding']}/{row['lanes_applicable']}"
        sign, margin = {"=": ("=", "±"), "<=": ("≤", "+")}[row["relation"]]
        expected = f"{sign} {row['predicted']:.4g} {margin} {row['tolerance']:.1e}"
        measured = f"{row['measured']:.3g}"
        if not row["applies"]:
            measured, expected = "–", "–"
        result.add_row(row["name"], row["source"], measured, expected, f"[{style}]{word}[/]")
    return result


def render(rows: Iterable[Mapping[str, Any]], title: str) -> str:
    """The table as plain text, 80 columns wide."""
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(table(rows, title))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())
