"""A loss of the user's own, as a function of θ."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.validation import (
    ArrayLike,
    Number,
    as_floats,
    as_positive,
    as_vector,
    is_concrete,
    refuse,
)
from ddln.problems.base import Problem

_MOST_STEPS = 5000
_FAULTS = (
    "",
    "could not be evaluated there",
    "still falls there",
    "may be lower elsewhere by {gap:.3g}",
    "does not rise again beyond",
    "is lower nearby",
)
"""Why a point is not taken for a minimiser, in the order in which it is tested."""


class FunctionLoss(Problem):
    """A loss given as a function of θ. Its gap is a difference, known to the rounding of ℒ."""

    function: Callable
    dim: int = eqx.field(static=True)
    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    attained: Bool[Array, ""]
    pl_constant: Float[Array, ""] | None
    smoothness: Float[Array, ""] | None
    convex: bool = eqx.field(static=True)
    samples: int = eqx.field(static=True, default=0)

    def loss(self, theta):
        return self.function(theta)


def from_function(
    loss: Callable[[Any], Any],
    dim: int,
    *,
    minimum: Number | None = None,
    minimiser: ArrayLike | None = None,
    pl_constant: Number | None = None,
    smoothness: Number | None = None,
    convex: bool = False,
    start: ArrayLike | None = None,
) -> FunctionLoss:
    """Any loss ℒ(θ) that JAX can differentiate twice, with what is known of it.

    Nothing is assumed: a constant that is not given is not known, and certificates that need it do
    not apply. Of a convex loss ℒ* is found by BFGS, then Newton steps.

    Args:
        loss: ℒ, from shape (dim,) to shape ().
        dim: the size of θ.
        minimum: ℒ*. Given alone, it is not taken to be attained.
        minimiser: one minimiser, shape (dim,); then ℒ* is the loss there.
        pl_constant: μ > 0 of ½‖∇ℒ‖² ≥ μ(ℒ − ℒ*).
        smoothness: β ≥ μ such that ∇ℒ is β-Lipschitz.
        convex: whether ℒ is convex.
        start: where the search for ℒ* starts, shape (dim,); 0 by default.

    Raises:
        ValueError: a loss that is no number; no ℒ* for a loss that is not convex; no point shown to
            be a minimiser, as where ℒ* is not attained; a constant that is not positive, or μ > β
            (traced: NaN).

    >>> problem = ddln.from_function(lambda theta: jnp.sum(jnp.cosh(theta - 1)), 2, convex=True)
    >>> float(problem.minimum), jnp.round(problem.minimiser, 12).tolist()
    (2.0, [1.0, 1.0])
    """
    if dim < 1:
        raise ValueError(f"`dim` must be ≥ 1, got {dim}.")
    origin = jnp.zeros(dim) if start is None else as_vector("start", start, dim)
    value = jax.eval_shape(loss, origin)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`loss` must return a real number, shape (), got {value}.")
    function = _as_pytree(loss)
    attained = True
    if minimiser is not None:
        place = as_vector("minimiser", minimiser, dim)
        least = function(place)
        if minimum is not None:
            minimum = as_floats("minimum", minimum, 0)
            off = jnp.abs(minimum - least) > 1e-6 * (1 + jnp.abs(least))
            message = f"`minimum` must be the loss at `minimiser`, {least}, got {minimum}."
            least = refuse(off, message, minimum)
    elif minimum is not None:
        place, least, attained = jnp.full(dim, jnp.nan), as_floats("minimum", minimum, 0), False
    elif convex:
        found = _minimise(function, origin)
        fault, gap = _fault(function, origin, found)
        place = refuse(fault > 0, _describe(found, fault, gap), found.theta)
        least = function(place)
    else:
        raise ValueError("`minimum` or `minimiser` must be given for a loss that is not convex.")
    mu, beta = (
        None if constant is None else as_positive(name, constant)
        for name, constant in (("pl_constant", pl_constant), ("smoothness", smoothness))
    )
    if mu is not None and beta is not None:
        # Twice each constant bounds ‖∇ℒ‖² over the gap, from below and from above.
        message = f"`pl_constant` must be ≤ `smoothness`, {beta}, got {mu}."
        mu = refuse(mu > beta, message, mu)
    return FunctionLoss(
        function=function,
        dim=dim,
        minimum=least,
        minimiser=place,
        attained=jnp.asarray(attained),
        pl_constant=mu,
        smoothness=beta,
        convex=convex,
    )


def _as_pytree(loss: Any) -> Any:
    """A plain function as a static part of the problem; a module with its arrays."""
    return loss if isinstance(loss, eqx.Module) else jax.tree_util.Partial(loss)


class _Search(NamedTuple):
    """Where a search for the minimum has got to."""

    theta: Float[Array, " dim"]
    value: Float[Array, ""]
    gradient: Float[Array, " dim"]
    hessian: Float[Array, "dim dim"]
    curvature: Float[Array, " dim"]
    """The largest second derivative that was met in each coordinate."""
    steepest: Float[Array, " dim"]
    """The largest slope."""
    largest: Float[Array, ""]
    """The largest |ℒ|, or 1 where ℒ was 0."""
    damping: Float[Array, ""]
    """Added to the eigenvalues of the scaled Hessian."""
    steps: Int[Array, ""]
    stopped: Bool[Array, ""]


def _look(function, theta):
    """ℒ, ∇ℒ and ∇²ℒ."""

    def gradient(theta):
        value, slope = jax.value_and_grad(function)(theta)
        return slope, (value, slope)

    hessian, (value, slope) = jax.jacfwd(gradient, has_aux=True)(theta)
    return value, slope, (hessian + hessian.T) / 2


def _all_finite(*arrays):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))


def _modes(search: _Search):
    """Of the Hessian in units in which its diagonal is at most 1: those units, its eigenvalues,
    0 where they are rounding, its eigenvectors, and the slopes of ℒ along them."""
    precision = jnp.finfo(search.theta.dtype).eps
    # Far away the slopes tell more than the curvature, as of log cosh, unless they are rounding.
    told = search.steepest > 1e3 * precision * jnp.max(search.steepest)
    steepness = jnp.where(told, search.steepest, 0.0) / jnp.sqrt(search.largest)
    units = jnp.maximum(jnp.sqrt(search.curvature), steepness)
    largest = jnp.max(units)
    units = jnp.where(units > 0, units, jnp.where(largest > 0, largest, 1.0))
    rates, modes = jnp.linalg.eigh(search.hessian / units[:, None] / units[None])
    flat = rates <= 4 * rates.size * precision * rates[-1]
    return units, jnp.where(flat, 0.0, rates), modes, modes.T @ (search.gradient / units)


def _newton_step(search: _Search, damping):
    """A damped Newton step, and how far the quadratic model of ℒ falls along it."""
    units, rates, modes, slopes = _modes(search)
    # Along flat directions a slope that is rounding moves nothing.
    rounding = 64 * jnp.finfo(rates.dtype).eps * jnp.max(search.steepest / units)
    silent = (rates == 0) & (jnp.abs(slopes) <= rounding)
    along = jnp.where(silent, 0.0, slopes / jnp.where(silent, 1.0, rates + damping))
    return -(modes @ along) / units, slopes @ along - jnp.sum(rates * along**2) / 2


@eqx.filter_jit
def _minimise(function, start) -> _Search:
    """Levenberg's method: Newton steps, damped as much as it takes for ℒ to fall.

    Where there is no curvature, as of Huber's loss far away, the steps follow the gradient and
    grow as long as they succeed.
    """
    precision = float(jnp.finfo(start.dtype).eps)

    def advance(search: _Search):
        step, fall = _newton_step(search, search.damping)
        theta = search.theta + step
        value, gradient, hessian = _look(function, theta)
        ratio = (search.value - value) / jnp.where(fall > 0, fall, 1.0)
        # Of a fall within its rounding the value is no judge, but the gradient is.
        is_lost = fall <= 16 * precision * jnp.abs(search.value)
        units = _modes(search)[0]
        shrinks = jnp.linalg.norm(gradient / units) < jnp.linalg.norm(search.gradient / units)
        accepted = _all_finite(theta, value, gradient, hessian)
        accepted &= jnp.where(is_lost, shrinks, ratio > 1e-4)
        trusted = jnp.where(ratio > 0.5, 1 / 8, jnp.where(ratio > 0.1, 1.0, 2.0))
        damping = search.damping * jnp.where(accepted, trusted, 4.0)
        least = jnp.where(accepted, jnp.finfo(start.dtype).tiny, precision)
        negligible = jnp.abs(step) <= precision * _reach(search, start)
        moved = _Search(
            theta,
            value,
            gradient,
            hessian,
            jnp.maximum(search.curvature, jnp.diagonal(hessian)),
            jnp.maximum(search.steepest, jnp.abs(gradient)),
            jnp.maximum(search.largest, jnp.abs(value)),
            *(search.damping, search.steps, search.stopped),
        )
        search = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved, search)
        return search._replace(
            damping=jnp.maximum(damping, least),
            steps=search.steps + 1,
            stopped=jnp.all(negligible) | (is_lost & ~accepted) | ~jnp.isfinite(damping),
        )

    value, gradient, hessian = _look(function, start)
    first = _Search(
        start,
        value,
        gradient,
        hessian,
        jnp.maximum(jnp.diagonal(hessian), 0.0),
        jnp.abs(gradient),
        jnp.where(value == 0, 1.0, jnp.abs(value)),
        jnp.asarray(1e-3, start.dtype),
        jnp.asarray(0),
        ~_all_finite(value, gradient, hessian),
    )
    return jax.lax.while_loop(
        lambda search: (search.steps < _MOST_STEPS) & ~search.stopped, advance, first
    )


def _reach(search: _Search, start):
    """How far a minimiser is to be expected in each coordinate."""
    return jnp.abs(search.theta) + jnp.abs(search.theta - start)


@eqx.filter_jit
def _fault(function, start, search: _Search):
    """Which of `_FAULTS` a convex loss has at the end of a search, and the bound on its gap."""
    precision = float(jnp.finfo(start.dtype).eps)
    reach = _reach(search, start)
    units, rates, modes, _ = _modes(search)
    step, _ = _newton_step(search, 0.0)
    rounding = 1e3 * reach.size * precision * jnp.max(units * reach) / units
    moves = jnp.abs(step) > jnp.maximum(precision**0.4 * reach, rounding)
    gap = jnp.sum(jnp.abs(search.gradient) * reach)
    scale = jnp.abs(search.value) + jnp.abs(function(start) - search.value)

    travelled = search.theta - start
    flat = rates <= 1e3 * rates.size * precision * rates[-1]
    flatly = modes @ jnp.where(flat, modes.T @ (units * travelled), 0.0) / units
    flatly = jnp.where(jnp.abs(flatly) > precision**0.4 * reach, flatly, 0.0)
    ways = jnp.stack([travelled, flatly])
    falls_on = ~jnp.all(jax.lax.map(lambda way: _is_bounded(function, search, way), ways))

    around = jnp.diag(jnp.where(reach > 0, reach, 1.0))
    nearby = jnp.concatenate([r * around for r in (-1.0, -1e-4, 1e-4, 1.0)])
    values = jax.lax.map(lambda shift: function(search.theta + shift), nearby)
    is_lower = jnp.any(values < search.value - 64 * precision * scale)

    finite = _all_finite(search.theta, search.value, search.gradient, search.hessian)
    faults = jnp.stack(
        [~finite, jnp.any(moves), ~(gap <= precision**0.6 * scale), falls_on, is_lower]
    )
    return jnp.where(jnp.any(faults), 1 + jnp.argmax(faults), 0), gap


def _is_bounded(function, search: _Search, direction):
    """Whether ℒ rises beyond θ along a direction, or is flat only up to there.

    Where the infimum is only approached at infinity, ℒ falls to θ, has the slope there that it has
    a little before, to leading order, and none beyond.
    """
    lengths = jnp.concatenate([jnp.array([-1.0, -1e-3, 0.0]), 2.0 ** jnp.arange(11)])

    def slope(length):
        there = search.theta + length.astype(direction.dtype) * direction
        return jax.jvp(function, (there,), (direction,))[1]

    before, behind, here, *beyond = jax.lax.map(slope, lengths)
    size = search.steepest + search.curvature * jnp.abs(search.theta)
    noise = 64 * jnp.finfo(direction.dtype).eps * jnp.sum(size * jnp.abs(direction))
    # Outside its domain a loss may be infinite, its slope anything.
    rises = jnp.any(~(jnp.stack(beyond) <= noise))
    ends_here = -behind > 100 * jnp.abs(here) + noise
    return rises | ends_here | (jnp.abs(before) <= noise)


def _describe(search: _Search, fault, gap) -> str:
    if not is_concrete(fault):
        return ""
    why = _FAULTS[int(fault)].format(gap=float(gap))
    slope = float(jnp.linalg.norm(search.gradient))
    return (
        "`loss` must attain a minimum that can be found, or `minimum` be given: after "
        f"{int(search.steps)} steps ℒ = {float(search.value):.6g} with ‖∇ℒ‖ = {slope:.3g} at "
        f"‖θ‖ = {float(jnp.linalg.norm(search.theta)):.3g}, and {why}."
    )
