"""Proposition 1 of arXiv 2412.16765 on a computed flow: conservation, signs, decay of the loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import largest
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.problems.base import Problem
from ddln.solvers.trajectory import AppliedDecay, Trajectory
from ddln.verification._shared_tolerances import (
    CONSERVED,
    IDENTITY,
    LOOSEST,
    flow_tolerance,
    gap_rounding,
    gradient_noise,
    relative_error,
    root_of_gap,
    sample_points,
    steepness,
    summation_error,
)
from ddln.verification.certificates import Claim
from ddln.verification.error_estimate import expected_error, relative_accuracy

_IMBALANCE = "Proposition 1", "(uⁱ)² − (uʲ)² keeps its initial value"
_DECAYED_IMBALANCE = (
    "from Proposition 1",
    "e^{2Ω} ((uⁱ)² − (uʲ)²) keeps its initial value, Ω = ∫ω the dose of weight decay",
)


def conservation(run: Trajectory) -> Claim:
    """Claim that (uⁱ)² − (uʲ)² keeps its initial value, relative to the largest layer squared.

    Under weight decay with dose Ω it must be e^{−2Ω} times that.

    Tolerance: 4096 roundings, since reduced coordinates conserve it by construction; if the layers
    were integrated, ten times the integrator's relative accuracy.
    """
    imbalance, expected, size = _imbalances(run)
    error = largest(jnp.abs(imbalance - expected), (0, 1))
    tolerance, reason = flow_tolerance(run, CONSERVED)
    return Claim(
        "conservation",
        *(_IMBALANCE if run.decay is None else _DECAYED_IMBALANCE),
        measured=largest((jnp.sqrt(error) / size) ** 2),  # size² can underflow
        predicted=0.0,
        tolerance=tolerance,
        reason=reason,
    )


def signs(run: Trajectory) -> Claim:
    """Claim that every layer but the smallest keeps its sign and satisfies |u^j| ≥ √λ_j.

    Under weight decay λ_j is e^{−2Ω} times its initial value.

    Tolerance: that of `conservation`, relative to the largest layer.
    """
    _, expected, size = _imbalances(run)
    is_other = ~_is_smallest(run.layers[0])  # none at depth 1
    deficit = largest(jnp.sqrt(expected) - jnp.sign(run.layers[:1]) * run.layers, axis=0)
    tolerance, reason = flow_tolerance(run, CONSERVED)
    return Claim(
        "sign",
        "Proposition 1",
        "all layers but the smallest keep their sign and stay outside √λ",
        measured=largest(jnp.where(is_other, deficit, -jnp.inf) / size[None]),
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason=reason,
        applies=len(run.layers[0]) > 1,
    )


def gradient_curve(entropy: SeparableEntropy, run: Trajectory) -> Claim:
    """Claim that the parameters w of θ = G(w) stay on the curve dw/dξ = ∇G(w) through their start.

    It takes the place of the conserved imbalance. w at each θ is that of the tabulated curve.

    Tolerance: 4096 roundings of the largest |w|; if w was integrated, ten times the integrator's
    relative accuracy. Its error in θ, which is one of 1/√M as much in w, counts as just tolerable.

    Args:
        entropy: of the parametrisation.
        run: a few of its points.
    """
    inside = jax.vmap(entropy.has_hessian)(run.theta)
    xi = jax.vmap(entropy.mirror_map)(jnp.where(inside, run.theta, run.theta[:1]))
    error = run.layers - jax.vmap(entropy.parameters)(xi)
    error = jnp.where(inside[:, None], error, 0.0)
    size = jnp.broadcast_to(largest(jnp.abs(run.layers)), error.shape)
    noise = expected_error(run) / jnp.sqrt(jax.vmap(entropy.mobility)(run.layers))[:, None]
    tolerance, reason = flow_tolerance(run, CONSERVED)
    return Claim(
        "gradient curve",
        "from Proposition 1",
        "w stays on the curve dw/dξ = ∇G(w) through w(0)",
        measured=relative_error(error, size, noise, tolerance),
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason=reason,
        applies=jnp.any(inside),
    )


def _is_smallest(layers: Float[Array, "depth dim"]) -> Bool[Array, "depth dim"]:
    """Which layer is the smallest at each coordinate; of a tie, the first."""
    first = jnp.argmin(jnp.abs(layers), axis=0, keepdims=True)
    return jnp.arange(len(layers))[:, None] == first


def _imbalances(
    run: Trajectory,
) -> tuple[Float[Array, "times depth dim"], Float[Array, "*times depth dim"], Float[Array, " dim"]]:
    """(u^j)² − (u^m)², m the smallest layer at the start; its expected value from the start; and
    each coordinate's largest |u^j|."""
    magnitude = jnp.abs(run.layers)
    # A selection runs at memory speed; gathering is far slower.
    is_smallest = _is_smallest(run.layers[0])[None]
    of_smallest = jnp.sum(jnp.where(is_smallest, magnitude, 0.0), axis=1, keepdims=True)
    imbalance = (magnitude - of_smallest) * (magnitude + of_smallest)
    expected = imbalance[:1]
    if run.decay is not None:
        expected = jnp.exp(-2 * run.decay.dose)[:, None, None] * expected
    size = largest(magnitude, (0, 1))
    return imbalance, expected, jnp.maximum(size, jnp.finfo(size.dtype).tiny)


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


