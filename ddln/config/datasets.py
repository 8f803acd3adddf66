"""Data sets: what a config's `problem.data` table stands for.

The random kinds draw with jax inside the function, so that a traced seed can be swept in one
compiled program.
"""

import tomllib
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddln.config.data_files import DataError as DataError
from ddln.config.data_files import DataFile, load_arrays, read_file, read_table

if TYPE_CHECKING:
    import xarray as xr

    from ddln.config.schema import Data

DIABETES_SHAPE, QUADRATIC = (442, 10), 64
DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""How many there are of each digit."""


def shape_of(data: "Data") -> tuple[int, int]:
    """(samples, features) of a `problem.data` table, without jax.

    Args:
        data: the table, one of the kinds in `ddln.config.schema`.

    Raises:
        DataError: a file that cannot be read.

    >>> from ddln.config.schema import Gaussian
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
        jax arrays for the random kinds, float64 numpy arrays for the others. X has independent
        entries, N(0, 1) or, of the design "rademacher", ±1. *gaussian*: y is standard normal.
        *sparse*: y = Xθ* + noise · N(0, 1), with θ* = ±1 on
        `nonzeros` entries chosen at random and 0 elsewhere. *classification*: its signs, ±1.
        *counts*: y of the Poisson law of mean exp(strength · Xθ*).

    Raises:
        DataError: a file that cannot be read, or a constant column to be standardised.

    >>> from ddln.config.schema import Sparse
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


def has_truth(data: "Data") -> bool:
    """Whether the θ* that the targets were made with is known, and in the units of the features.

    >>> from ddln.config.schema import Gaussian
    >>> has_truth(Gaussian(kind="gaussian", samples=10, features=8))
    False
    """
    if data.kind == "file":
        return not data.standardise and _file(data)[3] is not None
    return hasattr(data, "nonzeros")


def truth(data: "Data") -> Any:
    """θ*, shape (features,), of data that have one: see `has_truth`.

    >>> from ddln.config.schema import Sparse
    >>> table = Sparse(kind="sparse", samples=10, features=30, nonzeros=3)
    >>> int(abs(truth(table)).sum())
    3
    """
    return _file(data)[3] if data.kind == "file" else _plant(data)


def _file(data: Any) -> DataFile:
    return read_file(Path(data.path), data.target, data.features)


def _plant(data: Any) -> Any:
    import jax
    import jax.numpy as jnp

    support_key, sign_key = jax.random.split(_keys(data)[2])
    chosen = jax.random.permutation(support_key, data.features) < data.nonzeros
    signs = jax.random.rademacher(sign_key, (data.features,), jnp.result_type(float))
    return jnp.where(chosen, signs, 0)


def _keys(data: Any) -> Any:
    """Of the features, the targets and the truth."""
    import jax

    return jax.random.split(jax.random.key(data.seed), 3)


def _draw_random(data: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    features_key, targets_key, _ = _keys(data)
    law = jax.random.normal if data.design == "normal" else jax.random.rademacher
    features = law(features_key, (data.samples, data.features), jnp.result_type(float))
    targets = jax.random.normal(targets_key, (data.samples,))
    if data.kind == "gaussian":
        return features, targets
    fitted = features @ truth(data)
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
    return load_arrays(path)
