"""Tables of claims for terminals and Markdown pages."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"holds": "green", "fails": "bold red", "open": "dim"}


def plain(text: str) -> str:
    """The text with control characters escaped, so that it is safe to print.

    >>> print(plain("a" + chr(27) + "[2J"))
    a\\x1b[2J
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def verdict(row: Mapping[str, Any]) -> str:
    """`holds`, `fails`, or `open` if the claim does not apply."""
    return "open" if not row["applies"] else "holds" if row["holds"] else "fails"


def table(rows: Iterable[Mapping[str, Any]], title: str) -> "Table":
    """A rich table of claims, one row each; it fits 80 columns."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # Wide cells fold rather than lose digits.
    result.add_column("claim", overflow="fold")
    result.add_column("source", max_width=18, overflow="fold")
    result.add_column("measured", justify="right", overflow="fold")
    result.add_column("expected", overflow="fold")
    result.add_column("", overflow="fold")
    for row in rows:
        measured, expected, word = cells(row)
        style = _STYLES[verdict(row)]
        name, source = (escape(plain(row[key])) for key in ("name", "source"))
        result.add_row(name, source, measured, expected, f"[{style}]{word}[/]")
    return result


def render(rows: Iterable[Mapping[str, Any]], title: str) -> str:
    """The table as plain text, 80 columns wide."""
    from rich.console import Console

    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(table(rows, title))
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def markdown(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of the table in Markdown, with each claim's statement.

    >>> claim = ddln.Claim("half", "arithmetic", "1/2", measured=0.5, predicted=0.5, tolerance=0.0)
    >>> markdown([claim.row()])[-1]
    '| half | 1/2 | arithmetic | 0.5 | = 0.5 ± 0.0e+00 | holds |'
    """
    lines = ["| claim | says | source | measured | expected | |", "|---|---|---|--:|---|---|"]
    for row in rows:
        texts = row["name"], row["statement"], row["source"], *cells(row)
        lines.append(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |")
    return lines


def cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """The measured and the expected number, and the verdict, as text."""
    word = {"holds": "holds", "fails": "FAILS", "open": "n/a"}[verdict(row)]
    if row.get("lanes_applicable") != row.get("lanes_holding"):
        word += f" {row['lanes_holding']}/{row['lanes_applicable']}"
    if not row["applies"]:
        return "–", "–", word
    sign, margin = {"=": ("=", "±"), "<=": ("≤", "+")}[row["relation"]]
    predicted, tolerance = row["predicted"], row["tolerance"]
    is_equation = row["relation"] == "=" and 0 < tolerance < abs(predicted) < math.inf
    # As many digits as the tolerance supports.
    digits = max(math.ceil(min(math.log10(abs(predicted) / tolerance), 7)), 3) if is_equation else 3
    expected = f"{sign} {predicted:.{max(digits, 4)}g} {margin} {tolerance:.1e}"
    return f"{row['measured']:.{digits}g}", expected, word
