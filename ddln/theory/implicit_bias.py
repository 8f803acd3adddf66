"""The limit of gradient flow: the minimiser of the loss nearest to θ(0) in Bregman divergence.

    θ_∞ = argmin { D_Q(θ, θ(0)) : Aθ = b },        ∇Q(θ_∞) = Aᵀν for some ν,

where {Aθ = b} is the set of minimisers of the loss. The dual problem, min over ν of Q*(Aᵀν) − bᵀν,
is smooth and convex, with gradient Aθ − b and Hessian A diag(M) Aᵀ at θ = ∇Q*(Aᵀν).
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, as_vector, is_concrete
from ddln.networks.entropy import as_entropy
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.problems.base import Problem

_MOST_HALVINGS = 1100
"""Enough to go from a step of 1e308 to one of 1e-16."""
_ARMIJO = 1e-4
_LONGEST = 4.0
"""Longest step of ξ where the dual is flat, in units of 1/rate: that of v in a network."""


def limit_point(
    problem: Problem,
    layers: ArrayLike | SeparableEntropy,
    *,
    rtol: float | None = None,
    max_steps: int = 1000,
    throw: bool = True,
) -> Float[Array, " dim"]:
    """θ_∞ = argmin { D_Q(θ, θ(0)) : θ minimises ℒ }, the limit of gradient flow from the layers.

    Newton's method on the dual problem with a backtracking line search. Undamped steps overshoot,
    because θ grows exponentially in ν, or without bound at an end of the range of ∇Q. The dual is
    flat near small initialisations; a damping proportional to ‖Aθ − b‖ bounds the step there.

    Args:
        problem: a loss whose minimisers form an affine set, such as least squares.
        layers: initial layers, shape (depth, dim); or the entropy of another parametrisation.
        rtol: relative tolerance on Aθ = b, after A's rows have been made orthonormal, in addition
            to the rounding errors of ξ = Aᵀν and θ. `None` means 2e-12 or 50 machine epsilons,
            whichever is larger.
        max_steps: the largest number of Newton steps.
        throw: raise if the method does not converge. Otherwise, and under transformations, the
            result is NaN.

    Returns:
        θ_∞, shape (dim,). `theory.kkt_residual` measures how well it meets its conditions.

    Raises:
        ValueError: the minimisers do not form an affine set.
        RuntimeError: no convergence. Either the network cannot reach a minimiser (a coordinate is
            frozen, or confined to a half-line), or rounding of ξ no longer determines θ.

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> problem = ddln.signed(problem)  # u⊙u − v⊙v
    >>> theta = ddln.limit_point(problem, ddln.init.signed(ddln.init.constant(2, 2, 0.1)))
    >>> [round(float(x), 6) for x in problem.predictor(theta)]
    [0.975649, 0.060879]
    """
    drop_programs()
    matrix, values = _minimisers(problem)
    entropy = as_entropy(layers, problem.dim)
    precision = max(2e-12, 50 * float(jnp.finfo(entropy.dtype).eps)) if rtol is None else rtol
    theta = _solve_dual(matrix, values, entropy, precision, max_steps)
    if throw and is_concrete(theta) and np.isnan(np.asarray(theta)).any():
        raise RuntimeError(
            "No limit point was found: no minimiser is within reach of the network (see "
            "`ddln.describe(layers)`), or the scale is too small for the mirror map at this depth."
        )
    return theta


def _minimisers(problem: Problem) -> tuple[Float[Array, "rows dim"], Float[Array, " rows"]]:
    """A and b of the minimisers {Aθ = b}."""
    affine = problem.minimisers()
    if affine is None:
        raise ValueError(
            "`problem` must have an affine set of minimisers for a limit point: either its infimum "
            "is not attained, or its loss is not strictly convex in the predictions."
        )
    return affine


class _Dual(NamedTuple):
    """The dual problem, min over ν of Q*(Aᵀν) − bᵀν, with orthonormal rows A.

    Rows beyond the rank of the data are 0.
    """

    rows: Float[Array, "rows dim"]
    """A."""
    target: Float[Array, " rows"]
    """b."""
    in_range: Bool[Array, " rows"]
    """False for the rows that are 0."""
    entropy: SeparableEntropy


class _Point(NamedTuple):
    """The dual problem evaluated at ν."""

    nu: Float[Array, " rows"]
    value: Float[Array, ""]
    """Q*(Aᵀν) − bᵀν; infinite outside the domain."""
    residual: Float[Array, " rows"]
    """Aθ − b, the gradient."""
    rounding: Float[Array, ""]
    """Estimated rounding error in the norm of the residual."""
    mobility: Float[Array, " dim"]
    """M."""
    slowest: Float[Array, ""]
    """The smallest rate of change of a coordinate that is not frozen, with ξ."""


class _NewtonState(NamedTuple):
    """The carry of Newton's method."""

    point: _Point
    step: Int[Array, ""] | int
    stuck: Bool[Array, ""]
    """No step decreases the dual."""


