"""The infimum of a convex risk, in NumPy on the host: find escaping samples, then minimise.

A loss φ is a function of (y, z), with δ before them for Huber's, that returns φ(z, y) and its first
two derivatives in z.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import is_concrete
from ddln.problems._column_space import ColumnBasis, column_basis, least_squares
from ddln.problems._escaping import escaping

Values = Float[np.ndarray, " samples"]
_Input = Float[Array, "..."] | Float[np.ndarray, "..."]
Loss = Callable[..., tuple[Values, Values, Values]]
"""φ, φ' and φ'' of (y, z), or of (δ, y, z)."""

_EPSILON = float(np.finfo(np.float64).eps)
_NEWTON_STEPS = 200
_CONVERGED = 1e3
"""Roundings within which the last Newton step shows convergence."""


class Infimum(NamedTuple):
    """ℒ* = inf c Σ_i φ(x_iᵀθ, y_i) and where it lies."""

    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    """The minimiser of least norm; NaN if ℒ* is not attained."""
    attained: Bool[Array, ""]
    fitted: Float[Array, " samples"]
    """The predictions z* at the infimum; 0 for samples that escape."""
    escapes: Bool[Array, " samples"]
    """The samples whose loss tends to 0 at infinity."""


def spectral_norm(features: Float[Array, "samples dim"]) -> Float[Array, ""]:
    """σ_max of a matrix, from the smaller of its Gram matrices."""

    def norm(matrix: Float[np.ndarray, "samples dim"]) -> list[np.floating]:
        exponent = np.frexp(np.max(np.abs(matrix)))[1]  # so that no square overflows
        scaled = np.ldexp(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T, -exponent)
        return [np.ldexp(np.sqrt(np.linalg.eigvalsh(scaled @ scaled.T)[-1]), exponent)]

    return on_host(norm, [()], features)[0]


def infimum(
    loss: Loss,
    factor: float,
    features: Float[Array, "samples dim"],
    targets: Float[Array, " samples"],
    delta: Float[Array, ""] | None = None,
    *,
    weights: Float[Array, " samples"] | None = None,
) -> Infimum:
    """The infimum of c Σ_i w_i φ(x_iᵀθ, y_i): at once for concrete data, else in a callback.

    Args:
        loss: φ, one of the functions below.
        factor: c.
        features: X, shape (samples, dim).
        targets: y, shape (samples,).
        delta: δ, for `huber`.
        weights: w > 0, shape (samples,); 1 by default. `huber` takes none.

    Raises:
        ValueError: the rounding of X leaves open which samples escape, or Newton's method does not
            find the minimum (NaN if traced).
    """
    samples, dim = features.shape
    solve = partial(_solve, loss, factor, float(jnp.finfo(features.dtype).eps))
    weights = jnp.ones_like(targets) if weights is None else weights
    inputs = (features, targets, weights, *(() if delta is None else (delta,)))
    shapes = [(samples,), (samples,), (), (dim,)]
    fitted, escapes, minimum, minimiser = on_host(solve, shapes, *inputs)
    return Infimum(minimum, minimiser, ~jnp.isnan(minimiser[0]), fitted, escapes > 0)


def on_host(
    function: Callable, shapes: list[tuple[int, ...]], *inputs: Float[Array, "..."]
) -> list[Array]:
    """Call `function` in NumPy's float64: at once for concrete inputs, else in a callback.

    A callback cannot raise; its results are NaN if `function` raises a ValueError.
    """
    dtype = inputs[0].dtype

    def call(*inputs: _Input) -> list[np.ndarray]:
        arrays = [np.asarray(array, np.float64) for array in inputs]
        return [np.asarray(result, dtype) for result in function(*arrays)]

    def call_back(*inputs: _Input) -> list[np.ndarray]:
        failed = [np.full(shape, np.nan, dtype) for shape in shapes]
        if not all(np.isfinite(array).all() for array in inputs):
            return failed
        try:
            return call(*inputs)
        except ValueError:
            return failed

    if is_concrete(*inputs):
        return jax.device_put(call(*inputs))
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.pure_callback(call_back, results, *inputs, vmap_method="sequential")


