"""Certify a discrete run: its rule, the exact identities of depth 2, and the descent lemma.

Any rule on any samples is checked by replay: from some of the records the steps are recomputed,
from the optimiser's state there and the run's key, and must lead to the next record.

Plain steps at depth 2 satisfy two identities at every step, whatever their samples. With
x_k = γ_k ∇ℓ_k (`ddln.solvers._descent_state.AccumulatedSteps`), λ = |u² − v²| and the mirror map
ξ_λ(θ) = ½ asinh(2θ/λ) = ½ ln|(u + v)/(u − v)|,

    u² − v² = (u² − v²)₀ Π_k (1 − x_k²)
    ξ_λ(θ) − ξ̃ = −Σ_k x_k,    ξ̃ = ξ_{λ₀}(θ₀) − Σ_k (artanh x_k − x_k).

The right-hand side is a sum of gradients, which lies in range(Xᵀ) for a linear model. So θ is the
point nearest to the start, in the entropy of the *final* λ, among all points with its predictions.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln import theory
from ddln._internal.random import key_from_seed
from ddln._internal.validation import largest, smallest
from ddln.networks.layers import Function, theta_of
from ddln.problems.base import Problem
from ddln.solvers.gradient_descent import Descent, replay
from ddln.verification._shared_tolerances import (
    CONSERVED,
    IDENTITY,
    LOOSEST,
    gap_rounding,
    relative_error,
    root_of_gap,
    sample_points,
    steepness,
)
from ddln.verification.certificates import Claim
from ddln.verification.consistency import consistency

_LONGEST, _STEPS = 50, 64
"""A stretch between records is replayed if it is at most this part of the run, or so many steps."""
_STEP_ROUNDINGS = 64
"""Roundings granted to a step, before later steps amplify them."""
_NUDGE = 2.0**-26
"""Relative perturbation of the layers that shows how much steps amplify rounding errors."""


@eqx.filter_jit
def step_claims(
    problem: Problem, run: Descent, start: Float[Array, "depth dim"] | None = None
) -> tuple[Claim, ...]:
    """All claims on a discrete run.

    Args:
        problem: the loss.
        run: from `descend`.
        start: the layers from which the run must have started; `None` for any.
    """
    kkt = kkt_of_the_limit(problem, run)
    # After its SVD: LAPACK calls side by side can lock XLA's few threads up (docs/decisions.md).
    layers, _ = jax.lax.optimization_barrier((run.layers, kkt.measured))
    beta = steepness(problem, run.theta[sample_points(run.times.size)])
    return (
        _completed(run),
        dataclasses.replace(consistency(problem, run, beta, start), applies=run.ok),
        recursion(problem, run),
        exact_identity(run),
        kkt,
        *descent_lemma(problem, run, layers),
    )


def _completed(run: Descent) -> Claim:
    """Claim that every record is finite: the number of those that are not is 0."""
    return Claim(
        "completed",
        "descent",
        "every record is finite",
        measured=jnp.sum(~jnp.isfinite(run.gap)).astype(run.gap.dtype),
        predicted=0.0,
        tolerance=0.0,
        applies=True,
    )


def recursion(problem: Problem, run: Descent) -> Claim:
    """Claim that the rule's steps from a record lead to the next one, for up to nine records.

    Tolerance: 450 000 roundings of the largest layer. Each step rounds anew, and later steps
    amplify the error: 64 roundings, times the amplification and the square root of the number of
    steps, count as just tolerable. A second replay from layers perturbed by 2⁻²⁶ measures the
    amplification. Long stretches (over 1/50 of the run and over 64 steps) are left out, and so are
    records at which the run had stopped.
    """
    points = jnp.asarray(sample_points(run.steps.size - 1))
    lengths = jnp.diff(run.steps)[points]
    stopped = jnp.all(run.layers[points] == run.layers[-1:], axis=(1, 2)) & (run.status != 0)
    longest = jnp.maximum((run.steps[-1] - run.steps[0]) // _LONGEST, _STEPS)
    is_replayed = (lengths <= longest) & ~stopped
    counts = jnp.where(is_replayed, lengths, 0)
    signs = jax.random.rademacher(key_from_seed(0), run.layers.shape[1:], run.layers.dtype)

    def recompute(
        point: Int[Array, ""], count: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """The error at the next record, by how much the perturbation changes it, and its size."""
        layers, recorded = run.layers[point], run.layers[point + 1]
        starts = jnp.stack([layers, layers * (1 + _NUDGE * signs)])
        ends = jax.vmap(lambda layers: replay(problem, run, point, layers, count))(starts)
        differences = ends[0] - recorded, ends[1] - ends[0], recorded
        error, change, size = (largest(jnp.abs(values)) for values in differences)
        return error, change, size

    error, change, size = jax.vmap(recompute)(points, counts)
    eps = jnp.finfo(size.dtype).eps
    tolerance = IDENTITY * eps
    root_of_steps = jnp.sqrt(1 + counts.astype(size.dtype))
    noise = _STEP_ROUNDINGS * eps * (change / _NUDGE + size) * root_of_steps
    is_replayed = is_replayed & ~(noise >= LOOSEST * size)
    return Claim(
        "recursion",
        "definition of the rule",
        "the rule's steps from a record lead to the next one",
        measured=relative_error(jnp.where(is_replayed, error, 0.0), size, noise, tolerance),
        predicted=0.0,
        tolerance=tolerance,
        relation="<=",
        reason="rounding, with its amplification by the steps",
        applies=run.ok & jnp.any(is_replayed & (counts > 0)),
    )


def exact_identity(run: Descent) -> Claim:
    """Claim that u² − v² = (u² − v²)₀ Π_k (1 − γ_k² (∇ℓ_k)²) at depth 2, relative to u² + v².

    Source: Even et al. 2023. Tolerance: 4096 roundings, or 0.04 a step in long runs, in which the
    measured drift is 0.02 roundings a step where θ is at rest. Each step rounds anew, and later
    factors may amplify the error: 64 times the root of the summed squares counts as just tolerable.
    """
    statement = "u² − v² = (u² − v²)₀ Π_k (1 − γ_k² (∇ℓ_k)²) at depth 2, any step and samples"
    source, reason = "Even et al. 2023", "rounding, with its amplification by the steps"
    if run.ledger is None:
        return Claim(
            "exact identity", source, statement, 0.0, 0.0, 0.0, reason=reason, applies=False
        )
    u, v = run.layers[:, 0], run.layers[:, 1]
    factor = jnp.prod(run.ledger.growth, axis=1)
    # The first record of a continued run is its start.
    factor = factor / jnp.where(factor[:1] == 0, 1.0, factor[:1])
    difference = (u - v) * (u + v)
    error = difference - difference[:1] * factor
    eps = jnp.finfo(error.dtype).eps
    noise = _STEP_ROUNDINGS * eps * jnp.sqrt(run.ledger.squares)
    tolerance = eps * jnp.maximum(1.0 * CONSERVED, 0.04 * run.steps[-1].astype(error.dtype))
    return Claim(
        "exact identity",
        source,
        statement,
        measured=relative_error(error, u**2 + v**2, noise, tolerance),
        predicted=0.0,
        tolerance=tolerance,
        reason=reason,
        applies=run.ok,
    )


def kkt_of_the_limit(problem: Problem, run: Descent) -> Claim:
    """Claim that ∇ψ(θ) − ∇ψ(θ̃₀) ∈ range(Xᵀ) at the end, ψ the entropy of the last |u² − v²|.

    Source: Even et al. 2023. Measured: the relative distance from the range. Tolerance: 4096
    roundings, amplified by (|u| + |v|) / |u ± v|: a rounding of u is one of |u| / |u − v| in ξ.
    """
    affine = problem.minimisers()
    statement = "∇ψ(θ) − ∇ψ(θ̃₀) ∈ range(Xᵀ) at the end, ψ the entropy of the last |u² − v²|"
    source = "Even et al. 2023"
    if run.ledger is None or affine is None:
        return Claim("KKT of the limit", source, statement, 0.0, 0.0, 0.0, applies=False)
    (u, v), (u0, v0) = run.layers[-1], run.layers[0]
    sums, sums0 = jnp.abs(jnp.stack([u + v, u - v])), jnp.abs(jnp.stack([u0 + v0, u0 - v0]))
    growth = jnp.abs(run.ledger.growth[-1] / run.ledger.growth[0])
    is_open = jnp.all((sums > 0) & (sums0 > 0) & (growth > 0))
    ends, starts, growth = (jnp.log(jnp.where(is_open, x, 1.0)) for x in (sums, sums0, growth))
    dual = run.ledger.dual[-1] - run.ledger.dual[0]
    moved = (ends[0] - ends[1] - starts[0] + starts[1] - growth[0] + growth[1]) / 2 + dual
    size = jnp.linalg.norm(moved)
    safe_size = jnp.where(size > 0, size, 1.0)
    rows = affine[0]
    weights = jnp.linalg.lstsq(rows.T, moved)[0]
    condition = largest((jnp.abs(u) + jnp.abs(v)) / smallest(sums, axis=0))
    rounding = CONSERVED * jnp.finfo(moved.dtype).eps
    spread = jnp.sqrt(jnp.asarray(moved.size, moved.dtype))
    tolerance = rounding * (1 + spread * condition / safe_size)
    return Claim(
        "KKT of the limit",
        source,
        statement,
        measured=jnp.linalg.norm(moved - rows.T @ weights) / safe_size,
        predicted=0.0,
        tolerance=tolerance,
        reason="rounding of the layers, magnified where u ± v nearly vanishes",
        applies=run.ok & is_open & (size != 0) & ~(tolerance >= LOOSEST),
    )


def descent_lemma(
    problem: Problem, run: Descent, layers: Float[Array, "records depth dim"]
) -> tuple[Claim, Claim]:
    """Claims that a step lowers the loss by γ(1 − γS/2)‖∂ℒ/∂u‖², and that the loss never rises.

    The first is checked by one step from each of up to nine records, with a tolerance of 5 % since
    the sharpness S is taken at the two ends of the step only. The second compares consecutive
    records where the steps in between are provably small (`_falls_between`). Its tolerance is the
    rounding of θ.
    """
    worst, floor, falls = -jnp.inf, 0.0, False
    if run.rates is not None and problem.differentiable:
        points = sample_points(run.steps.size)
        floor, falls = _rounding_of_the_gap(problem, run), _falls_between(problem, run)
        shortfalls = jax.lax.map(
            lambda record: _one_step(problem, floor, run.function, *record),
            (layers[points], run.rates[points]),
        )
        worst = largest(shortfalls)
    root = root_of_gap(run.gap)
    start = jnp.where(root[0] > 0, root[0], 1.0)
    return (
        Claim(
            "descent lemma",
            "from Taylor's theorem",
            "a step lowers the loss by γ(1 − γS/2)‖∂ℒ/∂u‖² or more, S the sharpness; relative",
            measured=jnp.where(worst == -jnp.inf, 0.0, worst),
            predicted=0.0,
            tolerance=LOOSEST,
            relation="<=",
            reason="S is taken at the two ends of the step",
            applies=run.ok & (worst != -jnp.inf),
        ),
        Claim(
            "monotone loss",
            "from the descent lemma",
            "the loss never rises where the step stays below 1 / sharpness",
            measured=largest(jnp.where(falls, jnp.diff(root), 0.0)) / start,
            predicted=0.0,
            tolerance=2 * jnp.sqrt(floor) / start,
            relation="<=",
            reason="rounding of θ",
            applies=run.ok & jnp.any(falls),
        ),
    )


def _falls_between(problem: Problem, run: Descent) -> Bool[Array, " intervals"]:
    """Where the loss provably falls at every step from one record to the next.

    If γS ≤ 1 on the ball of radius r = (2 n γ gap)^{1/2} around the layers, then n steps do not
    leave it: each lowers the gap by γ‖g‖²/2 or more, so they move the layers by
    Σ γ‖g‖ ≤ (n γ Σ γ‖g‖²)^{1/2} ≤ r. There, with |u^j_k| at most U^j_k, larger by r,

        S ≤ β max_k Σ_j Π_{i≠j} (Uⁱ_k)² + (2β gap)^{1/2} max_k (2 Σ_{j<l} Π_{i≠j,l} (Uⁱ_k)²)^{1/2}

    since ‖∇ℒ(θ)‖² ≤ 2β gap. Nothing is known of a loss without β, or of other parametrisations.
    """
    if problem.smoothness is None or run.rates is None or run.function is not None:
        return jnp.zeros(run.steps.size - 1, bool)
    beta, gap = problem.smoothness, jnp.maximum(run.gap[:-1], 0.0)
    rate = jnp.maximum(run.rates[:-1], run.rates[1:])
    steps = jnp.diff(run.steps).astype(rate.dtype)
    radius = jnp.sqrt(2 * steps * rate * gap)
    squares = (jnp.abs(run.layers[:-1]) + radius[:, None, None]) ** 2
    product = jnp.ones_like(squares[:, 0])
    without_one, without_two = jnp.zeros_like(product), jnp.zeros_like(product)
    for square in jnp.moveaxis(squares, 1, 0):
        without_two = without_two * square + without_one
        without_one = without_one * square + product
        product = product * square
    mixed = jnp.sqrt(2 * beta * gap) * jnp.sqrt(2 * largest(without_two, axis=1))
    return rate * (beta * largest(without_one, axis=1) + mixed) <= 1


def _one_step(
    problem: Problem,
    floor: Float[Array, ""],
    function: Function | None,
    layers: Float[Array, "depth dim"],
    rate: Float[Array, ""],
) -> Float[Array, ""]:
    """How far one step falls short of the lemma, over γ‖∂ℒ/∂u‖².

    It is −∞ where γS ≥ 2 or the step is no larger than rounding.
    """

    def gap(layers: Float[Array, "depth dim"]) -> Float[Array, ""]:
        return problem.gap(theta_of(layers, function))

    before, gradient = jax.value_and_grad(gap)(layers)
    ends = jnp.stack([layers, layers - rate * gradient])
    sharpness = jax.lax.map(lambda layers: theory.sharpness(problem, layers, function), ends)
    reach = rate * largest(sharpness)
    first_order = rate * jnp.sum(gradient**2)
    shortfall = gap(ends[1]) - before + (1 - reach / 2) * first_order
    rounding = floor + 2 * jnp.sqrt(floor * before)
    # NaN must fail the claim, not exclude the step.
    measurable = ~(first_order <= rounding / LOOSEST) & ~(reach >= 2)
    relative = shortfall / jnp.where(measurable, first_order, 1.0)
    return jnp.where(measurable, relative, -jnp.inf)


def _rounding_of_the_gap(problem: Problem, run: Descent) -> Float[Array, ""]:
    """½ β δ² for δ = 30 roundings of θ, plus the rounding of a difference of losses."""
    beta = steepness(problem, run.theta[-1:])
    size = largest(jnp.linalg.norm(run.theta, axis=1))
    floor = beta * (30 * jnp.finfo(size.dtype).eps * size) ** 2 / 2
    return floor + gap_rounding(problem, run.loss)
