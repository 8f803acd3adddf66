"""The data that a config's `problem.data` table describes.

Random kinds draw with JAX inside the function, so one compiled program can sweep a traced seed.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddln._internal.random import fixed_generator, key_from_seed
from ddln.config.data_files import DataError as DataError
from ddln.config.data_files import DataFile, load_arrays, read_file

if TYPE_CHECKING:
    import xarray as xr

    from ddln.config.schema import DataConfig

DIABETES_SHAPE, QUADRATIC = (442, 10), 64
DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""The number of images of each digit."""
_LARGEST_MEAN = 2.0**30
"""The largest mean of counts: JAX draws 32-bit integers and saturates or returns 0 beyond."""
_MAX_ENTRY, _MAX_OFFSET, _MAX_EXPONENT = 1e6, 1e4, 100.0
"""Safe bounds on entries, on offsets relative to the spread, and on exponents in float64."""
_CONSTANT_SPREAD = 4 * np.finfo(np.float64).eps
"""The largest spread, with entries of size 1, of a column that counts as constant."""
_LABELS = ("must be -1 or 1", lambda y: np.abs(y) == 1)
_RULES = {
    "logistic": _LABELS,
    "exponential": _LABELS,
    "poisson": ("must be a whole number ≥ 0", lambda y: (y >= 0) & (y == np.floor(y))),
}
"""The condition that a loss imposes on each target, in words and as a test."""
_KINDS_WITH_TARGETS = {
    "logistic": ("classification", "digits"),
    "exponential": ("classification", "digits"),
    "poisson": ("counts", "diabetes"),
}
"""The kinds of data with such targets; the targets of files are tested."""


def shape_of(data: "DataConfig") -> tuple[int, int]:
    """(samples, features) of a `problem.data` table, without importing JAX.

    Args:
        data: the table, one of the kinds in `ddln.config.schema`.

    Raises:
        DataError: a file that cannot be read.

    >>> from ddln.config.schema import GaussianDataConfig
    >>> shape_of(GaussianDataConfig(kind="gaussian", samples=10, features=8))
    (10, 8)
    """
    if data.kind == "diabetes":
        return (DIABETES_SHAPE[0], QUADRATIC) if data.quadratic else DIABETES_SHAPE
    if data.kind == "digits":
        return DIGITS[data.positive] + DIGITS[data.negative], 64
    if data.kind == "file":
        return _file(data).features.shape
    return data.samples, data.features


def validate(data: "DataConfig", loss: str) -> None:
    """Refuse data that do not define a problem, without importing JAX.

    Args:
        data: the table.
        loss: the `kind` of the loss.

    Raises:
        DataError: a file that cannot be read, a constant column to be standardised, or targets
            outside the domain of the loss.

    >>> from ddln.config.schema import GaussianDataConfig
    >>> validate(GaussianDataConfig(kind="gaussian", samples=10, features=8), "least_squares")
    """
    if data.kind == "file":
        _, targets = draw(data)
        if loss in _RULES:
            rule, holds = _RULES[loss]
            rule += " once standardised" if data.standardise else ""
            _file(data).refuse(~holds(targets), targets, rule)
    elif loss in _RULES and (
        data.kind not in _KINDS_WITH_TARGETS[loss] or (data.kind == "diabetes" and data.standardise)
    ):
        raise DataError(f'targets of {loss} loss {_RULES[loss][0]}: not of kind "{data.kind}"')


def is_tame(data: "DataConfig", loss: str) -> bool:
    """Whether NumPy can see that no number of the problem over- or underflows float64.

    For other data, `ddln check` builds the problem, as `ddln run` does.

    >>> from ddln.config.schema import SparseDataConfig
    >>> table = SparseDataConfig(kind="sparse", samples=10, features=8, nonzeros=3, noise=1e200)
    >>> is_tame(table, "least_squares")
    False
    """
    if data.kind == "counts":
        return abs(data.strength) * 8 * math.sqrt(max(data.nonzeros, 1)) < math.log(_LARGEST_MEAN)
    if data.kind != "file":
        return getattr(data, "noise", 0.0) < _MAX_ENTRY
    features, targets = draw(data)
    size = np.abs(features).max(axis=0)
    largest = max(size.max(), np.abs(targets).max())
    smallest = size.min(where=size > 0, initial=1.0)
    if not 1 / _MAX_ENTRY < smallest <= largest < _MAX_ENTRY:
        return False
    if loss in ("exponential", "poisson") and size.sum() > _MAX_EXPONENT:
        return False
    spread = np.ptp(features, axis=0)
    # An offset larger than the spread costs digits; a constant column has no offset.
    return loss == "least_squares" or bool((size <= _MAX_OFFSET * spread)[spread > 0].all())


def draw(data: "DataConfig") -> tuple[Any, Any]:
    """Features (samples, features) and targets (samples,) of a `problem.data` table.

    Args:
        data: the table; its `seed`, `noise`, `nonzeros` and `strength` may be traced.

    Returns:
        JAX arrays for the random kinds, float64 NumPy arrays for the others. The entries of X are
        independent: N(0, 1), or ±1 for the design "rademacher". *gaussian*: y is standard normal.
        *sparse*: y = Xθ* + noise · N(0, 1), where θ* is ±1 on `nonzeros` random entries and 0
        elsewhere. *classification*: the signs ±1 of these y. *counts*: y is Poisson with mean
        exp(strength · Xθ*).

    Raises:
        DataError: a file that cannot be read, or a constant column to be standardised.

    >>> from ddln.config.schema import SparseDataConfig
    >>> table = SparseDataConfig(kind="sparse", samples=10, features=30, nonzeros=3)
    >>> [array.shape for array in draw(table)]
    [(10, 30), (10,)]
    """
    if data.kind == "file":
        file = _file(data)
        return _standardised(file) if data.standardise else (file.features, file.targets)
    if data.kind == "diabetes":
        names, features, targets = _diabetes(data.quadratic)
        if data.standardise:
            joined = np.column_stack([features, targets])
            joined = _standardise(joined, (*names, "target"), "diabetes")
            features, targets = joined[:, :-1], joined[:, -1]
        return features, targets
    if data.kind == "digits":
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        chosen = np.isin(digits, (data.positive, data.negative))
        return pixels[chosen] / 16, np.where(digits[chosen] == data.positive, 1.0, -1.0)
    return _draw_random(data)


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


