"""Losses with kinks: hinge and quantile, each with its minimum from a linear program.

They are convex, but not differentiable where a margin or a residual is 0. The theorems assume a
gradient flow; here there is only a subgradient inclusion, which the integrators of flows do not
solve. Training by steps takes the subgradient that is 0 at a kink.
"""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import ArrayLike, Number, as_floats, refuse
from ddln.problems._infimum import on_host
from ddln.problems.base import (
    LinearRisk,
    Normalisation,
    Samples,
    as_data,
    as_labels,
    as_weights,
)

_DUALITY_GAP = 1e-9
"""The largest gap between primal and dual values that verifies a minimum, relative to ℒ(0)."""
_ACTIVE = 1e-7
"""The tolerance of the program, within which a residual relative to the largest target is 0."""


class PiecewiseLinearRisk(LinearRisk):
    """ℒ(θ) = c Σ_i w_i φ(x_iᵀθ, y_i) with φ convex and piecewise linear in the prediction.

    The infimum is attained. The loss is not differentiable, and its gap is a difference, known to
    the rounding of ℒ.
    """

    features: Float[Array, "samples dim"]
    targets: Float[Array, " samples"]
    factor: float = eqx.field(static=True)
    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    weights: Float[Array, " samples"] | None

    @property
    def attained(self) -> Bool[Array, "*batch"]:
        return ~jnp.isnan(self.minimum)

    @property
    def pl_constant(self) -> None:
        return None

    @property
    def smoothness(self) -> None:
        return None

    @property
    def convex(self) -> bool:
        return True

    @property
    def differentiable(self) -> bool:
        return False


_Risk = TypeVar("_Risk", bound=PiecewiseLinearRisk)


class Hinge(PiecewiseLinearRisk):
    """φ(z, y) = max(0, 1 − yz)."""

    def pointwise(self, prediction: Samples, target: Samples) -> Samples:
        return _positive_part(1 - target * prediction)


class Quantile(PiecewiseLinearRisk):
    """φ(z, y) = τ (y − z) if y > z, else (1 − τ) (z − y)."""

    level: Float[Array, ""]
    """τ."""

    def pointwise(self, prediction: Samples, target: Samples) -> Samples:
        residual = target - prediction
        above, below = _positive_part(residual), _positive_part(-residual)
        return self.level * above + (1 - self.level) * below


def _positive_part(values: Samples) -> Samples:
    """max(0, x), with derivative 0 at 0."""
    return jnp.where(values > 0, values, 0.0)


def hinge(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    normalisation: Normalisation | str = "sum",
    weights: ArrayLike | None = None,
) -> Hinge:
    """ℒ(θ) = c Σ_i max(0, 1 − y_i x_iᵀθ) with labels y_i = ±1.

    Convex, but not differentiable at margins of 1: Theorems 1 and 2 do not apply, and flows refuse
    it. `descend` trains with the subgradient that is 0 there.

    Args:
        features: X, shape (samples, dim).
        targets: y, −1 or 1, shape (samples,).
        normalisation: as in `ddln.logistic`.
        weights: w > 0, shape (samples,).

    Returns:
        The problem. A linear program on the host gives ℒ* and a minimiser, not that of least norm;
        its duality gap verifies them.

    Raises:
        ValueError: shapes that do not match, a label that is not −1 or 1, or a minimum that the
            duality gap does not verify (NaN if traced).

    Source: Cortes and Vapnik 1995, without the margin term.

    >>> problem = ddln.hinge([[1.0], [1.0], [1.0]], [1, 1, -1])
    >>> float(problem.minimum), problem.minimiser.tolist()
    (2.0, [1.0])
    """
    features, targets, factor = as_data(features, targets, normalisation)
    targets = as_labels(targets)
    weights = as_weights("weights", weights, targets)
    margins = targets[:, None] * features
    ones = jnp.ones_like(targets)
    costs = ones if weights is None else weights
    # max(0, 1 − m) is the quantile loss of 1 − m at level 1.
    found = on_host(_minimise, [(), features.shape[1:]], margins, ones, costs, 0 * ones)
    return _make(Hinge, features, targets, factor, weights, *found)


