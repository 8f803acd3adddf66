"""A discrete run against its own rule, what is exact of it, the descent lemma, and the flow.

Any rule, on any samples: the steps from some of the records are taken again, from the optimiser's
state there and with the run's key, and must lead to the records that follow.

With x_k = γ_k ∇ℓ_k and plain steps at depth 2 (`ddln.solvers._descent_state`), λ = |u² −
v²| and the mirror map ξ_λ(θ) = ½ asinh(2θ/λ) = ½ ln|(u + v)/(u − v)|, any run has at any step,
whatever its samples,

    u² − v² = (u² − v²)₀ Π_k (1 − x_k²)
    ξ_λ(θ) − ξ̃ = −Σ_k x_k,    ξ̃ = ξ_{λ₀}(θ₀) − Σ_k (artanh x_k − x_k).

The right-hand side is a sum of gradients, in range(Xᵀ) for a linear model: so θ is nearest to the
start, as the entropy of the λ of the *end* measures it, among all with its predictions.

Against the flow, at equal time T, steps of size η are off by η‖e‖ + O(η²): `discretisation_order`.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln import theory
from ddln._internal.validation import ArrayLike, Number, as_layers, as_positive, largest, smallest
from ddln.networks.layers import effective_parameter
from ddln.problems.base import Problem
from ddln.solvers.gradient_descent import Descent, descend, replay
from ddln.solvers.gradient_flow import gradient_flow
from ddln.solvers.optimisers import optimiser
from ddln.verification import diagnostics
from ddln.verification.claims import Claim
from ddln.verification.consistency import (
    consistency,
    gap_rounding,
    relative,
    root_of_gap,
    steepness,
)

_SAMPLES = 9
"""Records at which sharpness is computed."""
_LONGEST = 50
"""A stretch between records is taken again where it is no more than one such part of the run, or
64 steps."""
_IDENTITY = 450_000
"""Roundings that are granted to the rule's own recursion: 1e-10 in float64."""
_NUDGE = 2.0**-26
"""By how much layers are moved, relative, to see how steps magnify their roundings."""
_SAFE = 1.8
"""γS below which, at all records looked at, it is taken to be below 2 in between."""
_LOOSEST = 0.05
"""A comparison whose own tolerance is larger than this (relative) is not made."""
_TIGHT = 1e-12
"""Relative tolerance of the flow that steps are compared with, or 100 roundings."""
_SLOPE = 0.02
"""How far from 1 a slope in the step may be."""
_SMALL = 0.5
"""ηS below which steps are small."""
_ABOVE = 1000
"""An error so many times its own error moves that slope by at most 0.006."""


@eqx.filter_jit
def step_claims(
    problem: Problem, run: Descent, start: Float[Array, "depth dim"] | None = None
) -> tuple[Claim, ...]:
    """The claims on a discrete run: completed, consistency, recursion, exact identity, KKT of the
    limit, descent lemma, monotone loss.

    Args:
        problem: the loss.
        run: from `descend`.
        start: the layers that it must have started from; `None` for any.
    """
    finite = jnp.isfinite(run.gap)
    completed = Claim(
        "completed",
        "descent",
        "every record is finite",
        jnp.sum(~finite).astype(run.gap.dtype),
        0.0,
        0.0,
        applies=True,
    )
    kkt = _kkt_of_the_limit(problem, run)
    # After its SVD: LAPACK calls side by side can lock XLA's few threads up (docs/decisions.md).
    layers, _ = jax.lax.optimization_barrier((run.layers, kkt.measured))
    whole = consistency(problem, run, steepness(problem, run.theta[_places(run)]), start)
    return (
        completed,
        dataclasses.replace(whole, applies=run.ok),
        _recursion(problem, run),
        _exact_identity(run),
        kkt,
        *_descent_lemma(problem, run, layers),
    )


def _places(run: Descent, count: int | None = None) -> np.ndarray:
    """Some records, evenly spread; of the first `count` of them."""
    last = (run.steps.size if count is None else count) - 1
    return np.unique(np.linspace(0, max(last, 0), _SAMPLES).round().astype(int))


