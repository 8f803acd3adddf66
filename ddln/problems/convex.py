"""Convex losses of a linear predictor, each with its infimum and whether it is attained.

Logistic, exponential and Poisson losses have no minimiser if some direction decreases the loss of
some samples forever and increases that of none. These samples *escape*: their loss tends to 0. The
infimum is the minimum over the other samples, at predictions z* with Σ_i φ'(z*_i) x_i = 0, so the
gap is a sum of nonnegative terms without cancellation:

    ℒ(θ) − ℒ* = c Σ_escaping φ(z_i) + c Σ_others [φ(z_i) − φ(z*_i) − φ'(z*_i)(z_i − z*_i)].

Weights w_i, if there are any, multiply φ in every sum.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import ArrayLike, Number, as_positive
from ddln.problems import _infimum
from ddln.problems._infimum import Infimum
from ddln.problems._remainders import exponential_remainder, remainder
from ddln.problems.base import (
    AnyArray,
    LinearRisk,
    Normalisation,
    Samples,
    affine_set,
    as_data,
    as_labels,
    as_weights,
    refuse_targets,
)


class ConvexRisk(LinearRisk):
    """ℒ(θ) = c Σ_i w_i φ(x_iᵀθ, y_i) with φ convex in the prediction.

    No PL constant holds on all of R^dim.
    """

    features: Float[Array, "samples dim"]
    targets: Float[Array, " samples"]
    factor: float = eqx.field(static=True)
    smoothness: Float[Array, ""] | None
    infimum: Infimum
    weights: Float[Array, " samples"] | None
    """w; None if all are 1."""

    @property
    def minimum(self) -> Float[Array, "*batch"]:
        return self.infimum.minimum

    @property
    def minimiser(self) -> Float[Array, "*batch dim"]:
        return self.infimum.minimiser

    @property
    def attained(self) -> Bool[Array, "*batch"]:
        return self.infimum.attained

    @property
    def fitted(self) -> Float[Array, "*batch samples"]:
        """The predictions z* at the infimum; 0 for samples that escape."""
        return self.infimum.fitted

    @property
    def escapes(self) -> Bool[Array, "*batch samples"]:
        """The samples that attain their infimum only at infinity."""
        return self.infimum.escapes

    @property
    def pl_constant(self) -> None:
        return None

    @property
    def convex(self) -> bool:
        return True

    @abstractmethod
    def slope(self, prediction: Samples, target: Samples) -> Samples:
        """φ'(z, y), elementwise."""

    @abstractmethod
    def slope_change(self, prediction: Samples) -> Samples:
        """φ'(z) − φ'(z*), elementwise, to high relative accuracy."""

    @abstractmethod
    def remainder(self, prediction: Samples) -> Samples:
        """φ(z) − φ(z*) − φ'(z*)(z − z*) ≥ 0, elementwise, to high relative accuracy."""

    def gap(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        z = self.features @ theta
        terms = jnp.where(self.escapes, self.pointwise(z, self.targets), self.remainder(z))
        return self.factor * jnp.sum(self._weighted(terms))

    def gradient(self, theta: Float[AnyArray, " dim"]) -> Float[Array, " dim"]:
        z = self.features @ theta
        slopes = jnp.where(self.escapes, self.slope(z, self.targets), self.slope_change(z))
        return self.factor * (jnp.asarray(self._weighted(slopes)) @ self.features)

    def hessian(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "dim dim"]:
        weighted = self._curvature(theta)[:, None] * self.features
        return self.factor * (self.features.T @ weighted)

    def hessian_root(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "samples dim"]:
        return jnp.sqrt(self.factor * self._curvature(theta))[:, None] * self.features

    def _curvature(self, theta: Float[AnyArray, " dim"]) -> Float[Array, " samples"]:
        """w φ'' at each prediction."""
        z = self.features @ theta
        slope = partial(self.slope, target=self.targets)
        return jnp.asarray(self._weighted(jax.jvp(slope, (z,), (jnp.ones_like(z),))[1]))

    def minimisers(self) -> tuple[Float[Array, "samples dim"], Float[Array, " samples"]] | None:
        return affine_set(self.attained, self.features, self.fitted)


_Risk = TypeVar("_Risk", bound=ConvexRisk)


class Logistic(ConvexRisk):
    """φ(z, y) = log(1 + exp(−yz))."""

    def pointwise(self, prediction: Samples, target: Samples) -> Samples:
        return softplus(-target * prediction)

    def slope(self, prediction: Samples, target: Samples) -> Samples:
        return -target * sigmoid(-target * prediction)

    def slope_change(self, prediction: Samples) -> Samples:
        m, base = -self.targets * prediction, -self.targets * self.fitted
        near = -sigmoid(m) * sigmoid(-base) * jnp.expm1(jnp.clip(base - m, -1.0, 1.0))
        far = sigmoid(m) * sigmoid(-base) - sigmoid(base) * sigmoid(-m)
        return -self.targets * jnp.where(jnp.abs(m - base) < 1, near, far)

    def remainder(self, prediction: Samples) -> Samples:
        # softplus(m) − m = softplus(−m), so choose the sign for which both terms are small.
        side = jnp.where(self.targets * self.fitted < 0, 1.0, -1.0) * self.targets
        m, base = side * prediction, side * self.fitted
        far = softplus(m) - softplus(base) - sigmoid(base) * (m - base)
        return remainder(lambda z: sigmoid(z) * sigmoid(-z), far, m, base)


class Exponential(ConvexRisk):
    """φ(z, y) = exp(−yz)."""

    def pointwise(self, prediction: Samples, target: Samples) -> Samples:
        return jnp.exp(-target * prediction)

    def slope(self, prediction: Samples, target: Samples) -> Samples:
        return -target * jnp.exp(-target * prediction)

    def slope_change(self, prediction: Samples) -> Samples:
        base = -self.targets * self.fitted
        return -self.targets * jnp.exp(base) * jnp.expm1(-self.targets * prediction - base)

    def remainder(self, prediction: Samples) -> Samples:
        base = -self.targets * self.fitted
        return exponential_remainder(-self.targets * prediction - base, base)


class Poisson(ConvexRisk):
    """φ(z, y) = exp(z) − yz: the negative log-likelihood of counts y without log y!."""

    def pointwise(self, prediction: Samples, target: Samples) -> Samples:
        return jnp.exp(prediction) - target * prediction

    def slope(self, prediction: Samples, target: Samples) -> Samples:
        return jnp.exp(prediction) - target

    def slope_change(self, prediction: Samples) -> Samples:
        return jnp.exp(self.fitted) * jnp.expm1(prediction - self.fitted)

    def remainder(self, prediction: Samples) -> Samples:
        return exponential_remainder(prediction - self.fitted, self.fitted)


class Huber(ConvexRisk):
    """φ(z, y) = r²/2 if |r| ≤ δ, else δ|r| − δ²/2, with r = z − y."""

    delta: Float[Array, ""]
    """δ."""

    def pointwise(self, prediction: Samples, target: Samples) -> Samples:
        residual, clipped = prediction - target, self.slope(prediction, target)
        return clipped * (residual - clipped / 2)

    def slope(self, prediction: Samples, target: Samples) -> Samples:
        return jnp.clip(prediction - target, -self.delta, self.delta)

    def slope_change(self, prediction: Samples) -> Samples:
        change = self.slope(prediction, self.targets) - self.slope(self.fitted, self.targets)
        both_inside = self._is_inside(prediction) & self._is_inside(self.fitted)
        return jnp.where(both_inside, prediction - self.fitted, change)

    def remainder(self, prediction: Samples) -> Samples:
        change = self.slope_change(prediction)
        beyond = prediction - self.targets - self.slope(prediction, self.targets)
        return change * (change / 2 + beyond)

    def minimisers(self) -> tuple[Float[Array, "samples dim"], Float[Array, " samples"]] | None:
        return affine_set(jnp.all(self._is_inside(self.fitted)), self.features, self.fitted)

    def _is_inside(self, prediction: Samples) -> Bool[Array, " samples"]:
        """Whether each residual is below the threshold."""
        return jnp.abs(prediction - self.targets) < self.delta


def logistic(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    normalisation: Normalisation | str = "sum",
    weights: ArrayLike | None = None,
) -> Logistic:
    """ℒ(θ) = c Σ_i log(1 + exp(−y_i x_iᵀθ)) with labels y_i = ±1.

    If a hyperplane through 0 separates the labels, ℒ* = 0 is not attained. If it separates some of
    them and contains the others, ℒ* is the infimum over the others and is not attained either.

    Args:
        features: X, shape (samples, dim).
        targets: y, −1 or 1, shape (samples,).
        normalisation: "sum" (c = 1), "half" (½), "mean" (1/n) or "half_mean" (1/(2n)).
        weights: w > 0, shape (samples,): the loss is c Σ_i w_i log(1 + exp(−y_i x_iᵀθ)).

    Returns:
        The problem: convex, β = c σ²_max(√w X)/4, no PL constant. The host computes ℒ* and the
        minimiser of least norm (NaN if none exists), for traced data in a callback; they have no
        derivative with respect to the data.

    Raises:
        ValueError: shapes that do not match, a label that is not −1 or 1, or features whose
            rounding leaves open which samples are separated (NaN if traced).

    Source: escaping samples as in Albert and Anderson 1984; as derived in docs/theory.md.

    >>> problem = ddln.logistic([[1.0], [1.0], [1.0]], [1, 1, -1])
    >>> round(float(problem.minimiser[0]), 12), bool(problem.attained)  # log 2
    (0.69314718056, True)
    >>> problem = ddln.logistic([[1.0], [-2.0]], [1, -1])
    >>> float(problem.minimum), bool(problem.attained)
    (0.0, False)
    """
    features, targets, factor = _as_labelled_data(features, targets, normalisation)
    weights = as_weights("weights", weights, targets)
    return _make(Logistic, _infimum.logistic, 0.25, features, targets, factor, weights)


def exponential(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    normalisation: Normalisation | str = "sum",
    weights: ArrayLike | None = None,
) -> Exponential:
    """ℒ(θ) = c Σ_i exp(−y_i x_iᵀθ) with labels y_i = ±1.

    Convex, neither smooth nor PL on all of R^dim. Its infimum is attained if and only if that of
    `logistic` is. Arguments, returns and errors are those of `logistic`.

    >>> problem = ddln.exponential([[1.0], [1.0]], [1, -1])
    >>> float(problem.minimum), problem.smoothness
    (2.0, None)
    """
    features, targets, factor = _as_labelled_data(features, targets, normalisation)
    weights = as_weights("weights", weights, targets)
    return _make(Exponential, _infimum.exponential, None, features, targets, factor, weights)


def poisson(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    normalisation: Normalisation | str = "sum",
    weights: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
) -> Poisson:
    """ℒ(θ) = c Σ_i [exp(x_iᵀθ) − y_i x_iᵀθ] with counts y_i.

    It omits the constants log y_i! of the likelihood, so ℒ* can be negative. Exposures e_i make the
    means e_i exp(x_iᵀθ) and the loss c Σ_i e_i [exp(x_iᵀθ) − (y_i/e_i) x_iᵀθ]: `targets` of the
    problem are then the rates y_i/e_i, and `weights` has the factor e_i. Convex, neither smooth
    nor PL on all of R^dim. The infimum is not attained if a direction decreases x_iᵀθ at some zero
    counts, increases it at none and leaves it unchanged at all positive counts.

    Args:
        features: X, shape (samples, dim).
        targets: y, whole numbers ≥ 0, shape (samples,).
        normalisation: as in `logistic`.
        weights: w > 0, shape (samples,): factors of the terms of the samples.
        exposure: e > 0, shape (samples,); 1 by default. log e_i is the offset of x_iᵀθ.

    Raises:
        ValueError: shapes that do not match, a count that is negative or not whole, or features
            whose rounding leaves open which samples escape (NaN if traced).

    >>> problem = ddln.poisson([[1.0], [1.0]], [1, 3])
    >>> round(float(problem.minimiser[0]), 12)  # log 2
    0.69314718056
    """
    features, targets, factor = as_data(features, targets, normalisation)
    wrong = (targets < 0) | (targets != jnp.floor(targets))
    targets = refuse_targets(wrong, "must be whole numbers ≥ 0", targets)
    weights = as_weights("weights", weights, targets)
    exposure = as_weights("exposure", exposure, targets)
    if exposure is not None:
        weights = exposure if weights is None else exposure * weights
        targets = targets / exposure
    return _make(Poisson, _infimum.poisson, None, features, targets, factor, weights)


def huber(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    delta: Number = 1.0,
    normalisation: Normalisation | str = "sum",
) -> Huber:
    """ℒ(θ) = c Σ_i φ(x_iᵀθ − y_i), with φ(r) = r²/2 if |r| ≤ δ, else δ|r| − δ²/2.

    With c = 1 and a large δ it is *half* of `least_squares` with c = 1.

    Args:
        features: X, shape (samples, dim).
        targets: y, shape (samples,).
        delta: δ > 0.
        normalisation: as in `logistic`.

    Returns:
        The problem: convex, ℒ* always attained, β = c σ²_max(X), no PL constant. `minimisers()` is
        an affine set only if every residual at the minimum is below the threshold.

    Raises:
        ValueError: shapes that do not match, δ ≤ 0, or features whose rounding leaves open which
            columns depend on others (NaN if traced).

    Source: Huber 1964.

    >>> problem = ddln.huber([[1.0], [1.0], [1.0]], [0.0, 0.0, 9.0])
    >>> float(problem.minimiser[0]), float(problem.minimum)
    (0.5, 8.25)
    """
    features, targets, factor = as_data(features, targets, normalisation)
    delta = as_positive("delta", delta).astype(features.dtype)
    return _make(Huber, _infimum.huber, 1.0, features, targets, factor, None, delta)


def _as_labelled_data(
    features: ArrayLike, targets: ArrayLike, normalisation: Normalisation | str
) -> tuple[Float[Array, "samples dim"], Float[Array, " samples"], float]:
    features, targets, factor = as_data(features, targets, normalisation)
    return features, as_labels(targets), factor


def _make(
    kind: Callable[..., _Risk],
    loss: _infimum.Loss,
    max_curvature: float | None,
    features: Float[Array, "samples dim"],
    targets: Float[Array, " samples"],
    factor: float,
    weights: Float[Array, " samples"] | None,
    *delta: Float[Array, ""],
) -> _Risk:
    """The risk of φ with its infimum and, if max φ'' is finite, β = c σ²_max(√w X) max φ''."""
    found = _infimum.infimum(loss, factor, features, targets, *delta, weights=weights)
    smoothness = None
    if max_curvature is not None:
        scaled = features if weights is None else jnp.sqrt(weights)[:, None] * features
        smoothness = max_curvature * factor * _infimum.spectral_norm(scaled) ** 2
    return kind(features, targets, factor, smoothness, found, weights, *delta)
