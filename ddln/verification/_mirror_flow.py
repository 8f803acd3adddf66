"""Theorem 1 of arXiv 2412.16765 on a computed flow: its mirror map, its Hessian, its dual path."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._internal.random import key_from_seed
from ddln._internal.validation import Number, largest
from ddln.networks.entropy import Entropy
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.problems.base import Problem
from ddln.solvers.cost_model import LARGEST_DENSE_DIM, MIRROR_MAP_CHECKS
from ddln.solvers.trajectory import AppliedDecay, Trajectory
from ddln.theory import _hermite
from ddln.verification._shared_tolerances import (
    LOOSEST,
    gradient_noise,
    relative_error,
    sample_points,
)
from ddln.verification.certificates import Claim
from ddln.verification.error_estimate import relative_accuracy

_MIRROR_FLOW = (
    "Theorem 1",
    "dθ/dt = −∇²Q(θ)⁻¹ ∇ℒ(θ), ∇²Q by jacfwd(grad(Q)) and dθ/dt by jvp along the run",
)
_DECAYED_MIRROR_FLOW = (
    "from Theorem 1",
    "dθ/dt = −∇²Q(θ)⁻¹ ∇ℒ(θ) − Lωθ, Q that of the layers e^{−Ω} u(0), ω the weight decay; ∇²Q by "
    "jacfwd(grad(Q)) and dθ/dt by jvp along the run",
)
_DUAL_PATH = "Theorem 1", "∇Q(θ(t)) = −∫₀ᵗ ∇ℒ(θ(s)) ds"
_DECAYED_DUAL_PATH = "from Theorem 1", "∇Q(e^{LΩ} θ(t)) = −∫₀ᵗ e^{−(L−2)Ω} ∇ℒ(θ(s)) ds, Ω = ∫ω"


def _per_point(
    function: Callable[[SeparableEntropy, Float[Array, " dim"]], Float[Array, " dim"]],
    entropy: SeparableEntropy,
    theta: Float[Array, "points dim"],
    decay: AppliedDecay | None,
) -> Float[Array, "points dim"]:
    """A function of the entropy and θ at each point; under decay, of the entropy at that time."""
    if decay is None or not isinstance(entropy, Entropy):
        return jax.vmap(lambda theta: function(entropy, theta))(theta)
    return jax.vmap(lambda theta, dose: function(entropy.decayed(dose), theta))(theta, decay.dose)


def mirror_identities(
    problem: Problem,
    entropy: SeparableEntropy,
    run: Trajectory,
    *,
    tolerance: Float[Array, ""],
    reason: str,
) -> tuple[Claim, Claim]:
    """Claims that dθ/dt = −∇²Q(θ)⁻¹ ∇ℒ(θ) and that ∇²Q(θ) · M = 1, derivatives by autodiff.

    Frozen coordinates, where Q is not defined, must have dθ/dt = 0. Under weight decay Q is that of
    the layers e^{−Ω} u(0) at each time, and dθ/dt has the further term −L ω θ.

    Args:
        problem: the loss.
        entropy: Q of the first layers, or of the parametrisation.
        run: a few of its points.
        tolerance: rounding, or the integrator's accuracy times the condition number of ∇²Q; the
            rounding error of ∇ℒ counts as just tolerable.
        reason: why this tolerance.
    """
    theta, velocity, decay = run.theta, run.velocity, run.decay
    curvature = _per_point(
        lambda q, theta: diagonal(jax.grad(q.value), theta), entropy, theta, decay
    )
    shrinking = jnp.zeros_like(theta)
    if decay is not None:
        shrinking = run.depth * decay.rate[:, None] * theta
    metric = jax.vmap(partial(_mobility_by_autodiff, entropy.theta))(run.layers)
    # Autodiff squares 1/M on its way to ∇²Q: below that nothing is measured.
    has_hessian = jax.vmap(entropy.has_hessian)(theta)
    mobile = has_hessian & ~(metric <= jnp.sqrt(jnp.finfo(theta.dtype).tiny))
    frozen = ~entropy.is_mobile[None]
    predicted = -jax.vmap(problem.gradient)(theta) / curvature
    error = velocity + shrinking - predicted
    error = jnp.where(mobile, error, jnp.where(frozen, velocity, 0.0))
    size = jnp.abs(predicted) + jnp.abs(shrinking)  # the two can cancel
    noise = gradient_noise(problem, theta) * metric
    applies = jnp.any(mobile) & ~(tolerance >= LOOSEST)
    return (
        Claim(
            "mirror identity",
            *(_MIRROR_FLOW if decay is None else _DECAYED_MIRROR_FLOW),
            measured=relative_error(error, jnp.where(mobile, size, 0.0), noise, tolerance),
            predicted=0.0,
            tolerance=tolerance,
            reason=reason,
            applies=applies,
        ),
        Claim(
            "entropy Hessian",
            "Theorem 1",
            "∇²Q(θ) · M = 1, ∇²Q by jacfwd(grad(Q)) and M by jacfwd(θ(u¹ … u^L))",
            measured=largest(jnp.where(mobile, jnp.abs(curvature * metric - 1), 0.0)),
            predicted=0.0,
            tolerance=tolerance,
            reason=reason,
            applies=applies,
        ),
    )


def diagonal(
    function: Callable[[Float[Array, " dim"]], Float[Array, " dim"]], at: Float[Array, " dim"]
) -> Float[Array, " dim"]:
    """The diagonal of a Jacobian that is diagonal.

    A large one is multiplied by random signs: entries off the diagonal would change the product.
    """
    if at.size <= LARGEST_DENSE_DIM:
        return jnp.diagonal(jax.jacfwd(function)(at))
    signs = jax.random.rademacher(key_from_seed(0), at.shape, at.dtype)
    return signs * jax.jvp(function, (at,), (signs,))[1]


def _mobility_by_autodiff(
    theta: Callable[[Float[Array, "depth dim"]], Float[Array, " dim"]],
    layers: Float[Array, "depth dim"],
) -> Float[Array, " dim"]:
    """M = Σ_j (∂θ/∂u^j)²."""

    def slope(j: Number) -> Float[Array, " dim"]:
        return diagonal(lambda u: theta(layers.at[j].set(u)), layers[j])

    return jnp.sum(jax.vmap(slope)(jnp.arange(len(layers))) ** 2, axis=0)


def dual_path(problem: Problem, entropy: SeparableEntropy, run: Trajectory) -> Claim:
    """Claim that ∇Q(θ(t)) = −∫₀ᵗ ∇ℒ(θ(s)) ds, relative to the largest |∇Q(θ)|.

    Under weight decay it is ∇Q(e^{LΩ} θ(t)) = −∫₀ᵗ e^{−(L−2)Ω} ∇ℒ(θ(s)) ds, where the left-hand
    side is e^{−(L−2)Ω} times the mirror map of the entropy at the time t.

    Tolerance: the estimated error of the quadrature over the saved times, and the integrator's:
    an error in θ is one of ∇²Q = 1/M times as much in ∇Q(θ).
    """
    value, slope = jax.vmap(lambda x, dx: jax.jvp(problem.gradient, (x,), (dx,)))(
        run.theta, run.velocity
    )
    few, decay = sample_points(run.times.size, MIRROR_MAP_CHECKS), run.decay
    theta, metric = run.theta[few], jax.vmap(entropy.mobility)(run.layers[few])
    # Under decay θ can underflow, and ξ with it: an error of θ is one of 1/M times as much in ξ.
    smallest = jnp.finfo(theta.dtype).tiny / jnp.finfo(theta.dtype).eps
    mobile = jax.vmap(entropy.has_hessian)(theta) & ~(metric < smallest)
    at_few = jax.tree.map(lambda along: along[few], decay)
    dual = _per_point(lambda q, theta: q.mirror_map(theta), entropy, theta, at_few)
    if decay is not None:
        power = run.depth - 2
        weight = jnp.exp(-power * decay.dose)[:, None]
        slope = weight * (slope - power * decay.rate[:, None] * value)
        value, dual, metric = weight * value, weight[few] * dual, metric / weight[few]
    integral = _hermite.integrate(run.times, value, slope, few)
    highest = jnp.maximum(jnp.abs(value[1:]), jnp.abs(value[:-1]))
    share = highest * _hermite.relative_error(run.times, value, slope)
    if decay is not None:  # the slope jumps with ω
        share = share + _hermite.kink_error(run.times, slope)
    quadrature = jnp.sum(jnp.diff(run.times)[:, None] * share, axis=0)

    size = largest(jnp.where(mobile, jnp.abs(dual), 0.0))
    safe_size = jnp.where(size > 0, size, 1.0)
    stiffness = largest(jnp.where(mobile, jnp.abs(theta) / metric, 0.0))
    accuracy = relative_accuracy(run)
    noise = largest(jnp.where(mobile[0], quadrature, 0.0)) + accuracy * stiffness
    tolerance = noise / safe_size + 100 * accuracy
    return Claim(
        "dual path",
        *(_DUAL_PATH if decay is None else _DECAYED_DUAL_PATH),
        measured=largest(jnp.where(mobile, jnp.abs(dual + integral), 0.0)) / safe_size,
        predicted=0.0,
        tolerance=tolerance,
        reason="the quadrature over the saved times, and the integrator's",
        applies=(size > 0) & ~(tolerance > LOOSEST),
    )