class _Trial(NamedTuple):
    """The carry of the line search."""

    length: Float[Array, ""]
    halvings: Int[Array, ""] | int
    point: _Point


def _orthonormal_dual(
    matrix: Float[Array, "samples dim"], values: Float[Array, " samples"], entropy: SeparableEntropy
) -> _Dual:
    """The dual of {matrix θ = values}; an SVD handles rank-deficient and badly scaled data."""
    left, singular, rows = jnp.linalg.svd(matrix, full_matrices=False)
    in_range = singular > jnp.finfo(singular.dtype).eps * max(matrix.shape) * singular[0]
    target = jnp.where(in_range, left.T @ values / jnp.where(in_range, singular, 1.0), 0.0)
    return _Dual(jnp.where(in_range[:, None], rows, 0.0), target, in_range, entropy)


def _evaluate(dual: _Dual, nu: Float[Array, " rows"]) -> _Point:
    xi = dual.rows.T @ nu
    theta, mobility, conjugate, rate, in_range = dual.entropy.at_dual(xi)
    value = jnp.sum(conjugate) - dual.target @ nu
    residual = dual.rows @ theta - dual.target
    magnitude = jnp.linalg.norm(jnp.abs(theta) + mobility * jnp.abs(xi))
    finite = jnp.all(in_range) & jnp.isfinite(value) & jnp.all(jnp.isfinite(residual))
    return _Point(
        nu=nu,
        value=jnp.where(finite, value, jnp.inf),
        residual=residual,
        rounding=8 * jnp.finfo(xi.dtype).eps * magnitude,
        mobility=mobility,
        slowest=jnp.min(jnp.where(dual.entropy.is_mobile, rate, jnp.inf)),
    )


def _newton_direction(dual: _Dual, point: _Point) -> Float[Array, " rows"]:
    hessian = (dual.rows * point.mobility[None]) @ dual.rows.T
    least = jnp.finfo(point.nu.dtype).eps * jnp.max(jnp.diagonal(hessian))
    bound = jnp.linalg.norm(point.residual) * point.slowest / _LONGEST
    damping = jnp.where(dual.in_range, least + bound, 1.0)
    factor = jax.scipy.linalg.cho_factor(hessian + jnp.diag(damping))
    return -jax.scipy.linalg.cho_solve(factor, point.residual)


