"""A run against the theorems: each claim with what was measured, what was predicted, and how close
the two must be and why.

Bounds on the gap are compared through its square root. That is a seminorm of θ − θ*, so an error δ
of the integrator in θ moves it by at most √(β/2) δ whatever the gap: the *floor* under which a run
says nothing.
"""

import dataclasses
from typing import overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddln import theory
from ddln._internal.compiled_programs import drop_programs
from ddln._internal.random import key_from_seed
from ddln._internal.validation import ArrayLike, Number, as_layers, largest, smallest
from ddln.networks.entropy import Entropy
from ddln.networks.layers import OPEN, coordinate_kinds, effective_parameter, mobility
from ddln.problems.base import Problem
from ddln.solvers.cost_model import LARGEST_DENSE_DIM, MIRROR_MAP_CHECKS
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.gradient_flow import Trajectory
from ddln.theory import _hermite
from ddln.verification.claims import Certificates, Claim, FlowCertificates
from ddln.verification.consistency import (
    consistency,
    gap_rounding,
    relative,
    root_of_gap,
    steepness,
    theta_noise,
)
from ddln.verification.descent_certificates import step_claims
from ddln.verification.error_estimate import expected_error, relative_accuracy, rests

_SAMPLES = 9
"""Saved times at which claims that need second derivatives are checked."""
_IDENTITY = 450_000
"""Roundings that are granted to an identity at a point: 1e-10 in float64."""
_LOOSEST = 0.05
"""A comparison whose own tolerance is larger than this (relative) is not made."""
_CLOCK = 1e-3
"""By how much a clock may be off: an estimate of the quadrature's error sees no kink of ∇ℒ (Huber's
loss) inside an interval."""
_SAFETY = 4
"""By how much the estimated error of a few intervals' quadrature can be too small."""


