"""Data files, CSV and NPZ: read with numpy alone, every fault named by row and column."""

import csv
import difflib
import math
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ddln._internal.files import write_whole

DataFile = tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray | None]
"""Names, features, targets and, where it is known, θ*."""
_SHOWN = 5
"""Faults of a file that are listed; the others are counted."""
LARGEST_CSV, LARGEST_NPZ = 2**28, 2**32
"""Bytes of a file that is read; of an NPZ file, once unpacked."""


class DataError(ValueError):
    """A data set that cannot be used, and where the fault is."""


def read_table(
    path: str | Path, target: str = "target", features: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """A data file as named columns.

    Args:
        path: a CSV file with a header (UTF-8, commas), or an NPZ file with arrays `features` of
            shape (n, d) and `targets` of shape (n,), whose columns are called x1 … xd.
        target: the CSV column to be fitted.
        features: the columns to fit with, in this order; all others than `target` by default.

    Returns:
        The names of the features, the features (n, d) and the targets (n,) in float64.

    Raises:
        DataError: what is wrong, by row and column. Rows count as in a spreadsheet: the header is
            row 1.
    """
    return read_file(Path(path), target, features)[:3]


def read_file(path: Path, target: str, features: Sequence[str] | None) -> DataFile:
    """What `read_table` gives, and θ* where the file has one, or None; kept for the next call."""
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
    """Writes arrays as an NPZ file that `read_table` reads; whole or not at all.

    Args:
        path: the file, made or overwritten; its folder is made where needed.
        arrays: `features` (n, d), `targets` (n,) and whatever else belongs to them.

    Raises:
        DataError: they are not data to be fitted; nothing is written.
    """
    _columns(path, arrays, None)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # NumPy would add an ending to a path
            np.savez(file, allow_pickle=False, **arrays)

    write_whole(path, write)


@lru_cache(maxsize=4)
def _read(
    path: Path, target: str, features: tuple[str, ...] | None, stamp: tuple[int, int]
) -> DataFile:
    read = _read_npz if path.suffix == ".npz" else _read_csv
    found = read(path, target, features)
    for array in found[1:]:
        if array is not None:
            array.setflags(write=False)
    return found


def _choose(
    path: Path, header: Sequence[str], target: str | None, features: tuple[str, ...] | None
) -> tuple[str, ...]:
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
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name}: not a CSV file in UTF-8: {error}") from None
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
            fault = ""
            try:
                table[i, j] = float(row[k])
            except ValueError:
                fault = f'not a number: "{row[k]}"' if row[k] else "missing value"
            else:
                if not math.isfinite(table[i, j]):
                    fault = f'not a finite number: "{row[k]}"'
            if fault:
                faults.append(f'row {i + 2}, column "{name}": {fault}')
    _refuse(path, faults)
    return names, table[:, :-1].copy(), table[:, -1].copy(), None


def _read_npz(path: Path, target: str, features: tuple[str, ...] | None) -> DataFile:
    return _columns(path, load_arrays(path), features)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file.

    What an array takes is read off its header first, and no more is unpacked than the file says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _limit(path, sum(member.file_size for member in members), LARGEST_NPZ)
            return {
                member.filename.removesuffix(".npy"): _unpack(archive, member) for member in members
            }
    except DataError:
        raise
    except Exception as error:  # what zipfile, zlib and numpy raise of bad bytes is no short list
        raise DataError(f"{path.name}: not an NPZ file of numbers: {error}") from None


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} says {shape}, which is more than there is")
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
    inputs, targets = (arrays[name].astype(np.float64) for name in ("features", "targets"))
    if len(inputs) != len(targets):
        raise DataError(
            f"{path.name}: features {inputs.shape} and targets {targets.shape} differ in rows"
        )
    names = tuple(f"x{k + 1}" for k in range(inputs.shape[1]))
    wanted = _choose(path, names, None, features)
    chosen = [names.index(name) for name in wanted]
    best = arrays.get("truth")
    if best is not None:
        if (
            best.dtype.kind not in "fiub"
            or best.shape != (len(names),)
            or not np.isfinite(best).all()
        ):
            raise DataError(
                f'{path.name}: "truth" must be {len(names)} finite numbers, one for each feature'
            )
        best = best.astype(np.float64)[chosen]
    inputs = inputs[:, chosen]
    table = np.column_stack([inputs, targets])
    _refuse(
        path,
        [
            f'row {i + 1}, column "{(*wanted, "targets")[j]}": not a finite number: "{table[i, j]}"'
            for i, j in np.argwhere(~np.isfinite(table))
        ],
    )
    return wanted, inputs, targets, best


def _first_of(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


def _limit(path: Path, size: int, most: int) -> None:
    if size > most:
        raise DataError(f"{path.name}: must have at most {most:,} bytes, got {size:,}")


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        more = len(faults) - _SHOWN
        shown = [*faults[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DataError("\n".join(f"{path.name}: {fault}" for fault in shown))
