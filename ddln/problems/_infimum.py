"""The infimum of a convex risk, in NumPy on the host: a linear program, then Newton's method.

The losses φ are given as functions of (y, z), with δ before them for Huber's, that return φ(z, y)
and its first two derivatives in z.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import expit

from ddln._internal.validation import is_concrete

_NEWTON_STEPS = 200


def spectral_norm(features: Float[Array, "samples dim"]) -> Float[Array, ""]:
    """σ_max of a matrix, from the smaller of its Gram matrices."""

    def norm(matrix):
        flat = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        return [np.sqrt(np.linalg.eigvalsh(flat @ flat.T)[-1])]

    return _on_host(norm, [()], features)[0]


def infimum(
    terms: Callable,
    factor: float,
    features: Float[Array, "samples dim"],
    targets: Float[Array, " samples"],
    delta: Float[Array, ""] | None = None,
) -> dict[str, Array]:
    """ℒ* = inf c Σ_i φ(x_iᵀθ, y_i) and where it is.

    Args:
        terms: one of the losses φ below.
        factor: c.
        features: X, shape (samples, dim).
        targets: y, shape (samples,).
        delta: δ, for `huber`.

    Returns:
        minimum: ℒ*; attained; minimiser: the one of least norm, NaN where it is not attained;
        escapes: the samples whose loss tends to 0 at infinity; fitted: the predictions of the
        others, 0 for those. Now where the data can be seen, else by a callback.
    """
    samples, dim = features.shape
    solve = partial(_solve, terms, factor)
    inputs = (features, targets) if delta is None else (features, targets, delta)
    shapes = [(samples,), (samples,), (), (dim,)]
    fitted, escapes, minimum, minimiser = _on_host(solve, shapes, *inputs)
    names = {"fitted": fitted, "minimum": minimum, "minimiser": minimiser}
    attained = ~jnp.isnan(minimiser[0])
    return {**names, "escapes": escapes > 0, "attained": attained}


def _on_host(function: Callable, shapes: list[tuple], *inputs: Array) -> list[Array]:
    """`function` in NumPy's float64: now where the inputs can be seen, else by a callback."""
    dtype = inputs[0].dtype

    def call(*inputs):
        arrays = [np.asarray(array, np.float64) for array in inputs]
        if not all(np.isfinite(array).all() for array in arrays):
            return [np.full(shape, np.nan, dtype) for shape in shapes]
        return [np.asarray(result, dtype) for result in function(*arrays)]

    if is_concrete(*inputs):
        return [jnp.asarray(result) for result in call(*inputs)]
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.pure_callback(call, results, *inputs, vmap_method="sequential")


def _solve(terms, factor, features, targets, *delta):
    samples, dim = features.shape
    escapes = np.zeros(samples, bool)
    if terms in (logistic, exponential):
        escapes = _escaping(targets[:, None] * features, np.eye(dim))
    elif terms is poisson:
        zero = targets == 0
        escapes[zero] = _escaping(-features[zero], _null_space(features[~zero]))
    kept = ~escapes
    left, singular, right = np.linalg.svd(features[kept], full_matrices=False)
    rank = _rank(singular, features.shape)
    left, singular, right = left[:, :rank], singular[:rank], right[:rank]
    phi = partial(terms, *delta, targets[kept])
    start = _larger_thresholds(delta[0], targets, left) if terms is huber else np.zeros(rank)
    place = _newton(phi, left, start)
    fitted = np.zeros(samples)
    fitted[kept] = left @ place
    minimiser = np.full(dim, np.nan) if escapes.any() else right.T @ (place / singular)
    return fitted, escapes, factor * np.sum(phi(fitted[kept])[0]), minimiser


def _rank(singular, shape):
    largest = singular[0] if singular.size else 0.0
    return int(np.sum(singular > np.finfo(float).eps * max(shape) * largest))


def _null_space(rows):
    _, singular, right = np.linalg.svd(rows)
    return right[_rank(singular, rows.shape) :].T