def monotone_objective(problem: Problem, run: Trajectory, decay: AppliedDecay) -> Claim:
    """Claim that ℒ + (ω/2) Σ_j ‖u^j‖² never rises while ω does not, relative to its first value.

    For constant ω the flow is the gradient flow of this objective. Tolerance: an error δ of the
    integrator at either end of an interval, in ℒ and in the layers.
    """
    omega = decay.rate
    penalty = omega * jnp.sum(run.layers**2, axis=(1, 2)) / 2
    objective = run.loss + penalty
    falls = jnp.diff(omega) <= 0
    delta, beta = expected_error(run), steepness(problem, run.theta[sample_points(run.times.size)])
    noise = jnp.sqrt(2 * beta * largest(root_of_gap(run.gap)) ** 2) * delta + beta * delta**2
    noise = noise + 2 * relative_accuracy(run) * largest(penalty) + gap_rounding(problem, run.loss)
    size = jnp.where(objective[0] != 0, jnp.abs(objective[0]), 1.0)
    tolerance = 2 * (noise + summation_error(largest(jnp.abs(objective)))) / size
    return Claim(
        "monotone objective",
        "from Proposition 1",
        "ℒ + ½ω Σ_j ‖u^j‖² never rises while the weight decay ω does not",
        measured=largest(jnp.where(falls, jnp.diff(objective), 0.0)) / size,
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason="the integrator's accuracy in θ and the layers",
        applies=jnp.any(falls) & ~(tolerance > LOOSEST),
    )


def dissipation(problem: Problem, entropy: SeparableEntropy, run: Trajectory) -> Claim:
    """Claim that dℒ/dt = ⟨∇ℒ(θ), dθ/dt⟩ equals −Σ_j ‖∂ℒ/∂u^j‖², the latter by autodiff.

    Under weight decay ω it is −Σ_j ⟨∂ℒ/∂u^j, ∂ℒ/∂u^j + ω u^j⟩.

    Tolerance: 450 000 roundings however the flow was integrated, since both sides are evaluated at
    the same point. The rounding error of ∇ℒ counts as just tolerable.

    Args:
        problem: the loss.
        entropy: Q of the first layers, or of the parametrisation.
        run: a few of its points.
    """
    theta, velocity = run.theta, run.velocity
    omega = None if run.decay is None else run.decay.rate
    tolerance = IDENTITY * jnp.finfo(theta.dtype).eps
    statement = "dℒ/dt = −Σ_j ‖∂ℒ/∂u^j‖², by autodiff on the layers"
    if omega is not None:
        statement = "dℒ/dt = −Σ_j ⟨∂ℒ/∂u^j, ∂ℒ/∂u^j + ω u^j⟩, by autodiff on the layers"

    def both_sides(
        layers: Float[Array, "depth dim"],
        theta: Float[Array, " dim"],
        velocity: Float[Array, " dim"],
        omega: Float[Array, ""] | None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        gradients = jax.grad(lambda layers: problem.loss(entropy.theta(layers)))(layers)
        by_loss, by_decay = jnp.sum(gradients**2), jnp.zeros((), layers.dtype)
        if omega is not None:
            by_decay = omega * jnp.vdot(gradients, layers)
        size = by_loss + jnp.abs(by_decay)
        return jnp.vdot(problem.gradient(theta), velocity), -by_loss - by_decay, size

    measured, predicted, size = jax.vmap(both_sides)(run.layers, theta, velocity, omega)
    rounding = gradient_noise(problem, theta)
    speed = jnp.abs(velocity) + rounding * jax.vmap(entropy.mobility)(run.layers)
    noise = rounding * jnp.sum(speed, axis=1)
    return Claim(
        "dissipation",
        "Proposition 1",
        statement,
        measured=relative_error(measured - predicted, size, noise, tolerance),
        predicted=0.0,
        tolerance=tolerance,
        reason="rounding",
    )