def _must_shorten(trial: _Trial, *, point: _Point, slope: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether the line search goes on: the trial decreases neither the dual nor its gradient."""
    decreases = trial.point.value <= point.value + _ARMIJO * trial.length * slope
    # Near the solution the dual's own changes are rounding errors.
    before, after = jnp.linalg.norm(point.residual), jnp.linalg.norm(trial.point.residual)
    contracts = after <= (1 - trial.length / 4) * before
    acceptable = jnp.isfinite(trial.point.value) & (decreases | contracts)
    return ~acceptable & (trial.halvings < _MOST_HALVINGS)


def _halve(
    trial: _Trial, *, dual: _Dual, point: _Point, direction: Float[Array, " rows"]
) -> _Trial:
    length = trial.length / 2
    return _Trial(length, trial.halvings + 1, _evaluate(dual, point.nu + length * direction))


def _newton_step(state: _NewtonState, *, dual: _Dual) -> _NewtonState:
    """One damped Newton step with a backtracking line search."""
    point = state.point
    direction = _newton_direction(dual, point)
    last = jax.lax.while_loop(
        partial(_must_shorten, point=point, slope=direction @ point.residual),
        partial(_halve, dual=dual, point=point, direction=direction),
        _Trial(jnp.ones_like(point.value), 0, _evaluate(dual, point.nu + direction)),
    )
    stuck = (last.halvings == _MOST_HALVINGS) | ~jnp.all(jnp.isfinite(direction))
    accepted = jax.tree.map(lambda new, old: jnp.where(stuck, old, new), last.point, point)
    return _NewtonState(accepted, state.step + 1, stuck)


def _converged(dual: _Dual, point: _Point, *, rtol: float) -> Bool[Array, ""]:
    size = jnp.linalg.norm(dual.target)
    tolerance = rtol * jnp.where(size > 0, size, 1.0) + point.rounding
    return jnp.isfinite(point.value) & (jnp.linalg.norm(point.residual) <= tolerance)


@eqx.filter_jit
def _solve_dual(
    matrix: Float[Array, "samples dim"],
    values: Float[Array, " samples"],
    entropy: SeparableEntropy,
    rtol: float,
    max_steps: int,
) -> Float[Array, " dim"]:
    """The limit point by Newton's method on the dual; NaN without convergence."""
    dual = _orthonormal_dual(matrix, values, entropy)
    converged = partial(_converged, dual, rtol=rtol)
    first = _NewtonState(_evaluate(dual, jnp.zeros_like(dual.target)), 0, jnp.asarray(False))
    last = jax.lax.while_loop(
        lambda state: ~converged(state.point) & (state.step < max_steps) & ~state.stuck,
        partial(_newton_step, dual=dual),
        first,
    )
    theta = entropy.at_dual(dual.rows.T @ last.point.nu).theta
    return jnp.where(converged(last.point), theta, jnp.nan)


def kkt_residual(
    problem: Problem, layers: ArrayLike | SeparableEntropy, theta: ArrayLike
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The relative violation of the limit point's two optimality conditions at θ.

    Args:
        problem: a loss whose minimisers {Aθ = b} form an affine set.
        layers: initial layers, shape (depth, dim); or the entropy of another parametrisation.
        theta: shape (dim,).

    Returns:
        Stationarity, the distance of ∇Q(θ) from the range of Aᵀ over ‖∇Q(θ)‖ (without frozen
        coordinates), and infeasibility, ‖Aθ − b‖ / ‖b‖; shape () each. NaN where ∇Q(θ) is not
        defined.

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> layers = [[0.0, 0.0], [1.0, 1.0]]
    >>> theta = ddln.limit_point(problem, layers)
    >>> bool(max(ddln.theory.kkt_residual(problem, layers, theta)) < 1e-12)
    True
    """
    matrix, values = _minimisers(problem)
    theta = as_vector("theta", theta, problem.dim)
    return _kkt_residual(matrix, values, as_entropy(layers, problem.dim), theta)


@eqx.filter_jit
def _kkt_residual(
    matrix: Float[Array, "samples dim"],
    values: Float[Array, " samples"],
    entropy: SeparableEntropy,
    theta: Float[Array, " dim"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    mobile = entropy.is_mobile
    dual = jnp.where(mobile, entropy.mirror_map(theta), 0.0)
    columns = jnp.where(mobile[:, None], matrix.T, 0.0)
    nu = jnp.linalg.lstsq(columns, dual)[0]
    dual_size, value_size = jnp.linalg.norm(dual), jnp.linalg.norm(values)
    stationarity = jnp.linalg.norm(dual - columns @ nu) / jnp.where(dual_size > 0, dual_size, 1.0)
    residual = jnp.linalg.norm(matrix @ theta - values)
    return stationarity, residual / jnp.where(value_size > 0, value_size, 1.0)