def _solve(
    loss: Loss,
    factor: float,
    precision: float,
    features: Float[np.ndarray, "samples dim"],
    targets: Values,
    weights: Values,
    *delta: Float[np.ndarray, ""],
) -> tuple[Values, Bool[np.ndarray, " samples"], float, Float[np.ndarray, " dim"]]:
    """z*, the samples that escape, ℒ* and the minimiser of least norm."""
    samples, dim = features.shape
    escapes, basis = _split(loss, precision, features, targets)
    kept = ~escapes

    def phi(z: Values) -> tuple[Values, Values, Values]:
        value, slope, curvature = loss(*delta, targets[kept], z)
        return weights[kept] * value, weights[kept] * slope, weights[kept] * curvature

    if loss is huber:
        coefficients, converged = _huber_minimiser(float(delta[0]), targets, basis.orthonormal)
    else:
        coefficients, converged = newton(
            _separable_model(phi, basis.orthonormal), basis.orthonormal
        )
    fitted = np.zeros(samples)
    fitted[kept] = basis.orthonormal @ coefficients
    minimum = factor * np.sum(phi(fitted[kept])[0])
    minimiser = np.full(dim, np.nan) if escapes.any() else basis.least_norm(coefficients)
    is_finite = np.isfinite(minimum) and (escapes.any() or np.isfinite(minimiser).all())
    refuse_unfound(converged and bool(is_finite), minimum)
    return fitted, escapes, minimum, minimiser


def refuse_unfound(found: bool, minimum: float, targets: str = "targets") -> None:
    """Raise a ValueError unless Newton's method found the minimum for the given targets."""
    if not found:
        raise ValueError(
            f"`features` and `{targets}` must have a minimum that Newton's method finds in "
            f"float64, but it has not converged in {_NEWTON_STEPS} steps, at a loss of {minimum:g}."
        )


def _split(
    loss: Loss, precision: float, features: Float[np.ndarray, "samples dim"], targets: Values
) -> tuple[Bool[np.ndarray, " samples"], ColumnBasis]:
    """The samples that escape, and a basis of the range of the others' X."""
    if loss is huber:
        return np.zeros(len(targets), bool), column_basis(features, precision)
    if loss is poisson:
        signs = np.where(targets == 0, -1.0, 1.0)
        return escaping(features, signs, targets > 0, precision)
    return escaping(features, targets, np.zeros(len(targets), bool), precision)


class Model(NamedTuple):
    """A loss of predictions z = Q a and its quadratic model, with gradient −Bᵀr and Hessian BᵀB."""

    value: float
    root: Float[np.ndarray, "rows rank"]
    """B."""
    residual: Float[np.ndarray, " rows"]
    """r."""
    curvatures: Values
    """∂²/∂z_i² of the loss."""


def _separable_model(
    phi: Callable[[Values], tuple[Values, Values, Values]], basis: Float[np.ndarray, "samples rank"]
) -> Callable[[Values], Model]:
    """The model of Σ φ(z_i)."""

    def model(predictions: Values) -> Model:
        value, slope, curvature = phi(predictions)
        curvature = np.maximum(curvature, np.finfo(float).tiny)
        root = np.sqrt(curvature)
        return Model(np.sum(value), root[:, None] * basis, -slope / root, curvature)

    return model


def newton(
    model: Callable[[Values], Model],
    basis: Float[np.ndarray, "samples rank"],
    spread: Callable[[Values], float] = lambda change: np.max(np.abs(change)),
) -> tuple[Float[np.ndarray, " rank"], bool]:
    """The minimiser a of a loss of Q a, and whether the iteration converged.

    Along any line t ↦ z + t v the loss must satisfy |φ'''| ≤ δ(v) φ''. Then the fraction
    log(1 + δ)/δ of the full Newton step decreases it (Bach, Electronic Journal of Statistics 4,
    2010). A line search tries longer steps first.

    Args:
        model: the model of the loss at given predictions.
        basis: Q.
        spread: δ(v) of a change v of the predictions; max |v_i| for a sum of φ with |φ'''| ≤ φ''.
    """
    point, last = np.zeros(basis.shape[1]), np.inf
    for _ in range(_NEWTON_STEPS if point.size else 0):
        predictions = basis @ point
        now = model(predictions)
        step = least_squares(now.root, now.residual)
        size, largest = np.linalg.norm(now.root @ step), spread(basis @ step)
        scales = np.sqrt(now.curvatures) * (1 + np.abs(predictions))
        rounding = _EPSILON * np.linalg.norm(scales)
        if not np.isfinite(largest):
            return point, False
        if size <= rounding or (largest < 0.1 and size > last / 2):
            return point + step, bool(size <= _CONVERGED * rounding)
        length, safe, decrease = 1.0, np.log1p(largest) / largest, size**2
        with np.errstate(over="ignore", invalid="ignore"):
            while length > safe and not (
                model(basis @ (point + length * step)).value <= now.value - 1e-4 * length * decrease
            ):
                length /= 2
        point, last = point + max(length, safe) * step, size
    return point, not point.size


