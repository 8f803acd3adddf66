"""The records of a run against its layers and its times: "consistency" and "clock".

    θ = u¹ ⊙ … ⊙ u^L,   dθ/dt = −M(u) ⊙ ∇ℒ(θ),   loss = ℒ(θ),   gap = ℒ(θ) − ℒ*

hold to rounding at every saved point, whatever the accuracy of the integrator. A rounding error
r = 30 ε (‖θ‖ + ‖θ*‖) in θ is one of β r in ∇ℒ and of √(β/2) r in the square root of the gap.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import largest
from ddln.networks.layers import layer_gradient, theta_of
from ddln.problems.base import Problem
from ddln.solvers.result import Run
from ddln.solvers.trajectory import Trajectory
from ddln.theory import _hermite
from ddln.verification._shared_tolerances import (
    CONSERVED,
    LOOSEST,
    gap_rounding,
    relative_error,
    root_of_gap,
    sample_points,
    steepness,
    summation_error,
    theta_noise,
)
from ddln.verification.certificates import Claim
from ddln.verification.error_estimate import dual_size, expected_error, relative_accuracy

_SAFETY = 4
"""Factor on the estimated quadrature error of a single interval."""


def consistency(
    problem: Problem,
    run: Run,
    beta: Float[Array, ""],
    start: Float[Array, "depth dim"] | None = None,
) -> Claim:
    """Claim that θ, dθ/dt, loss and gap at every point are those of the layers there.

    It fails if any recorded number is not finite, if the times do not increase, or if a gap is
    negative beyond its rounding, since ℒ* is then no infimum. Tolerance: 4096 roundings per layer,
    because reduced coordinates hold the layers of a tie to a rounding of their logarithm.

    Args:
        problem: the loss.
        run: a flow or a descent; dθ/dt is checked if the run records it.
        beta: β or the largest ‖∇²ℒ‖, from `steepness`.
        start: the layers from which the run must have started; `None` for any.
    """
    theta, size = _recomputed_theta(run)
    tolerance = CONSERVED * len(run.layers[0]) * jnp.finfo(theta.dtype).eps
    rounding = theta_noise(problem, run.theta)
    loss, gap = jax.vmap(problem.loss)(run.theta), jax.vmap(problem.gap)(run.theta)
    floor = beta * rounding**2 / 2
    gap_noise = 2 * jnp.sqrt(floor) * root_of_gap(gap) + floor + gap_rounding(problem, run.loss)
    loss_noise = gap_noise + summation_error(largest(jnp.abs(loss)) + largest(gap))
    negative = jnp.minimum(run.gap, 0.0)
    errors = [
        relative_error(run.theta - theta, size, 0.0, tolerance),
        relative_error(run.loss - loss, loss, loss_noise, tolerance),
        relative_error(run.gap - gap, gap, gap_noise, tolerance),
        relative_error(negative, jnp.zeros_like(gap), gap_noise, tolerance),
    ]
    if isinstance(run, Trajectory):
        metric = jax.vmap(run.flow_entropy.mobility)(run.layers)
        velocity = -metric * jax.vmap(problem.gradient)(run.theta)
        if run.decay is not None:
            velocity = velocity - len(run.layers[0]) * run.decay.rate[:, None] * run.theta
        noise = beta * rounding * metric
        errors.append(relative_error(run.velocity - velocity, velocity, noise, tolerance))
    if start is not None:
        errors.append(relative_error(run.layers[0] - start, start, 0.0, tolerance))
    return Claim(
        "consistency",
        "definitions",
        "θ = u¹ ⊙ … ⊙ u^L, dθ/dt = −M ⊙ ∇ℒ(θ), loss ℒ(θ) and gap ℒ(θ) − ℒ* at every point",
        measured=jnp.where(_is_sound(run), largest(jnp.stack(errors)), jnp.nan),
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason="rounding",
    )


def _recomputed_theta(run: Run) -> tuple[Float[Array, "points dim"], Float[Array, "points dim"]]:
    """θ of the layers at each point, and the size to which its rounding is relative.

    A product is rounded relative to itself, any other G(w) also relative to |∇G| ‖w‖.
    """
    theta = jax.vmap(partial(theta_of, function=run.function))(run.layers)
    if run.function is None:
        return theta, theta
    # |∇G|: each entry of ∂(Σ_k θ_k)/∂w is that of its own coordinate.
    of_ones = jax.vmap(partial(layer_gradient, function=run.function))
    slope = jnp.linalg.norm(of_ones(run.layers, jnp.ones_like(theta)), axis=1)
    return theta, jnp.abs(theta) + slope * jnp.linalg.norm(run.layers, axis=1)


def _is_sound(run: Run) -> Bool[Array, ""]:
    """Whether every recorded number is finite and the times increase."""
    recorded = [run.times, run.layers, run.theta, run.loss, run.gap]
    if isinstance(run, Trajectory):
        recorded.append(run.velocity)
    finite = jnp.stack([jnp.all(jnp.isfinite(values)) for values in recorded])
    return jnp.all(finite) & jnp.all(jnp.diff(run.times) > 0)


def clock(problem: Problem, run: Trajectory) -> Claim:
    """Claim that θ moves by ∫ dθ/dt ds from each saved time to the next.

    Over one interval only errors made in it count, so a wrong time shows wherever the saved times
    resolve the curve, whatever the errors before. The integral is that of the cubic through dθ/dt
    and d²θ/dt², the derivative of −M(u) ⊙ ∇ℒ(θ) along the flow.

    An interval says nothing if dθ_k/dt may change by more than itself over it, as between two
    saddles, where θ jumps unseen, or if the errors that count as tolerable reach 5 % of the motion:
    then the estimate of the quadrature error is itself no better than a guess.

    Tolerance: 100 times the integrator's relative accuracy, of the change of θ_k. Three errors
    count as just tolerable: four times the estimated quadrature error (kinks of ∇ℒ included), the
    integrator's error of θ_k at both ends, and that of dθ/dt in between.
    """

    metric, metric_slope = jax.vmap(run.flow_entropy.mobility_and_slope)(run.layers)
    gradient, change = jax.vmap(lambda x, dx: jax.jvp(problem.gradient, (x,), (dx,)))(
        run.theta, run.velocity
    )
    slope = metric_slope * gradient**2 - metric * change  # since dξ/dt = −∇ℒ(θ)
    step = jnp.diff(run.times)[:, None]
    # Of each interval by itself: a difference of integrals from the start would cancel.
    trapezoid = step / 2 * (run.velocity[1:] + run.velocity[:-1])
    predicted = trapezoid - step**2 / 12 * jnp.diff(slope, axis=0)
    quadrature = _larger_end(jnp.abs(run.velocity)) * _hermite.relative_error(
        run.times, run.velocity, slope
    ) + _hermite.kink_error(run.times, slope)
    at_ends = _larger_end(_integrator_error(run, metric))
    between = _larger_end(_gradient_error(problem, run) * metric)
    noise = step * (_SAFETY * quadrature + between) + 2 * at_ends
    moved = jnp.diff(run.theta, axis=0)
    is_vague = noise >= LOOSEST * jnp.maximum(jnp.abs(moved), jnp.abs(predicted))
    noise = jnp.where(is_vague | _is_unresolved(step, run.velocity, slope), jnp.inf, noise)
    tolerance = 100 * relative_accuracy(run)
    return Claim(
        "clock",
        "Proposition 1",
        "θ moves by ∫ dθ/dt ds from each saved time to the next",
        measured=relative_error(moved - predicted, moved, noise, tolerance),
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason="the integrator's; the quadrature error counts as just tolerable",
        applies=jnp.any(noise != jnp.inf),
    )


def _is_unresolved(
    step: Float[Array, "steps 1"],
    value: Float[Array, "times dim"],
    slope: Float[Array, "times dim"],
) -> Bool[Array, "steps dim"]:
    """Whether a value changes by its own size or more over an interval, by its slope at an end."""
    size, change = jnp.abs(value), jnp.abs(slope)
    return (step * change[:-1] >= size[:-1]) | (step * change[1:] >= size[1:])


def _larger_end(values: Float[Array, "times dim"]) -> Float[Array, "times-1 dim"]:
    """The larger of the values at the two ends of each interval."""
    return jnp.maximum(values[1:], values[:-1])


def _integrator_error(
    run: Trajectory, metric: Float[Array, "times dim"]
) -> Float[Array, "times dim"]:
    """Expected error of each θ_k relative to the steps before it.

    A relative tolerance holds for the layers or the reduced coordinate, hence for θ_k; in dual
    coordinates it holds for ξ = ∇Q(θ), and an error of ξ_k is M_k times as large in θ_k. `atol`
    reaches θ_k through a layer, with a factor of at most √(L M_k), or through ξ_k.
    """
    accuracy, depth = relative_accuracy(run), run.depth
    size = jnp.maximum(jnp.max(jnp.abs(run.layers), axis=1), 1.0)
    absolute = run.atol * (jnp.sqrt(depth * metric) * size + metric)
    return accuracy * (jnp.abs(run.theta) + dual_size(run)) + absolute


def _gradient_error(problem: Problem, run: Trajectory) -> Float[Array, ""]:
    """Error of ∇ℒ(θ) that an error δ of θ makes."""
    return steepness(problem, run.theta[sample_points(run.times.size)]) * expected_error(run)
