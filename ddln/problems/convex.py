"""Losses other than least squares, each with its infimum and whether that is attained.

Logistic, exponential and Poisson losses have no minimiser where some direction lowers the loss of
some samples for ever and raises that of none. The samples that *escape* so, their loss tending to
0, are found by nonnegative least squares. The infimum is that of the others, at predictions z* with
Σ_i φ'(z*_i) x_i = 0 over them, so that without any difference of sums

    ℒ(θ) − ℒ* = c Σ_escaping φ(z_i) + c Σ_others [φ(z_i) − φ(z*_i) − φ'(z*_i)(z_i − z*_i)].
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid, softplus
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import ArrayLike, Number, as_positive, is_concrete, refuse
from ddln.problems import _infimum
from ddln.problems.base import LinearRisk, Normalisation, as_data

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
# On [0, 1], as plain numbers: those of NumPy would promote single precision.
_RULE = tuple(zip(((_NODES + 1) / 2).tolist(), (_WEIGHTS / 2).tolist(), strict=True))


class ConvexRisk(LinearRisk):
    """ℒ(θ) = c Σ_i φ(x_iᵀθ, y_i) with φ convex in the prediction; no PL constant, as there is none
    on all of R^dim."""

    features: Float[Array, "samples dim"]
    targets: Float[Array, " samples"]
    factor: float = eqx.field(static=True)
    fitted: Float[Array, " samples"]
    """Predictions z* at the infimum; 0 for samples that escape."""
    escapes: Bool[Array, " samples"]
    """Which samples have their infimum at infinity only."""
    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    attained: Bool[Array, ""]
    smoothness: Float[Array, ""] | None

    def __init__(self, features, targets, factor, smoothness, infimum):
        self.features, self.targets, self.factor = features, targets, factor
        self.smoothness = smoothness
        for name, value in infimum.items():
            setattr(self, name, value)

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    @property
    def samples(self) -> int:
        return self.features.shape[0]

    @property
    def pl_constant(self):
        return None

    @property
    def convex(self) -> bool:
        return True

    @abstractmethod
    def slope(
        self, prediction: Float[Array, " samples"], target: Float[Array, " samples"]
    ) -> Float[Array, " samples"]:
        """φ'(z, y), elementwise."""

    @abstractmethod
    def slope_change(self, prediction: Float[Array, " samples"]) -> Float[Array, " samples"]:
        """φ'(z) − φ'(z*), elementwise, to the rounding of itself."""

    @abstractmethod
    def remainder(self, prediction: Float[Array, " samples"]) -> Float[Array, " samples"]:
        """φ(z) − φ(z*) − φ'(z*)(z − z*) ≥ 0, elementwise, to the rounding of itself."""

    def gap(self, theta):
        z = self.features @ theta
        parts = jnp.where(self.escapes, self.pointwise(z, self.targets), self.remainder(z))
        return self.factor * jnp.sum(parts)

    def gradient(self, theta):
        z = self.features @ theta
        parts = jnp.where(self.escapes, self.slope(z, self.targets), self.slope_change(z))
        return self.factor * (parts @ self.features)

    def hessian(self, theta):
        weighted = self._curvature(theta)[:, None] * self.features
        return self.factor * (self.features.T @ weighted)

    def hessian_root(self, theta):
        return jnp.sqrt(self.factor * self._curvature(theta))[:, None] * self.features

    def _curvature(self, theta):
        """φ'' at each prediction."""
        z = self.features @ theta
        slope = partial(self.slope, target=self.targets)
        return jax.jvp(slope, (z,), (jnp.ones_like(z),))[1]

    def minimisers(self):
        return self._where(self.attained)

    def _where(self, affine):
        """Xθ = z* where that is the set of minimisers; NaN for z* if it is not and was traced."""
        if is_concrete(affine):
            return (self.features, self.fitted) if bool(affine) else None
        return self.features, jnp.where(affine, self.fitted, jnp.nan)


class Logistic(ConvexRisk):
    """φ(z, y) = log(1 + exp(−yz))."""

    def pointwise(self, prediction, target):
        return softplus(-target * prediction)

    def slope(self, prediction, target):
        return -target * sigmoid(-target * prediction)

    def slope_change(self, prediction):
        m, base = -self.targets * prediction, -self.targets * self.fitted
        near = -sigmoid(m) * sigmoid(-base) * jnp.expm1(jnp.clip(base - m, -1.0, 1.0))
        far = sigmoid(m) * sigmoid(-base) - sigmoid(base) * sigmoid(-m)
        return -self.targets * jnp.where(jnp.abs(m - base) < 1, near, far)

    def remainder(self, prediction):
        # softplus(m) − m = softplus(−m): on the side where the numbers are small.
        side = jnp.where(self.targets * self.fitted < 0, 1.0, -1.0) * self.targets
        m, base = side * prediction, side * self.fitted
        far = softplus(m) - softplus(base) - sigmoid(base) * (m - base)
        return _remainder(lambda z: sigmoid(z) * sigmoid(-z), far, m, base)