@overload
def certify(
    problem: Problem, run: Trajectory, *, start: ArrayLike | None = None
) -> FlowCertificates: ...
@overload
def certify(problem: Problem, run: Descent, *, start: ArrayLike | None = None) -> Certificates: ...
def certify(problem: Problem, run: object, *, start: ArrayLike | None = None) -> Certificates:
    """Check a flow against Proposition 1, Theorem 1, Theorem 2 and Corollary 1, a discrete run
    against its rule, what is exact of it and the descent lemma; and what either records at each
    point against its layers there.

    Works under `jax.jit` and `jax.vmap`. Of a run that failed the first claim, that it was
    completed, does not hold, and no other applies.

    Args:
        problem: the loss of the run.
        run: from `gradient_flow` or `mirror_flow`, with at least 5 saved times; or from `descend`.
        start: the layers that the run must have started from, shape (depth, dim); `None` for any.

    Returns:
        `Certificates`: prints as a table; `.ok`; `.claims`; `certificates["name"]`.

    Raises:
        ValueError: a flow with fewer than 5 saved times, or another kind of run.

    Source: arXiv 2412.16765; of discrete runs Even et al. 2023
    (`ddln.verification.descent_certificates`); tolerances as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [2.0])
    >>> layers = jnp.array([[0.0, 0.0], [1.0, 0.8], [0.9, -1.1]])
    >>> run = ddln.gradient_flow(problem, layers, jnp.linspace(0.0, 2.0, 101))
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
    whole, run = run, _until_it_stopped(run)
    entropy = Entropy(run.layers[0])
    floor, predictions = gap_floor(problem, run), theory.predict(problem, run)
    sample = jax.tree.map(lambda saved: saved[_few(run)], (run.layers, run.theta, run.velocity))
    exactness, reason = _exactness(run, _IDENTITY)
    identity = exactness * largest(_tie_condition(run)), reason
    claims = (
        consistency(problem, whole, steepness(problem, whole.theta[_few(run)]), start),
        *_conserved(run),
        _loss_falls(run, floor),
        _dissipation(problem, *sample),
        *_mirror_identity(problem, entropy, *identity, *sample),
        *_dual_claims(problem, entropy, run),
        *_bounds(problem, run, predictions, floor),
        _asymptotic_rate(problem, run, floor),
    )
    only_then = [dataclasses.replace(claim, applies=run.ok & claim.applies) for claim in claims]
    return FlowCertificates((_completed(whole), *only_then), predictions)


def _until_it_stopped(run: Trajectory) -> Trajectory:
    """The run with its last point on the curve again wherever it was at rest."""
    on_curve = jnp.max(jnp.where(rests(run), 0, _places(run)))
    places = jnp.minimum(_places(run), on_curve)
    return jax.tree.map(lambda saved: saved[places] if saved.ndim else saved, run)


def _completed(run):
    return Claim(
        "completed",
        "integrator",
        "the run reached its last time",
        run.times[-1] - run.times[jnp.max(jnp.where(jnp.isfinite(run.gap), _places(run), 0))],
        0.0,
        0.0,
        applies=True,
    )


def _places(run):
    return jnp.arange(run.times.size)


def _few(run: Trajectory, count: int = _SAMPLES) -> np.ndarray:
    return np.unique(np.linspace(0, run.times.size - 1, count).round().astype(int))


def gap_floor(problem: Problem, run: Trajectory) -> Float[Array, ""]:
    """The gap ½ β δ² that an error δ of the integrator in θ makes at the minimum, and rounding
    where the gap is a difference of losses."""
    beta = steepness(problem, run.theta[_few(run)])
    return beta * expected_error(run) ** 2 / 2 + gap_rounding(problem, run.loss)


def _gradient_noise(problem: Problem, theta: Float[Array, "times dim"]) -> Float[Array, ""]:
    """Rounding error of ∇ℒ, which near a minimiser is all there is of it."""
    return steepness(problem, theta) * theta_noise(problem, theta)


def _exactness(run: Trajectory, rounding: int) -> tuple[Number, str]:
    """Tolerance, in roundings, of what is exact unless the layers themselves are integrated."""
    exact = rounding * jnp.finfo(run.theta.dtype).eps
    if run.coordinates == "layers":
        return jnp.maximum(exact, 10 * relative_accuracy(run)), "the integrator's"
    return exact, "rounding: reduced coordinates are exact"


def _tie_condition(run: Trajectory) -> Float[Array, " dim"]:
    """By how much ∇²Q at a given θ magnifies an error in the layers: the nearer a tie, the more."""
    if run.coordinates != "layers":
        return jnp.ones_like(run.theta[0])
    squares = jnp.sort(run.layers[0] ** 2, axis=0)
    gap = squares[1] - squares[0]
    return jnp.where(gap > 0, largest(run.layers**2, axis=(0, 1)) / gap, 1.0)


def _mobile(entropy: Entropy, theta: Float[Array, "times dim"]) -> Bool[Array, "times dim"]:
    """Where Q is defined: not where frozen, nor where a half-line has been followed down to 0."""
    reduction = entropy.reduction
    above_zero = jnp.abs(theta) > jnp.finfo(theta.dtype).tiny ** 0.25  # else ∇²Q overflows
    return ~reduction.is_frozen[None] & (reduction.is_open[None] | above_zero)


def _conserved(run):
    magnitude = jnp.abs(run.layers)
    smallest = jnp.argmin(magnitude[0], axis=0)[None, None]
    of_smallest = jnp.take_along_axis(magnitude, smallest, axis=1)
    gaps = (magnitude - of_smallest) * (magnitude + of_smallest)
    size = jnp.maximum(largest(magnitude, (0, 1), keepdims=True), jnp.finfo(gaps.dtype).tiny)
    drift = largest(jnp.abs((gaps - gaps[:1]) / size / size))
    tolerance, reason = _exactness(run, 4096)  # 1e-12 in float64
    is_other = jnp.arange(magnitude.shape[1])[None, :, None] != smallest
    deficit = jnp.sqrt(gaps[:1]) - jnp.sign(run.layers[:1]) * run.layers
    escape = largest(jnp.where(is_other, deficit, -jnp.inf) / size)
    return (
        Claim(
            "conservation",
            "Proposition 1",
            "(uⁱ)² − (uʲ)² keeps its initial value",
            drift,
            0.0,
            tolerance,
            reason=reason,
        ),
        Claim(
            "sign",
            "Proposition 1",
            "all layers but the smallest keep their sign and stay outside √λ",
            escape,
            0.0,
            tolerance,
            relation="<=",
            reason=reason,
        ),
    )


def _loss_falls(run, floor):
    root = root_of_gap(run.gap)
    start = jnp.where(root[0] > 0, root[0], 1.0)
    tolerance = 2 * jnp.sqrt(floor) / start
    return Claim(
        "monotone loss",
        "Proposition 1",
        "the loss never rises",
        largest(jnp.diff(root)) / start,
        0.0,
        tolerance,
        relation="<=",
        reason="the integrator's accuracy in θ",
        applies=(root[0] > 0) & ~(tolerance > _LOOSEST),
    )


def _dissipation(problem, layers, theta, velocity):
    # Of the layers and of dθ/dt at the same point: exact, whatever was integrated.
    tolerance = _IDENTITY * jnp.finfo(theta.dtype).eps

    def both(layers, theta, velocity):
        gradients = jax.grad(lambda layers: problem.loss(effective_parameter(layers)))(layers)
        return jnp.vdot(problem.gradient(theta), velocity), -jnp.sum(gradients**2)

    measured, predicted = jax.vmap(both)(layers, theta, velocity)
    rounding = _gradient_noise(problem, theta)
    moved = jnp.abs(velocity) + rounding * jax.vmap(mobility)(layers)
    return Claim(
        "dissipation",
        "Proposition 1",
        "dℒ/dt = −Σ_j ‖∂ℒ/∂u^j‖², by autodiff on the layers",
        relative(measured - predicted, predicted, rounding * jnp.sum(moved, axis=1), tolerance),
        0.0,
        tolerance,
        reason="rounding",
    )


def _diagonal(function, at):
    """Of the Jacobian; of a large one by its product with signs, that other entries would spoil."""
    if at.size <= LARGEST_DENSE_DIM:
        return jnp.diagonal(jax.jacfwd(function)(at))
    signs = jax.random.rademacher(key_from_seed(0), at.shape, at.dtype)
    return signs * jax.jvp(function, (at,), (signs,))[1]


def _mirror_identity(problem, entropy, tolerance, reason, layers, theta, velocity):
    def metric_of(layers):
        def slope(j):
            return _diagonal(lambda u: effective_parameter(layers.at[j].set(u)), layers[j])

        return jnp.sum(jax.vmap(slope)(jnp.arange(len(layers))) ** 2, axis=0)

    curvature = jax.vmap(lambda theta: _diagonal(jax.grad(entropy.value), theta))(theta)
    metric = jax.vmap(metric_of)(layers)
    frozen = entropy.reduction.is_frozen[None]
    # Autodiff squares 1/M on its way to ∇²Q: below that nothing is measured.
    mobile = _mobile(entropy, theta) & (metric > jnp.sqrt(jnp.finfo(theta.dtype).tiny))
    applies = jnp.any(mobile) & (tolerance < _LOOSEST)
    predicted = -jax.vmap(problem.gradient)(theta) / curvature
    noise = _gradient_noise(problem, theta) * metric
    return (
        Claim(
            "mirror identity",
            "Theorem 1",
            "dθ/dt = −∇²Q(θ)⁻¹ ∇ℒ(θ), ∇²Q by jacfwd(grad(Q)) and dθ/dt by jvp along the run",
            relative(
                jnp.where(mobile, velocity - predicted, jnp.where(frozen, velocity, 0.0)),
                jnp.where(mobile, predicted, 0.0),
                noise,
                tolerance,
            ),
            0.0,
            tolerance,
            reason=reason,
            applies=applies,
        ),
        Claim(
            "entropy Hessian",
            "Theorem 1",
            "∇²Q(θ) · M = 1, ∇²Q by jacfwd(grad(Q)) and M by jacfwd(θ(u¹ … u^L))",
            largest(jnp.where(mobile, jnp.abs(curvature * metric - 1), 0.0)),
            0.0,
            tolerance,
            reason=reason,
            applies=applies,
        ),
    )


def _dual_claims(problem, entropy, run):
    """∇Q(θ) against the integral of ∇ℒ: from the start, and from each time looked at to the next.

    From the start all errors add up. Between two times only those made there count, so that a clock
    that is off shows wherever a curve is resolved, whatever happened before.
    """
    few = _few(run, MIRROR_MAP_CHECKS)
    value, slope = jax.vmap(lambda x, dx: jax.jvp(problem.gradient, (x,), (dx,)))(
        run.theta, run.velocity
    )
    theta, metric = run.theta[few], jax.vmap(mobility)(run.layers[few])
    dual = jax.vmap(entropy.mirror_map)(theta)
    integral = _hermite.integrate(run.times, value, slope)
    highest = jnp.maximum(jnp.abs(value[1:]), jnp.abs(value[:-1]))
    error = (
        jnp.diff(run.times)[:, None] * highest * _hermite.relative_error(run.times, value, slope)
    )
    mobile = _mobile(entropy, theta)
    # An error in θ is one of ∇²Q = 1/M times as much in ∇Q(θ).
    stiffness = jnp.where(mobile, jnp.abs(theta) / metric, 0.0)
    seen = few, dual, integral, error, mobile, stiffness
    return _dual_path(run, *seen), _clock(problem, run, *seen, metric)


def _dual_path(run, few, dual, integral, error, mobile, stiffness):
    size = largest(jnp.where(mobile, jnp.abs(dual), 0.0))
    safe_size = jnp.where(size > 0, size, 1.0)
    doubt = largest(jnp.where(mobile[0], jnp.sum(error, axis=0), 0.0))
    accuracy = relative_accuracy(run)
    tolerance = (doubt + accuracy * largest(stiffness)) / safe_size + 100 * accuracy
    return Claim(
        "dual path",
        "Theorem 1",
        "∇Q(θ(t)) = −∫₀ᵗ ∇ℒ(θ(s)) ds",
        largest(jnp.where(mobile, jnp.abs(dual + integral[few]), 0.0)) / safe_size,
        0.0,
        tolerance,
        reason="the quadrature over the saved times, and the integrator's",
        applies=(size > 0) & ~(tolerance > _LOOSEST),
    )


def _clock(problem, run, few, dual, integral, error, mobile, stiffness, metric):
    moved, predicted = jnp.diff(dual, axis=0), -jnp.diff(integral[few], axis=0)
    quadrature = jnp.concatenate([jnp.zeros_like(error[:1]), jnp.cumsum(error, axis=0)])[few]
    accuracy, span = relative_accuracy(run), jnp.diff(run.times[few])[:, None]
    beta = steepness(problem, run.theta[_few(run)])
    # What the integrator's error in θ makes of ∇ℒ, and of its rate over a step between times.
    longest = largest(jnp.diff(run.times))
    noise = beta * expected_error(run) * (1 + longest * beta * metric / 6)
    at_ends = accuracy * (stiffness + _tie_condition(run)[None] * jnp.abs(dual))
    noise, at_ends = (jnp.maximum(ends[1:], ends[:-1]) for ends in (noise, at_ends))
    allowed = _SAFETY * jnp.diff(quadrature, axis=0) + 2 * at_ends + span * noise
    tolerance = jnp.maximum(_CLOCK, 100 * accuracy)
    inside = mobile[1:] & mobile[:-1]
    return Claim(
        "clock",
        "Theorem 1",
        "∇Q(θ) moves by −∫ ∇ℒ(θ(s)) ds from each time looked at to the next",
        relative(
            jnp.where(inside, moved - predicted, 0.0),
            jnp.where(inside, moved, 0.0),
            allowed,
            tolerance,
        ),
        0.0,
        tolerance,
        relation="<=",
        reason="the integrator's; the quadrature's error counts as just tolerable",
        applies=jnp.any(inside & (allowed < _LOOSEST * jnp.abs(moved))),
    )


def _worst_ratio(gap, bound, floor):
    """Largest gap / bound, with the floor's benefit of the doubt."""
    root = jnp.maximum(root_of_gap(gap) - jnp.sqrt(floor), 0.0)
    return largest(jnp.where(root == 0, 0.0, root / jnp.sqrt(bound))) ** 2


