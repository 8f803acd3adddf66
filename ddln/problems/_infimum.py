"""The infimum of a convex risk, in NumPy on the host: which samples escape, then Newton's method.

The losses φ are given as functions of (y, z), with δ before them for Huber's, that return φ(z, y)
and its first two derivatives in z.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float
from scipy.special import expit

from ddln._internal.validation import is_concrete
from ddln.problems._column_space import NOISE, SIGNAL, ColumnBasis, column_basis, least_squares

_NEWTON_STEPS = 200
_ROUNDINGS = 100  # of a sum of unit vectors that count as none


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

    Raises:
        ValueError: the rounding of X leaves open what escapes, or the minimum is not found (traced:
            NaN).
    """
    samples, dim = features.shape
    solve = partial(_solve, terms, factor, float(jnp.finfo(features.dtype).eps))
    inputs = (features, targets) if delta is None else (features, targets, delta)
    shapes = [(samples,), (samples,), (), (dim,)]
    fitted, escapes, minimum, minimiser = _on_host(solve, shapes, *inputs)
    names = {"fitted": fitted, "minimum": minimum, "minimiser": minimiser}
    attained = ~jnp.isnan(minimiser[0])
    return {**names, "escapes": escapes > 0, "attained": attained}


def _on_host(function: Callable, shapes: list[tuple], *inputs: Array) -> list[Array]:
    """`function` in NumPy's float64: now where the inputs can be seen, else by a callback.

    What it refuses is NaN in a callback, which cannot raise.
    """
    dtype = inputs[0].dtype

    def call(*inputs):
        arrays = [np.asarray(array, np.float64) for array in inputs]
        return [np.asarray(result, dtype) for result in function(*arrays)]

    def call_back(*inputs):
        nothing = [np.full(shape, np.nan, dtype) for shape in shapes]
        if not all(np.isfinite(array).all() for array in inputs):
            return nothing
        try:
            return call(*inputs)
        except ValueError:
            return nothing

    if is_concrete(*inputs):
        return [jnp.asarray(result) for result in call(*inputs)]
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return jax.pure_callback(call_back, results, *inputs, vmap_method="sequential")


def _solve(terms, factor, precision, features, targets, *delta):
    samples, dim = features.shape
    if terms is huber:
        escapes, basis = np.zeros(samples, bool), column_basis(features, precision)
    elif terms is poisson:
        signs = np.where(targets == 0, -1.0, 1.0)
        escapes, basis = escaping(features, signs, targets > 0, precision)
    else:
        escapes, basis = escaping(features, targets, np.zeros(samples, bool), precision)
    kept = ~escapes
    phi = partial(terms, *delta, targets[kept])
    if terms is huber:
        place, converged = _huber_minimiser(delta[0], targets, basis.orthonormal)
    else:
        place, converged = _newton(phi, basis.orthonormal)
    fitted = np.zeros(samples)
    fitted[kept] = basis.orthonormal @ place
    minimum = factor * np.sum(phi(fitted[kept])[0])
    minimiser = np.full(dim, np.nan) if escapes.any() else basis.least_norm(place)
    if not converged or not np.isfinite(minimum) or not (escapes.any() or _finite(minimiser)):
        raise ValueError(
            "`features` and `targets` must have a minimum that Newton's method finds in float64, "
            f"but after {_NEWTON_STEPS} steps the loss {minimum:g} is not known to be least."
        )
    return fitted, escapes, minimum, minimiser


def _finite(array):
    return np.isfinite(array).all()


