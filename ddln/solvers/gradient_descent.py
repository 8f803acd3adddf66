"""Gradient descent on the layers by any optax rule, many steps in one compiled loop.

    u_{k+1} = u_k + rule(g_k),   g_k the gradient estimate at u_k

The state is all that is kept between two records. A run continues from its state bit for bit,
wherever it was interrupted and whatever is recorded.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, Number, as_floats, as_layers, refuse
from ddln.networks.layers import Function
from ddln.networks.parametrisation import Parametrisation
from ddln.problems.base import Problem
from ddln.solvers._descent_loop import STATUSES, Bounds, descent_loop, is_plain, take_steps
from ddln.solvers._descent_state import AccumulatedSteps, Method, State, StepAccumulator
from ddln.solvers.gradient_estimators import GradientEstimator, Sampling
from ddln.solvers.optimisers import Optimiser, as_optimiser
from ddln.solvers.result import Run, raise_on_failure
from ddln.solvers.weight_decay import WeightDecay

_DEFAULT_RECORDS = 100
_PROGRESS_CALLS = 20


class Descent(Run):
    """Recorded points of gradient descent.

    Records are NaN from where the run diverged, and constant from where it stopped. Its statuses:
    all steps taken; target gap reached; loss or gap not finite, or loss above `largest_loss`.
    """

    steps: Int[Array, " points"]
    """Number of steps from the very start; `times` equal it if γ is unknown."""
    ledger: AccumulatedSteps | None
    """Accumulated steps at each point; None unless the steps are plain ones of two layers."""
    rates: Float[Array, " points"] | None
    """γ of the next step, for plain steps on all samples; else None."""
    state: State
    """The last state, from which `descend(problem, run.state, …)` continues."""
    carried: tuple[Any, Int[Array, "points samples"] | None]
    """State of the optimiser and order of the samples at each point: with the layers there, enough
    to repeat the steps that follow."""
    method: Method

    curves: ClassVar = (*Run.curves, "ledger", "carried")
    statuses: ClassVar = STATUSES

    @property
    def function(self) -> Function | None:
        return self.state.function


class _DescentOptions(NamedTuple):
    """What `descend` is given, checked and in the right types."""

    optimiser: Optimiser
    estimator: GradientEstimator
    bounds: Bounds


@eqx.filter_jit
def _start(
    problem: Problem,
    layers: Float[Array, "depth dim"],
    optimiser: Optimiser,
    estimator: GradientEstimator,
    key: PRNGKeyArray | None,
    with_ledger: bool,
    function: Function | None,
) -> State:
    """The state before the first step."""
    is_of_two_layers = layers.shape[0] == 2 and function is None
    accumulates = with_ledger and is_of_two_layers and is_plain(optimiser, estimator)
    return State(
        layers=layers,
        carry=optimiser.init(layers),
        ledger=StepAccumulator.start(layers) if accumulates else None,
        taken=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        time=jnp.zeros((), layers.dtype),
        order=estimator.sampling.first_order(problem),
        key=None if key is None else jax.random.key_data(key),
        generator=None if key is None else str(jax.random.key_impl(key)),
        function=function,
    )


@eqx.filter_jit
def _train(
    problem: Problem, controls: _DescentOptions, state: State, lengths: Int[Array, " segments"]
) -> Descent:
    """A run with a record at the start and after each of the given numbers of steps."""
    optimiser, estimator, bounds = controls
    state, status, records = descent_loop(problem, optimiser, estimator, state, lengths, bounds)
    rates = None
    if is_plain(optimiser, estimator) and estimator.sampling.is_exact:
        rates = jax.vmap(
            lambda step: jnp.asarray(optimiser.learning_rate(step), records.gap.dtype)
        )(records.step)
    return Descent(
        times=records.time,
        layers=records.layers,
        theta=records.theta,
        loss=records.loss,
        gap=records.gap,
        status=status,
        stats={"num_steps": state.taken},
        steps=records.step,
        ledger=records.ledger,
        rates=rates,
        state=state,
        carried=records.carry,
        method=Method(optimiser, estimator),
    )


def replay(
    problem: Problem,
    run: Descent,
    index: Int[Array, ""],
    layers: Float[Array, "depth dim"],
    count: Int[Array, ""],
) -> Float[Array, "depth dim"]:
    """Repeat the steps that follow a record, with the same optimiser, estimator and draws.

    Args:
        problem: the loss.
        run: to repeat.
        index: of the record.
        layers: where to start, such as `run.layers[index]`.
        count: number of steps.

    Returns:
        The layers after these steps.
    """
    optimiser, estimator = run.method.unpack()
    carry, order = jax.tree.map(lambda recorded: recorded[index], run.carried)
    state = dataclasses.replace(
        run.state, layers=layers, carry=carry, order=order, step=run.steps[index], ledger=None
    )
    return take_steps(problem, optimiser, estimator, state, count).layers


def descend(
    problem: Problem,
    layers: ArrayLike | Parametrisation | State,
    optimiser: Optimiser | optax.GradientTransformation,
    *,
    steps: int,
    record_every: int | None = None,
    record_at: ArrayLike | None = None,
    oracle: GradientEstimator | None = None,
    key: PRNGKeyArray | None = None,
    weight_decay: WeightDecay | Number | None = None,
    decoupled: bool = False,
    target_gap: Number | None = None,
    largest_loss: Number | None = None,
    ledger: bool = True,
    progress: Callable[[Descent], None] | None = None,
    throw: bool = True,
) -> Descent:
    """Train the layers by gradient descent or another first-order method.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim); or a `ddln.Parametrisation`, to train its
            parameters w, which are then the run's `layers`; or the `state` of a run, to continue
            it.
        optimiser: from `ddln.optimiser`, with numbers that can be traced, or any optax
            transformation, whose numbers are compiled into the program.
        steps: number of steps.
        record_every: number of steps from one record to the next; the last step is recorded too.
            `None` makes about 100 records.
        record_at: steps to record instead, increasing and counted from the start of this call; the
            last step is recorded too. `np.unique(np.geomspace(1, steps, 60).astype(int))` is
            uniform in the logarithm.
        oracle: gradient estimator of a step, `ddln.Sampling` or `ddln.SharpnessAware`; `None` is
            the exact gradient.
        key: for the draws of the estimator; a run that continues has its own.
        weight_decay, decoupled: as in `ddln.optimiser`, for an optimiser without decay of its own:
            L2 regularisation in the loss, or a shrinkage beside the rule. Schedules are in flow
            time, or in steps if γ is unknown.
        target_gap: stop at the first record with at most this gap.
        largest_loss: losses from here on count as divergence; infinite by default.
        ledger: accumulate what the certificates need at depth 2. A step of plain gradient descent
            then takes up to twice as long.
        progress: called after each twentieth of the run with that part of it, a `Descent` whose
            `state` can be saved; not available under transformations.
        throw: raise an error if the run diverges; otherwise `status` tells.

    Returns:
        A `Descent`, whose first record is the start. Calls that differ only in numbers (steps
        between records, step sizes, noise, seeds) share a compiled program. A batch under
        `jax.vmap` continues until its last run ends. Supports forward-mode differentiation
        (`jax.jvp`).

    Raises:
        ValueError: invalid shapes, sizes or numbers, no key for an estimator that draws, or weight
            decay that ends before the run or is the optimiser's already.
        RuntimeError: the run diverged, and `throw` is true.

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
    rule, estimator = as_optimiser(optimiser), Sampling() if oracle is None else oracle
    if weight_decay is not None:
        rule = rule.with_weight_decay(weight_decay, decoupled)
    estimator.check(problem)
    lengths = _segment_lengths(steps, record_every, record_at)
    if isinstance(layers, State):
        state = _resume(problem, layers, rule, estimator, key)
    else:
        if estimator.sampling.is_random and key is None:
            raise ValueError("`key` must be given if `oracle` draws at random.")
        function = layers.function if isinstance(layers, Parametrisation) else None
        layers = layers.start if isinstance(layers, Parametrisation) else layers
        layers = as_layers(layers, problem.dim)
        layers = layers.astype(jnp.promote_types(layers.dtype, problem.minimum.dtype))
        rule = _in_dtype(rule, layers.dtype)
        state = _start(problem, layers, rule, estimator, key, ledger, function)
    state = _check_schedule(_check_draws(state, steps, estimator), steps, rule)
    dtype = state.layers.dtype
    controls = _DescentOptions(
        _in_dtype(rule, dtype), estimator, _as_bounds(target_gap, largest_loss, dtype)
    )
    run = _train_in_parts(problem, controls, state, lengths, progress)
    return raise_on_failure(run) if throw else run


