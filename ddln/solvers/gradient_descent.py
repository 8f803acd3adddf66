"""Discrete training of the layers by any optax rule, many steps in one compiled loop.

    u_{k+1} = u_k + rule(g_k),   g_k the gradient that the oracle sees at u_k

Between two records nothing is kept but the state, and a run goes on from its state bit for bit,
wherever it was cut and whatever is recorded.

At depth 2, with plain steps u ← u − γ (∇ℓ ⊙ v), v ← v − γ (∇ℓ ⊙ u), whatever the samples and γ,

    u ± v  ←  (1 ∓ γ ∇ℓ) ⊙ (u ± v),       u² − v²  ←  (1 − γ² (∇ℓ)²) ⊙ (u² − v²),

so a run keeps the products of these factors (`Ledger`) for its certificates.

Source: u² − v² and what follows for the limit, Even et al. 2023.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, Number, as_floats, as_layers, is_concrete, refuse
from ddln.networks.layers import effective_parameter
from ddln.problems.base import Problem
from ddln.solvers.gradient_estimators import Oracle, Sampling, value
from ddln.solvers.optimisers import Optimiser, as_optimiser
from ddln.solvers.result import Run

STATUS = ("ok", "stopped", "diverged")
"""What the codes in `Descent.status` mean, in order: all steps taken; the gap was reached; the loss
was not finite, or above `largest_loss`."""

_OK, _STOPPED, _DIVERGED = range(3)
_DEFAULT_RECORDS = 100
_BLOCK = 64  # steps
_REPORTS = 20  # calls of `progress` in a run


class Ledger(eqx.Module):
    """What the factors 1 ∓ γ∇ℓ of all steps from the start come to; depth 2, plain steps."""

    growth: Float[Array, "*records 2 dim"]
    """Π_k (1 − γ_k ∇ℓ_k), by which u + v has grown, and Π_k (1 + γ_k ∇ℓ_k), by which u − v has."""
    dual: Float[Array, "*records dim"]
    """−Σ_k γ_k ∇ℓ_k."""


class OpenLedger(eqx.Module):
    """A ledger that steps are still added to."""

    whole: Ledger
    """Up to the last multiple of 64 steps."""
    since: Ledger
    """Of the steps since then, the growth less 1."""

    @property
    def now(self) -> Ledger:
        """Up to the last step."""
        growth, dual = self.whole.growth, self.whole.dual
        return Ledger(growth + growth * self.since.growth, dual + self.since.dual)


class State(eqx.Module):
    """Where a run stands: all that it takes to go on."""

    layers: Float[Array, "depth dim"]
    memory: Any
    """The optimiser's state."""
    ledger: OpenLedger | None
    taken: Int[Array, ""]
    """Steps taken until it ended; `step` and `time` go on, so that lanes share them."""
    step: Int[Array, ""]
    time: Float[Array, ""]
    order: Int[Array, " samples"] | None
    """Of the current pass through the samples, without replacement."""
    key: UInt[Array, " words"] | None
    """As plain words, so that a state can be written to a file (`eqx.tree_serialise_leaves`)."""
    generator: str | None = eqx.field(static=True)


