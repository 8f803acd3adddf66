"""Data sets: what a config's `problem.data` table stands for.

Files are read with numpy alone and every fault is named by row and column. The random kinds draw
with jax inside the function, so that a traced seed can be swept in one compiled program.
"""

import csv
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddln._files import write_whole

if TYPE_CHECKING:
    import xarray as xr

    from ddln.schema import Data

DIABETES_SHAPE, QUADRATIC = (442, 10), 64
DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""How many there are of each digit."""
_SHOWN = 5
"""Faults of a file that are listed; the others are counted."""


class DataError(ValueError):
    """A data set that cannot be used, and where the fault is."""


def shape_of(data: "Data") -> tuple[int, int]:
    """(samples, features) of a `problem.data` table, without jax.

    Args:
        data: the table, one of the kinds in `ddln.schema`.

    Raises:
        DataError: a file that cannot be read.

    >>> from ddln.schema import Gaussian
    >>> shape_of(Gaussian(kind="gaussian", samples=10, features=8))
    (10, 8)
    """
    if data.kind == "diabetes":
        return (DIABETES_SHAPE[0], QUADRATIC) if data.quadratic else DIABETES_SHAPE
    if data.kind == "digits":
        return DIGITS[data.positive] + DIGITS[data.negative], 64
    if data.kind == "file":
        _, features, _ = read_table(data.path, data.target, data.features)
        return features.shape[0], features.shape[1]
    return data.samples, data.features


def draw(data: "Data") -> tuple[Any, Any]:
    """Features (samples, features) and targets (samples,) of a `problem.data` table.

    Args:
        data: the table; its `seed`, `noise`, `nonzeros` and `strength` may be traced.

    Returns:
        jax arrays for the random kinds, float64 numpy arrays for the others. *gaussian*: X and y
        are independent standard normal. *sparse*: y = Xθ* + noise · N(0, 1), with θ* = ±1 on
        `nonzeros` entries chosen at random and 0 elsewhere. *classification*: its signs, ±1.
        *counts*: y of the Poisson law of mean exp(strength · Xθ*).

    Raises:
        DataError: a file that cannot be read, or a constant column to be standardised.

    >>> from ddln.schema import Sparse
    >>> table = Sparse(kind="sparse", samples=10, features=30, nonzeros=3)
    >>> [array.shape for array in draw(table)]
    [(10, 30), (10,)]
    """
    if data.kind == "file":
        names, features, targets = read_table(data.path, data.target, data.features)
        source = Path(data.path).name
    elif data.kind == "diabetes":
        names, features, targets = _diabetes(data.quadratic)
        source = "diabetes"
    elif data.kind == "digits":
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        chosen = np.isin(digits, (data.positive, data.negative))
        return pixels[chosen] / 16, np.where(digits[chosen] == data.positive, 1.0, -1.0)
    else:
        return _draw_random(data)
    if data.standardise:
        joined = np.column_stack([features, targets])
        joined = _standardise(joined, (*names, "target"), source)
        return joined[:, :-1], joined[:, -1]
    return features, targets


def _diabetes(quadratic: bool) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names, features and targets; products and squares are of the standardised features."""
    from sklearn.datasets import load_diabetes

    table: Any = load_diabetes(scaled=False)
    names, features, targets = tuple(table["feature_names"]), table["data"], table["target"]
    if quadratic:
        plain = _standardise(features, names, "diabetes")
        every = combinations_with_replacement(range(len(names)), 2)
        pairs = sorted(set(every) - {(names.index("sex"),) * 2})
        features = np.column_stack([plain, *(plain[:, j] * plain[:, k] for j, k in pairs)])
        names += tuple(f"{names[j]}·{names[k]}" for j, k in pairs)
    return names, features, targets


