"""Proposition 1 of arXiv 2412.16765 on a computed flow: conservation, signs, decay of the loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddln._internal.validation import largest
from ddln.networks.layers import effective_parameter, mobility
from ddln.problems.base import Problem
from ddln.solvers.trajectory import Trajectory
from ddln.verification._tolerances import (
    CONSERVED,
    IDENTITY,
    LOOSEST,
    flow_tolerance,
    gradient_noise,
    relative_error,
    root_of_gap,
)
from ddln.verification.claims import Claim


def conservation(run: Trajectory) -> Claim:
    """Claim that (uⁱ)² − (uʲ)² keeps its initial value, relative to the largest layer squared.

    Tolerance: 4096 roundings, since reduced coordinates conserve it by construction; if the layers
    were integrated, ten times the integrator's relative accuracy.
    """
    imbalance, size = _imbalances(run)
    tolerance, reason = flow_tolerance(run, CONSERVED)
    return Claim(
        "conservation",
        "Proposition 1",
        "(uⁱ)² − (uʲ)² keeps its initial value",
        measured=largest(jnp.abs((imbalance - imbalance[:1]) / size / size)),
        predicted=0.0,
        tolerance=tolerance,
        reason=reason,
    )


def signs(run: Trajectory) -> Claim:
    """Claim that every layer but the smallest keeps its sign and satisfies |u^j| ≥ √λ_j.

    Tolerance: that of `conservation`, relative to the largest layer.
    """
    imbalance, size = _imbalances(run)
    depth = run.layers.shape[1]
    is_other = jnp.arange(depth)[None, :, None] != _smallest_layer(run.layers[0])
    deficit = jnp.sqrt(imbalance[:1]) - jnp.sign(run.layers[:1]) * run.layers
    tolerance, reason = flow_tolerance(run, CONSERVED)
    return Claim(
        "sign",
        "Proposition 1",
        "all layers but the smallest keep their sign and stay outside √λ",
        measured=largest(jnp.where(is_other, deficit, -jnp.inf) / size),
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason=reason,
    )


def _smallest_layer(layers: Float[Array, "depth dim"]) -> Int[Array, "1 1 dim"]:
    """Index of each coordinate's smallest layer, with axes for the times and the layers."""
    return jnp.argmin(jnp.abs(layers), axis=0)[None, None]


def _imbalances(
    run: Trajectory,
) -> tuple[Float[Array, "times depth dim"], Float[Array, "1 1 dim"]]:
    """(u^j)² − (u^m)², m the smallest layer at the start, and each coordinate's largest |u^j|."""
    magnitude = jnp.abs(run.layers)
    of_smallest = jnp.take_along_axis(magnitude, _smallest_layer(run.layers[0]), axis=1)
    size = largest(magnitude, (0, 1), keepdims=True)
    return (
        (magnitude - of_smallest) * (magnitude + of_smallest),
        jnp.maximum(size, jnp.finfo(size.dtype).tiny),
    )


def monotone_loss(run: Trajectory, floor: Float[Array, ""]) -> Claim:
    """Claim that the loss never rises, by the square root of the gap relative to its first value.

    Tolerance: 2 √floor, for an error δ of the integrator at either end of an interval.
    """
    root = root_of_gap(run.gap)
    start = jnp.where(root[0] > 0, root[0], 1.0)
    tolerance = 2 * jnp.sqrt(floor) / start
    return Claim(
        "monotone loss",
        "Proposition 1",
        "the loss never rises",
        measured=largest(jnp.diff(root)) / start,
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason="the integrator's accuracy in θ",
        applies=(root[0] > 0) & ~(tolerance > LOOSEST),
    )


def dissipation(
    problem: Problem,
    layers: Float[Array, "points depth dim"],
    theta: Float[Array, "points dim"],
    velocity: Float[Array, "points dim"],
) -> Claim:
    """Claim that dℒ/dt = ⟨∇ℒ(θ), dθ/dt⟩ equals −Σ_j ‖∂ℒ/∂u^j‖², the latter by autodiff.

    Tolerance: 450 000 roundings however the flow was integrated, since both sides are evaluated at
    the same point. The rounding error of ∇ℒ counts as just tolerable.
    """
    tolerance = IDENTITY * jnp.finfo(theta.dtype).eps

    def both_sides(
        layers: Float[Array, "depth dim"],
        theta: Float[Array, " dim"],
        velocity: Float[Array, " dim"],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        gradients = jax.grad(lambda layers: problem.loss(effective_parameter(layers)))(layers)
        return jnp.vdot(problem.gradient(theta), velocity), -jnp.sum(gradients**2)

    measured, predicted = jax.vmap(both_sides)(layers, theta, velocity)
    rounding = gradient_noise(problem, theta)
    speed = jnp.abs(velocity) + rounding * jax.vmap(mobility)(layers)
    noise = rounding * jnp.sum(speed, axis=1)
    return Claim(
        "dissipation",
        "Proposition 1",
        "dℒ/dt = −Σ_j ‖∂ℒ/∂u^j‖², by autodiff on the layers",
        measured=relative_error(measured - predicted, predicted, noise, tolerance),
        predicted=0.0,
        tolerance=tolerance,
        reason="rounding",
    )