class Method(eqx.Module):
    """The rule and the oracle of a run; unlike them, a pytree of arrays alone, so that `jax.vmap`
    can return it."""

    numbers: list[Any]
    others: tuple[Any, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def __init__(self, optimiser: Optimiser, oracle: Oracle):
        leaves, self.structure = jax.tree.flatten((optimiser, oracle))
        self.numbers = [leaf if eqx.is_array(leaf) else None for leaf in leaves]
        self.others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)

    def parts(self) -> tuple[Optimiser, Oracle]:
        """Optimiser and oracle."""
        leaves = [
            other if number is None else number
            for number, other in zip(self.numbers, self.others, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


class Descent(Run):
    """A run: what was recorded. NaN from where it diverged; at rest from where it stopped."""

    steps: Int[Array, " points"]
    """Taken from the very start; where γ is not known, `times` are these."""
    ledger: Ledger | None
    """At each point; None where its identities do not hold."""
    rates: Float[Array, " points"] | None
    """γ of the next step, of plain steps on all samples; else None."""
    state: State
    """To go on from: `descend(problem, run.state, …)`."""
    carried: tuple[Any, Int[Array, "points samples"] | None]
    """The optimiser's state and the order of the samples at each point: with its layers, what it
    takes to take the steps from there again."""
    method: Method

    endings: ClassVar = STATUS


@jax.custom_batching.custom_vmap
def _over_lanes(value):
    """The largest over all lanes of a vmap, one number for all: so a loop's length stays one."""
    return value


@_over_lanes.def_vmap
def _(lanes, is_batched, value):
    return _over_lanes(jnp.max(value) if is_batched[0] else value), False


def _step(
    problem: Problem, optimiser: Optimiser, oracle: Oracle, state: State
) -> tuple[State, Any]:
    """The state after a step, and the ∇ℓ(θ) of the step where there is one."""
    key = None if state.key is None else jax.random.wrap_key_data(state.key, impl=state.generator)
    batch, order = oracle.sampling.draw(problem, key, state.step, state.order)
    gradient, slope = oracle.gradient(problem, state.layers, batch)

    def loss(layers):
        return value(problem, effective_parameter(layers), batch)

    # Line searches ask for the loss; XLA drops it where nothing does.
    asked = {"value": loss(state.layers), "grad": gradient, "value_fn": loss}
    updates, memory = optimiser.update(gradient, state.memory, state.layers, **asked)
    layers = optax.apply_updates(state.layers, updates)
    state = dataclasses.replace(
        state, layers=layers, memory=memory, step=state.step + 1, order=order
    )
    return state, slope


def _steps(problem: Problem, optimiser: Optimiser, oracle: Oracle, state: State, count) -> State:
    """The state some steps later.

    Every step is one turn of the same loop: XLA rounds a step by how it is fused with what stands
    beside it, so that a loop over pairs of steps, and one over the last of an odd number, would let
    the last digits depend on where the records lie.
    """
    ledger = state.ledger
    if ledger is None:

        def alone(_, state):
            return _step(problem, optimiser, oracle, state)[0]

        return jax.lax.fori_loop(0, count, alone, state)

    def block(carry):
        done, state, ledger = carry
        length = jnp.minimum(_BLOCK - state.step % _BLOCK, count - done)
        return done + length, *_block(problem, optimiser, oracle, state, ledger, length)

    # The ledger beside the state, not in it.
    start = jnp.zeros_like(count), dataclasses.replace(state, ledger=None), ledger
    _, state, ledger = jax.lax.while_loop(lambda carry: carry[0] < count, block, start)
    return dataclasses.replace(state, ledger=ledger)


def _block(
    problem: Problem,
    optimiser: Optimiser,
    oracle: Oracle,
    state: State,
    ledger: OpenLedger,
    count: Int[Array, ""],
) -> tuple[State, OpenLedger]:
    """Steps up to a multiple of 64 at most, and the ledger with what they add to it.

    In one product over all steps factors near 1 would lose what each of them has beyond 1: so each
    64 steps have their own, less 1. They are counted from the start of the run, not from a record.
    """
    sign = jnp.asarray([[-1.0], [1.0]], state.layers.dtype)

    def step(_, carry):
        state, since = carry
        rate = jnp.asarray(optimiser.learning_rate(state.step), state.layers.dtype)
        state, slope = _step(problem, optimiser, oracle, state)
        factor = sign * (rate * slope)[None]
        growth = since.growth + (factor + since.growth * factor)
        return state, Ledger(growth, since.dual - rate * slope)

    state, since = jax.lax.fori_loop(0, count, step, (state, ledger.since))
    ledger = OpenLedger(ledger.whole, since)
    closed = OpenLedger(ledger.now, jax.tree.map(jnp.zeros_like, since))
    is_whole = state.step % _BLOCK == 0
    return state, jax.tree.map(partial(jnp.where, is_whole), closed, ledger)


def _is_plain(optimiser: Optimiser, oracle: Oracle) -> bool:
    """Whether a step is u − γ (∇ℓ ⊙ the other layers), as the ledger assumes."""
    return optimiser.is_gradient_descent and isinstance(oracle, Sampling)


@eqx.filter_jit
def _begin(problem, layers, optimiser, oracle, key, with_ledger) -> State:
    ledger = None
    if with_ledger and layers.shape[0] == 2 and _is_plain(optimiser, oracle):
        whole = Ledger(jnp.ones_like(layers), jnp.zeros_like(layers[0]))
        ledger = OpenLedger(whole, jax.tree.map(jnp.zeros_like, whole))
    return State(
        layers=layers,
        memory=optimiser.init(layers),
        ledger=ledger,
        taken=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        time=jnp.zeros((), layers.dtype),
        order=oracle.sampling.first_order(problem),
        key=None if key is None else jax.random.key_data(key),
        generator=None if key is None else str(jax.random.key_impl(key)),
    )


@eqx.filter_jit
def _descend(problem, optimiser, oracle, state, lengths, target_gap, largest_loss) -> Descent:
    """Records at the start, and after so many steps more each."""
    # One clock for all lanes: batched, it would make a choice on each lane of each `cond`.
    state = dataclasses.replace(state, step=_over_lanes(state.step))

    def look(state, status):
        theta = effective_parameter(state.layers)
        loss, gap = problem.loss(theta), problem.gap(theta)
        seen = jnp.where(
            loss < largest_loss, jnp.where(gap <= target_gap, _STOPPED, _OK), _DIVERGED
        )
        status = jnp.where(status == _OK, seen, status)
        saved = (state.layers, theta, loss, gap, state.ledger and state.ledger.now)
        saved = jax.tree.map(lambda x: jnp.where(status == _DIVERGED, jnp.nan, x), saved)
        return status, (state.step, state.time, *saved, (state.memory, state.order))

    def segment(carry, length):
        state, status = carry
        runs = status == _OK
        count = jnp.where(_over_lanes(runs), length, 0)
        moved = _steps(problem, optimiser, oracle, state, count)
        lane, before = ((state.layers, state.memory, state.ledger) for state in (moved, state))
        layers, memory, ledger = jax.tree.map(
            lambda new, old: jnp.where(runs, new, old), lane, before
        )
        state = dataclasses.replace(
            moved,
            layers=layers,
            memory=memory,
            ledger=ledger,
            taken=state.taken + jnp.where(runs, length, 0),
            step=state.step + length,
            time=optimiser.elapsed(state.step, length, state.time),
        )
        status, record = look(state, status)
        return (state, status), record

    status, first = look(state, jnp.asarray(_OK))
    (state, status), later = jax.lax.scan(segment, (state, status), lengths)
    records = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, later)
    steps, times, layers, theta, loss, gap, ledger, carried = records
    rates = None
    if _is_plain(optimiser, oracle) and oracle.sampling.is_exact:
        rates = jax.vmap(lambda step: jnp.asarray(optimiser.learning_rate(step), gap.dtype))(steps)
    stats = {"num_steps": state.taken}
    curve = times, layers, theta, loss, gap, status, stats
    return Descent(*curve, steps, ledger, rates, state, carried, Method(optimiser, oracle))


def replay(
    problem: Problem,
    run: Descent,
    place: Int[Array, ""],
    layers: Float[Array, "depth dim"],
    count: Int[Array, ""],
) -> Float[Array, "depth dim"]:
    """The layers some steps after a record, taken again with its rule, oracle, key and state.

    Args:
        problem: the loss.
        run: of the record.
        place: which record.
        layers: where to start, such as `run.layers[place]`.
        count: how many steps.
    """
    optimiser, oracle = run.method.parts()
    memory, order = jax.tree.map(lambda recorded: recorded[place], run.carried)
    state = dataclasses.replace(
        run.state, layers=layers, memory=memory, order=order, step=run.steps[place], ledger=None
    )

    def step(_, state):
        return _step(problem, optimiser, oracle, state)[0]

    return jax.lax.fori_loop(0, count, step, state).layers


def descend(
    problem: Problem,
    layers: ArrayLike | State,
    optimiser: Optimiser | optax.GradientTransformation,
    *,
    steps: int,
    record_every: int | None = None,
    record_at: ArrayLike | None = None,
    oracle: Oracle | None = None,
    key: Array | None = None,
    target_gap: Number | None = None,
    largest_loss: Number | None = None,
    ledger: bool = True,
    progress: Callable[[Descent], None] | None = None,
    throw: bool = True,
) -> Descent:
    """Train the layers step by step.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim); or the `state` of a run, to go on from it.
        optimiser: from `ddln.optimiser`, whose numbers can be traced, or any optax transformation,
            whose numbers are part of the program.
        steps: how many steps to take.
        record_every: record every so many steps, and the last; `None` makes about 100 records.
        record_at: record at these steps instead, counted from here and increasing, and at the
            last: `np.unique(np.geomspace(1, steps, 60).astype(int))` is even in the logarithm.
        oracle: what gradient a step sees, `ddln.Sampling` or `ddln.SharpnessAware`; `None` is that
            of the whole loss.
        key: for what the oracle draws; a run that goes on has its own.
        target_gap: end once a record has a gap no larger.
        largest_loss: a loss at least as large counts as divergence; infinite by default.
        ledger: keep what the certificates of depth 2 need, for a quarter more of the time at most.
        progress: called with each twentieth of the run as it is there, a `Descent` with its own
            `state` to write down; not under transformations.
        throw: raise when the run diverges; else see `status`.

    Returns:
        A `Descent`, whose first record is the start. Other numbers (steps between records, step
        sizes, noise, seeds) run the same program; `jax.vmap` trains lanes side by side, until the
        last of them ends. Differentiable forwards (`jax.jvp`), the loop's length being a number.

    Raises:
        ValueError: shapes, sizes or numbers that make no sense, no key for an oracle that draws.
        RuntimeError: the run diverged and `throw`.

    Source: the discretisation of the flow of Proposition 1, arXiv 2412.16765: k steps of size η
    reach flow time kη.

    >>> import optax
    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.descend(problem, [[0.0], [1.0]], optax.sgd(0.05), steps=200)
    >>> round(float(run.theta[-1, 0]), 8)
    2.0
    >>> def final_loss(step):
    ...     rule = ddln.optimiser("sgd", learning_rate=step)
    ...     return ddln.descend(problem, [[0.0], [1.0]], rule, steps=20, throw=False).loss[-1]
    >>> [round(float(x), 4) for x in jax.jit(jax.vmap(final_loss))(jnp.array([0.01, 0.02]))]
    [1.3746, 0.1459]
    """
    drop_programs()
    rule, oracle = as_optimiser(optimiser), Sampling() if oracle is None else oracle
    oracle.check(problem)
    lengths = _lengths(steps, record_every, record_at)
    if isinstance(layers, State):
        state = _resumed(problem, layers, rule, oracle, key)
    else:
        if oracle.sampling.is_random and key is None:
            raise ValueError("`key` must be given for an oracle that draws.")
        layers = as_layers(layers, problem.dim)
        layers = layers.astype(jnp.promote_types(layers.dtype, problem.minimum.dtype))
        state = _begin(problem, layers, _in_dtype(rule, layers.dtype), oracle, key, ledger)
    state = _within_draws(state, steps, oracle)
    dtype = state.layers.dtype
    rule = _in_dtype(rule, dtype)
    target_gap = -jnp.inf if target_gap is None else as_floats("target_gap", target_gap, 0)
    largest_loss = jnp.inf if largest_loss is None else as_floats("largest_loss", largest_loss, 0)
    bounds = jnp.asarray(target_gap, dtype), jnp.asarray(largest_loss, dtype)
    block = len(lengths) if progress is None else -(-len(lengths) // _REPORTS)
    parts = []
    for first in range(0, len(lengths), block):
        part = _descend(problem, rule, oracle, state, lengths[first : first + block], *bounds)
        parts.append(part)
        state = part.state
        if progress is not None:
            progress(part)
    return _checked(_joined(parts) if len(parts) > 1 else parts[0], throw)


def _resumed(problem, state, optimiser, oracle, key) -> State:
    """The state, once it is seen to be one of such a run."""
    if key is not None:
        raise ValueError("`key` must be None where a run goes on: its state has one.")
    optimiser = _in_dtype(optimiser, state.layers.dtype)
    fresh = eqx.filter_eval_shape(_begin, problem, state.layers, optimiser, oracle, key, False)
    for name, seen, expected in (
        ("optimiser", state.memory, fresh.memory),
        ("oracle", state.order, fresh.order),
    ):
        shapes = [[jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (seen, expected)]
        same_tree = jax.tree.structure(seen) == jax.tree.structure(expected)
        if not same_tree or shapes[0] != shapes[1]:
            raise ValueError(f"`{name}` must be of the same kind as in the run that goes on.")
    if oracle.sampling.is_random and state.key is None:
        raise ValueError("`oracle` must not draw where the run that goes on had no key.")
    return state if _is_plain(optimiser, oracle) else dataclasses.replace(state, ledger=None)


def _within_draws(state: State, steps: int, oracle: Oracle) -> State:
    """The state; refused where the oracle's draws end before the run, or NaN if that is traced."""
    drawn = oracle.sampling.steps
    if drawn is None:
        return state
    last = state.step + steps
    message = f"`steps` must be at most {drawn}, for which the oracle has draws, got up to {last}."
    return dataclasses.replace(state, layers=refuse(last > drawn, message, state.layers))


def _lengths(steps, record_every, record_at) -> Int[np.ndarray, " segments"]:
    """Steps from each record to the next."""
    if steps < 1:
        raise ValueError(f"`steps` must be ≥ 1, got {steps}.")
    if record_every is not None and record_at is not None:
        raise ValueError("`record_every` must be None where `record_at` is given.")
    if record_at is None:
        every = -(-steps // _DEFAULT_RECORDS) if record_every is None else record_every
        if every < 1:
            raise ValueError(f"`record_every` must be ≥ 1, got {every}.")
        marks = np.arange(0, steps, every)
    else:
        marks = np.asarray(record_at)
        if marks.ndim != 1 or not np.issubdtype(marks.dtype, np.integer):
            raise ValueError(f"`record_at` must be a list of whole numbers, got {record_at}.")
        marks = np.concatenate([[0], marks[marks != 0]])
        if (np.diff(marks) <= 0).any() or marks[-1] > steps:
            raise ValueError(f"`record_at` must increase from 0 or more to at most {steps}.")
    ends = marks if marks[-1] == steps else np.append(marks, steps)
    return np.diff(ends).astype(np.int32)


def _in_dtype(rule: Optimiser, dtype: Any) -> Optimiser:
    """Its numbers of the layers' type, so that these stay of theirs."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, rule)


def _joined(parts: list[Descent]) -> Descent:
    """Runs of which each went on where the one before ended."""
    names = ("steps", "times", "layers", "theta", "loss", "gap", "ledger", "rates", "carried")
    recorded = [tuple(getattr(part, name) for name in names) for part in parts]
    recorded[1:] = jax.tree.map(lambda saved: saved[1:], recorded[1:])
    whole = jax.tree.map(lambda *saved: jnp.concatenate(saved), *recorded)
    return dataclasses.replace(parts[-1], **dict(zip(names, whole, strict=True)))


def _checked(run: Descent, throw: bool) -> Descent:
    if not throw:
        return run
    if is_concrete(run.status):
        if not run.ok:
            raise RuntimeError(
                f"The descent diverged within {int(run.stats['num_steps'])} steps: lower the step "
                "size (`ddln.theory.largest_stable_step` is that of gradient descent at given "
                "layers), or pass `throw=False` for the run."
            )
        return run
    return eqx.error_if(run, ~run.ok, "The descent diverged: pass `throw=False` for its status.")