def _draw_random(data: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    features_key, targets_key, truth_key = jax.random.split(jax.random.key(data.seed), 3)
    features = jax.random.normal(features_key, (data.samples, data.features))
    targets = jax.random.normal(targets_key, (data.samples,))
    if data.kind == "gaussian":
        return features, targets
    support_key, sign_key = jax.random.split(truth_key)
    chosen = jax.random.permutation(support_key, data.features) < data.nonzeros
    truth = jnp.where(chosen, jax.random.rademacher(sign_key, (data.features,), features.dtype), 0)
    fitted = features @ truth
    if data.kind == "counts":
        counts = jax.random.poisson(targets_key, jnp.exp(data.strength * fitted))
        return features, counts.astype(features.dtype)
    targets = fitted + data.noise * targets
    if data.kind == "classification":
        targets = jnp.where(targets >= 0, 1.0, -1.0)
    return features, targets


def _standardise(table: np.ndarray, names: Sequence[str], source: str) -> np.ndarray:
    deviation = table.std(axis=0)
    for name, constant in zip(names, deviation <= 1e-12 * np.abs(table).max(axis=0), strict=True):
        if constant:
            raise DataError(f'{source}: column "{name}" is constant, it cannot be standardised')
    return (table - table.mean(axis=0)) / deviation


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
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    stamp = path.stat()
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


def arrays_of(dataset: "xr.Dataset") -> dict[str, np.ndarray]:
    """All arrays of the NPZ file that a run was made with: its truth, or what to test on, too.

    Args:
        dataset: from `ddln.run`, of a config whose `problem.data` is such a file.

    Raises:
        DataError: it is of other data, or the file is not there.

    >>> dataset = ddln.run(ddln.load("configs/large_steps.toml", ["dynamics.steps=9", "sweep={}"]))
    >>> sorted(arrays_of(dataset))
    ['features', 'targets', 'test_features', 'truth']
    """
    table = tomllib.loads(dataset.attrs["config"])["problem"]["data"]
    path = Path(table.get("path", ""))
    if path.suffix != ".npz":
        raise DataError(f'problem.data: must be an NPZ file, got kind "{table["kind"]}" {path}')
    return _load(path)


@lru_cache(maxsize=4)
def _read(
    path: Path, target: str, features: tuple[str, ...] | None, stamp: tuple[int, int]
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    read = _read_npz if path.suffix == ".npz" else _read_csv
    names, inputs, targets = read(path, target, features)
    inputs.setflags(write=False)
    targets.setflags(write=False)
    return names, inputs, targets


def _choose(
    path: Path, header: Sequence[str], target: str | None, features: tuple[str, ...] | None
) -> tuple[str, ...]:
    wanted = features or tuple(name for name in header if name != target)
    for name in (*wanted, *(() if target is None else (target,))):
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f', did you mean "{near[0]}"?' if near else f" (it has {', '.join(header)})"
            raise DataError(f'{path.name}: no column "{name}"{hint}')
    if target in wanted:
        raise DataError(f'{path.name}: the target "{target}" cannot be a feature too')
    if not wanted:
        raise DataError(f"{path.name}: there is no feature column")
    return wanted


def _read_csv(
    path: Path, target: str, features: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name}: not a CSV file in UTF-8: {error}") from None
    while rows and not any(rows[-1]):
        rows.pop()
    if len(rows) < 2:
        raise DataError(f"{path.name}: needs a header and at least one row, has {len(rows)} row(s)")
    header = rows[0]
    for name in header:
        if not name or header.count(name) > 1:
            fault = f'column "{name}" appears twice' if name else "a column has no name"
            raise DataError(f"{path.name}: row 1, {fault}")
    names = _choose(path, header, target, features)
    columns = [(header.index(name), name) for name in (*names, target)]
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
    return names, table[:, :-1].copy(), table[:, -1].copy()


def _read_npz(
    path: Path, target: str, features: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    return _columns(path, _load(path), features)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path.name}: not an NPZ file of numbers: {error}") from None


def _columns(
    path: Path, arrays: Mapping[str, np.ndarray], features: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    for name, ndim, shape in (("features", 2, "(n, d)"), ("targets", 1, "(n,)")):
        if name not in arrays:
            raise DataError(
                f'{path.name}: no array "{name}" (it has {", ".join(arrays) or "none"})'
            )
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
    inputs = inputs[:, [names.index(name) for name in wanted]]
    table = np.column_stack([inputs, targets])
    _refuse(
        path,
        [
            f'row {i + 1}, column "{(*wanted, "targets")[j]}": not a finite number: "{table[i, j]}"'
            for i, j in np.argwhere(~np.isfinite(table))
        ],
    )
    return wanted, inputs, targets


def _refuse(path: Path, faults: list[str]) -> None:
    if faults:
        more = len(faults) - _SHOWN
        shown = [*faults[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise DataError("\n".join(f"{path.name}: {fault}" for fault in shown))
