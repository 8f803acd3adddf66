"""The data that a config's `problem.data` table describes.

Random kinds draw with JAX inside the function, so one compiled program can sweep a traced seed.
"""

import math
import tomllib
from collections.abc import Callable, Collection
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddln._internal.random import fixed_generator, key_from_seed
from ddln.config._preparation import MULTINOMIAL, RULES, TWO_CLASSES, Prepared, describe, prepare
from ddln.config._standardise import standardise
from ddln.config.data_files import DataError as DataError
from ddln.config.data_files import DataFile, FileOptions, load_arrays, read_file

if TYPE_CHECKING:
    import xarray as xr

    from ddln.config.data_schema import DataConfig

DIABETES_SHAPE, QUADRATIC = (442, 10), 64
DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
"""The number of images of each digit."""
_LARGEST_MEAN = 2.0**30
"""The largest mean of counts: JAX draws 32-bit integers and saturates or returns 0 beyond."""
_MAX_ENTRY, _MAX_OFFSET, _MAX_EXPONENT = 1e6, 1e4, 100.0
"""Safe bounds on entries, on offsets relative to the spread, and on exponents in float64."""
_LOSSES_WITH = {
    "weights": (
        *("least_squares", "logistic", MULTINOMIAL, "exponential", "poisson", "hinge", "quantile"),
    ),
    "exposure": ("poisson",),
}
"""The losses that take a column of the file beside the targets."""


def shape_of(data: "DataConfig") -> tuple[int, int]:
    """(samples, features) of a `problem.data` table, without importing JAX.

    Args:
        data: the table, one of the kinds in `ddln.config.data_schema`.

    Raises:
        DataError: a file that cannot be read.

    >>> from ddln.config.data_schema import GaussianDataConfig
    >>> shape_of(GaussianDataConfig(kind="gaussian", samples=10, features=8))
    (10, 8)
    """
    return _KINDS[data.kind].shape(data)


def outputs(data: "DataConfig", loss: str) -> int:
    """The number of coordinates of θ for each feature: K for multinomial loss of K classes, else 1.

    >>> from ddln.config.data_schema import GaussianDataConfig
    >>> outputs(GaussianDataConfig(kind="gaussian", samples=10, features=8), "least_squares")
    1
    """
    return len(prepared(data, loss).labels) if loss == MULTINOMIAL else 1


def validate(data: "DataConfig", loss: str) -> None:
    """Refuse data that do not define a problem, without importing JAX.

    Args:
        data: the table.
        loss: the `kind` of the loss.

    Raises:
        DataError: a file that cannot be read, a constant column to be standardised, or targets
            outside the domain of the loss.

    >>> from ddln.config.data_schema import GaussianDataConfig
    >>> validate(GaussianDataConfig(kind="gaussian", samples=10, features=8), "least_squares")
    """
    losses = _KINDS[data.kind].losses
    if losses is None:
        _validate_file(data, loss)
    elif loss in RULES and loss not in losses(data):
        raise DataError(f'targets of {loss} loss {RULES[loss][0]}: not of kind "{data.kind}"')


def _validate_file(data: Any, loss: str) -> None:
    for key, losses in _LOSSES_WITH.items():
        if getattr(data, key) is not None and loss not in losses:
            raise DataError(f"{key}: is for loss {', '.join(losses)}, got {loss}")
    prepared(data, loss)


def is_tame(data: "DataConfig", loss: str) -> bool:
    """Whether NumPy can see that no number of the problem over- or underflows float64.

    For other data, `ddln check` builds the problem, as `ddln run` does.

    >>> from ddln.config.data_schema import SparseDataConfig
    >>> table = SparseDataConfig(kind="sparse", samples=10, features=8, nonzeros=3, noise=1e200)
    >>> is_tame(table, "least_squares")
    False
    """
    return _KINDS[data.kind].is_tame(data, loss)


def prepared(data: Any, loss: str) -> Prepared:
    """The data of a file, as a problem with this loss has them.

    Raises:
        DataError: a file that cannot be read or prepared.
    """
    return prepare(_file(data), data, loss)