def _recursion(problem: Problem, run: Descent):
    """Steps taken again from some records on, each until the next, and again from nearby, which
    tells how much of the difference can be rounding."""
    places = jnp.asarray(_places(run, run.steps.size - 1))
    # Of a run that stopped the last records are the same one.
    lengths = jnp.diff(run.steps)[places]
    stopped = jnp.all(run.layers[places] == run.layers[-1:], axis=(1, 2)) & (run.status != 0)
    total = run.steps[-1] - run.steps[0]
    most = jnp.maximum(total // _LONGEST, 64)
    told = (lengths <= most) & ~stopped
    counts = jnp.where(told, lengths, 0)
    signs = jax.random.rademacher(jax.random.key(0), run.layers.shape[1:], run.layers.dtype)

    def again(place, count):
        layers = run.layers[place]
        nearby = layers * (1 + _NUDGE * signs)
        ends = jax.vmap(lambda layers: replay(problem, run, place, layers, count))(
            jnp.stack([layers, nearby])
        )
        off = largest(jnp.abs(ends[0] - run.layers[place + 1]))
        return off, largest(jnp.abs(ends[1] - ends[0])), largest(jnp.abs(run.layers[place + 1]))

    off, moved, size = jax.vmap(again)(places, counts)
    eps = jnp.finfo(size.dtype).eps
    tolerance = _IDENTITY * eps
    # Each step rounds anew, and by no more than all of those before it are magnified.
    noise = 64 * eps * (moved / _NUDGE + size) * jnp.sqrt(1.0 + counts)
    told = told & (noise < _LOOSEST * size)
    return Claim(
        "recursion",
        "definition of the rule",
        "the rule's steps from a record lead to the next one",
        relative(jnp.where(told, off, 0.0), size, noise, tolerance),
        0.0,
        tolerance,
        relation="<=",
        reason="rounding; what the steps make of it counts as just tolerable",
        applies=run.ok & jnp.any(told & (counts > 0)),
    )


def _exact_identity(run):
    statement = "u² − v² = (u² − v²)₀ Π_k (1 − γ_k² (∇ℓ_k)²) at depth 2, any step and samples"
    if run.ledger is None:
        measured, tolerance, applies = 0.0, 0.0, False
    else:
        u, v = run.layers[:, 0], run.layers[:, 1]
        factor = jnp.prod(run.ledger.growth, axis=1)
        # Of a run that went on from a state the start is its first record.
        factor = factor / jnp.where(factor[:1] == 0, 1.0, factor[:1])
        difference = (u - v) * (u + v)
        size = largest(u**2 + v**2, axis=0, keepdims=True)
        off = (difference - difference[:1] * factor) / jnp.where(size > 0, size, 1.0)
        measured = largest(jnp.abs(off))
        # Seen to drift by 0.02 roundings a step where θ is at rest.
        roundings = jnp.maximum(4096.0, 0.04 * run.steps[-1].astype(off.dtype))
        tolerance, applies = roundings * jnp.finfo(off.dtype).eps, run.ok
    return Claim(
        "exact identity",
        "Even et al. 2023",
        statement,
        measured,
        0.0,
        tolerance,
        reason="rounding, which adds up over the steps",
        applies=applies,
    )


def _kkt_of_the_limit(problem, run):
    affine = problem.minimisers()
    statement = "∇ψ(θ) − ∇ψ(θ̃₀) ∈ range(Xᵀ) at the end, ψ the entropy of the last |u² − v²|"
    source = "Even et al. 2023"
    if run.ledger is None or affine is None:
        return Claim("KKT of the limit", source, statement, 0.0, 0.0, 0.0, applies=False)
    (u, v), (u0, v0) = run.layers[-1], run.layers[0]
    sums, sums0 = jnp.abs(jnp.stack([u + v, u - v])), jnp.abs(jnp.stack([u0 + v0, u0 - v0]))
    grown = jnp.abs(run.ledger.growth[-1] / run.ledger.growth[0])
    is_open = jnp.all((sums > 0) & (sums0 > 0) & (grown > 0))
    ends, starts, grown = (jnp.log(jnp.where(is_open, x, 1.0)) for x in (sums, sums0, grown))
    dual = run.ledger.dual[-1] - run.ledger.dual[0]
    moved = (ends[0] - ends[1] - starts[0] + starts[1] - grown[0] + grown[1]) / 2 + dual
    size = jnp.linalg.norm(moved)
    rows = affine[0]
    weights = jnp.linalg.lstsq(rows.T, moved)[0]
    off = jnp.linalg.norm(moved - rows.T @ weights) / jnp.where(size > 0, size, 1.0)
    # A rounding of u is one of |u|/|u − v| of ξ.
    condition = largest((jnp.abs(u) + jnp.abs(v)) / smallest(sums, axis=0))
    rounding = 4096 * jnp.finfo(moved.dtype).eps
    spread = jnp.sqrt(jnp.asarray(moved.size, moved.dtype))
    tolerance = rounding * (1 + spread * condition / jnp.where(size > 0, size, 1.0))
    return Claim(
        "KKT of the limit",
        source,
        statement,
        off,
        0.0,
        tolerance,
        reason="rounding of the layers, magnified where u ± v nearly vanishes",
        applies=run.ok & is_open & (size > 0) & (tolerance < _LOOSEST),
    )


def _descent_lemma(problem, run, layers):
    if run.rates is None:
        worst, reach, floor, applies = 0.0, 0.0, 0.0, False
    else:
        places = _places(run)
        floor, applies = _rounding_of_the_gap(problem, run), run.ok
        excess, reaches = jax.lax.map(
            lambda at: _one_step(problem, floor, *at), (layers[places], run.rates[places])
        )
        worst, reach = largest(excess), largest(reaches)
    root = root_of_gap(run.gap)
    start = jnp.where(root[0] > 0, root[0], 1.0)
    return (
        Claim(
            "descent lemma",
            "from Taylor's theorem",
            "a step lowers the loss by γ(1 − γS/2)‖∂ℒ/∂u‖² or more, S the sharpness; relative",
            worst,
            0.0,
            _LOOSEST,
            relation="<=",
            reason="S is taken at the two ends of the step",
            applies=applies & jnp.isfinite(worst),
        ),
        Claim(
            "monotone loss",
            "from the descent lemma",
            "the loss never rises where the step stays below 1.8 / sharpness",
            largest(jnp.diff(root)) / start,
            0.0,
            2 * jnp.sqrt(floor) / start,
            relation="<=",
            reason="rounding of θ",
            applies=applies & (reach < _SAFE),
        ),
    )


def _one_step(problem: Problem, floor, layers, rate):
    """By how much a step falls short of the lemma, over γ‖∂ℒ/∂u‖², and γS; −∞ for the former where
    γS ≥ 2 or the step is rounding."""

    def gap(layers):
        return problem.gap(effective_parameter(layers))

    before, gradient = jax.value_and_grad(gap)(layers)
    ends = jnp.stack([layers, layers - rate * gradient])
    reach = rate * largest(jax.lax.map(lambda at: theory.sharpness(problem, at), ends))
    first_order = rate * jnp.sum(gradient**2)
    shortfall = gap(ends[1]) - before + (1 - reach / 2) * first_order
    rounding = floor + 2 * jnp.sqrt(floor * before)
    measurable = (first_order > rounding / _LOOSEST) & (reach < 2)
    return jnp.where(
        measurable, shortfall / jnp.where(measurable, first_order, 1.0), -jnp.inf
    ), reach


def _rounding_of_the_gap(problem: Problem, run: Descent) -> Float[Array, ""]:
    """½ β δ², with δ what 30 roundings of θ come to, and that of a difference of losses."""
    beta = steepness(problem, run.theta[-1:])
    size = largest(jnp.linalg.norm(run.theta, axis=1))
    floor = beta * (30 * jnp.finfo(size.dtype).eps * size) ** 2 / 2
    return floor + gap_rounding(problem, run.loss)


def discretisation_error(
    problem: Problem, layers: ArrayLike, until: Number, steps: ArrayLike
) -> Float[Array, " lanes"]:
    """‖θ_K − θ(T)‖₂ of gradient descent with K steps of size T/K, for several K.

    With η = T/K it is η‖e(T)‖ + O(η²), e the first-order change of the flow's θ when ℒ becomes
    ℒ + (η/4)‖∂ℒ/∂u‖²: that is the loss whose flow a step follows up to O(η³).

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        until: T > 0 in flow time.
        steps: the numbers K of steps, whole and increasing, shape (lanes,).

    Returns:
        the errors, shape (lanes,); NaN where a run diverged, or the flow did.

    Raises:
        ValueError: shapes or numbers that make no sense (T traced: NaN).

    Source: the modified loss, Barrett & Dherin 2021; that it is of first order,
    `discretisation_order`.

    >>> problem = ddln.least_squares([[1.0]], [2.0], normalisation="half")
    >>> from ddln.verification.descent_certificates import discretisation_error
    >>> errors = discretisation_error(problem, [[0.5], [0.5]], 1.0, [200, 400])
    >>> [round(float(x), 4) for x in errors]
    [0.0021, 0.0011]
    """
    layers = as_layers(layers, problem.dim)
    counts = np.asarray(steps)
    whole = counts.ndim == 1 and counts.size > 0 and np.issubdtype(counts.dtype, np.integer)
    if not whole or counts[0] < 1 or (np.diff(counts) <= 0).any():
        raise ValueError(
            f"`steps` must be whole numbers that increase from 1 or more, got {steps}."
        )
    counts = tuple(counts.tolist())
    return _against_the_flow(problem, layers, as_positive("until", until), counts)[0]


def discretisation_order(
    problem: Problem, layers: ArrayLike, until: Number, *, steps: int = 1000
) -> Claim:
    """The claim that gradient descent follows the flow to first order in its step η.

    With E(η) = ‖θ_K − θ(T)‖, Kη = T, and s(η) = log₂ E(2η)/E(η), which is 1 + cη + O(η²), what is
    measured is 2s(η) − s(2η) at the smallest η: the slope in η, free of its own first-order error.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        until: T > 0 in flow time.
        steps: K of the largest step; the others take 2K and 4K.

    Returns:
        a `Claim`: predicted 1, tolerance 0.02. It does not apply where the steps are too large (s
        still moves by 0.02, or ηS > ½ of the largest, S the sharpness along the flow) or too small
        (E not far above the accuracy of the flow and of 4K steps).

    Raises:
        ValueError: shapes or numbers that make no sense (T traced: NaN).

    Source: as derived in docs/theory.md, after Barrett & Dherin 2021.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [1.0])
    >>> claim = ddln.discretisation_order(problem, [[0.0, 0.0], [1.0, 0.8], [0.9, 1.1]], 1.0)
    >>> bool(claim.applies), round(float(claim.measured), 3)
    (True, 1.0)
    """
    if steps < 1:
        raise ValueError(f"`steps` must be ≥ 1, got {steps}.")
    layers, until = as_layers(layers, problem.dim), as_positive("until", until)
    counts = (steps, 2 * steps, 4 * steps)
    errors, flow = _against_the_flow(problem, layers, until, counts)
    slopes = jnp.log2(errors[:-1] / errors[1:])
    change = slopes[1] - slopes[0]
    reach = until / steps * largest(diagnostics.sharpness(problem, flow))
    rounding = 30 * flow.rtol + counts[-1] * jnp.finfo(flow.theta.dtype).eps
    floor = rounding * largest(jnp.linalg.norm(flow.theta, axis=1))
    return Claim(
        "order of the steps",
        "as derived in docs/theory.md",
        "gradient descent is off the flow, at equal time, in proportion to its step",
        slopes[1] + change,
        1.0,
        _SLOPE,
        reason="what is of third order in the step, that of second order being taken out",
        applies=(reach < _SMALL) & (jnp.abs(change) < _SLOPE) & (errors[-1] > _ABOVE * floor),
    )


@eqx.filter_jit
def _against_the_flow(problem, layers, until, counts):
    """The errors, and the flow."""
    rtol = max(_TIGHT, 100 * float(jnp.finfo(layers.dtype).eps))
    times = jnp.linspace(0.0, until, _SAMPLES)
    flow = gradient_flow(problem, layers, times, rtol=rtol, throw=False)

    # Lanes take as many steps as the last of them, and are read off where they reach the time.
    def lane(rate):
        rule = optimiser("sgd", learning_rate=rate)
        controls = {"record_at": counts, "ledger": False, "throw": False}
        return descend(problem, layers, rule, steps=counts[-1], **controls)

    run = jax.vmap(lane)(until / jnp.asarray(counts, until.dtype))
    there = np.arange(len(counts))
    return jnp.linalg.norm(run.theta[there, 1 + there] - flow.theta[-1:], axis=1), flow
