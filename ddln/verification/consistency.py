"""What a run records at each point, held against its layers there: the first of its certificates.

    θ = u¹ ⊙ … ⊙ u^L,   dθ/dt = −M(u) ⊙ ∇ℒ(θ),   loss = ℒ(θ),   gap = ℒ(θ) − ℒ*

Each holds to rounding at every saved point, whatever the accuracy of the integrator. Rounding of θ
is taken for an error r = 30 ε (‖θ‖ + ‖θ*‖) of it: one of β r in ∇ℒ, and of √(β/2) r in the root of
the gap.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import Number, largest
from ddln.networks.layers import effective_parameter, mobility
from ddln.problems.base import Problem
from ddln.problems.signed import Signed
from ddln.solvers.result import Run
from ddln.verification.claims import Claim

_ROUNDINGS = 4096
"""Of a layer, that are granted to what is a product of layers."""
_SUMMED = 64
"""Roundings of its largest value that are granted to a sum, such as a loss."""


def steepness(problem: Problem, theta: Float[Array, "points dim"]) -> Float[Array, ""]:
    """β, or where there is none the largest ‖∇²ℒ‖ at these θ."""
    if problem.smoothness is not None:
        return problem.smoothness
    # In the Frobenius norm: eigenvalues of a batch can lock XLA's few threads (docs/decisions.md).
    return largest(jnp.linalg.norm(jax.vmap(problem.hessian)(theta), axis=(1, 2)))


def theta_noise(problem: Problem, theta: Float[Array, "points dim"]) -> Float[Array, ""]:
    """r: 30 roundings of θ, and of θ* where there is one."""
    minimiser = jnp.where(problem.attained, problem.minimiser, 0.0)
    size = largest(jnp.abs(theta)) + largest(jnp.abs(minimiser))
    return 30 * jnp.finfo(theta.dtype).eps * size


def gap_rounding(problem: Problem, loss: Float[Array, " points"]) -> Number:
    """Rounding of the gap where it is a difference of two losses; 0 where it is a sum of its own.

    >>> problem = ddln.from_function(lambda theta: 1e8 + jnp.sum(theta**2), 1, convex=True)
    >>> float(gap_rounding(problem, jnp.array([1e8]))) > 1e-8
    True
    """
    whole = problem.unsigned if isinstance(problem, Signed) else problem
    if type(whole).gap is not Problem.gap:
        return 0.0
    size = largest(jnp.abs(loss)) + jnp.abs(problem.minimum)
    return _SUMMED * jnp.finfo(size.dtype).eps * size


def root_of_gap(gap: Float[Array, " points"]) -> Float[Array, " points"]:
    """√gap, 0 where rounding made the gap negative."""
    return jnp.sqrt(jnp.where(gap < 0, 0.0, gap))


def relative(error: Array, size: Array, noise: Array | Number, tolerance: Number) -> Array:
    """Largest |error| over |size|, where the noise counts as just tolerable; NaN if one is."""
    tiny = jnp.finfo(error.dtype).tiny / jnp.finfo(error.dtype).eps
    return largest(jnp.abs(error) / (jnp.abs(size) + noise / tolerance + tiny))


def consistency(
    problem: Problem,
    run: Run,
    beta: Float[Array, ""],
    start: Float[Array, "depth dim"] | None = None,
) -> Claim:
    """The claim that what a run records belongs together, at every point.

    Args:
        problem: the loss.
        run: a flow or a descent; the rate dθ/dt is held where the run has one.
        beta: β, or the largest ‖∇²ℒ‖, of `steepness`.
        start: the layers that it must have started from; `None` for any.
    """
    theta = jax.vmap(effective_parameter)(run.layers)
    # Positions know the layers of a tie to a rounding of its logarithm.
    tolerance = _ROUNDINGS * len(run.layers[0]) * jnp.finfo(theta.dtype).eps
    rounding = theta_noise(problem, run.theta)
    loss, gap = jax.vmap(problem.loss)(run.theta), jax.vmap(problem.gap)(run.theta)
    shift = gap_rounding(problem, run.loss)
    floor = beta * rounding**2 / 2
    of_gap = 2 * jnp.sqrt(floor) * root_of_gap(gap) + floor + shift
    summed = _SUMMED * jnp.finfo(loss.dtype).eps * (largest(jnp.abs(loss)) + largest(gap))
    parts = [
        relative(run.theta - theta, theta, 0.0, tolerance),
        relative(run.loss - loss, loss, of_gap + summed, tolerance),
        relative(run.gap - gap, gap, of_gap, tolerance),
        # ℒ* is no infimum where a gap is negative beyond its rounding.
        relative(jnp.minimum(run.gap, 0.0), jnp.zeros_like(gap), of_gap, tolerance),
    ]
    velocity = getattr(run, "velocity", None)
    if velocity is not None:
        metric = jax.vmap(mobility)(run.layers)
        speed = metric * jax.vmap(problem.gradient)(run.theta)
        parts.append(relative(velocity + speed, speed, beta * rounding * metric, tolerance))
    if start is not None:
        parts.append(relative(run.layers[0] - start, start, 0.0, tolerance))
    worst = largest(jnp.stack(parts))
    return Claim(
        "consistency",
        "definitions",
        "θ = u¹ ⊙ … ⊙ u^L, dθ/dt = −M ⊙ ∇ℒ(θ), loss ℒ(θ) and gap ℒ(θ) − ℒ* at every point",
        jnp.where(_is_whole(run), worst, jnp.nan),
        0.0,
        tolerance,
        relation="<=",
        reason="rounding",
    )


def _is_whole(run: Run) -> Bool[Array, ""]:
    """Whether every number is finite, and the times increase."""
    names = ("times", "layers", "theta", "loss", "gap", "velocity")
    recorded = [getattr(run, name) for name in names if hasattr(run, name)]
    finite = [jnp.all(jnp.isfinite(value)) for value in recorded]
    return jnp.all(jnp.stack(finite)) & jnp.all(jnp.diff(run.times) > 0)
