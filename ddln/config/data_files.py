"""Read CSV and NPZ data files with NumPy alone; errors name the row and column."""

import csv
import difflib
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddln._internal.files import write_whole

_SHOWN = 5
"""The number of faults listed per file; the message counts the others."""
_LARGE = 2.0**48
"""Integers from here on are also kept as integers: in float64 their differences lose digits."""
LARGEST_CSV, LARGEST_NPZ = 2**28, 2**32
"""The largest size of a file in bytes; for an NPZ file, its size once unpacked."""


class DataError(ValueError):
    """An unusable data set; the message says where the fault is."""


@dataclass(frozen=True, eq=False)
class DataFile:
    """The content of a data file.

    Attributes:
        source: the name of the file.
        names: the names of the features.
        features: shape (n, d), float64.
        targets: shape (n,), float64.
        truth: θ*, shape (d,), or None if the file does not contain it.
        exact: columns of large integers as integers, shape (n,) each, by their index among
            features and targets.
        target: the name of the target.
        first_row: the number that a reader of the file gives to the first row of data.
    """

    source: str
    names: tuple[str, ...]
    features: np.ndarray
    targets: np.ndarray
    truth: np.ndarray | None
    exact: Mapping[int, np.ndarray]
    target: str
    first_row: int

    def __post_init__(self):
        for array in (self.features, self.targets, self.truth):
            if array is not None:
                array.setflags(write=False)  # the cache shares it

    def refuse(self, wrong: np.ndarray, values: np.ndarray, rule: str) -> None:
        """Raise a DataError that names the rows of invalid targets.

        Args:
            wrong: whether each target is invalid, shape (n,).
            values: the targets, shape (n,).
            rule: what must hold.
        """
        rows = np.flatnonzero(wrong)
        faults = [
            f'row {row + self.first_row}, column "{self.target}": {rule}, '
            f"got {str(float(values[row])).removesuffix('.0')}"
            for row in rows[:_SHOWN]
        ]
        _refuse(self.source, faults, rows.size)


