"""What a reader of data files returns, and what it raises."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHOWN = 5
"""The number of faults listed per file; the message counts the others."""


class DataError(ValueError):
    """An unusable data set; the message says where the fault is."""


class RawTable(NamedTuple):
    """The columns of a file as they stand, each with its cells or its numbers."""

    names: tuple[str, ...]
    """With "" for a column without a name; names can repeat."""
    columns: Sequence[Sequence[str] | np.ndarray]
    """Text cells, or an array of shape (n,)."""
    rows: np.ndarray
    """The number that a reader of the file gives to each row, shape (n,)."""
    form: str
    """How the file was read, in words."""
    truth: np.ndarray | None = None
    """θ*, one number for each feature of an array file."""


class FileOptions(NamedTuple):
    """The keys of a data file's table that determine how it is read; see `FileDataConfig`."""

    target: str = "target"
    features: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    weights: str | None = None
    exposure: str | None = None
    format: str | None = None
    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    header: bool | None = None
    comment: str | None = None
    skip: int = 0
    missing: str = "refuse"
    categories: tuple[str, ...] | str = ()
    drop_first: bool = False
    features_array: str = "features"
    targets_array: str = "targets"


def refuse_all(
    source: str, faults: Sequence[str], count: int | None = None, remedies: Sequence[str] = ()
) -> None:
    """Raise a DataError if there are faults; `count` is their number if `faults` lists fewer."""
    if faults:
        more = (len(faults) if count is None else count) - SHOWN
        shown = [*faults[:SHOWN], *([f"and {more} more"] if more > 0 else []), *remedies]
        raise DataError("\n".join(f"{source}: {fault}" for fault in shown))


def refuse_size(path: Path, size: int, most: int) -> None:
    """Raise a DataError if a file is too large."""
    if size > most:
        raise DataError(f"{path.name}: must have at most {most:,} bytes, got {size:,}")


def first_of(names: Sequence[str] | Mapping[str, object]) -> str:
    """The first few names, and the number of the others."""
    listed = list(names)
    more = [f"and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return ", ".join([*listed[:SHOWN], *more])