class Exponential(ConvexRisk):
    """φ(z, y) = exp(−yz)."""

    def pointwise(self, prediction, target):
        return jnp.exp(-target * prediction)

    def slope(self, prediction, target):
        return -target * jnp.exp(-target * prediction)

    def slope_change(self, prediction):
        base = -self.targets * self.fitted
        return -self.targets * jnp.exp(base) * jnp.expm1(-self.targets * prediction - base)

    def remainder(self, prediction):
        return _exponential_remainder(-self.targets * prediction, -self.targets * self.fitted)


class Poisson(ConvexRisk):
    """φ(z, y) = exp(z) − yz: the negative log-likelihood of counts y, less its constant log y!."""

    def pointwise(self, prediction, target):
        return jnp.exp(prediction) - target * prediction

    def slope(self, prediction, target):
        return jnp.exp(prediction) - target

    def slope_change(self, prediction):
        return jnp.exp(self.fitted) * jnp.expm1(prediction - self.fitted)

    def remainder(self, prediction):
        return _exponential_remainder(prediction, self.fitted)


class Huber(ConvexRisk):
    """φ(z, y) = r²/2 where |r| ≤ δ and δ|r| − δ²/2 elsewhere, with r = z − y."""

    delta: Float[Array, ""]
    """δ."""

    def __init__(self, features, targets, factor, smoothness, infimum, delta):
        super().__init__(features, targets, factor, smoothness, infimum)
        self.delta = delta

    def pointwise(self, prediction, target):
        residual, clipped = prediction - target, self.slope(prediction, target)
        return clipped * (residual - clipped / 2)

    def slope(self, prediction, target):
        return jnp.clip(prediction - target, -self.delta, self.delta)

    def slope_change(self, prediction):
        change = self.slope(prediction, self.targets) - self.slope(self.fitted, self.targets)
        return jnp.where(
            self._inside(prediction) & self._inside(), prediction - self.fitted, change
        )

    def remainder(self, prediction):
        change = self.slope_change(prediction)
        beyond = prediction - self.targets - self.slope(prediction, self.targets)
        return change * (change / 2 + beyond)

    def minimisers(self):
        return self._where(jnp.all(self._inside()))

    def _inside(self, prediction=None):
        return jnp.abs((self.fitted if prediction is None else prediction) - self.targets) < (
            self.delta
        )


def _remainder(curvature, far, z, base):
    """∫ (z − s) φ''(s) ds from the base to z by quadrature where they are near, else `far`."""
    step = z - base
    near = jnp.clip(step, -1.0, 1.0)
    parts = (w * (1 - s) * curvature(base + s * near) for s, w in _RULE)
    return jnp.where(jnp.abs(step) < 1, near**2 * sum(parts), far)


def _exponential_remainder(z, base):
    step = z - base
    return jnp.exp(base) * _remainder(jnp.exp, jnp.expm1(step) - step, step, jnp.zeros_like(step))


def logistic(
    features: ArrayLike, targets: ArrayLike, *, normalisation: Normalisation | str = "sum"
) -> Logistic:
    """ℒ(θ) = c Σ_i log(1 + exp(−y_i x_iᵀθ)) with labels y_i = ±1.

    Where a hyperplane through 0 separates the labels, ℒ* = 0 is not attained; where one separates
    some of them and has the others on it, ℒ* is that of the others, and not attained either.

    Args:
        features: X, shape (samples, dim).
        targets: y, −1 or 1, shape (samples,).
        normalisation: "sum" (c = 1), "half" (½), "mean" (1/n) or "half_mean" (1/(2n)).

    Returns:
        The problem: convex, β = c σ²_max(X)/4, no PL constant. ℒ* and its minimiser (of least norm;
        NaN where there is none) are computed on the host, also of traced data, by a callback; they
        have no derivative in the data.

    Raises:
        ValueError: shapes that do not fit, a label that is not −1 or 1, or features whose rounding
            leaves open what is separated (traced: NaN).

    Source: the escaping samples as in Albert and Anderson 1984; as derived in docs/theory.md.

    >>> problem = ddln.logistic([[1.0], [1.0], [1.0]], [1, 1, -1])
    >>> round(float(problem.minimiser[0]), 12), bool(problem.attained)  # log 2
    (0.69314718056, True)
    >>> problem = ddln.logistic([[1.0], [-2.0]], [1, -1])
    >>> float(problem.minimum), bool(problem.attained)
    (0.0, False)
    """
    return _labelled(Logistic, _infimum.logistic, 0.25, features, targets, normalisation)