def read_table(
    path: str | Path, target: str = "target", features: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Read a data file into named columns.

    Args:
        path: a CSV file with a header (UTF-8, commas, no cell over more than one line, decimal
            numbers with a point and ASCII digits), or an NPZ file with arrays `features` of shape
            (n, d) and `targets` of shape (n,), whose columns are called x1 … xd.
        target: the CSV column of the targets.
        features: the columns of the features, in this order; by default all except `target`.

    Returns:
        The names of the features, the features (n, d) and the targets (n,) in float64.

    Raises:
        DataError: an invalid file; the message names row and column. The header is row 1, as in a
            spreadsheet.
    """
    file = read_file(Path(path), target, features)
    return file.names, file.features, file.targets


def read_file(path: Path, target: str, features: Sequence[str] | None) -> DataFile:
    """The content of a data file, from a cache unless the file has changed."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        stamp = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    chosen = None if features is None else tuple(features)
    return _read(path, target, chosen, (stamp.st_mtime_ns, stamp.st_size))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an NPZ file that `read_table` reads, atomically.

    Args:
        path: the file to create or overwrite; missing parent folders are created.
        arrays: `features` (n, d), `targets` (n,) and any further arrays.

    Raises:
        DataError: invalid features or targets; nothing is written.
    """
    _columns(path, arrays, None)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, NumPy would append .npz
            np.savez(file, allow_pickle=False, **arrays)

    write_whole(path, write)


@lru_cache(maxsize=4)
def _read(
    path: Path, target: str, features: tuple[str, ...] | None, stamp: tuple[int, int]
) -> DataFile:
    read = _read_npz if path.suffix == ".npz" else _read_csv
    return read(path, target, features)


def _choose(
    path: Path, header: Sequence[str], target: str | None, features: tuple[str, ...] | None
) -> tuple[str, ...]:
    if features == ():
        raise DataError(f"{path.name}: `features` must name at least one column, got []")
    wanted, known = features or tuple(name for name in header if name != target), set(header)
    for name in (*wanted, *(() if target is None else (target,))):
        if name not in known:
            near = difflib.get_close_matches(name, header[:1000], n=1)
            hint = f', did you mean "{near[0]}"?' if near else f" (it has {_first_of(header)})"
            raise DataError(f'{path.name}: no column "{name}"{hint}')
    if target in wanted:
        raise DataError(f'{path.name}: the target "{target}" cannot be a feature too')
    if not wanted:
        raise DataError(f"{path.name}: there is no feature column")
    return wanted


def _read_csv(path: Path, target: str, features: tuple[str, ...] | None) -> DataFile:
    _limit(path, path.stat().st_size, LARGEST_CSV)
    rows = _rows(path)
    while rows and not any(rows[-1]):
        rows.pop()
    if len(rows) < 2:
        raise DataError(f"{path.name}: needs a header and at least one row, has {len(rows)} row(s)")
    header, place = rows[0], {name: k for k, name in enumerate(rows[0])}
    for k, name in enumerate(header):
        if not name or place[name] != k:
            fault = f'column "{name}" appears twice' if name else "a column has no name"
            raise DataError(f"{path.name}: row 1, {fault}")
    names = _choose(path, header, target, features)
    columns = [(place[name], name) for name in (*names, target)]
    table = np.empty((len(rows) - 1, len(columns)))
    faults = []
    for i, row in enumerate(rows[1:]):
        if len(row) != len(header):
            faults.append(f"row {i + 2}: {len(row)} value(s) where the header names {len(header)}")
            continue
        for j, (k, name) in enumerate(columns):
            try:
                table[i, j] = _number(row[k])
            except ValueError as error:
                faults.append(f'row {i + 2}, column "{name}": {error}')
    _refuse(path.name, faults)
    large = np.flatnonzero(np.abs(table).max(axis=0) >= _LARGE)
    whole = {j: _whole([row[columns[j][0]] for row in rows[1:]]) for j in large.tolist()}
    exact = {j: column for j, column in whole.items() if column is not None}
    return DataFile(
        path.name, names, table[:, :-1].copy(), table[:, -1].copy(), None, exact, target, 2
    )


def _rows(path: Path) -> list[list[str]]:
    """The cells of a CSV file; a cell must not span several lines."""
    rows: list[list[str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if reader.line_num != len(rows) + 1:
                    raise csv.Error("a cell goes over more than one line")
                rows.append([cell.strip(" \t") for cell in row])
    except csv.Error as error:
        where = f"{path.name}: row {len(rows) + 1}"
        raise DataError(f"{where}: {error}; is a quote not closed?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not a CSV file in UTF-8: {error}") from None
    return rows


def _number(cell: str) -> float:
    """A decimal number; unlike `float`, without underscores and non-ASCII digits."""
    if not cell:
        raise ValueError("missing value")
    try:
        value = float(cell) if cell.isascii() and "_" not in cell else None
    except ValueError:
        value = None
    if value is None:
        raise ValueError(f'not a number: "{cell}"')
    if not math.isfinite(value):
        raise ValueError(f'not a finite number: "{cell}"')
    if value == 0 and any(digit in "123456789" for digit in cell.lower().partition("e")[0]):
        raise ValueError(f'too small for float64: "{cell}"')
    return value


def _whole(cells: Sequence[str]) -> np.ndarray | None:
    """The cells as 64-bit integers; None if one of them is not."""
    try:
        column = np.array([int(cell) for cell in cells])
    except ValueError:
        return None
    return column if column.dtype.kind in "iu" else None


def _read_npz(path: Path, target: str, features: tuple[str, ...] | None) -> DataFile:
    return _columns(path, load_arrays(path), features)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file.

    The header of each array is checked before unpacking, so that no array can claim more memory
    than the size of its member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _limit(path, sum(member.file_size for member in members), LARGEST_NPZ)
            arrays = {
                member.filename.removesuffix(".npy"): _unpack(archive, member) for member in members
            }
            if len(arrays) < len(members):
                raise ValueError("two of its arrays have one name")
            return arrays
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many types for corrupt bytes
        raise DataError(f"{path.name}: not an NPZ file of numbers: {error}") from None


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} claims shape {shape}, more than it contains")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _columns(
    path: Path, arrays: Mapping[str, np.ndarray], features: tuple[str, ...] | None
) -> DataFile:
    for name, ndim, shape in (("features", 2, "(n, d)"), ("targets", 1, "(n,)")):
        if name not in arrays:
            has = _first_of(list(arrays)) or "none"
            raise DataError(f'{path.name}: no array "{name}" (it has {has})')
        array = arrays[name]
        if array.ndim != ndim or array.size == 0:
            raise DataError(f'{path.name}: "{name}" must have shape {shape}, got {array.shape}')
        if array.dtype.kind not in "fiub":
            raise DataError(f'{path.name}: "{name}" must hold real numbers, got {array.dtype}')
    with np.errstate(over="ignore"):  # overflowing long doubles are refused below
        inputs, targets = (arrays[name].astype(np.float64) for name in ("features", "targets"))
    if len(inputs) != len(targets):
        raise DataError(
            f"{path.name}: features {inputs.shape} and targets {targets.shape} differ in rows"
        )
    names = tuple(f"x{k + 1}" for k in range(inputs.shape[1]))
    wanted = _choose(path, names, None, features)
    chosen = [names.index(name) for name in wanted]
    inputs = inputs[:, chosen]
    table = np.column_stack([inputs, targets])
    faults = np.argwhere(~np.isfinite(table))
    shown = [
        f'row {i + 1}, column "{(*wanted, "targets")[j]}": not a finite number: "{table[i, j]}"'
        for i, j in faults[:_SHOWN]
    ]
    _refuse(path.name, shown, len(faults))
    columns = [*(arrays["features"][:, k] for k in chosen), arrays["targets"]]
    exact = {
        j: columns[j]
        for j in np.flatnonzero(np.abs(table).max(axis=0) >= _LARGE).tolist()
        if columns[j].dtype.kind in "iu"
    }
    truth = _truth(path, arrays.get("truth"), len(names))
    best = None if truth is None else truth[chosen]
    return DataFile(path.name, wanted, inputs, targets, best, exact, "targets", 1)


def _truth(path: Path, truth: np.ndarray | None, size: int) -> np.ndarray | None:
    """Validate θ*."""
    if truth is None:
        return None
    if truth.dtype.kind in "fiub" and truth.shape == (size,):
        with np.errstate(over="ignore"):  # long doubles may overflow
            truth = truth.astype(np.float64)
        if np.isfinite(truth).all():
            return truth
    raise DataError(f'{path.name}: "truth" must be {size} finite numbers, one for each feature')


def _first_of(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def _limit(path: Path, size: int, most: int) -> None:
    if size > most:
        raise DataError(f"{path.name}: must have at most {most:,} bytes, got {size:,}")


def _refuse(source: str, faults: Sequence[str], count: int | None = None) -> None:
    """Raise a DataError if there are faults; `count` is their number if `faults` lists fewer."""
    if faults:
        more = (len(faults) if count is None else count) - _SHOWN
        shown = [*faults[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DataError("\n".join(f"{source}: {fault}" for fault in shown))
