"""The compiled loop of gradient descent: steps, and records between them.

Every step is one iteration of the same loop. XLA rounds a step according to the operations that it
is fused with, so a loop over pairs of steps, with another for an odd last step, would make the last
digits depend on where the records lie.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ddln.networks.layers import theta_of
from ddln.problems.base import Problem
from ddln.solvers._descent_state import (
    BLOCK,
    AccumulatedSteps,
    State,
    StepAccumulator,
    add_step,
)
from ddln.solvers.gradient_estimators import GradientEstimator, Sampling, estimated_loss
from ddln.solvers.optimisers import Optimiser
from ddln.solvers.status import Status

STATUSES = (Status.OK, Status.STOPPED, Status.DIVERGED)
_OK, _STOPPED, _DIVERGED = range(3)


class Record(NamedTuple):
    """What a run saves at a point."""

    step: Int[Array, "*points"]
    time: Float[Array, "*points"]
    layers: Float[Array, "*points depth dim"]
    theta: Float[Array, "*points dim"]
    loss: Float[Array, "*points"]
    gap: Float[Array, "*points"]
    ledger: AccumulatedSteps | None
    carry: tuple[Any, Int[Array, "*points samples"] | None]
    """State of the optimiser, and order of the samples."""


class Bounds(NamedTuple):
    """When a run ends early."""

    target_gap: Float[Array, ""]
    largest_loss: Float[Array, ""]


_Counted = tuple[Int[Array, ""], State, StepAccumulator]
"""The carry of a loop: steps done, the state without its ledger, the ledger."""


_Value = Int[Array, "..."] | Bool[Array, "..."]


@jax.custom_batching.custom_vmap
def batch_maximum(value: _Value) -> _Value:
    """The maximum over all networks of a `jax.vmap`; not batched, so that loops have one length."""
    return value


@batch_maximum.def_vmap
def _(batch_size: int, is_batched: Sequence[bool], value: _Value) -> tuple[_Value, bool]:
    return batch_maximum(jnp.max(value) if is_batched[0] else value), False


def is_plain(optimiser: Optimiser, estimator: GradientEstimator) -> bool:
    """Whether a step is u − γ (∇ℓ ⊙ the other layers), as `AccumulatedSteps` assumes."""
    return optimiser.is_gradient_descent and isinstance(estimator, Sampling)


def take_step(
    problem: Problem, optimiser: Optimiser, estimator: GradientEstimator, state: State
) -> tuple[State, Any]:
    """Take a step. Also returns its ∇ℓ(θ), if the estimator has one."""
    key = None if state.key is None else jax.random.wrap_key_data(state.key, impl=state.generator)
    batch, order = estimator.sampling.draw(problem, key, state.step, state.order)
    gradient, slope = estimator.gradient(problem, state.layers, batch, state.function)

    def loss(layers: Float[Array, "depth dim"]) -> Float[Array, ""]:
        return estimated_loss(problem, theta_of(layers, state.function), batch)

    updates, carry = optimiser.update(
        gradient,
        state.carry,
        state.layers,
        # For line searches; XLA removes it for all other rules.
        value=loss(state.layers),
        grad=gradient,
        value_fn=loss,
    )
    layers = optax.apply_updates(state.layers, updates)
    state = dataclasses.replace(state, layers=layers, carry=carry, step=state.step + 1, order=order)
    return state, slope


def take_steps(
    problem: Problem,
    optimiser: Optimiser,
    estimator: GradientEstimator,
    state: State,
    count: Int[Array, ""],
) -> State:
    """Take a number of steps without accumulating them."""

    def body(_: Any, state: State) -> State:
        return take_step(problem, optimiser, estimator, state)[0]

    return jax.lax.fori_loop(0, count, body, state)


def _accumulate_steps(
    problem: Problem,
    optimiser: Optimiser,
    estimator: GradientEstimator,
    state: State,
    ledger: StepAccumulator,
    count: Int[Array, ""],
) -> State:
    """Take a number of steps and accumulate them in the state's ledger."""

    def block(carry: _Counted) -> _Counted:
        done, state, ledger = carry
        length = jnp.minimum(BLOCK - state.step % BLOCK, count - done)
        state, ledger = _block(problem, optimiser, estimator, state, ledger, length)
        return done + length, state, ledger

    # Loop over the ledger beside the state, not in it.
    start = jnp.zeros_like(count), dataclasses.replace(state, ledger=None), ledger
    _, state, ledger = jax.lax.while_loop(lambda carry: carry[0] < count, block, start)
    return dataclasses.replace(state, ledger=ledger)