def quantile(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    level: Number = 0.5,
    normalisation: Normalisation | str = "sum",
    weights: ArrayLike | None = None,
) -> Quantile:
    """ℒ(θ) = c Σ_i φ(y_i − x_iᵀθ), with φ(r) = τ r if r > 0, else (τ − 1) r.

    Half the sum of absolute residuals at level τ = ½. Convex, but not differentiable at residual 0:
    Theorems 1 and 2 do not apply, and flows refuse it.

    Args:
        features: X, shape (samples, dim).
        targets: y, shape (samples,).
        level: 0 < τ < 1: with a column of ones, about a share τ of the targets lies below its
            prediction.
        normalisation, weights: as in `hinge`.

    Raises:
        ValueError: shapes that do not match, a level out of range, or a minimum that the duality
            gap does not verify (NaN if traced).

    Source: Koenker and Bassett 1978.

    >>> problem = ddln.quantile([[1.0]] * 5, [1.0, 2.0, 3.0, 4.0, 9.0], level=0.7)
    >>> problem.minimiser.tolist()
    [4.0]
    """
    features, targets, factor = as_data(features, targets, normalisation)
    level = as_floats("level", level, 0).astype(features.dtype)
    level = refuse((level <= 0) | (level >= 1), f"`level` must be > 0 and < 1, got {level}.", level)
    weights = as_weights("weights", weights, targets)
    ones = jnp.ones_like(targets) if weights is None else weights
    shapes, costs = [(), features.shape[1:]], (level * ones, (1 - level) * ones)
    found = on_host(_minimise, shapes, features, targets, *costs)
    return _make(Quantile, features, targets, factor, weights, *found, level)


def _make(
    kind: Callable[..., _Risk],
    features: Float[Array, "samples dim"],
    targets: Float[Array, " samples"],
    factor: float,
    weights: Float[Array, " samples"] | None,
    minimum: Float[Array, ""],
    minimiser: Float[Array, " dim"],
    *level: Float[Array, ""],
) -> _Risk:
    """The risk of φ with its minimum, found for c = 1."""
    return kind(features, targets, factor, factor * minimum, minimiser, weights, *level)


def _minimise(
    matrix: Float[np.ndarray, "samples dim"],
    targets: Float[np.ndarray, " samples"],
    above: Float[np.ndarray, " samples"],
    below: Float[np.ndarray, " samples"],
) -> tuple[float, Float[np.ndarray, " dim"]]:
    """The minimum of Σ above_i max(0, r_i) + below_i max(0, −r_i), r = y − Aθ, and a minimiser.

    In units of the largest entries, so that the program's tolerances are relative.

    Raises:
        ValueError: the duality gap does not verify the minimum.
    """
    from scipy import sparse
    from scipy.optimize import linprog

    samples, dim = matrix.shape
    row, column = (np.abs(array).max() or 1.0 for array in (targets, matrix))
    matrix, targets = matrix / column, targets / row
    identity = sparse.eye_array(samples)
    program = linprog(
        np.concatenate([np.zeros(dim), above, below]),
        A_eq=sparse.hstack([matrix, identity, -identity]),
        b_eq=targets,
        bounds=[(None, None)] * dim + [(0, None)] * (2 * samples),
        method="highs",
    )

    def loss(theta: Float[np.ndarray, " dim"]) -> float:
        residual = targets - matrix @ theta
        return float(np.sum(np.where(residual > 0, above, -below) * residual))

    if program.x is not None:
        theta, dual = program.x[:dim], float(program.eqlin.marginals @ targets)
        # At a vertex some residuals are 0: solved for again, they are so to rounding.
        residual = targets - matrix @ theta
        active = np.abs(residual) <= _ACTIVE
        polished = theta + np.linalg.lstsq(matrix[active], residual[active])[0]
        theta = min(theta, polished, key=loss)
        if loss(theta) - dual <= _DUALITY_GAP * loss(np.zeros(dim)):
            return row * loss(theta), theta * (row / column)
    raise ValueError("`features` and `targets` must have a minimum that a linear program verifies.")
