"""Columns of a data file as numbers: cells parsed, words as classes or columns of 0 and 1."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddln.config._raw_table import DataError, FileOptions

LARGE = 2.0**48
"""Integers from here on are also kept as integers: in float64 their differences lose digits."""
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "missing", "?", ".", "-", "--"}
"""Cells that stand for a missing value, in lower case, unless missing values are refused."""
MOST_CATEGORIES = 1000
_COMMA = re.compile(r"[+-]?\d+,\d+")
"""A number, if the comma is its decimal mark."""


class Numbers(NamedTuple):
    """A column as numbers.

    Attributes:
        values: shape (n,), float64; NaN where a value is missing or invalid.
        faults: messages by index of the row.
    """

    values: np.ndarray
    faults: Mapping[int, str]


def is_text(column: Sequence[str] | np.ndarray) -> bool:
    """Whether a column has a cell that is neither a number nor missing."""
    if isinstance(column, np.ndarray):
        return False
    return any(not is_number(cell) for cell in set(column) if cell.lower() not in MISSING)


def is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def as_numbers(column: Sequence[str] | np.ndarray, missing: str) -> Numbers:
    """A column as numbers, with the faults of its cells."""
    if isinstance(column, np.ndarray):
        # Refused below: long doubles beyond float64, and bytes that are no number.
        with np.errstate(over="ignore", invalid="ignore"):
            values = column.astype(np.float64)
        wrong = ~np.isfinite(values) if missing == "refuse" else np.isinf(values)
        faults = [
            (i, f'not a finite number: "{values[i]}"') for i in np.flatnonzero(wrong).tolist()
        ]
        return Numbers(values, dict(faults))
    text = "".join(column)
    if text.isascii() and "_" not in text:
        try:
            values = np.array([float(cell) for cell in column])
        except ValueError:
            values = np.array([np.nan])
        # A number that is read as 0 can be too small for float64: see `_number`.
        if np.isfinite(values).all() and values.all():
            return Numbers(values, {})
    values, invalid = np.full(len(column), np.nan), {}
    for i, cell in enumerate(column):
        if missing != "refuse" and cell.lower() in MISSING:
            continue
        try:
            values[i] = _number(cell)
        except ValueError as error:
            invalid[i] = str(error)
    return Numbers(values, invalid)


def _number(cell: str) -> float:
    """A decimal number; unlike `float`, without underscores and non-ASCII digits."""
    if cell.lower() in MISSING:
        raise ValueError("missing value" + (f' "{cell}"' if cell else ""))
    try:
        value = float(cell) if cell.isascii() and "_" not in cell else None
    except ValueError:
        value = None
    if value is None:
        hint = ' (for decimal commas, set decimal = ",")' if _COMMA.fullmatch(cell) else ""
        raise ValueError(f'not a number: "{cell}"{hint}')
    if not math.isfinite(value):
        raise ValueError(f'not a finite number: "{cell}"')
    if value == 0 and any(digit in "123456789" for digit in cell.lower().partition("e")[0]):
        raise ValueError(f'too small for float64: "{cell}"')
    return value


def exact_integers(column: Sequence[str] | np.ndarray, numbers: Numbers) -> np.ndarray | None:
    """A column of large integers as 64-bit integers; None of any other column."""
    if not (np.abs(numbers.values) >= LARGE).any() or np.isnan(numbers.values).any():
        return None
    if isinstance(column, np.ndarray):
        return column if column.dtype.kind in "iu" else None
    try:
        whole = np.array([int(cell) for cell in column])
    except ValueError:
        return None
    return whole if whole.dtype.kind in "iu" else None


def _words(column: Sequence[str] | np.ndarray) -> list[str]:
    if isinstance(column, np.ndarray):
        return [f"{value:.17g}" for value in column.astype(np.float64)]
    return list(column)


def as_classes(column: Sequence[str] | np.ndarray, missing: str) -> tuple[tuple[str, ...], Numbers]:
    """The words of a column, numbers first, and the number of the word in each row."""
    cells = _words(column)
    absent = {i for i, cell in enumerate(cells) if cell.lower() in MISSING}
    words = sorted(
        {cell for i, cell in enumerate(cells) if i not in absent},
        key=lambda word: (0, float(word), "") if is_number(word) else (1, 0.0, word),
    )
    index = {word: float(k) for k, word in enumerate(words)}
    values = np.array([np.nan if i in absent else index[cell] for i, cell in enumerate(cells)])
    faults = dict.fromkeys(sorted(absent), "missing value") if missing == "refuse" else {}
    return tuple(words), Numbers(values, faults)


def one_hot(
    path: Path, name: str, column: Sequence[str] | np.ndarray, options: FileOptions
) -> list[tuple[str, Numbers, np.ndarray | None]]:
    """A column name=word of 0 and 1 for each word, with the first left out if asked to."""
    words, numbers = as_classes(column, options.missing)
    if len(words) > MOST_CATEGORIES:
        raise DataError(
            f'{path.name}: column "{name}" must have at most {MOST_CATEGORIES} categories, got '
            f"{len(words)}"
        )
    known = ~np.isnan(numbers.values)
    found: list[Any] = []
    for k, word in list(enumerate(words))[int(options.drop_first) :]:
        indicator = np.where(known, (numbers.values == k).astype(float), np.nan)
        # The faults of a missing word are those of the first column.
        faults = {} if found else numbers.faults
        found.append((f"{name}={word}", Numbers(indicator, faults), None))
    if not found:
        raise DataError(f'{path.name}: column "{name}" has one category, which `drop_first` drops')
    return found