def _block(
    problem: Problem,
    optimiser: Optimiser,
    estimator: GradientEstimator,
    state: State,
    ledger: StepAccumulator,
    count: Int[Array, ""],
) -> tuple[State, StepAccumulator]:
    """Take a number of steps within a block."""

    def body(_: Any, carry: tuple[State, AccumulatedSteps]) -> tuple[State, AccumulatedSteps]:
        state, block = carry
        rate = jnp.asarray(optimiser.learning_rate(state.step), state.layers.dtype)
        after, slope = take_step(problem, optimiser, estimator, state)
        return after, add_step(block, state.layers, rate, slope)

    state, block = jax.lax.fori_loop(0, count, body, (state, ledger.block))
    return state, ledger.with_block(block, state.step)


def _observe(
    problem: Problem, state: State, status: Int[Array, ""], bounds: Bounds
) -> tuple[Int[Array, ""], Record]:
    """Status and record of a state; the first end of a run decides its status."""
    theta = theta_of(state.layers, state.function)
    loss, gap = problem.loss(theta), problem.gap(theta)
    is_sound = (loss < bounds.largest_loss) & jnp.isfinite(gap)
    now = jnp.where(is_sound, jnp.where(gap <= bounds.target_gap, _STOPPED, _OK), _DIVERGED)
    status = jnp.where(status == _OK, now, status)
    saved = (state.layers, theta, loss, gap, state.ledger and state.ledger.total)
    saved = jax.tree.map(lambda x: jnp.where(status == _DIVERGED, jnp.nan, x), saved)
    return status, Record(state.step, state.time, *saved, carry=(state.carry, state.order))


def _advance(
    problem: Problem,
    optimiser: Optimiser,
    estimator: GradientEstimator,
    state: State,
    status: Int[Array, ""],
    length: Int[Array, ""],
) -> State:
    """The state `length` steps later; a run that has ended keeps its layers."""
    is_running = status == _OK
    count = jnp.where(batch_maximum(is_running), length, 0)
    if state.ledger is None:
        moved = take_steps(problem, optimiser, estimator, state, count)
    else:
        moved = _accumulate_steps(problem, optimiser, estimator, state, state.ledger, count)
    new, old = ((one.layers, one.carry, one.ledger) for one in (moved, state))
    layers, carry, ledger = jax.tree.map(lambda new, old: jnp.where(is_running, new, old), new, old)
    return dataclasses.replace(
        moved,
        layers=layers,
        carry=carry,
        ledger=ledger,
        taken=state.taken + jnp.where(is_running, length, 0),
        step=state.step + length,
        time=optimiser.elapsed(state.step, length, state.time),
    )


def descent_loop(
    problem: Problem,
    optimiser: Optimiser,
    estimator: GradientEstimator,
    state: State,
    lengths: Int[Array, " segments"],
    bounds: Bounds,
) -> tuple[State, Int[Array, ""], Record]:
    """Take steps, with a record at the start and after each of the given numbers of steps.

    Returns:
        The last state, the status, and the records stacked along a first axis.
    """
    # One step counter for the whole batch: a batched one would turn every `cond` into a `select`.
    state = dataclasses.replace(state, step=batch_maximum(state.step))

    def segment(
        carry: tuple[State, Int[Array, ""]], length: Int[Array, ""]
    ) -> tuple[tuple[State, Int[Array, ""]], Record]:
        state, status = carry
        state = _advance(problem, optimiser, estimator, state, status, length)
        status, record = _observe(problem, state, status, bounds)
        return (state, status), record

    status, first = _observe(problem, state, jnp.asarray(_OK), bounds)
    (state, status), later = jax.lax.scan(segment, (state, status), lengths)
    records = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, later)
    return state, status, records
