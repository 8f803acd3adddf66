"""Expected and observed global error of a flow.

An integrator holds the error of each step to its tolerances, and says nothing of a whole curve. Of
that

    ‖θ(t) − exact‖ ≤ δ = 10 L rtol · max ‖θ‖ + atol          is expected,

10 standing for its many steps, and the depth L for how θ follows from the smallest layer w:
θ = w Π √(w² + λ_j), so that 1 ≤ d log θ / d log w ≤ L. The largest error of 100 random networks
(24 at depth 16) is between 0.4 δ and 0.6 δ at depths 2, 3, 12 and 16.

All tolerances of `ddln.verification.flow_certificates` follow from δ; so some lanes of a sweep are
solved again at finer tolerances (`ddln.sweeps.plan.is_recomputed`), and those that are farther
off are told of. Where θ escapes from a long plateau, a relative error in the time of the escape is
much of one in θ: for this, 10 L rtol · t ‖dθ/dt‖ is granted beside δ, since that time is a multiple
of w^{2−L}. Certificates need no such thing: they hold a curve against itself, and one that is late
is a curve of the flow.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln.networks.reparametrisation import Reduction
from ddln.solvers.gradient_flow import Trajectory
from ddln.solvers.status import Status

_MANY = 10


def relative_accuracy(run: Trajectory) -> Float[Array, ""]:
    """Error of θ to be expected of the integrator, relative.

    A relative tolerance on a position far from 0, that of a tiny start, is as much more on θ.
    """
    depth = run.layers.shape[-2]
    tolerance = _MANY * depth * jnp.maximum(run.rtol, jnp.finfo(run.theta.dtype).eps)
    return tolerance * jnp.maximum(_farthest(run) / 3, 1.0)


def expected_error(run: Trajectory) -> Float[Array, ""]:
    """δ, the error of ‖θ‖ to be expected of the integrator anywhere along the curve."""
    return relative_accuracy(run) * jnp.nanmax(jnp.linalg.norm(run.theta, axis=1)) + run.atol


def discrepancy(run: Trajectory, again: Float[Array, "times dim"]) -> Float[Array, ""]:
    """max ‖θ(t) − θ′(t)‖ / (δ + 10 L rtol · t ‖dθ/dt‖): above 1, a run is less exact than expected.

    Args:
        run: a flow.
        again: θ′, the same curve from an integrator with finer tolerances; NaN where there is none.

    Returns:
        The largest value before the run came to rest, if it did; NaN where there is none.

    >>> problem, layers = ddln.least_squares([[1.0]], [2.0]), [[0.0], [1.0]]
    >>> run = ddln.gradient_flow(problem, layers, [0.0, 1.0, 2.0])
    >>> again = ddln.gradient_flow(problem, layers, [0.0, 1.0, 2.0], rtol=3e-11, atol=3e-14)
    >>> bool(discrepancy(run, again.theta) < 1), bool(discrepancy(run, again.theta + 1e-3) > 1)
    (True, True)
    """
    apart = jnp.linalg.norm(run.theta - again, axis=1)
    elapsed = run.times - run.times[0]
    late = relative_accuracy(run) * elapsed * jnp.linalg.norm(run.velocity, axis=1)
    told = jnp.isfinite(apart) & ~rests(run)
    worst = jnp.max(jnp.where(told, apart / (expected_error(run) + late), 0.0))
    return jnp.where(jnp.any(told), worst, jnp.nan)


def rests(run: Trajectory) -> Bool[Array, " times"]:
    """Where a run that was stopped at its target is at rest."""
    return jnp.all(run.theta == run.theta[-1:], axis=1) & (
        run.status == run.code_of(Status.STOPPED)
    )


def _farthest(run: Trajectory) -> Float[Array, ""]:
    """The largest position that was integrated."""
    if run.coordinates != "reduced":
        return jnp.asarray(0.0, run.theta.dtype)
    reduction = Reduction(run.layers[0])
    smallest = jnp.nanmax(jnp.min(jnp.abs(run.layers), axis=1), axis=0)
    reach = jnp.where(reduction.is_open, reduction.coordinate(smallest), 0.0)
    return jnp.max(jnp.maximum(reach, jnp.abs(reduction.start)))
