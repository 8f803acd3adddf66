"""Error allowances that several certificates share; the tolerance of one stands in its function.

The *floor* of the gap is ½ β δ²: the square root of the gap is a seminorm of θ − θ*, so an error δ
of the integrator in θ moves it by at most √(β/2) δ. A run says nothing about gaps below the floor.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import Number, largest
from ddln.problems.base import Problem
from ddln.problems.signed import Signed
from ddln.solvers.trajectory import Trajectory
from ddln.verification.error_estimate import expected_error, relative_accuracy

IDENTITY = 450_000
"""Roundings granted to an identity at one point: 1e-10 in float64."""
CONSERVED = 4096
"""Roundings granted to a conserved quantity: 1e-12 in float64."""
LOOSEST = 0.05
"""A claim whose relative tolerance reaches this does not apply. With a NaN it applies and fails,
hence the negated comparisons."""
_SUMMED = 64
"""Roundings of its largest value granted to a sum such as a loss."""
_SAMPLES = 9


def sample_points(points: int, samples: int = _SAMPLES) -> np.ndarray:
    """Evenly spread indices, the first and the last among them, for claims that cost a lot each.

    >>> sample_points(101).tolist()
    [0, 12, 25, 38, 50, 62, 75, 88, 100]
    """
    return np.unique(np.linspace(0, max(points - 1, 0), samples).round().astype(int))


def steepness(problem: Problem, theta: Float[Array, "points dim"]) -> Float[Array, ""]:
    """β; without one, the largest ‖∇²ℒ‖ at these θ."""
    if problem.smoothness is not None:
        return problem.smoothness
    # In the Frobenius norm: eigenvalues of a batch can lock XLA's few threads (docs/decisions.md).
    return largest(jnp.linalg.norm(jax.vmap(problem.hessian)(theta), axis=(1, 2)))


def theta_noise(problem: Problem, theta: Float[Array, "points dim"]) -> Float[Array, ""]:
    """r: 30 roundings of θ, and of θ* if the minimum is attained."""
    minimiser = jnp.where(problem.attained, problem.minimiser, 0.0)
    size = largest(jnp.abs(theta)) + largest(jnp.abs(minimiser))
    return 30 * jnp.finfo(theta.dtype).eps * size


def gradient_noise(problem: Problem, theta: Float[Array, "points dim"]) -> Float[Array, ""]:
    """β r, the rounding error of ∇ℒ: near a minimiser, all of ∇ℒ is rounding error."""
    return steepness(problem, theta) * theta_noise(problem, theta)


def gap_floor(problem: Problem, run: Trajectory) -> Float[Array, ""]:
    """½ β δ², plus the rounding error of a gap that is computed as a difference of losses."""
    beta = steepness(problem, run.theta[sample_points(run.times.size)])
    return beta * expected_error(run) ** 2 / 2 + gap_rounding(problem, run.loss)


def gap_rounding(problem: Problem, loss: Float[Array, " points"]) -> Float[Array, ""]:
    """Rounding error of a gap computed as ℒ − ℒ*; 0 if the problem has its own formula for it.

    >>> problem = ddln.from_function(lambda theta: 1e8 + jnp.sum(theta**2), 1, convex=True)
    >>> float(gap_rounding(problem, jnp.array([1e8]))) > 1e-8
    True
    """
    whole = problem.unsigned if isinstance(problem, Signed) else problem
    if type(whole).gap is not Problem.gap:
        return jnp.zeros((), loss.dtype)
    return summation_error(largest(jnp.abs(loss)) + jnp.abs(problem.minimum))


def summation_error(size: Float[Array, ""]) -> Float[Array, ""]:
    """Rounding error of a sum whose largest value is `size`."""
    return _SUMMED * jnp.finfo(size.dtype).eps * size


def root_of_gap(gap: Float[Array, " points"]) -> Float[Array, " points"]:
    """√gap; 0 where rounding made the gap negative."""
    return jnp.sqrt(jnp.where(gap < 0, 0.0, gap))


def relative_error(
    error: Float[Array, "..."],
    size: Float[Array, "..."],
    noise: Number,
    tolerance: Number,
) -> Float[Array, ""]:
    """Largest |error| / (|size| + noise / tolerance); NaN if an entry is.

    It is at most `tolerance` exactly if |error| ≤ tolerance · |size| + noise everywhere.

    >>> float(relative_error(jnp.array([0.25]), jnp.array([1.0]), 0.125, 0.125))
    0.125
    """
    tiny = jnp.finfo(error.dtype).tiny / jnp.finfo(error.dtype).eps
    return largest(jnp.abs(error) / (jnp.abs(size) + noise / tolerance + tiny))


def flow_tolerance(run: Trajectory, roundings: int) -> tuple[Number, str]:
    """Tolerance and reason for what holds exactly in reduced coordinates: rounding there, the
    integrator's error if the layers themselves were integrated."""
    exact = roundings * jnp.finfo(run.theta.dtype).eps
    if run.coordinates == "layers":
        return jnp.maximum(exact, 10 * relative_accuracy(run)), "the integrator's"
    return exact, "rounding: reduced coordinates are exact"


def tie_condition(run: Trajectory) -> Float[Array, " dim"]:
    """Condition number of ∇²Q at a given θ with respect to the layers: it grows towards a tie."""
    if run.coordinates != "layers" or run.entropy is not None or run.depth == 1:
        return jnp.ones_like(run.theta[0])
    squares = jnp.sort(run.layers[0] ** 2, axis=0)
    gap = squares[1] - squares[0]
    if run.decay is not None:
        gap = gap * jnp.exp(-2 * largest(run.decay.dose))
    return jnp.where(gap > 0, largest(run.layers**2, axis=(0, 1)) / gap, 1.0)