def _bound(name, source, statement, run, bound, floor, applies, doubt=0.0):
    return Claim(
        name,
        source,
        statement + "; the largest ratio",
        _worst_ratio(run.gap, jnp.where(applies, bound, jnp.inf), floor),
        1.0,
        1e-6 + doubt,
        relation="<=",
        reason="the integrator's, and that of the bound itself",
        applies=applies,
    )


def _bounds(problem, run, predictions, floor):
    is_open = coordinate_kinds(run.layers[0]) == OPEN
    has_pl = problem.pl_constant is not None
    divergence = predictions.divergence_bound
    error = predictions.posterior_error
    return (
        _bound(
            "divergence bound",
            "Theorem 2",
            "ℒ(θ(t)) − ℒ* ≤ D_Q(θ*, θ(0)) / t for convex ℒ with a minimiser θ*",
            run,
            divergence,
            floor,
            problem.convex & problem.attained & (jnp.isfinite(divergence[-1]) | jnp.all(is_open)),
        ),
        _bound(
            "exponential bound",
            "Theorem 2, Corollary 1",
            "ℒ(θ(t)) − ℒ* ≤ (ℒ(θ(0)) − ℒ*) exp(−2μct) under PL with a unique smallest layer",
            run,
            predictions.exponential_bound,
            floor,
            has_pl & (predictions.rate_bound > 0),
        ),
        _bound(
            "a-posteriori bound",
            "from Proposition 1",
            "ℒ(θ(t)) − ℒ* ≤ (ℒ(θ(0)) − ℒ*) exp(−2μ ∫₀ᵗ min M) under PL",
            run,
            predictions.posterior_bound,
            floor,
            has_pl & ~(error > _LOOSEST),
            error,
        ),
    )


