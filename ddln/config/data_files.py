"""Read data files of every form into named columns of numbers; errors name the row and column.

`_text_files` and `_array_files` read a file's columns as they stand. Here they are chosen, turned
into numbers and checked.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ddln._internal.files import write_whole
from ddln.config._array_files import load_arrays as load_arrays
from ddln.config._array_files import read_arrays, read_parquet, read_svmlight, table_of
from ddln.config._columns import (
    Numbers,
    as_classes,
    as_numbers,
    exact_integers,
    is_number,
    is_text,
    one_hot,
)
from ddln.config._raw_table import SHOWN, FileOptions, RawTable, first_of, refuse_all
from ddln.config._raw_table import DataError as DataError
from ddln.config._text_files import is_packed, read_text

FORMATS: Mapping[str, tuple[str, ...]] = {
    "csv": (".csv", ".tsv", ".txt", ".dat", ".data"),
    "npz": (".npz",),
    "hdf5": (".h5", ".hdf5", ".he5"),
    "zarr": (".zarr",),
    "mat": (".mat",),
    "parquet": (".parquet", ".pq"),
    "svmlight": (".svm", ".svmlight", ".libsvm"),
}
"""By format: the suffixes that select it; any other suffix is read as text."""
_READERS: Mapping[str, Callable[[Path, FileOptions], RawTable]] = {
    "csv": read_text,
    "parquet": read_parquet,
    "svmlight": read_svmlight,
    **{form: partial(read_arrays, form=form) for form in ("npz", "hdf5", "zarr", "mat")},
}


@dataclass(frozen=True, eq=False)
class DataFile:
    """The content of a data file.

    Attributes:
        source: the name of the file.
        names: the names of the features.
        features: shape (n, d), float64; NaN for a value that its column's mean is to replace.
        targets: shape (n,), float64; the number of the class if `classes` has any.
        weights, exposure: shape (n,), float64, or None.
        truth: θ*, shape (d,), or None if the file does not contain it.
        exact: columns of large integers as integers, shape (n,) each, by their index among
            features and targets.
        target: the name of the target.
        rows: the number that a reader of the file gives to each row, shape (n,).
        classes: the words among the targets, sorted; empty if they are numbers.
        form: how the file was read, in words.
        ignored: the columns that are not used.
        categories: the columns that became one column for each of their words.
        dropped: the number of rows left out for a missing value.
    """

    source: str
    names: tuple[str, ...]
    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    exposure: np.ndarray | None
    truth: np.ndarray | None
    exact: Mapping[int, np.ndarray]
    target: str
    rows: np.ndarray
    classes: tuple[str, ...] = ()
    form: str = ""
    ignored: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    dropped: int = 0

    def __post_init__(self):
        for array in (self.features, self.targets, self.weights, self.exposure, self.truth):
            if array is not None:
                array.setflags(write=False)  # the cache shares it

    def refuse(self, wrong: np.ndarray, values: np.ndarray, rule: str) -> None:
        """Raise a DataError that names the rows of invalid targets.

        Args:
            wrong: whether each target is invalid, shape (n,).
            values: the targets, shape (n,), numbers or words.
            rule: what must hold.
        """
        rows = np.flatnonzero(wrong)
        shown = [str(value).removesuffix(".0") for value in values[rows[:SHOWN]].tolist()]
        faults = [
            f'row {self.rows[row]}, column "{self.target}": {rule}, got {value}'
            for row, value in zip(rows, shown, strict=False)
        ]
        refuse_all(self.source, faults, rows.size)


def read_table(
    path: str | Path, target: str = "target", features: Sequence[str] | None = None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Read a data file into named columns.

    Args:
        path: a file of one of `FORMATS`. In a table of text, the separator, the decimal mark, the
            encoding and whether there is a header are found from its first lines. The columns of an
            array `features` (n, d) and of a file without a header are called x1 … xd.
        target: the column of the targets; an array file has an array `targets`.
        features: the columns of the features, in this order; by default all except `target`.

    Returns:
        The names of the features, the features (n, d) and the targets (n,) in float64.

    Raises:
        DataError: an invalid file; the message names row and column. The rows of text are numbered
            as its lines.
    """
    chosen = None if features is None else tuple(features)
    file = read_file(Path(path), FileOptions(target=target, features=chosen))
    if file.classes:
        file.refuse(np.ones(len(file.targets), bool), class_words(file), "must be a number")
    return file.names, file.features, file.targets