def sample_options(data: "DataConfig", loss: str) -> dict[str, Any]:
    """The weights and exposures of the samples and the number of classes, by the name of the
    argument of the loss.
    """
    if data.kind != "file":
        return {}
    found = prepared(data, loss).train._asdict()
    options = {key: found[key] for key in _LOSSES_WITH if found[key] is not None}
    return options | ({"classes": outputs(data, loss)} if loss == MULTINOMIAL else {})


def column_names(data: "DataConfig", loss: str) -> tuple[str, ...]:
    """The name of each feature of a data file, an intercept included; none for other data."""
    return prepared(data, loss).names if data.kind == "file" else ()


def describe_file(data: "DataConfig", loss: str) -> dict[str, str]:
    """What was understood of a data file, in words, by topic; empty for other data."""
    return describe(_file(data), data, loss) if data.kind == "file" else {}


def draw(data: "DataConfig", loss: str = "least_squares") -> tuple[Any, Any]:
    """Features (samples, features) and targets (samples,) of a `problem.data` table.

    Args:
        data: the table; its `seed`, `noise`, `nonzeros` and `strength` may be traced.
        loss: the `kind` of the loss, for which words and numbers of a file become labels.

    Returns:
        JAX arrays for the random kinds, float64 NumPy arrays for the others. The entries of X are
        independent: N(0, 1), or ±1 for the design "rademacher". *gaussian*: y is standard normal.
        *sparse*: y = Xθ* + noise · N(0, 1), where θ* is ±1 on `nonzeros` random entries and 0
        elsewhere. *classification*: the signs ±1 of these y. *counts*: y is Poisson with mean
        exp(strength · Xθ*).

    Raises:
        DataError: a file that cannot be read, or a constant column to be standardised.

    >>> from ddln.config.data_schema import SparseDataConfig
    >>> table = SparseDataConfig(kind="sparse", samples=10, features=30, nonzeros=3)
    >>> [array.shape for array in draw(table)]
    [(10, 30), (10,)]
    """
    kind = _KINDS[data.kind]
    return _draw_file(data, loss) if kind.losses is None else kind.draw(data)


def has_truth(data: "DataConfig", loss: str = "least_squares") -> bool:
    """Whether the θ* that generated the targets is known in the units of the features.

    >>> from ddln.config.data_schema import GaussianDataConfig
    >>> has_truth(GaussianDataConfig(kind="gaussian", samples=10, features=8))
    False
    """
    return loss != MULTINOMIAL and _KINDS[data.kind].has_truth(data)


def truth(data: "DataConfig") -> Any:
    """θ*, shape (features,), of data with a known one; see `has_truth`.

    >>> from ddln.config.data_schema import SparseDataConfig
    >>> table = SparseDataConfig(kind="sparse", samples=10, features=30, nonzeros=3)
    >>> int(abs(truth(table)).sum())
    3
    """
    return _KINDS[data.kind].truth(data)


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


def _file(data: Any) -> DataFile:
    keys = {name: getattr(data, name) for name in FileOptions._fields}
    return read_file(Path(data.path), FileOptions(**keys))


def _draw_file(data: Any, loss: str = "least_squares") -> tuple[np.ndarray, np.ndarray]:
    samples = prepared(data, loss).train
    return samples.features, samples.targets


def _shape_of_file(data: Any) -> tuple[int, int]:
    samples, features = _file(data).features.shape
    held_out = 0 if data.test is None else round(data.test * samples)
    return samples - held_out, features + bool(data.intercept)


def _file_has_truth(data: Any) -> bool:
    return not (data.standardise or data.intercept) and _file(data).truth is not None


def _is_tame_file(data: Any, loss: str) -> bool:
    features, targets = _draw_file(data, loss)
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


def _draw_diabetes(data: Any) -> tuple[np.ndarray, np.ndarray]:
    names, features, targets = _diabetes(data.quadratic)
    if data.standardise:
        joined = np.column_stack([features, targets])
        joined = standardise(joined, (*names, "target"), "diabetes")
        features, targets = joined[:, :-1], joined[:, -1]
    return features, targets


