"""Expected and observed global error of a flow.

An integrator controls the error of each step. Over a whole curve the error is expected to satisfy

    ‖θ(t) − exact‖ ≤ δ = 10 L rtol · max ‖θ‖ + atol

with a factor 10 for the accumulation over many steps, and the depth L for the sensitivity of θ to
the smallest layer w: θ = w Π √(w² + λ_j), so 1 ≤ d log θ / d log w ≤ L. Over 100 random networks
(24 at depth 16) the largest error is between 0.4 δ and 0.6 δ at depths 2, 3, 12 and 16.

In dual coordinates the tolerances hold for ξ = ∇Q(θ), and an error of ξ_k is M_k times as large in
θ_k: there ‖θ‖ gives way to ‖M ⊙ ξ‖ where that is larger, as it is near an end of the range of ξ.

All tolerances of `ddln.verification.certify` follow from δ. To test the estimate itself,
a sweep recomputes some of its runs at finer tolerances (`ddln.sweeps.plan.is_recomputed`) and
reports runs whose `discrepancy` exceeds 1. Where θ escapes from a long plateau, a small relative
error in the escape time, a multiple of w^{2−L}, is a large error in θ; the discrepancy therefore
allows 10 L rtol · t ‖dθ/dt‖ in addition to δ. Certificates need no such allowance: they check a
curve against itself, and a delayed curve is still a curve of the flow.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import largest
from ddln.networks.reparametrisation import Reduction
from ddln.solvers.status import Status
from ddln.solvers.trajectory import Trajectory

_ACCUMULATION = 10


def relative_accuracy(run: Trajectory) -> Float[Array, ""]:
    """Expected relative error of θ, 10 L rtol.

    `rtol` holds for the reduced coordinate v. At |v| > 3, as from tiny starts, the error of θ is
    |v|/3 times as large.
    """
    tolerance = _ACCUMULATION * run.depth * jnp.maximum(run.rtol, jnp.finfo(run.theta.dtype).eps)
    return tolerance * jnp.maximum(_coordinate_range(run) / 3, 1.0)


def expected_error(run: Trajectory) -> Float[Array, ""]:
    """δ, the expected error of ‖θ‖ anywhere along the curve; of a failed run, before it failed."""
    size = jnp.maximum(jnp.abs(run.theta), dual_size(run))
    size = _recorded(run, jnp.linalg.norm(size, axis=1))
    return relative_accuracy(run) * largest(size) + run.atol


def dual_size(run: Trajectory) -> Float[Array, "times dim"]:
    """M ⊙ |ξ|: the error of θ for a relative error 1 of the integrated ξ; 0 of other states."""
    if run.coordinates != "mirror":
        return jnp.zeros_like(run.theta)
    entropy = run.flow_entropy
    xi = jax.vmap(entropy.mirror_map)(run.theta)
    metric = jax.vmap(entropy.mobility)(run.layers)
    # At the end of a half-line M is 0 and ξ infinite.
    return jnp.where(metric > 0, metric * jnp.abs(xi), 0.0)


def discrepancy(run: Trajectory, refined: Float[Array, "times dim"]) -> Float[Array, ""]:
    """max ‖θ(t) − θ′(t)‖ / (δ + 10 L rtol · t ‖dθ/dt‖): above 1, a run is less exact than expected.

    Args:
        run: a flow.
        refined: θ′, the same curve at finer tolerances; NaN where it was not computed.

    Returns:
        The largest value while the run moves; NaN if θ′ is NaN throughout, and ∞ if the run
        completed and yet has a NaN.

    >>> problem, layers = ddln.least_squares([[1.0]], [2.0]), [[0.0], [1.0]]
    >>> run = ddln.gradient_flow(problem, layers, [0.0, 1.0, 2.0])
    >>> refined = ddln.gradient_flow(problem, layers, [0.0, 1.0, 2.0], rtol=3e-11, atol=3e-14)
    >>> bool(discrepancy(run, refined.theta) < 1), bool(discrepancy(run, refined.theta + 1e-3) > 1)
    (True, True)
    """
    difference = _recorded(run, jnp.linalg.norm(run.theta - refined, axis=1))
    elapsed = run.times - run.times[0]
    speed = _recorded(run, jnp.linalg.norm(run.velocity, axis=1))
    ratio = difference / (expected_error(run) + relative_accuracy(run) * elapsed * speed)
    is_compared = jnp.all(jnp.isfinite(refined), axis=1) & ~rests(run)
    worst = largest(jnp.where(is_compared, jnp.where(jnp.isnan(ratio), jnp.inf, ratio), 0.0))
    return jnp.where(jnp.any(is_compared), worst, jnp.nan)


def rests(run: Trajectory) -> Bool[Array, " times"]:
    """Where a run that reached its target gap is at rest."""
    return jnp.all(run.theta == run.theta[-1:], axis=1) & (
        run.status == run.code_of(Status.STOPPED)
    )


def _recorded(run: Trajectory, values: Float[Array, "times *rest"]) -> Float[Array, "times *rest"]:
    """The values, with 0 for NaN where a failed run recorded nothing."""
    return jnp.where(jnp.isnan(values) & ~run.ok, 0.0, values)


def _coordinate_range(run: Trajectory) -> Float[Array, ""]:
    """The largest |v| of the reduced coordinates that were integrated; 0 if others were, or θ."""
    if run.coordinates != "reduced" or run.depth == 1:
        return jnp.asarray(0.0, run.theta.dtype)
    reduction = Reduction(run.layers[0])
    smallest = jnp.min(jnp.abs(run.layers), axis=1)
    if run.decay is not None:  # v is that of the layers without decay
        smallest = smallest * jnp.exp(run.decay.dose)[:, None]
    smallest = largest(_recorded(run, smallest), axis=0)
    reach = jnp.where(reduction.is_open, reduction.coordinate(smallest), 0.0)
    return largest(jnp.maximum(reach, jnp.abs(reduction.start)))