def escaping(
    features: np.ndarray, signs: np.ndarray, held: np.ndarray, precision: float
) -> tuple[np.ndarray, ColumnBasis]:
    """The samples for which some w has s_i x_iᵀw > 0, and s_j x_jᵀw ≥ 0 for all j, 0 where held.

    In an orthonormal basis Q of the range of X, with rows q_i, let w = Σ λ_i s_i q_i / ‖q_i‖ be
    the shortest with λ ≥ 1, by nonnegative least squares. If no sample escapes, w = 0, and if one
    does, ‖w‖ ≥ 1. Indeed where ‖w‖ < 1, subtracting s_i ‖q_i‖ q_iᵀw < 1 from λ_i gives λ > 0 with
    Σ λ_i s_i q_i / ‖q_i‖ = 0, which no escaping sample allows. Else w is a direction: samples with
    s_i x_iᵀw > 0 escape. They are set aside, and the others, in a basis of their own, are
    judged again. Both proofs are checked with the rounding of X.

    Args:
        features: X, shape (samples, dim).
        signs: s, shape (samples,).
        held: samples with x_iᵀw = 0, shape (samples,).
        precision: the relative rounding of X.

    Returns:
        Whether each sample escapes, shape (samples,), and a basis of the range of the others' X.

    Raises:
        ValueError: the rounding of X leaves it open.
    """
    rest, unclear = np.arange(held.size), np.zeros(held.size, bool)
    while True:
        basis = column_basis(features[rest], precision)
        direction = _separating(basis, signs[rest], held[rest], rest)
        if direction is None:
            break
        values, rounding = basis.predictions(direction)
        margins = np.divide(
            signs[rest] * values, rounding, out=np.zeros_like(values), where=rounding > 0
        )
        wrong = np.where(held[rest], np.abs(margins), -margins) > NOISE
        gone = ~held[rest] & (margins > SIGNAL)
        if wrong.any() or not gone.any():
            _refuse_row(rest[np.argmax(wrong) if wrong.any() else np.argmax(margins)])
        unclear[rest[(margins > NOISE) & ~gone]] = True
        rest = rest[~gone]
    if unclear[rest].any():
        _refuse_row(rest[np.argmax(unclear[rest])])
    escapes = np.ones(held.size, bool)
    escapes[rest] = False
    return escapes, basis


def _separating(basis, signs, held, rows):
    """The direction w of `escaping` in the coordinates of Q, or None where no sample escapes."""
    lengths = np.linalg.norm(basis.orthonormal, axis=1)
    sizes = np.where(lengths > 0, lengths, np.inf)[:, None]
    units = signs[:, None] * basis.orthonormal / sizes
    cone = np.vstack([units, -units[held]])  # held from both sides
    if held.all() or not basis.rank:
        return None
    weights, direction = _shortest(cone)
    doubled = np.append(weights[: held.size], weights[held.size :])
    entries = np.vstack([basis.rounding / sizes, (basis.rounding / sizes)[held]])
    doubt = np.linalg.norm((doubled @ entries) @ np.abs(basis.transform))
    size = np.linalg.norm(direction)
    if size + 2 * doubt < 0.5:
        return None
    # Rows that w leaves at 0 up to its own rounding: exactly at 0.
    unit, noise = direction / size, _ROUNDINGS * np.finfo(float).eps * np.sum(weights) / size
    near = cone[np.abs(cone @ unit) <= noise]
    _, singular, modes = np.linalg.svd(near, full_matrices=False)
    modes = modes[singular > 1e-8 * np.max(singular, initial=0.0)]
    for _ in range(2):
        unit = unit - modes.T @ (modes @ unit)
    size = np.linalg.norm(unit)
    if size < 0.1:
        _refuse_row(rows[0])
    return unit / size


def _shortest(cone):
    """λ ≥ 1 for which w = Σ λ_i c_i is shortest, and w, for rows c_i of length 1 (or 0).

    The active set method of Lawson and Hanson (1974, chapter 23) for λ − 1 ≥ 0. SciPy's starts from
    rows with c_iᵀw < 0 by rounding alone, and with opposite rows such as held ones it then ends
    elsewhere. What is returned is checked by those who ask.
    """
    base = np.sum(cone, axis=0)
    extra, direction, passive = np.zeros(len(cone)), base, []
    for _ in range(3 * len(cone)):
        margins = cone @ direction
        row, rounding = int(np.argmin(margins)), _ROUNDINGS * np.finfo(float).eps
        if margins[row] >= -rounding * (len(cone) + np.sum(extra)) or row in passive:
            break
        passive = [*passive, row][-cone.shape[1] :]
        while True:
            turn, triangle = np.linalg.qr(cone[passive].T)
            wanted, now = scipy.linalg.solve_triangular(triangle, -turn.T @ base), extra[passive]
            falling = wanted <= 0
            if not falling.any():
                break
            # As far towards it as all stay ≥ 0; those that reach 0 leave.
            lengths = np.where(falling, np.maximum(now - wanted, np.finfo(float).tiny), 1.0)
            shares = np.where(falling, now / lengths, np.inf)
            extra[passive] = now + np.min(shares) * (wanted - now)
            extra[np.array(passive)[shares == np.min(shares)]] = 0.0
            passive = [k for k in passive if extra[k] > 0]
        extra[passive] = wanted
        direction = base - turn @ (turn.T @ base)
        direction = direction - turn @ (turn.T @ direction)
    return 1 + extra, direction


