"""Where it converges: the minimiser of the loss that is nearest to the start as Q measures it.

    θ_∞ = argmin { D_Q(θ, θ(0)) : Aθ = b },        ∇Q(θ_∞) = Aᵀν for some ν,

with {Aθ = b} the minimisers of the loss. Its dual, min over ν of Q*(Aᵀν) − bᵀν, is smooth and
convex with gradient Aθ − b and Hessian A diag(M) Aᵀ at θ = ∇Q*(Aᵀν).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, as_layers, as_vector, is_concrete
from ddln.networks._inverse_mirror_map import coordinate_of_dual
from ddln.networks.entropy import Entropy
from ddln.networks.reparametrisation import Reduction
from ddln.problems.base import Problem

_MOST_HALVINGS = 1100  # from a step of 1e308 to one of 1e-16
_ARMIJO = 1e-4
_LONGEST = 4.0  # step of a position where the dual is flat


def limit_point(
    problem: Problem,
    layers: ArrayLike,
    *,
    rtol: float | None = None,
    max_steps: int = 1000,
    throw: bool = True,
) -> Float[Array, " dim"]:
    """θ_∞ = argmin { D_Q(θ, θ(0)) : θ minimises ℒ }, where gradient flow from the layers ends.

    Newton's method on the dual, each step halved until the dual falls: the plain method overshoots,
    since θ grows exponentially in ν, or without bound at an end of the range of ∇Q. Where the dual
    is flat, near small initialisations, a damping in proportion to ‖Aθ − b‖ bounds the step.

    Args:
        problem: a loss whose minimisers are an affine set, such as least squares.
        layers: initial layers, shape (depth, dim).
        rtol: on Aθ = b, with A's rows made orthonormal, beside what the rounding of ξ = Aᵀν and θ
            leaves of it; `None` is 2e-12, or 50 roundings
            where that is more.
        max_steps: of Newton's method.
        throw: raise without convergence; else, and under transformations, the result is NaN.

    Returns:
        θ_∞, shape (dim,). `theory.kkt_residual` says how well it meets its conditions.

    Raises:
        ValueError: the minimisers are no affine set.
        RuntimeError: no convergence: no minimiser is within reach (a coordinate is frozen, or
            confined to a half-line), or ξ no longer tells one θ from another.

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> problem = ddln.signed(problem)  # u⊙u − v⊙v
    >>> theta = ddln.limit_point(problem, ddln.init.signed(ddln.init.constant(2, 2, 0.1)))
    >>> [round(float(x), 6) for x in problem.predictor(theta)]
    [0.975649, 0.060879]
    """
    drop_programs()
    affine, layers = _minimisers(problem), as_layers(layers, problem.dim)
    precision = max(2e-12, 50 * float(jnp.finfo(layers.dtype).eps)) if rtol is None else rtol
    theta = _dual_newton(*affine, Reduction(layers), precision, max_steps)
    if throw and is_concrete(theta) and np.isnan(np.asarray(theta)).any():
        raise RuntimeError(
            "No limit point was found: no minimiser is within reach of the network (see "
            "`ddln.describe(layers)`), or the scale is too small for the mirror map at this depth."
        )
    return theta


def _minimisers(problem):
    affine = problem.minimisers()
    if affine is None:
        raise ValueError(
            "`problem` must have an affine set of minimisers for a limit point: either its infimum "
            "is not attained, or its loss is not strictly convex in the predictions."
        )
    return affine


@eqx.filter_jit
def _dual_newton(matrix, values, reduction, rtol, max_steps):
    # Orthonormal rows: rank-deficient and badly scaled data become masked ones.
    left, singular, rows = jnp.linalg.svd(matrix, full_matrices=False)
    kept = singular > jnp.finfo(singular.dtype).eps * max(matrix.shape) * singular[0]
    rows = jnp.where(kept[:, None], rows, 0.0)
    target = jnp.where(kept, left.T @ values / jnp.where(kept, singular, 1.0), 0.0)
    size = jnp.linalg.norm(target)
    size = jnp.where(size > 0, size, 1.0)
    start = reduction.smallest(reduction.start)

    def at(nu):
        """The dual's value, its gradient, how much of that is rounding, M, and the least R."""
        dual = rows.T @ nu
        v, inside = coordinate_of_dual(dual, reduction)
        w, theta, mobility = reduction.smallest(v), reduction.theta(v), reduction.mobility(v)
        value = jnp.sum((w - start) * (w + start)) / 2 - target @ nu
        residual = rows @ theta - target
        doubt = jnp.linalg.norm(jnp.abs(theta) + mobility * jnp.abs(dual))
        rounding = 8 * jnp.finfo(v.dtype).eps * doubt
        finite = jnp.all(inside) & jnp.isfinite(value) & jnp.all(jnp.isfinite(residual))
        slowest = jnp.min(jnp.where(reduction.is_frozen, jnp.inf, reduction.remaining_product(v)))
        return jnp.where(finite, value, jnp.inf), residual, rounding, mobility, slowest

    def newton(state):
        nu, value, residual, rounding, mobility, slowest, step, _ = state
        hessian = (rows * mobility[None]) @ rows.T
        least = jnp.finfo(nu.dtype).eps * jnp.max(jnp.diagonal(hessian))
        bound = jnp.linalg.norm(residual) * slowest / _LONGEST
        damping = jnp.where(kept, least + bound, 1.0)
        direction = -jax.scipy.linalg.cho_solve(
            jax.scipy.linalg.cho_factor(hessian + jnp.diag(damping)), residual
        )
        slope = direction @ residual

        def too_long(trial):
            length, halvings, new_value, new_residual, *_ = trial
            falls = new_value <= value + _ARMIJO * length * slope
            # Near the end the dual's own changes are rounding.
            shrinks = jnp.linalg.norm(new_residual) <= (1 - length / 4) * jnp.linalg.norm(residual)
            fine = jnp.isfinite(new_value) & (falls | shrinks)
            return ~fine & (halvings < _MOST_HALVINGS)

        def halve(trial):
            length, halvings, *_ = trial
            return length / 2, halvings + 1, *at(nu + length / 2 * direction)

        length, halvings, *there = jax.lax.while_loop(
            too_long, halve, (jnp.ones_like(value), 0, *at(nu + direction))
        )
        stuck = (halvings == _MOST_HALVINGS) | ~jnp.all(jnp.isfinite(direction))
        moved = (nu + length * direction, *there)
        kept_state = (nu, value, residual, rounding, mobility, slowest)
        moved = jax.tree.map(lambda new, old: jnp.where(stuck, old, new), moved, kept_state)
        return *moved, step + 1, stuck

    def converged(state):
        _, value, residual, rounding, *_ = state
        return jnp.isfinite(value) & (jnp.linalg.norm(residual) <= rtol * size + rounding)

    def unfinished(state):
        *_, step, stuck = state
        return ~converged(state) & (step < max_steps) & ~stuck

    nu = jnp.zeros_like(target)
    first = nu, *at(nu), 0, jnp.asarray(False)
    last = jax.lax.while_loop(unfinished, newton, first)
    v, _ = coordinate_of_dual(rows.T @ last[0], reduction)
    return jnp.where(converged(last), reduction.theta(v), jnp.nan)


