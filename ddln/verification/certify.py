"""Certify a computed run: `certify` checks a flow or a descent against the theorems.

Each claim has its own function, which states the paper's result, the tolerance and its reason:
`consistency` (records), `_conservation_laws` (Proposition 1), `_mirror_flow` (Theorem 1),
`_convergence_bounds` (Theorem 2, Corollary 1), `descent_certificates` (discrete runs).
"""

import dataclasses
from collections.abc import Callable
from typing import overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ddln import theory
from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, as_layers, largest
from ddln.problems.base import Problem
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.trajectory import Trajectory
from ddln.verification._conservation_laws import (
    conservation,
    dissipation,
    gradient_curve,
    monotone_loss,
    monotone_objective,
    signs,
)
from ddln.verification._convergence_bounds import (
    asymptotic_rate,
    divergence_bound,
    exponential_bound,
    posterior_bound,
)
from ddln.verification._mirror_flow import dual_path, mirror_identities
from ddln.verification._shared_tolerances import (
    IDENTITY,
    flow_tolerance,
    gap_floor,
    sample_points,
    steepness,
    tie_condition,
)
from ddln.verification.certificates import Certificates, Claim, FlowCertificates
from ddln.verification.consistency import clock, consistency
from ddln.verification.descent_certificates import step_claims
from ddln.verification.error_estimate import rests


@overload
def certify(
    problem: Problem, run: Trajectory, *, start: ArrayLike | None = None
) -> FlowCertificates: ...
@overload
def certify(problem: Problem, run: Descent, *, start: ArrayLike | None = None) -> Certificates: ...
def certify(problem: Problem, run: object, *, start: ArrayLike | None = None) -> Certificates:
    """Check a flow against Proposition 1, Theorem 1, Theorem 2 and Corollary 1, or a discrete run
    against its rule, its exact identities and the descent lemma.

    Under weight decay Proposition 1 holds of the layers e^Ω u and Theorem 1 of the entropy at each
    time (docs/theory.md), and the claims say so; those of Theorem 2 do not apply. Parameters of a
    `Parametrisation` must stay on their gradient curve. Either way the records of the run at each
    point are checked against its layers there. Works under `jax.jit` and `jax.vmap`. If the run
    failed, its first claim "completed" fails and no other claim applies.

    Args:
        problem: the loss of the run.
        run: from `gradient_flow` or `mirror_flow`, with at least 5 saved times; or from `descend`.
        start: the layers from which the run must have started, shape (depth, dim); `None` for any.

    Returns:
        `Certificates`: prints as a table; `.ok`; `.claims`; `certificates["name"]`.

    Raises:
        ValueError: a flow with fewer than 5 saved times, or another kind of run.

    Source: arXiv 2412.16765; of discrete runs Even et al. 2023
    (`ddln.verification.descent_certificates`); tolerances as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0, 0.5, 2.0]], [2.0])
    >>> layers = ddln.init.zero_first_layer(jax.random.key(0), depth=3, dim=3)
    >>> run = ddln.gradient_flow(problem, layers, jnp.linspace(0.0, 4.0, 201))
    >>> bool(ddln.certify(problem, run).ok)
    True
    """
    drop_programs()
    start = None if start is None else as_layers(start, problem.dim)
    if isinstance(run, Descent):
        return Certificates(step_claims(problem, run, start))
    if not isinstance(run, Trajectory):
        raise ValueError(f"`run` must be a flow's or a descent's, got {type(run).__name__}.")
    if run.times.size < 5:
        raise ValueError(f"`run` must have at least 5 saved times, got {run.times.size}.")
    return _certify(problem, run, start)


@eqx.filter_jit
def _certify(
    problem: Problem, run: Trajectory, start: Float[Array, "depth dim"] | None
) -> FlowCertificates:
    moving = _until_it_stopped(run)
    points = sample_points(run.times.size)
    few = _map_points(lambda saved: saved[points], moving)
    entropy = run.flow_entropy
    predictions = theory.predict(problem, moving)
    floor = gap_floor(problem, moving)
    exactness, reason = flow_tolerance(moving, IDENTITY)
    tolerance = jnp.asarray(exactness * largest(tie_condition(moving)))
    invariants = (conservation(moving), signs(moving))
    if run.entropy is not None:
        invariants = (gradient_curve(run.entropy, few),)
    identities = (
        consistency(problem, run, steepness(problem, run.theta[points]), start),
        *invariants,
        monotone_loss(moving, floor)
        if moving.decay is None
        else monotone_objective(problem, moving, moving.decay),
        dissipation(problem, entropy, few),
        *mirror_identities(problem, entropy, few, tolerance=tolerance, reason=reason),
        dual_path(problem, entropy, moving),
    )
    without_decay = (
        clock(problem, moving),
        divergence_bound(problem, moving, predictions, floor),
        exponential_bound(problem, moving, predictions, floor),
        posterior_bound(problem, moving, predictions, floor),
        asymptotic_rate(problem, moving, floor),
    )
    if run.decay is not None:  # which need not lower ℒ, the subject of Theorem 2
        without_decay = [_inapplicable(claim) for claim in without_decay]
    claims = (*identities, *without_decay)
    if_completed = [dataclasses.replace(claim, applies=run.ok & claim.applies) for claim in claims]
    return FlowCertificates((_completed(run), *if_completed), predictions)


def _map_points(
    change: Callable[[Shaped[Array, "points *rest"]], Shaped[Array, "some *rest"]], run: Trajectory
) -> Trajectory:
    """The run with a function applied to every array that has an axis of points."""
    saved = dataclasses.replace(run, entropy=None)
    changed = jax.tree.map(lambda array: change(array) if array.ndim else array, saved)
    return dataclasses.replace(changed, entropy=run.entropy)


def _until_it_stopped(run: Trajectory) -> Trajectory:
    """The run with every point at rest replaced by its last moving point."""
    points = jnp.arange(run.times.size)
    last_moving = jnp.max(jnp.where(rests(run), 0, points))

    def hold(saved: Shaped[Array, "points *rest"]) -> Shaped[Array, "points *rest"]:
        is_over = (points > last_moving).reshape(-1, *[1] * (saved.ndim - 1))
        return jnp.where(is_over, saved[last_moving], saved)

    return _map_points(hold, run)


def _inapplicable(claim: Claim) -> Claim:
    """The claim without its numbers."""
    return dataclasses.replace(claim, measured=jnp.nan, predicted=jnp.nan, applies=False)


def _completed(run: Trajectory) -> Claim:
    """Claim that the run reached its last time: the flow time that it lacks is 0."""
    points = jnp.arange(run.times.size)
    reached = run.times[jnp.max(jnp.where(jnp.isfinite(run.gap), points, 0))]
    return Claim(
        "completed",
        "integrator",
        "the run reached its last time",
        measured=run.times[-1] - reached,
        predicted=0.0,
        tolerance=0.0,
        applies=True,
    )