def _asymptotic_rate(problem, run, floor):
    """The slope over the last e-fold of the distance, where the slowest mode has most of it."""
    usable = run.gap > 1e4 * floor
    last = jnp.max(jnp.where(usable, _places(run), 0))
    earlier = usable & (run.gap >= jnp.e**2 * run.gap[last]) & (_places(run) < last)
    first = jnp.max(jnp.where(earlier, _places(run), 0))
    elapsed = run.times[last] - run.times[first]
    elapsed = jnp.where(elapsed > 0, elapsed, 1.0)
    measured = jnp.log(run.gap[first] / run.gap[last]) / (2 * elapsed)

    places = first + (last - first) * jnp.arange(5) // 4  # M can go and come back
    # One call for both: two batches of eigenproblems side by side can lock XLA's few threads up.
    all_rates, all_modes = jax.vmap(lambda theta: theory.mode_rates(problem, theta, run.layers[0]))(
        run.theta[places]
    )
    path = smallest(jnp.where(all_rates > 0, all_rates, jnp.inf), axis=1)
    slowest, predicted = path[0], path[-1]
    rates, modes = all_rates[0], all_modes[0]
    moves = rates > 0
    root = jnp.sqrt(mobility(run.layers[first]))
    amplitude = modes.T @ (root * problem.gradient(run.theta[first]))
    energy = jnp.where(moves, amplitude**2 / jnp.where(moves, rates, 1.0), 0.0)
    # The modes must account for the gap: not so where a frozen coordinate keeps it from closing,
    # and only to first order where the loss is not quadratic.
    unexplained = jnp.abs(jnp.sum(energy) / 2 / run.gap[first] - 1)
    faster = jnp.sum(energy * jnp.where(moves, rates - slowest, 0.0)) / jnp.sum(energy)
    noise = jnp.sqrt(floor / run.gap[last]) / elapsed
    drift = largest(jnp.abs(path - predicted))
    tolerance = 1.5 * (faster + drift) + unexplained / (2 * elapsed) + noise
    return Claim(
        "asymptotic rate",
        "from Theorem 1",
        "ℒ − ℒ* ~ exp(−2rt), r the smallest nonzero eigenvalue of M^{1/2} ∇²ℒ M^{1/2}",
        measured,
        predicted,
        tolerance,
        reason="faster modes still present, and M and ∇²ℒ still moving",
        applies=problem.attained
        & jnp.any(earlier)
        & (unexplained < 0.1)
        & ~(tolerance > _LOOSEST * predicted),
    )