def has_truth(data: "DataConfig") -> bool:
    """Whether the θ* that generated the targets is known in the units of the features.

    >>> from ddln.config.schema import GaussianDataConfig
    >>> has_truth(GaussianDataConfig(kind="gaussian", samples=10, features=8))
    False
    """
    if data.kind == "file":
        return not data.standardise and _file(data).truth is not None
    return hasattr(data, "nonzeros")


def truth(data: "DataConfig") -> Any:
    """θ*, shape (features,), of data with a known one; see `has_truth`.

    >>> from ddln.config.schema import SparseDataConfig
    >>> table = SparseDataConfig(kind="sparse", samples=10, features=30, nonzeros=3)
    >>> int(abs(truth(table)).sum())
    3
    """
    return _file(data).truth if data.kind == "file" else _plant(data)


def _file(data: Any) -> DataFile:
    return read_file(Path(data.path), data.target, data.features)


@fixed_generator()
def _plant(data: Any) -> Any:
    import jax
    import jax.numpy as jnp

    support_key, sign_key = jax.random.split(_keys(data)[2])
    chosen = jax.random.permutation(support_key, data.features) < data.nonzeros
    signs = jax.random.rademacher(sign_key, (data.features,), jnp.result_type(float))
    return jnp.where(chosen, signs, 0)


def _keys(data: Any) -> Any:
    """The keys of the features, the targets and the truth."""
    import jax

    return jax.random.split(key_from_seed(data.seed), 3)


@fixed_generator()
def _draw_random(data: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    from ddln._internal.validation import refuse

    features_key, targets_key, _ = _keys(data)
    law = jax.random.normal if data.design == "normal" else jax.random.rademacher
    features = law(features_key, (data.samples, data.features), jnp.result_type(float))
    targets = jax.random.normal(targets_key, (data.samples,))
    if data.kind == "gaussian":
        return features, targets
    fitted = features @ truth(data)
    if data.kind == "counts":
        means = jnp.exp(data.strength * fitted)
        counts = jax.random.poisson(targets_key, means).astype(features.dtype)
        message = "problem.data.strength: exp(strength · Xθ*) must be ≤ 2^30 for every sample"
        return features, refuse(~(means <= _LARGEST_MEAN), message, counts)
    targets = fitted + data.noise * targets
    if data.kind == "classification":
        targets = jnp.where(targets >= 0, 1.0, -1.0)
    return features, targets


@lru_cache(maxsize=1)
def _standardised(file: DataFile) -> tuple[np.ndarray, np.ndarray]:
    joined = np.column_stack([file.features, file.targets])
    joined = _standardise(joined, (*file.names, file.target), file.source, file.exact)
    joined.setflags(write=False)
    return joined[:, :-1], joined[:, -1]


def _standardise(
    table: np.ndarray,
    names: Sequence[str],
    source: str,
    exact: Mapping[int, np.ndarray] | None = None,
) -> np.ndarray:
    """Standardise columns to mean 0 and deviation 1, in any units and with any offset.

    Args:
        table: the columns, shape (n, columns).
        names: their names.
        source: the name of the data, for errors.
        exact: columns of large integers, as in `DataFile`.
    """
    exact, standardised = exact or {}, np.empty_like(table)
    for j, name in enumerate(names):
        change = _shifted(exact.get(j, table[:, j]))
        if not change.any():
            raise DataError(f'{source}: column "{name}" is constant, it cannot be standardised')
        change = _scaled(change)
        change -= change.mean()
        standardised[:, j] = change / change.std()
    return standardised


def _shifted(column: np.ndarray) -> np.ndarray:
    """The column minus its smallest entry, in arbitrary units; 0 if that is only rounding."""
    if column.dtype.kind in "iu":
        # Modulo 2^64 the difference of 64-bit integers is exact, whatever their signs.
        wrapped = column.astype(np.uint64)
        return (wrapped - wrapped[column.argmin()]).astype(np.float64)
    column = _scaled(column)
    change = column - column.min()
    return change if change.max() > _CONSTANT_SPREAD else np.zeros_like(change)


def _scaled(column: np.ndarray) -> np.ndarray:
    """The column times the power of two that brings its largest entry into [1/2, 1), exactly."""
    return np.ldexp(column, -np.frexp(np.abs(column).max())[1])


def arrays_of(dataset: "xr.Dataset") -> dict[str, np.ndarray]:
    """All arrays of a run's NPZ data file, such as its truth and its test data.

    Args:
        dataset: from `ddln.run`, of a config whose `problem.data` is an NPZ file.

    Raises:
        DataError: data of another kind, or a missing file.

    >>> dataset = ddln.run(ddln.load("configs/large_steps.toml", ["dynamics.steps=9", "sweep={}"]))
    >>> sorted(arrays_of(dataset))
    ['features', 'targets', 'test_features', 'truth']
    """
    table = tomllib.loads(dataset.attrs["config"])["problem"]["data"]
    path = Path(table.get("path", ""))
    if path.suffix != ".npz":
        raise DataError(f'problem.data: must be an NPZ file, got kind "{table["kind"]}" {path}')
    return load_arrays(path)
