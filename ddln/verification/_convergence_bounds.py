"""Theorem 2 and Corollary 1 of arXiv 2412.16765 on a computed flow, and its asymptotic rate."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln import theory
from ddln._internal.validation import Number, largest, smallest
from ddln.networks.layers import OPEN, coordinate_kinds
from ddln.problems.base import Problem
from ddln.solvers.trajectory import Trajectory
from ddln.verification._shared_tolerances import LOOSEST, root_of_gap
from ddln.verification.certificates import Claim

_RATE_SAMPLES = 5
"""Points of the last e-fold at which the rate is computed, since M can go and come back."""


def divergence_bound(
    problem: Problem, run: Trajectory, predictions: theory.Predictions, floor: Float[Array, ""]
) -> Claim:
    """Claim that ℒ(θ(t)) − ℒ* ≤ D_Q(θ*, θ(0)) / t for convex ℒ with a minimiser θ*.

    On half-lines θ* must lie in the domain of Q, else the bound is infinite.
    """
    bound = predictions.divergence_bound
    # On an open coordinate an infinite bound is a fault; other domains of Q may exclude θ*.
    is_open = run.entropy is None and jnp.all(coordinate_kinds(run.layers[0]) == OPEN)
    return _bound(
        "divergence bound",
        "Theorem 2",
        "ℒ(θ(t)) − ℒ* ≤ D_Q(θ*, θ(0)) / t for convex ℒ with a minimiser θ*",
        run,
        bound,
        floor,
        applies=problem.convex & problem.attained & (jnp.isfinite(bound[-1]) | is_open),
    )


def exponential_bound(
    problem: Problem, run: Trajectory, predictions: theory.Predictions, floor: Float[Array, ""]
) -> Claim:
    """Claim that ℒ(θ(t)) − ℒ* ≤ (ℒ(θ(0)) − ℒ*) exp(−2μct) under PL and a unique smallest layer."""
    return _bound(
        "exponential bound",
        "Theorem 2, Corollary 1",
        "ℒ(θ(t)) − ℒ* ≤ (ℒ(θ(0)) − ℒ*) exp(−2μct) under PL with a unique smallest layer",
        run,
        predictions.exponential_bound,
        floor,
        applies=(problem.pl_constant is not None) & (predictions.rate_bound > 0),
    )


def posterior_bound(
    problem: Problem, run: Trajectory, predictions: theory.Predictions, floor: Float[Array, ""]
) -> Claim:
    """Claim that ℒ(θ(t)) − ℒ* ≤ (ℒ(θ(0)) − ℒ*) exp(−2μ ∫₀ᵗ min_k M_k) under PL.

    The estimated error of the integral is added to the tolerance.
    """
    error = predictions.posterior_error
    return _bound(
        "a-posteriori bound",
        "from Proposition 1",
        "ℒ(θ(t)) − ℒ* ≤ (ℒ(θ(0)) − ℒ*) exp(−2μ ∫₀ᵗ min M) under PL",
        run,
        predictions.posterior_bound,
        floor,
        applies=(problem.pl_constant is not None) & ~(error > LOOSEST),
        error=error,
    )


def _bound(
    name: str,
    source: str,
    statement: str,
    run: Trajectory,
    bound: Float[Array, " times"],
    floor: Float[Array, ""],
    *,
    applies: Bool[Array, ""],
    error: Number = 0.0,
) -> Claim:
    """Claim that gap / bound ≤ 1, after √floor is taken from √gap.

    Tolerance: 1e-6 for the integrator, and the relative error of the bound itself.
    """
    root = jnp.maximum(root_of_gap(run.gap) - jnp.sqrt(floor), 0.0)
    root_of_bound = jnp.sqrt(jnp.where(applies, bound, jnp.inf))
    return Claim(
        name,
        source,
        statement + "; the largest ratio",
        measured=largest(jnp.where(root == 0, 0.0, root / root_of_bound)) ** 2,
        predicted=1.0,
        tolerance=1e-6 + error,
        relation="<=",
        reason="the integrator's, and that of the bound itself",
        applies=applies,
    )


def asymptotic_rate(problem: Problem, run: Trajectory, floor: Float[Array, ""]) -> Claim:
    """Claim that the gap ends like exp(−2rt), r the smallest nonzero eigenvalue of
    M^{1/2} ∇²ℒ M^{1/2}.

    The rate is measured over the last e-fold of the distance, where the slowest mode has most of
    it. Tolerance: what the faster modes still contribute, the change of r over the e-fold, the part
    of the gap that the linearised modes do not explain (a frozen coordinate keeps the gap from
    closing; a loss may not be quadratic), and the floor of the gap. NaN in any of them fails.
    """
    first, last, is_resolved = _last_e_fold(run, floor)
    elapsed = run.times[last] - run.times[first]
    elapsed = jnp.where(elapsed > 0, elapsed, 1.0)
    points = first + (last - first) * jnp.arange(_RATE_SAMPLES) // (_RATE_SAMPLES - 1)
    # One batch: two batches of eigenproblems side by side can lock XLA's few threads.
    entropy = run.layers[0] if run.entropy is None else run.entropy
    rates, modes = jax.vmap(lambda theta: theory.mode_rates(problem, theta, entropy))(
        run.theta[points]
    )
    slowest = smallest(jnp.where(rates == 0, jnp.inf, rates), axis=1)
    predicted = slowest[-1]
    energy = _mode_energies(problem, run, first, rates[0], modes[0])
    unexplained = jnp.abs(jnp.sum(energy) / 2 / run.gap[first] - 1)
    excess = jnp.where(rates[0] == 0, 0.0, rates[0] - slowest[0])
    faster = jnp.sum(energy * excess) / jnp.sum(energy)
    drift = largest(jnp.abs(slowest - predicted))
    noise = jnp.sqrt(floor / run.gap[last]) / elapsed
    tolerance = 1.5 * (faster + drift) + unexplained / (2 * elapsed) + noise
    return Claim(
        "asymptotic rate",
        "from Theorem 1",
        "ℒ − ℒ* ~ exp(−2rt), r the smallest nonzero eigenvalue of M^{1/2} ∇²ℒ M^{1/2}",
        measured=jnp.log(run.gap[first] / run.gap[last]) / (2 * elapsed),
        predicted=predicted,
        tolerance=tolerance,
        reason="faster modes still present, and M and ∇²ℒ still moving",
        applies=problem.attained
        & is_resolved
        & ~(unexplained >= 0.1)
        & ~(tolerance > LOOSEST * predicted),
    )


def _last_e_fold(
    run: Trajectory, floor: Float[Array, ""]
) -> tuple[Int[Array, ""], Int[Array, ""], Bool[Array, ""]]:
    """The last point with a gap far above the floor, the one before with e² times its gap, and
    whether there are such points."""
    points = jnp.arange(run.times.size)
    usable = run.gap > 1e4 * floor
    last = jnp.max(jnp.where(usable, points, 0))
    earlier = usable & (run.gap >= jnp.e**2 * run.gap[last]) & (points < last)
    return jnp.max(jnp.where(earlier, points, 0)), last, jnp.any(earlier)


def _mode_energies(
    problem: Problem,
    run: Trajectory,
    point: Int[Array, ""],
    rates: Float[Array, " modes"],
    modes: Float[Array, "dim modes"],
) -> Float[Array, " modes"]:
    """Twice the gap that each mode of the linearised flow explains at one point."""
    root = jnp.sqrt(run.flow_entropy.mobility(run.layers[point]))
    amplitude = modes.T @ (root * problem.gradient(run.theta[point]))
    rests = rates == 0
    return jnp.where(rests, 0.0, amplitude**2 / jnp.where(rests, 1.0, rates))