def _huber_minimiser(
    delta: float, targets: Values, basis: Float[np.ndarray, "samples rank"]
) -> tuple[Float[np.ndarray, " rank"], bool]:
    """The minimiser of Huber's loss, and whether it is one, by continuation in the threshold.

    The thresholds decrease to δ, starting from least squares. If most residuals exceeded the
    threshold at the start, Newton's method would find no curvature there.
    """
    point = basis.T @ targets
    threshold = np.max(np.abs(basis @ point - targets), initial=0.0) / 4
    while threshold > delta:
        point = _huber_newton(threshold, targets, basis, point)
        threshold /= 4
    point = _huber_newton(delta, targets, basis, point)
    predictions = basis @ point
    slope = np.clip(predictions - targets, -delta, delta)
    rounding = _EPSILON * np.linalg.norm(np.abs(predictions) + np.abs(targets))
    gradient = np.linalg.norm(basis.T @ slope)
    return point, bool(gradient <= 1e-9 * np.linalg.norm(slope) + 100 * rounding)


def _huber_newton(
    delta: float,
    targets: Values,
    basis: Float[np.ndarray, "samples rank"],
    point: Float[np.ndarray, " rank"],
) -> Float[np.ndarray, " rank"]:
    """Regularised Newton steps with exact line search."""
    first = np.linalg.norm(np.clip(targets, -delta, delta))
    for _ in range(_NEWTON_STEPS):
        predictions = basis @ point
        residual = predictions - targets
        slope, inside = np.clip(residual, -delta, delta), np.abs(residual) < delta
        gradient = basis.T @ slope
        negligible = 1e-15 * (first + 4 * np.linalg.norm(inside * predictions))
        if not point.size or np.linalg.norm(gradient) <= negligible:
            break
        # The curvature can vanish; a shift proportional to ‖g‖² keeps the convergence quadratic.
        eigenvalues, modes = np.linalg.eigh((basis * inside[:, None]).T @ basis)
        shift = (np.linalg.norm(gradient) / first) ** 2
        step = -modes @ ((modes.T @ gradient) / np.maximum(eigenvalues + shift, _EPSILON))
        point = point + _line_minimum(delta, residual, basis @ step) * step
    return point


def _line_minimum(delta: float, residual: Values, change: Values) -> float:
    """The t ≥ 0 that minimises Huber's loss of residual + t · change, from its piecewise linear
    slope.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = np.concatenate([(end - residual) / change for end in (-delta, delta)])
    kinks = np.append(0.0, np.sort(kinks[np.isfinite(kinks) & (kinks > 0)]))

    def slope(t: float) -> float:
        return float(change @ np.clip(residual + t * change, -delta, delta))

    low, high = 0, kinks.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if slope(kinks[middle]) >= 0 else (middle, high)
    below, above = slope(kinks[low]), slope(kinks[high])
    share = below / (below - above) if above > below else 1.0
    return float(kinks[low] + min(max(share, 0.0), 1.0) * (kinks[high] - kinks[low]))


def logistic(y: Values, z: Values) -> tuple[Values, Values, Values]:
    """log(1 + exp(−yz))."""
    from scipy.special import expit

    return np.logaddexp(0.0, -y * z), -y * expit(-y * z), expit(z) * expit(-z)


def exponential(y: Values, z: Values) -> tuple[Values, Values, Values]:
    """exp(−yz)."""
    value = np.exp(-y * z)
    return value, -y * value, value


def poisson(y: Values, z: Values) -> tuple[Values, Values, Values]:
    """exp(z) − yz."""
    rate = np.exp(z)
    return rate - y * z, rate - y, rate


def huber(
    delta: float | Float[np.ndarray, ""], y: Values, z: Values
) -> tuple[Values, Values, Values]:
    """r²/2 if |r| ≤ δ, else δ|r| − δ²/2, with r = z − y."""
    clipped = np.clip(z - y, -delta, delta)
    return clipped * (z - y - clipped / 2), clipped, (np.abs(z - y) < delta).astype(float)