def _diabetes(quadratic: bool) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names, features and targets; products and squares are of the standardised features."""
    from sklearn.datasets import load_diabetes

    table: Any = load_diabetes(scaled=False)
    names, features, targets = tuple(table["feature_names"]), table["data"], table["target"]
    if quadratic:
        plain = standardise(features, names, "diabetes")
        every = combinations_with_replacement(range(len(names)), 2)
        pairs = sorted(set(every) - {(names.index("sex"),) * 2})
        features = np.column_stack([plain, *(plain[:, j] * plain[:, k] for j, k in pairs)])
        names += tuple(f"{names[j]}·{names[k]}" for j, k in pairs)
    return names, features, targets


def _draw_digits(data: Any) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    pixels, digits = map(np.asarray, load_digits(return_X_y=True))
    chosen = np.isin(digits, (data.positive, data.negative))
    return pixels[chosen] / 16, np.where(digits[chosen] == data.positive, 1.0, -1.0)


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


def _draw_features(data: Any) -> Any:
    import jax
    import jax.numpy as jnp

    law = jax.random.normal if data.design == "normal" else jax.random.rademacher
    return law(_keys(data)[0], (data.samples, data.features), jnp.result_type(float))


def _draw_normals(data: Any) -> Any:
    import jax

    return jax.random.normal(_keys(data)[1], (data.samples,))


@fixed_generator()
def _draw_gaussian(data: Any) -> tuple[Any, Any]:
    return _draw_features(data), _draw_normals(data)


@fixed_generator()
def _draw_sparse(data: Any) -> tuple[Any, Any]:
    features = _draw_features(data)
    return features, features @ _plant(data) + data.noise * _draw_normals(data)


def _draw_classification(data: Any) -> tuple[Any, Any]:
    import jax.numpy as jnp

    features, targets = _draw_sparse(data)
    return features, jnp.where(targets >= 0, 1.0, -1.0)


@fixed_generator()
def _draw_counts(data: Any) -> tuple[Any, Any]:
    import jax
    import jax.numpy as jnp

    from ddln._internal.validation import refuse

    features = _draw_features(data)
    means = jnp.exp(data.strength * (features @ _plant(data)))
    counts = jax.random.poisson(_keys(data)[1], means).astype(features.dtype)
    message = "problem.data.strength: exp(strength · Xθ*) must be ≤ 2^30 for every sample"
    return features, refuse(~(means <= _LARGEST_MEAN), message, counts)


def _are_counts_tame(data: Any, loss: str) -> bool:
    return abs(data.strength) * 8 * math.sqrt(max(data.nonzeros, 1)) < math.log(_LARGEST_MEAN)


class _Kind(NamedTuple):
    """How to handle the tables of one kind.

    Attributes:
        draw: features and targets.
        shape: (samples, features), without drawing.
        losses: of `RULES`, those that accept the targets; None if only the targets can tell.
        is_tame: see `is_tame`.
        has_truth: see `has_truth`.
        truth: θ*, if `has_truth`.
    """

    draw: Callable[[Any], tuple[Any, Any]]
    shape: Callable[[Any], tuple[int, int]] = lambda data: (data.samples, data.features)
    losses: Callable[[Any], Collection[str]] | None = lambda data: ()
    is_tame: Callable[[Any, str], bool] = lambda data, loss: True
    has_truth: Callable[[Any], bool] = lambda data: False
    truth: Callable[[Any], Any] = lambda data: None


_SPARSE = _Kind(
    _draw_sparse,
    is_tame=lambda data, loss: data.noise < _MAX_ENTRY,
    has_truth=lambda data: True,
    truth=_plant,
)
_KINDS = {
    "gaussian": _Kind(_draw_gaussian),
    "sparse": _SPARSE,
    "classification": _SPARSE._replace(draw=_draw_classification, losses=lambda data: TWO_CLASSES),
    "counts": _SPARSE._replace(
        draw=_draw_counts, losses=lambda data: {"poisson"}, is_tame=_are_counts_tame
    ),
    "file": _Kind(
        _draw_file,
        shape=_shape_of_file,
        losses=None,
        is_tame=_is_tame_file,
        has_truth=_file_has_truth,
        truth=lambda data: _file(data).truth,
    ),
    "diabetes": _Kind(
        _draw_diabetes,
        shape=lambda data: (DIABETES_SHAPE[0], QUADRATIC) if data.quadratic else DIABETES_SHAPE,
        losses=lambda data: () if data.standardise else {"poisson"},
    ),
    "digits": _Kind(
        _draw_digits,
        shape=lambda data: (DIGITS[data.positive] + DIGITS[data.negative], 64),
        losses=lambda data: TWO_CLASSES,
    ),
}
