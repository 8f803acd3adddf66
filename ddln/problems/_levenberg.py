"""The minimum of a convex function by Levenberg's method, and a check that it is one."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.validation import is_concrete

Loss = Callable[..., Float[Array, ""]]
"""ℒ, from θ of shape (dim,) to shape ()."""

_MAX_STEPS = 5000
_ROUNDING = 64.0
"""Machine epsilons within which a value or a slope counts as unchanged."""
_FIRST_DAMPING = 1e-3
_FAULTS = (
    "",
    "could not be evaluated there",
    "still falls there",
    "may be lower elsewhere by {gap:.3g}",
    "does not rise again beyond",
    "is lower nearby",
)
"""Why a point is not accepted as a minimiser, in the order of the tests."""


def gap_tolerance(dtype: jnp.dtype) -> float:
    """The relative error allowed in ℒ*: about 4·10⁻¹⁰ in float64."""
    return float(jnp.finfo(dtype).eps) ** 0.6


def _step_tolerance(dtype: jnp.dtype) -> float:
    """The relative size of a Newton step that shows θ has not converged."""
    return float(jnp.finfo(dtype).eps) ** 0.4


class Search(NamedTuple):
    """The state of the iteration."""

    theta: Float[Array, " dim"]
    value: Float[Array, ""]
    gradient: Float[Array, " dim"]
    hessian: Float[Array, "dim dim"]
    max_curvature: Float[Array, " dim"]
    """The largest second derivative so far in each coordinate."""
    max_slope: Float[Array, " dim"]
    """The largest |∂ℒ/∂θ_i| so far."""
    max_value: Float[Array, ""]
    """The largest |ℒ| so far, or 1 while that is 0."""
    damping: Float[Array, ""]
    """The shift of the eigenvalues of the scaled Hessian."""
    steps: Int[Array, ""]
    stopped: Bool[Array, ""]


class _Modes(NamedTuple):
    """The eigendecomposition of the Hessian in scaled coordinates θ_i · units_i."""

    units: Float[Array, " dim"]
    """Scales in which the diagonal of the Hessian is at most 1."""
    eigenvalues: Float[Array, " dim"]
    """Ascending; 0 if within rounding of 0."""
    eigenvectors: Float[Array, "dim dim"]
    slopes: Float[Array, " dim"]
    """∇ℒ in the basis of the eigenvectors."""


@eqx.filter_jit
def minimise(function: Loss, start: Float[Array, " dim"]) -> Search:
    """Levenberg's method: Newton steps with the least damping for which ℒ decreases.

    Without curvature, as in Huber's loss far from its minimum, the steps follow the gradient and
    grow as long as they succeed.
    """
    value, gradient, hessian = _derivatives(function, start)
    first = Search(
        theta=start,
        value=value,
        gradient=gradient,
        hessian=hessian,
        max_curvature=jnp.maximum(jnp.diagonal(hessian), 0.0),
        max_slope=jnp.abs(gradient),
        max_value=jnp.where(value == 0, 1.0, jnp.abs(value)),
        damping=jnp.asarray(_FIRST_DAMPING, start.dtype),
        steps=jnp.asarray(0),
        stopped=~_all_finite(value, gradient, hessian),
    )
    return jax.lax.while_loop(
        lambda search: (search.steps < _MAX_STEPS) & ~search.stopped,
        partial(_advance, function, start),
        first,
    )


def _advance(function: Loss, start: Float[Array, " dim"], search: Search) -> Search:
    """Try one damped step; accept it if ℒ decreases, and adapt the damping."""
    precision = float(jnp.finfo(start.dtype).eps)
    step, predicted = _newton_step(search, search.damping)
    theta = search.theta + step
    value, gradient, hessian = _derivatives(function, theta)
    ratio = (search.value - value) / jnp.where(predicted > 0, predicted, 1.0)
    # If the predicted decrease is within the rounding of ℒ, the gradient decides instead.
    is_rounding = predicted <= 16 * precision * jnp.abs(search.value)
    units = _modes(search).units
    shrinks = jnp.linalg.norm(gradient / units) < jnp.linalg.norm(search.gradient / units)
    accepted = _all_finite(theta, value, gradient, hessian)
    accepted &= jnp.where(is_rounding, shrinks, ratio > 1e-4)
    moved = search._replace(
        theta=theta,
        value=value,
        gradient=gradient,
        hessian=hessian,
        max_curvature=jnp.maximum(search.max_curvature, jnp.diagonal(hessian)),
        max_slope=jnp.maximum(search.max_slope, jnp.abs(gradient)),
        max_value=jnp.maximum(search.max_value, jnp.abs(value)),
    )
    change = jnp.where(ratio > 0.5, 1 / 8, jnp.where(ratio > 0.1, 1.0, 2.0))
    damping = search.damping * jnp.where(accepted, change, 4.0)
    least = jnp.where(accepted, jnp.finfo(start.dtype).tiny, precision)
    negligible = jnp.abs(step) <= precision * _extent(search, start)
    search = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved, search)
    return search._replace(
        damping=jnp.maximum(damping, least),
        steps=search.steps + 1,
        stopped=jnp.all(negligible) | (is_rounding & ~accepted) | ~jnp.isfinite(damping),
    )


@eqx.filter_jit
def find_fault(
    function: Loss, start: Float[Array, " dim"], search: Search
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """The index in `_FAULTS` of the first failed test, 0 if all pass; and a bound on the gap.

    The loss is convex, so ℒ(θ) − ℒ* ≤ Σ_i |∂ℒ/∂θ_i| |θ_i − θ*_i|; the bound takes the distance
    travelled and |θ_i| for the unknown |θ_i − θ*_i|.
    """
    precision = float(jnp.finfo(start.dtype).eps)
    extent = _extent(search, start)
    units = _modes(search).units
    step, _ = _newton_step(search, 0.0)
    rounding = 1e3 * extent.size * precision * jnp.max(units * extent) / units
    moves = jnp.abs(step) > jnp.maximum(_step_tolerance(start.dtype) * extent, rounding)
    gap = jnp.sum(jnp.abs(search.gradient) * extent)
    scale = jnp.abs(search.value) + jnp.abs(function(start) - search.value)

    directions = jnp.stack([search.theta - start, _flat_part(search, start)])
    bounded = jax.lax.map(partial(_is_bounded, function, search), directions)

    axes = jnp.diag(jnp.where(extent > 0, extent, 1.0))
    shifts = jnp.concatenate([size * axes for size in (-1.0, -1e-4, 1e-4, 1.0)])
    nearby = jax.lax.map(lambda shift: function(search.theta + shift), shifts)

    faults = jnp.stack(
        [
            ~_all_finite(search.theta, search.value, search.gradient, search.hessian),
            jnp.any(moves),
            ~(gap <= gap_tolerance(start.dtype) * scale),
            ~jnp.all(bounded),
            jnp.any(nearby < search.value - _ROUNDING * precision * scale),
        ]
    )
    return jnp.where(jnp.any(faults), 1 + jnp.argmax(faults), 0), gap


def describe(search: Search, fault: Int[Array, ""], gap: Float[Array, ""]) -> str:
    """The error message of a fault; empty while traced."""
    if not is_concrete(fault):
        return ""
    why = _FAULTS[int(fault)].format(gap=float(gap))
    slope = float(jnp.linalg.norm(search.gradient))
    return (
        "`loss` must attain a minimum that can be found, or `minimum` be given: after "
        f"{int(search.steps)} steps ℒ = {float(search.value):.6g} with ‖∇ℒ‖ = {slope:.3g} at "
        f"‖θ‖ = {float(jnp.linalg.norm(search.theta)):.3g}, and {why}."
    )


def _derivatives(
    function: Loss, theta: Float[Array, " dim"]
) -> tuple[Float[Array, ""], Float[Array, " dim"], Float[Array, "dim dim"]]:
    """ℒ, ∇ℒ and ∇²ℒ."""

    def gradient(theta: Float[Array, " dim"]):
        value, slope = jax.value_and_grad(function)(theta)
        return slope, (value, slope)

    hessian, (value, slope) = jax.jacfwd(gradient, has_aux=True)(theta)
    return value, slope, (hessian + hessian.T) / 2


def _all_finite(*arrays: Float[Array, "..."]) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))


def _modes(search: Search) -> _Modes:
    precision = jnp.finfo(search.theta.dtype).eps
    # Far from the minimum the slopes give a better scale than the curvature, as for log cosh,
    # unless they are rounding.
    is_resolved = search.max_slope > 1e3 * precision * jnp.max(search.max_slope)
    steepness = jnp.where(is_resolved, search.max_slope, 0.0) / jnp.sqrt(search.max_value)
    units = jnp.maximum(jnp.sqrt(search.max_curvature), steepness)
    largest = jnp.max(units)
    units = jnp.where(units > 0, units, jnp.where(largest > 0, largest, 1.0))
    eigenvalues, eigenvectors = jnp.linalg.eigh(search.hessian / units[:, None] / units[None])
    is_flat = eigenvalues <= 4 * eigenvalues.size * precision * eigenvalues[-1]
    slopes = eigenvectors.T @ (search.gradient / units)
    return _Modes(units, jnp.where(is_flat, 0.0, eigenvalues), eigenvectors, slopes)


def _newton_step(
    search: Search, damping: float | Float[Array, ""]
) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
    """A damped Newton step, and the decrease of ℒ that its quadratic model predicts."""
    units, eigenvalues, eigenvectors, slopes = _modes(search)
    # A slope within rounding causes no motion along a flat direction.
    rounding = _ROUNDING * jnp.finfo(slopes.dtype).eps * jnp.max(search.max_slope / units)
    fixed = (eigenvalues == 0) & (jnp.abs(slopes) <= rounding)
    along = jnp.where(fixed, 0.0, slopes / jnp.where(fixed, 1.0, eigenvalues + damping))
    decrease = slopes @ along - jnp.sum(eigenvalues * along**2) / 2
    return -(eigenvectors @ along) / units, decrease


def _extent(search: Search, start: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """The length scale of each coordinate: |θ| plus the distance from the start."""
    return jnp.abs(search.theta) + jnp.abs(search.theta - start)


def _flat_part(search: Search, start: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """The part of θ − start along flat directions of the Hessian."""
    precision = float(jnp.finfo(start.dtype).eps)
    units, eigenvalues, eigenvectors, _ = _modes(search)
    is_flat = eigenvalues <= 1e3 * eigenvalues.size * precision * eigenvalues[-1]
    travelled = eigenvectors.T @ (units * (search.theta - start))
    part = eigenvectors @ jnp.where(is_flat, travelled, 0.0) / units
    smallest = _step_tolerance(start.dtype) * _extent(search, start)
    return jnp.where(jnp.abs(part) > smallest, part, 0.0)


def _is_bounded(function: Loss, search: Search, direction: Float[Array, " dim"]) -> Bool[Array, ""]:
    """Whether ℒ rises beyond θ along a direction, or becomes flat at θ.

    If ℒ only approaches its infimum at infinity, it falls before θ, has nearly the same slope at θ
    as shortly before, and no positive slope beyond.
    """
    lengths = jnp.concatenate([jnp.array([-1.0, -1e-3, 0.0]), 2.0 ** jnp.arange(11.0)])

    def slope(length: Float[Array, ""]):
        point = search.theta + length.astype(direction.dtype) * direction
        return jax.jvp(function, (point,), (direction,))[1]

    before, shortly_before, at_theta, *beyond = jax.lax.map(slope, lengths)
    size = search.max_slope + search.max_curvature * jnp.abs(search.theta)
    noise = _ROUNDING * jnp.finfo(direction.dtype).eps * jnp.sum(size * jnp.abs(direction))
    # Outside its domain a loss may be infinite and its slope NaN.
    rises = jnp.any(~(jnp.stack(beyond) <= noise))
    ends_here = -shortly_before > 100 * jnp.abs(at_theta) + noise
    return rises | ends_here | (jnp.abs(before) <= noise)