def _train_in_parts(
    problem: Problem,
    controls: _DescentOptions,
    state: State,
    lengths: Int[np.ndarray, " segments"],
    progress: Callable[[Descent], None] | None,
) -> Descent:
    """The whole run; if progress is to be reported, as several parts joined together."""
    size = len(lengths) if progress is None else -(-len(lengths) // _PROGRESS_CALLS)
    parts = []
    for first in range(0, len(lengths), size):
        some = jnp.asarray(lengths[first : first + size])
        part = _train(problem, controls, state, some)
        parts.append(part)
        state = part.state
        if progress is not None:
            progress(part)
    return _join(parts) if len(parts) > 1 else parts[0]


def _join(parts: list[Descent]) -> Descent:
    """Join runs that each continue from the one before."""
    names = ("steps", "times", "layers", "theta", "loss", "gap", "ledger", "rates", "carried")
    records = [tuple(getattr(part, name) for name in names) for part in parts]
    # The first record of a part is the last of the one before.
    records[1:] = jax.tree.map(lambda saved: saved[1:], records[1:])
    joined = jax.tree.map(lambda *saved: jnp.concatenate(saved), *records)
    return dataclasses.replace(parts[-1], **dict(zip(names, joined, strict=True)))


def _resume(
    problem: Problem,
    state: State,
    optimiser: Optimiser,
    estimator: GradientEstimator,
    key: PRNGKeyArray | None,
) -> State:
    """Check that a run with this optimiser and estimator can continue from the state."""
    if key is not None:
        raise ValueError("`key` must be None for a run that continues: its state has a key.")
    optimiser = _in_dtype(optimiser, state.layers.dtype)
    fresh = eqx.filter_eval_shape(
        _start, problem, state.layers, optimiser, estimator, key, False, state.function
    )
    for name, given, expected in (
        ("optimiser", state.carry, fresh.carry),
        ("oracle", state.order, fresh.order),
    ):
        shapes = [[jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (given, expected)]
        same_tree = jax.tree.structure(given) == jax.tree.structure(expected)
        if not same_tree or shapes[0] != shapes[1]:
            raise ValueError(f"`{name}` must be of the same kind as in the run that continues.")
    if estimator.sampling.is_random and state.key is None:
        raise ValueError("`oracle` must not draw if the run that continues had no key.")
    return state if is_plain(optimiser, estimator) else dataclasses.replace(state, ledger=None)


def _check_draws(state: State, steps: int, estimator: GradientEstimator) -> State:
    """Check that the estimator has draws for all steps; if traced, a lack of them gives NaN."""
    available = estimator.sampling.steps
    if available is None:
        return state
    last = state.step + steps
    message = f"`steps` must be at most {available}, for which there are draws, got up to {last}."
    return dataclasses.replace(state, layers=refuse(last > available, message, state.layers))


def _check_schedule(state: State, steps: int, optimiser: Optimiser) -> State:
    """Check that weight decay covers all steps; if traced, the layers become NaN otherwise."""
    decay = optimiser.weight_decay
    if not isinstance(decay, WeightDecay):
        return state
    end = optimiser.elapsed(state.step, jnp.asarray(steps, jnp.int32), state.time)
    # The accumulated time of many steps has rounding errors.
    is_short = decay.edges[-1] < end * (1 - 1e-6)
    message = (
        "`weight_decay` must cover all steps, got a schedule that ends before the last of them: "
        "add a piece, or let `ddln.weight_decay.piecewise` end at inf."
    )
    return dataclasses.replace(state, layers=refuse(is_short, message, state.layers))


def _as_bounds(target_gap: Number | None, largest_loss: Number | None, dtype: jnp.dtype) -> Bounds:
    """When the run ends early, in the type of the layers."""
    target_gap = -jnp.inf if target_gap is None else as_floats("target_gap", target_gap, 0)
    largest_loss = jnp.inf if largest_loss is None else as_floats("largest_loss", largest_loss, 0)
    return Bounds(jnp.asarray(target_gap, dtype), jnp.asarray(largest_loss, dtype))


def _in_dtype(optimiser: Optimiser, dtype: jnp.dtype) -> Optimiser:
    """Its numbers in the type of the layers, so that the layers keep their type."""
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, optimiser)


def _segment_lengths(
    steps: int, record_every: int | None, record_at: ArrayLike | None
) -> Int[np.ndarray, " segments"]:
    """Number of steps from each record to the next."""
    if steps < 1:
        raise ValueError(f"`steps` must be ≥ 1, got {steps}.")
    if record_every is not None and record_at is not None:
        raise ValueError("`record_every` must be None if `record_at` is given.")
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