def _escaping(rows, directions):
    """The rows a_i for which some w has a_iᵀw > 0, and a_jᵀw ≥ 0 for all j; w in the directions.

    Such w add up, so that one serves all such rows: max Σ s_i with 0 ≤ s_i ≤ min(1, a_iᵀw).
    """
    from scipy.optimize import linprog

    margins = rows @ directions
    samples, dim = margins.shape
    size = np.linalg.norm(margins, axis=1, keepdims=True)
    real = size > 1e-12 * np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.where(real, margins / np.where(real, size, 1.0), 0.0)
    if not real.any():
        return np.zeros(samples, bool)
    found = linprog(
        np.concatenate([np.zeros(dim), -np.ones(samples)]),
        A_ub=np.hstack([-unit, np.eye(samples)]),
        b_ub=np.zeros(samples),
        bounds=[(None, None)] * dim + [(0.0, 1.0)] * samples,
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10},
    )
    return found.x[dim:] > 0.5


def _larger_thresholds(delta, targets, basis):
    """Near the minimiser of Huber's loss: that of ever smaller thresholds, from least squares on.

    From elsewhere Newton's method finds no curvature where most residuals are beyond the threshold.
    """
    place = basis.T @ targets
    threshold = np.max(np.abs(basis @ place - targets), initial=0.0) / 4
    while threshold > delta:
        place = _newton(partial(huber, threshold, targets), basis, place)
        threshold /= 4
    return place


def _newton(phi, basis, start):
    """The a at which Σ φ(basis a) is least, by regularised Newton steps with backtracking."""
    place = start
    last, first = 3, np.linalg.norm(phi(basis @ np.zeros_like(start))[1])
    for _ in range(_NEWTON_STEPS):
        predictions = basis @ place
        value, slope, curvature = phi(predictions)
        gradient = basis.T @ slope
        nothing = 1e-15 * (first + 4 * np.linalg.norm(curvature * predictions))
        if not place.size or np.linalg.norm(slope) <= nothing or last == 0:
            break
        # Huber's curvature can vanish; a shift like ‖g‖² keeps the convergence quadratic.
        shift = (np.max(curvature) or 1.0) * (np.linalg.norm(gradient) / first) ** 2
        hessian = basis.T @ (curvature[:, None] * basis) + shift * np.eye(place.size)
        step = -_least_solution(hessian, gradient)
        fall, rounding = -gradient @ step, 1e-15 * np.sum(np.abs(value))
        if fall <= rounding:
            last -= 1  # the value cannot judge any more: a few full steps, and done
            place = place + step
            continue
        length = 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            while length > 1e-12 and not (
                np.sum(phi(basis @ (place + length * step))[0])
                <= np.sum(value) - 1e-4 * length * fall + rounding
            ):
                length /= 2
        place = place + length * step
    return place


def _least_solution(matrix, values):
    """The solution of least norm, or nearest to one, for a symmetric matrix ≥ 0."""
    rates, modes = np.linalg.eigh(matrix)
    kept = rates > np.finfo(float).eps * rates.size * rates[-1]
    return modes[:, kept] @ ((modes[:, kept].T @ values) / rates[kept])


def logistic(y, z):
    """log(1 + exp(−yz))."""
    return np.logaddexp(0.0, -y * z), -y * expit(-y * z), expit(z) * expit(-z)


def exponential(y, z):
    """exp(−yz)."""
    value = np.exp(-y * z)
    return value, -y * value, value


def poisson(y, z):
    """exp(z) − yz."""
    rate = np.exp(z)
    return rate - y * z, rate - y, rate


def huber(delta, y, z):
    """r²/2 where |r| ≤ δ and δ|r| − δ²/2 elsewhere, with r = z − y."""
    clipped = np.clip(z - y, -delta, delta)
    return clipped * (z - y - clipped / 2), clipped, (np.abs(z - y) < delta).astype(float)