def kkt_residual(
    problem: Problem, layers: ArrayLike, theta: ArrayLike
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far θ is from the limit point's two conditions, each relative.

    Args:
        problem: a loss whose minimisers {Aθ = b} are an affine set.
        layers: initial layers, shape (depth, dim).
        theta: shape (dim,).

    Returns:
        Stationarity, the distance of ∇Q(θ) from the range of Aᵀ over ‖∇Q(θ)‖ (frozen coordinates
        left out), and infeasibility, ‖Aθ − b‖ / ‖b‖; shape () each. NaN where ∇Q(θ) is not defined.

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> layers = [[0.0, 0.0], [1.0, 1.0]]
    >>> theta = ddln.limit_point(problem, layers)
    >>> bool(max(ddln.theory.kkt_residual(problem, layers, theta)) < 1e-12)
    True
    """
    matrix, values = _minimisers(problem)
    theta = as_vector("theta", theta, problem.dim)
    return _kkt_residual(matrix, values, Entropy(layers), theta)


@eqx.filter_jit
def _kkt_residual(matrix, values, entropy, theta):
    mobile = ~entropy.reduction.is_frozen
    dual = jnp.where(mobile, entropy.mirror_map(theta), 0.0)
    columns = matrix.T * mobile[:, None]
    nu = jnp.linalg.lstsq(columns, dual)[0]
    size, wanted = jnp.linalg.norm(dual), jnp.linalg.norm(values)
    off = jnp.linalg.norm(dual - columns @ nu) / jnp.where(size > 0, size, 1.0)
    return off, jnp.linalg.norm(matrix @ theta - values) / jnp.where(wanted > 0, wanted, 1.0)