def exponential(
    features: ArrayLike, targets: ArrayLike, *, normalisation: Normalisation | str = "sum"
) -> Exponential:
    """ℒ(θ) = c Σ_i exp(−y_i x_iᵀθ) with labels y_i = ±1.

    Convex, neither smooth nor PL on all of R^dim. Its infimum is attained where that of `logistic`
    is; arguments, returns and errors are the same.

    >>> problem = ddln.exponential([[1.0], [1.0]], [1, -1])
    >>> float(problem.minimum), problem.smoothness
    (2.0, None)
    """
    return _labelled(Exponential, _infimum.exponential, None, features, targets, normalisation)


def poisson(
    features: ArrayLike, targets: ArrayLike, *, normalisation: Normalisation | str = "sum"
) -> Poisson:
    """ℒ(θ) = c Σ_i [exp(x_iᵀθ) − y_i x_iᵀθ] with counts y_i: without the constant log y_i! of the
    likelihood, so that ℒ* can be negative.

    Convex, neither smooth nor PL on all of R^dim. The infimum is not attained where a direction
    lowers x_iᵀθ at some zero counts, raises it at none and keeps it at all other counts.

    Args:
        features: X, shape (samples, dim).
        targets: y, whole numbers ≥ 0, shape (samples,).
        normalisation: as in `logistic`.

    Raises:
        ValueError: shapes that do not fit, a count that is negative or not whole, or features whose
            rounding leaves open which counts escape (traced: NaN).

    >>> problem = ddln.poisson([[1.0], [1.0]], [1, 3])
    >>> round(float(problem.minimiser[0]), 12)  # log 2
    0.69314718056
    """
    features, targets, factor = as_data(features, targets, normalisation)
    wrong = (targets < 0) | (targets != jnp.floor(targets))
    targets = _refuse_targets(wrong, "must be whole numbers ≥ 0", targets)
    return _risk(Poisson, _infimum.poisson, None, features, targets, factor)


def huber(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    delta: Number = 1.0,
    normalisation: Normalisation | str = "sum",
) -> Huber:
    """ℒ(θ) = c Σ_i φ(x_iᵀθ − y_i), φ(r) = r²/2 where |r| ≤ δ and δ|r| − δ²/2 elsewhere.

    With c = 1 and a large δ it is *half* of `least_squares` with c = 1.

    Args:
        features: X, shape (samples, dim).
        targets: y, shape (samples,).
        delta: δ > 0.
        normalisation: as in `logistic`.

    Returns:
        The problem: convex, ℒ* always attained, β = c σ²_max(X), no PL constant. `minimisers()` is
        the affine set only where every residual is inside the threshold.

    Raises:
        ValueError: shapes that do not fit, δ ≤ 0, or features whose rounding leaves open which
            columns depend on others (traced: NaN).

    Source: Huber 1964.

    >>> problem = ddln.huber([[1.0], [1.0], [1.0]], [0.0, 0.0, 9.0])
    >>> float(problem.minimiser[0]), float(problem.minimum)
    (0.5, 8.25)
    """
    features, targets, factor = as_data(features, targets, normalisation)
    delta = as_positive("delta", delta).astype(features.dtype)
    found = _infimum.infimum(_infimum.huber, factor, features, targets, delta)
    smoothness = factor * _infimum.spectral_norm(features) ** 2
    return Huber(features, targets, factor, smoothness, found, delta)


def _labelled(form, terms, steepest, features, targets, normalisation):
    features, targets, factor = as_data(features, targets, normalisation)
    targets = _refuse_targets(jnp.abs(targets) != 1, "must be −1 or 1", targets)
    return _risk(form, terms, steepest, features, targets, factor)


def _risk(form: Callable, terms, steepest, features, targets, factor):
    found = _infimum.infimum(terms, factor, features, targets)
    smoothness = (
        None if steepest is None else steepest * factor * _infimum.spectral_norm(features) ** 2
    )
    return form(features, targets, factor, smoothness, found)


def _refuse_targets(wrong, rule, targets):
    message = ""
    if is_concrete(wrong) and np.asarray(wrong).any():
        row = int(np.argmax(np.asarray(wrong)))
        value = np.asarray(targets)[row]
        message = f"`targets` {rule}, got {value:g} at row {row} (rows count from 0)."
    return refuse(wrong, message, targets)
