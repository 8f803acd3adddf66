"""Read tables of text: tokenised by Python's `csv`, with the dialect found from the first lines.

`csv` reports where each row ends, so every error names the row as an editor numbers it. Readers
that pad short rows or skip bad lines without a word could not.
"""

import csv
import gzip
import io
import lzma
import re
from bz2 import BZ2File
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddln.config._raw_table import DataError, FileOptions, RawTable, refuse_all, refuse_size

LARGEST_TEXT = 2**28
"""The largest size of a text file in bytes, once unpacked."""
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", " ": "blanks"}
"""By separator: its name. Blanks are any number of spaces and tabs."""
_COMMENTS = ("#", "%")
_SAMPLE = 100
"""The number of lines from which the dialect is found."""
_UNPACKERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": BZ2File, ".xz": lzma.open}
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WITH_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
"""1,234: one and a fraction, or a thousand?"""

Lines = list[tuple[int, str]]
"""Lines with their numbers in the file, counted from 1."""


class _RowError(ValueError):
    """A row that `csv` cannot split, with its number."""


class Dialect(NamedTuple):
    """How the text of a table is to be read."""

    separator: str
    decimal: str
    header: bool


def is_packed(path: Path) -> bool:
    """Whether the suffix is that of a compressed file."""
    return path.suffix in _UNPACKERS


def read_text(path: Path, options: FileOptions) -> RawTable:
    """The columns of a text file, as cells.

    Raises:
        DataError: it is not a table of text; rows are numbered as the lines of the file.
    """
    text, encoding = _decode(path, options.encoding)
    lines, separator = _lines(text, options)
    lines, comment = _without_comments(lines, options.comment)
    while lines and not lines[0][1].strip():
        lines = lines[1:]
    dialect = _dialect(lines, options, separator)
    try:
        rows = list(_tokens(lines, dialect.separator))
    except _RowError as error:
        raise DataError(f"{path.name}: {error}") from None
    while rows and not any(rows[-1][1]):
        rows.pop()
    header = rows.pop(0) if dialect.header and rows else None
    if not rows:
        raise DataError(
            f"{path.name}: needs a header and at least one row, has "
            f"{0 if header is None else 1} row(s)"
        )
    width = len(rows[0][1])
    names = tuple(f"x{k + 1}" for k in range(width)) if header is None else tuple(header[1])
    if header is not None and all(len(row) == len(names) + 1 for _, row in rows):
        names = ("", *names)  # as R writes the names of rows
    if options.missing == "drop":
        rows = [row for row in rows if any(row[1])]
    said = f"where the {'header names' if header else 'first row has'} {len(names)}"
    wrong = [(number, row) for number, row in rows if len(row) != len(names)]
    refuse_all(path.name, [f"row {number}: {_size(row)} value(s) {said}" for number, row in wrong])
    columns: list[Sequence[str]] = list(zip(*(row for _, row in rows), strict=True))
    if dialect.decimal == ",":
        columns = [[_with_point(cell) for cell in column] for column in columns]
    form = f"text in {encoding}, {SEPARATORS[dialect.separator]}, decimal {dialect.decimal}, "
    form += "a header" if header else "no header"
    form += f", comments after {comment}" if comment else ""
    return RawTable(names, columns, np.array([number for number, _ in rows]), form)


def _size(row: list[str]) -> int:
    return len(row) if any(row) or len(row) > 1 else 0


def _decode(path: Path, encoding: str | None) -> tuple[str, str]:
    """The text of a file, unpacked, and its encoding: UTF-8 unless the bytes say otherwise."""
    refuse_size(path, path.stat().st_size, LARGEST_TEXT)
    try:
        with _UNPACKERS.get(path.suffix, open)(path, "rb") as file:
            content = file.read(LARGEST_TEXT + 1)
        refuse_size(path, len(content), LARGEST_TEXT)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path.name}: not a {path.suffix} file: {error}") from None
    if encoding is None:
        is_wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") and len(content) % 2 == 0
        if not is_wide and (control := _CONTROL.search(content)):
            told = f"it has the control character {control[0]!r}"
            raise DataError(f"{path.name}: not a CSV file in UTF-8: {told}")
        tried = ["utf-16"] if is_wide else ["utf-8-sig", "cp1252"]
    else:
        tried = [encoding]
    fault: Exception | None = None
    for name in tried:
        try:
            return content.decode(name), name.removesuffix("-sig").upper()
        except (UnicodeDecodeError, LookupError) as error:
            fault = fault or error
    wanted = encoding or ("UTF-16" if tried == ["utf-16"] else "UTF-8")
    raise DataError(f"{path.name}: not a CSV file in {wanted}: {fault}")