def _refuse_row(row):
    raise ValueError(
        "`features` must tell, beyond their rounding, which samples a hyperplane separates, but "
        f"the sample at row {row} (from 0) is within it: give centred columns, or leave it out."
    )


def _newton(phi, basis):
    """The a at which Σ φ(basis a) is least, and whether it is, for losses whose third derivative is
    at most their second.

    With δ the largest change of a prediction in a full step, the share log(1 + δ)/δ of it lowers
    Σ φ for such losses (Bach, Electronic Journal of Statistics 4, 2010); longer ones are tried.
    """
    place, last = np.zeros(basis.shape[1]), np.inf
    for _ in range(_NEWTON_STEPS if place.size else 0):
        predictions = basis @ place
        value, slope, curvature = phi(predictions)
        root = np.sqrt(np.maximum(curvature, np.finfo(float).tiny))
        step = least_squares(root[:, None] * basis, -slope / root)
        change = basis @ step
        size, largest = np.linalg.norm(root * change), np.max(np.abs(change))
        rounding = np.finfo(float).eps * np.linalg.norm(root * (1 + np.abs(predictions)))
        if not np.isfinite(largest):
            return place, False
        if size <= rounding or (largest < 0.1 and size > last / 2):
            return place + step, size <= 1e3 * rounding
        length, safe, fall = 1.0, np.log1p(largest) / largest, size**2
        with np.errstate(over="ignore", invalid="ignore"):
            while length > safe and not (
                np.sum(phi(basis @ (place + length * step))[0])
                <= np.sum(value) - 1e-4 * length * fall
            ):
                length /= 2
        place, last = place + max(length, safe) * step, size
    return place, not place.size


def _huber_minimiser(delta, targets, basis):
    """That of ever smaller thresholds, from least squares on, and whether it is one.

    From elsewhere Newton's method finds no curvature where most residuals are beyond the threshold.
    """
    place = basis.T @ targets
    threshold = np.max(np.abs(basis @ place - targets), initial=0.0) / 4
    while threshold > delta:
        place = _huber_newton(threshold, targets, basis, place)
        threshold /= 4
    place = _huber_newton(delta, targets, basis, place)
    predictions = basis @ place
    slope = np.clip(predictions - targets, -delta, delta)
    rounding = np.finfo(float).eps * np.linalg.norm(np.abs(predictions) + np.abs(targets))
    return place, np.linalg.norm(basis.T @ slope) <= 1e-9 * np.linalg.norm(slope) + 100 * rounding


def _huber_newton(delta, targets, basis, place):
    """Regularised Newton steps, each of the length that lowers Huber's loss most."""
    first = np.linalg.norm(np.clip(targets, -delta, delta))
    for _ in range(_NEWTON_STEPS):
        predictions = basis @ place
        residual = predictions - targets
        slope, inside = np.clip(residual, -delta, delta), np.abs(residual) < delta
        gradient = basis.T @ slope
        nothing = 1e-15 * (first + 4 * np.linalg.norm(inside * predictions))
        if not place.size or np.linalg.norm(gradient) <= nothing:
            break
        # The curvature can vanish; a shift like ‖g‖² keeps the convergence quadratic.
        rates, modes = np.linalg.eigh((basis * inside[:, None]).T @ basis)
        shift = (np.linalg.norm(gradient) / first) ** 2
        step = -modes @ ((modes.T @ gradient) / np.maximum(rates + shift, np.finfo(float).eps))
        place = place + _lowest(delta, residual, basis @ step) * step
    return place


def _lowest(delta, residual, change):
    """The t ≥ 0 with Huber's loss of residual + t · change least: its slope is piecewise linear."""
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = np.concatenate([(end - residual) / change for end in (-delta, delta)])
    kinks = np.append(0.0, np.sort(kinks[np.isfinite(kinks) & (kinks > 0)]))

    def slope(t):
        return change @ np.clip(residual + t * change, -delta, delta)

    low, high = 0, kinks.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if slope(kinks[middle]) >= 0 else (middle, high)
    below, above = slope(kinks[low]), slope(kinks[high])
    share = below / (below - above) if above > below else 1.0
    return kinks[low] + min(max(share, 0.0), 1.0) * (kinks[high] - kinks[low])


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