def class_words(file: DataFile) -> np.ndarray:
    """The words among the targets, shape (n,)."""
    return np.array(file.classes, object)[file.targets.astype(int)]


def read_file(path: Path, options: FileOptions) -> DataFile:
    """The content of a data file, from a cache unless the file has changed."""
    try:
        if not (path.is_file() or (path.is_dir() and _format(path, options) == "zarr")):
            raise DataError(f"{path}: no such file")
        stamps = [each.stat() for each in content_files(path)]
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return _read(path, options, tuple((stamp.st_mtime_ns, stamp.st_size) for stamp in stamps))


def content_files(path: Path) -> list[Path]:
    """The files that hold the content of a data file; those of a Zarr folder, in order."""
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an NPZ file that `read_table` reads, atomically.

    Args:
        path: the file to create or overwrite; missing parent folders are created.
        arrays: `features` (n, d), `targets` (n,) and any further arrays.

    Raises:
        DataError: invalid features or targets; nothing is written.
    """
    options = FileOptions(target="targets")
    _assemble(path, table_of(path, dict(arrays), options), options)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, NumPy would append .npz
            np.savez(file, allow_pickle=False, **arrays)

    write_whole(path, write)


def _format(path: Path, options: FileOptions) -> str:
    suffix = path.with_suffix("").suffix if is_packed(path) else path.suffix
    found = (form for form, suffixes in FORMATS.items() if suffix.lower() in suffixes)
    return options.format or next(found, "csv")


@lru_cache(maxsize=4)
def _read(path: Path, options: FileOptions, stamps: tuple[tuple[int, int], ...]) -> DataFile:
    form = _format(path, options)
    raw = _READERS[form](path, options)
    if form in ("npz", "hdf5", "zarr", "mat"):
        options = options._replace(target=options.targets_array)
    return _assemble(path, raw, options)


def _assemble(path: Path, raw: RawTable, options: FileOptions) -> DataFile:
    """Choose the columns, turn them into numbers, and refuse or drop what is not one."""
    names, ignored = _choose(path, raw, options)
    place = {name: k for k, name in reversed(list(enumerate(raw.names)))}
    target = raw.columns[place[options.target]]
    features: list[tuple[str, Numbers, np.ndarray | None]] = []
    categories = []
    for name in names:
        column = raw.columns[place[name]]
        numbers = as_numbers(column, options.missing)
        if _is_category(name, column, options):
            categories.append(name)
            features += one_hot(path, name, column, options)
        else:
            features.append((name, numbers, exact_integers(column, numbers)))
    classes: tuple[str, ...] = ()
    if is_text(target) and not any(is_number(cell) for cell in set(target)):
        classes, targets = as_classes(target, options.missing)
    else:
        targets = as_numbers(target, options.missing)
    others = {
        key: as_numbers(raw.columns[place[name]], options.missing)
        for key in ("weights", "exposure")
        if (name := getattr(options, key)) is not None
    }
    used = [*((name, numbers) for name, numbers, _ in features), (options.target, targets)]
    used += [(getattr(options, key), numbers) for key, numbers in others.items()]
    single = [numbers.values for _, numbers in used[len(features) :]]
    whole = np.asarray(np.isfinite(single).all(axis=0))
    if options.missing == "drop":
        whole &= np.isfinite([numbers.values for _, numbers in used]).all(axis=0)
    _refuse_faults(path, raw, used, whole | (options.missing != "mean"), len(features))
    kept = whole if options.missing == "drop" else np.ones(len(raw.rows), bool)
    if not kept.any():
        raise DataError(f"{path.name}: every one of its {kept.size} rows has a missing value")
    exact = [column for _, _, column in features] + [exact_integers(target, targets)]
    return DataFile(
        source=path.name,
        names=tuple(name for name, _, _ in features),
        features=np.column_stack([numbers.values for _, numbers, _ in features])[kept],
        targets=targets.values[kept],
        weights=others["weights"].values[kept] if "weights" in others else None,
        exposure=others["exposure"].values[kept] if "exposure" in others else None,
        truth=None if raw.truth is None or categories else raw.truth[[place[x] for x in names]],
        exact={j: column[kept] for j, column in enumerate(exact) if column is not None},
        target=options.target,
        rows=raw.rows[kept],
        classes=classes,
        form=raw.form,
        ignored=ignored,
        categories=tuple(categories),
        dropped=int((~kept).sum()),
    )


def _refuse_faults(
    path: Path,
    raw: RawTable,
    used: Sequence[tuple[str, Numbers]],
    whole: np.ndarray,
    features: int,
) -> None:
    """Raise the faults of all cells, in the order of rows and columns.

    Args:
        whole: whether the target and its like are there in each row, shape (n,).
        features: the number of features, which come first.
    """
    found = [
        (row, j, fault)
        for j, (_, numbers) in enumerate(used)
        for row, fault in numbers.faults.items()
    ]
    for j, (_, numbers) in enumerate(used[features:], features):
        absent = np.flatnonzero(~whole & np.isnan(numbers.values)).tolist()
        fault = "missing value, for which a mean cannot stand"
        found += [(row, j, fault) for row in absent if row not in numbers.faults]
    faults = [f'row {raw.rows[i]}, column "{used[j][0]}": {fault}' for i, j, fault in sorted(found)]
    words = [name for name, numbers in used[:features] if len(numbers.faults) == len(raw.rows)]
    remedies = [f"for columns of words, set `categories` = {words}"] if words else []
    if any(fault.startswith("missing value") for _, j, fault in found if j < features):
        remedies += ['for missing values, set `missing` = "drop" or "mean"']
    refuse_all(path.name, faults, remedies=remedies)


def _choose(
    path: Path, raw: RawTable, options: FileOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the features, and of the columns that are ignored."""
    if options.features == ():
        raise DataError(f"{path.name}: `features` must name at least one column, got []")
    single = [
        name for name in (options.target, options.weights, options.exposure) if name is not None
    ]
    named = tuple(dict.fromkeys(name for name in raw.names if name))
    others = tuple(name for name in named if name not in {*single, *options.ignore})
    wanted = options.features or others
    chosen = options.categories if isinstance(options.categories, tuple) else ()
    for name in dict.fromkeys((*wanted, *single, *options.ignore, *chosen)):
        if name not in named:
            near = difflib.get_close_matches(name, named[:1000], n=1)
            hint = f', did you mean "{near[0]}"?' if near else f" (it has {first_of(named)})"
            raise DataError(f'{path.name}: no column "{name}"{hint}')
    for key in ("target", "weights", "exposure"):
        if (name := getattr(options, key)) in wanted:
            raise DataError(f'{path.name}: the {key} "{name}" cannot be a feature too')
    if not wanted:
        raise DataError(f"{path.name}: there is no feature column")
    repeated = [name for name, count in Counter(raw.names).items() if name and count > 1]
    for name in set(repeated) & {*wanted, *single}:
        first, *rest = (raw.columns[k] for k, other in enumerate(raw.names) if other == name)
        if not all(np.array_equal(first, other) for other in rest):
            raise DataError(
                f'{path.name}: row {raw.rows[0] - 1}, column "{name}" appears twice with different '
                "cells; rename one, or leave it out of `features`"
            )
    unnamed = raw.names.count("")
    again = [f"{name} (repeated)" for name in repeated if name in {*wanted, *single}]
    left = [name for name in named if name not in {*wanted, *single}]
    return wanted, (*([f"{unnamed} without a name"] if unnamed else []), *left, *again)


def _is_category(name: str, column: Sequence[str] | np.ndarray, options: FileOptions) -> bool:
    return is_text(column) if options.categories == "text" else name in options.categories