def _lines(text: str, options: FileOptions) -> tuple[Lines, str | None]:
    """The numbered lines after those to skip, and a separator that Excel's first line names."""
    lines = list(enumerate(io.StringIO(text, newline=""), 1))[options.skip :]
    if lines and (named := re.fullmatch(r"sep=(.)\s*", lines[0][1])):
        return lines[1:], named[1]
    return lines, None


def _without_comments(lines: Lines, comment: str | None) -> tuple[Lines, str | None]:
    """The lines that are not comments, and the mark of those that are.

    Comments before the first row show the mark. A comment with as many words as a row of numbers
    below it is their header, as `numpy.savetxt` writes it.
    """
    mark = comment
    if mark is None:
        first = next((line.strip() for _, line in lines if line.strip()), "")
        mark = next((each for each in _COMMENTS if first.startswith(each)), None)
        if mark is None:
            return lines, None
    kept = [(number, line) for number, line in lines if not line.lstrip().startswith(mark)]
    if comment is not None or not kept:
        return kept, mark
    above = [(number, line) for number, line in lines if number < kept[0][0] and line.strip()]
    number, line = above[-1]
    header = line.strip().removeprefix(mark)
    for separator in SEPARATORS:
        words, below = _split(header, separator), _split(kept[0][1], separator)
        if len(words) == len(below) > 1 and all(_is_number(cell) for cell in below):
            if any(map(_is_number, words)):
                break
            return [(number, header), *kept], mark if len(above) > 1 else None
    return kept, mark


def _dialect(lines: Lines, options: FileOptions, separator: str | None) -> Dialect:
    """The separator under which the first rows are equally long, its decimal mark and header.

    Among several, the one whose header has the target wins, then the one with more numbers.
    """
    sample = [line for _, line in lines[:_SAMPLE] if line.strip()]
    wanted = options.separator or separator

    def quality(candidate: str) -> tuple[bool, bool, int]:
        rows = [_split(line, candidate) for line in sample]
        widths = {len(row) for row in rows}
        # The header of a file that R wrote does not name the first column.
        is_even = len({len(row) for row in rows[1:]}) <= 1 and max(widths) - min(widths) <= 1
        is_table = is_even and min(widths) > 1
        numbers = sum(_is_number(cell.replace(",", ".")) for row in rows for cell in row)
        return bool(is_table), options.target in rows[0], numbers

    if wanted is None:
        wanted = max(SEPARATORS, key=quality) if sample else ","
        if not any(len(_split(line, wanted)) > 1 for line in sample):
            wanted = ","
    rows = [_split(line, wanted) for line in sample]
    cells = [cell for row in rows for cell in row]
    return Dialect(
        wanted,
        options.decimal or (_decimal(cells) if wanted != "," else "."),
        _has_header(rows, options) if options.header is None else options.header,
    )


def _decimal(cells: list[str]) -> str:
    """A comma if numbers have commas, none has a point, and the commas do not group thousands."""
    commas = [cell for cell in cells if _WITH_COMMA.fullmatch(cell)]
    points = any("." in cell and _NUMBER.fullmatch(cell) for cell in cells)
    if not commas or points or all(_GROUPED.fullmatch(cell) for cell in commas):
        return "."
    return ","


def _has_header(rows: list[list[str]], options: FileOptions) -> bool:
    """Whether the first row has the target's name, or no number."""
    if not rows or options.target in rows[0]:
        return True
    return not any(_is_number(cell.replace(",", ".")) for cell in rows[0])


def _is_number(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell.strip()))


def _with_point(cell: str) -> str:
    return cell.replace(",", ".") if _WITH_COMMA.fullmatch(cell) else cell


def _split(line: str, separator: str) -> list[str]:
    """The cells of one line; a line with a fault is one cell."""
    try:
        return next((row for _, row in _tokens([(1, line)], separator)), [])
    except _RowError:
        return [line]


def _tokens(lines: Lines, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line; a cell must not span several lines."""
    texts = [line for _, line in lines]
    if separator == " ":
        texts = [f"{line.expandtabs(1).strip()}\n" for line in texts]
    reader = csv.reader(texts, delimiter=separator, strict=True, skipinitialspace=separator == " ")
    for place, (number, _) in enumerate(lines, 1):
        try:
            row = next(reader)
        except csv.Error as error:
            raise _RowError(f"row {number}: {error}; is a quote not closed?") from None
        if reader.line_num != place:
            fault = "a cell goes over more than one line; is a quote not closed?"
            raise _RowError(f"row {number}: {fault}")
        yield number, [cell.strip(" \t") for cell in row]
