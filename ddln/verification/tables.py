"""Tables of claims for terminals and Markdown pages."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

_STYLES = {"holds": "32", "fails": "1;31", "open": "2"}
"""ANSI codes: green, bold red, dim."""


def plain(text: str) -> str:
    """The text with control characters escaped, so that it is safe to print.

    >>> print(plain("a" + chr(27) + "[2J"))
    a\\x1b[2J
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def verdict(row: Mapping[str, Any]) -> str:
    """`holds`, `fails`, or `open` if the claim does not apply."""
    return "open" if not row["applies"] else "holds" if row["holds"] else "fails"


def render(
    rows: Iterable[Mapping[str, Any]], title: str, *, width: int = 80, colour: bool = False
) -> str:
    """The table as text.

    Args:
        rows: of claims.
        title: its first line.
        width: characters in a line, more if the longest words do not fit.
        colour: whether the verdicts are coloured by ANSI escapes.
    """
    rows = list(rows)
    texts = [(plain(row["name"]), plain(row["source"]), *cells(row)) for row in rows]
    header = ("claim", "source", "measured", "expected", "")
    columns = list(zip(header, *texts, strict=True))
    widths = [max(map(len, column)) for column in columns]
    widths[1] = min(widths[1], 18)
    gaps = 2 * len(widths) + 1  # two spaces after each column, one before the first
    for k, column in enumerate(columns):  # no narrower than its longest word
        longest = max((len(word) for text in column for word in text.split()), default=0)
        excess = max(sum(widths) + gaps - width, 0)
        widths[k] = max(widths[k] - excess, min(widths[k], longest))
    lines = [*([title] if title else []), "", *_lines(header, widths)]
    lines.append(" " + "─" * (sum(widths) + gaps - 2))
    for row, cell in zip(rows, texts, strict=True):
        style = _STYLES[verdict(row)] if colour else None
        lines += _lines(cell, widths, style)
    return "\n".join(lines)


def _lines(cell: Sequence[str], widths: Sequence[int], style: str | None = None) -> list[str]:
    """The lines of one row, its verdict in a style."""
    wrapped = [
        textwrap.wrap(text, max(size, 1), break_on_hyphens=False)
        for text, size in zip(cell, widths, strict=True)
    ]
    lines = []
    for name, source, measured, expected, word in zip_longest(*wrapped, fillvalue=""):
        numbers = f"{measured:>{widths[2]}}  {expected:{widths[3]}}"
        end = f"\x1b[{style}m{word}\x1b[0m" if style and word else word
        line = f" {name:{widths[0]}}  {source:{widths[1]}}  {numbers}  {end}"
        lines.append(line.rstrip())
    return lines


def markdown(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of the table in Markdown; a statement follows the name that it explains.

    >>> claim = ddln.Claim("half", "arithmetic", "1/2", measured=0.5, predicted=0.5, tolerance=0.0)
    >>> markdown([claim.row()])[-1]
    '| half: 1/2 | arithmetic | 0.5 | = 0.5 ± 0.0e+00 | holds |'
    """
    lines = ["| claim | source | measured | expected | |", "|---|---|--:|---|---|"]
    for row in rows:
        texts = ": ".join(filter(None, (row["name"], explanation(row)))), row["source"], *cells(row)
        lines.append(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |")
    return lines


def explanation(row: Mapping[str, Any]) -> str:
    """The statement of a claim, empty if its name says all."""
    return "" if row["statement"] == row["name"] else row["statement"]


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
