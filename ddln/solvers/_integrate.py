"""Integration of a batch of networks, each with its own step sizes, with output at given times.

Every iteration of the loop takes one step for the whole batch. A network whose step is rejected
retries with a smaller one in the next iteration; a finished network waits for the others. The steps
go to a dense-output buffer. When it is full, or all networks have finished, the solution at the
saved times that it covers is interpolated from it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln.solvers._step_size_controller import error_norm, step_factor
from ddln.solvers._steppers import Rodas5P, StepperSystem, Tsit5
from ddln.solvers.formulations import smallest_step
from ddln.solvers.status import Status
from ddln.solvers.trajectory import Trajectory

_BUFFER_BYTES = 4_000_000
"""Of a batch: every time it is full, all saved times are interpolated, which costs most."""


class BatchSolution(NamedTuple):
    """Solution of a batch of initial value problems.

    Attributes:
        saved: states at the saved times; NaN from where a network failed, constant from where
            it terminated.
        status: codes as in `Trajectory.status`.
        accepted, rejected: number of steps of each network.
        loop_iterations: number of steps computed for each network, including those during which
            it waited for others.
    """

    saved: Float[Array, "times dim batch"]
    status: Int[Array, " batch"]
    accepted: Int[Array, " batch"]
    rejected: Int[Array, " batch"]
    loop_iterations: Int[Array, ""]


class _Controls(NamedTuple):
    """Horizon, tolerances and step limits of an integration."""

    horizon: Float[Array, " batch"]
    rtol: Float[Array, " batch"]
    atol: Float[Array, "dim batch"]
    smallest_step: Float[Array, " batch"]
    max_steps: Int[Array, ""]


class _State(NamedTuple):
    """The batch between two steps."""

    time: Float[Array, " batch"]
    y: Float[Array, "dim batch"]
    carry: Any
    """What the stepper passes on from step to step."""
    step_size: Float[Array, " batch"]
    """Of the next step."""
    accepted: Int[Array, " batch"]
    rejected: Int[Array, " batch"]
    failed: Bool[Array, " batch"]
    terminated: Bool[Array, " batch"]


class _DenseOutput(NamedTuple):
    """Buffer of steps: their end points, and the coefficients of the polynomials in between.

    The first entry is the start of the first step. A rejected step, and one of a network that
    waits, ends where it starts.
    """

    time: Float[Array, "steps batch"]
    y: Float[Array, "steps dim batch"]
    coefficients: tuple[Float[Array, "steps dim batch"], ...]


_Saved = tuple[Int[Array, ""], _State, Float[Array, "times dim batch"]]
"""The carry of the outer loop: iterations, the batch, states at the saved times."""
_Filled = tuple[Int[Array, ""], _State, _DenseOutput]
"""The carry of the inner loop: the next entry of the buffer, the batch, the buffer."""


def integrate(
    system: StepperSystem,
    stepper: type[Tsit5] | type[Rodas5P],
    *,
    start: Float[Array, "dim batch"],
    first_step: Float[Array, " batch"],
    times: Float[Array, "times batch"],
    rtol: Float[Array, " batch"],
    atol: Float[Array, "dim batch"],
    max_steps: Int[Array, ""],
) -> BatchSolution:
    """Integrate from time 0 and save the solution at the given times.

    Args:
        system: the differential equation.
        stepper: the method.
        start: states at time 0.
        first_step: sizes of the first steps; a network fails if its first step is too small to
            change its time.
        times: saved times, increasing from 0 for each network.
        rtol, atol: relative tolerances, and absolute ones for each component of the state.
        max_steps: largest number of steps of a network, rejected ones included.
    """
    horizon = times[-1]
    controls = _Controls(horizon, rtol, atol, smallest_step(horizon), jnp.asarray(max_steps, int))
    state = _State(
        time=jnp.zeros_like(horizon),
        y=start,
        carry=stepper.start(system, start),
        step_size=first_step,
        accepted=jnp.zeros(horizon.shape, int),
        rejected=jnp.zeros(horizon.shape, int),
        failed=~(first_step > controls.smallest_step),
        terminated=system.is_terminated(start),
    )

    def fill_and_save(carry: _Saved) -> _Saved:
        iterations, before, saved = carry
        count, state, buffer = _fill_buffer(
            before, system=system, stepper=stepper, controls=controls
        )
        is_covered = (times > before.time[None]) & (times <= state.time[None])
        saved = jnp.where(is_covered[:, None], _interpolate(buffer, times), saved)
        return iterations + count, state, saved

    saved = jnp.where((times == 0)[:, None], start[None], jnp.nan)
    iterations, state, saved = jax.lax.while_loop(
        lambda carry: jnp.any(_is_active(carry[1], controls=controls)),
        fill_and_save,
        (jnp.asarray(0), state, saved),
    )
    stopped = state.terminated & (state.time < horizon)
    is_after_stop = stopped[None] & (times > state.time[None])
    return BatchSolution(
        saved=jnp.where(is_after_stop[:, None], state.y[None], saved),
        status=_status(state, controls=controls),
        accepted=state.accepted,
        rejected=state.rejected,
        loop_iterations=jnp.asarray(iterations),
    )


def _is_active(state: _State, *, controls: _Controls) -> Bool[Array, " batch"]:
    """Which networks take another step."""
    is_spent = state.accepted + state.rejected >= controls.max_steps
    is_before_end = state.time < controls.horizon
    return is_before_end & ~state.failed & ~state.terminated & ~is_spent


def _status(state: _State, *, controls: _Controls) -> Int[Array, " batch"]:
    """The codes of how the networks ended."""
    ok, max_steps, diverged, stopped = (
        Trajectory.code_of(status)
        for status in (Status.OK, Status.MAX_STEPS, Status.DIVERGED, Status.STOPPED)
    )
    unfinished = jnp.where(state.terminated, stopped, max_steps)
    status = jnp.where(state.time < controls.horizon, unfinished, ok)
    return jnp.where(state.failed, diverged, status)


def _fill_buffer(
    state: _State,
    *,
    system: StepperSystem,
    stepper: type[Tsit5] | type[Rodas5P],
    controls: _Controls,
) -> tuple[Int[Array, ""], _State, _DenseOutput]:
    """Take steps until the buffer is full or no network is active. Also counts them."""
    size = max(16, min(256, _BUFFER_BYTES // (4 * state.y.nbytes)))
    empty = jnp.zeros((size, *state.y.shape), state.y.dtype)
    buffer = _DenseOutput(
        time=jnp.full((size, *state.time.shape), jnp.inf, state.y.dtype).at[0].set(state.time),
        y=empty.at[0].set(state.y),
        coefficients=(empty,) * 3,
    )

    def is_unfinished(carry: _Filled) -> Bool[Array, ""]:
        index, state, _ = carry
        return (index < size) & jnp.any(_is_active(state, controls=controls))

    def take_step(carry: _Filled) -> _Filled:
        index, state, buffer = carry
        state, entry = _step(state, system=system, stepper=stepper, controls=controls)
        buffer = jax.tree.map(
            lambda entries, new: jax.lax.dynamic_update_index_in_dim(entries, new, index, 0),
            buffer,
            entry,
        )
        return index + 1, state, buffer

    index, state, buffer = jax.lax.while_loop(
        is_unfinished, take_step, (jnp.asarray(1), state, buffer)
    )
    return index - 1, state, buffer


def _step(
    state: _State,
    *,
    system: StepperSystem,
    stepper: type[Tsit5] | type[Rodas5P],
    controls: _Controls,
) -> tuple[_State, _DenseOutput]:
    """Try one step for every active network. Returns the new state and an entry of the buffer."""
    active = _is_active(state, controls=controls)
    remaining = controls.horizon - state.time
    # Stretch the last step slightly instead of leaving a tiny one.
    is_last = state.step_size >= 0.999 * remaining
    size = jnp.where(active, jnp.where(is_last, remaining, state.step_size), 1.0)
    step = stepper.step(system, state.time, state.y, state.carry, size)
    error = error_norm(state.y, step.end, step.error, rtol=controls.rtol, atol=controls.atol)
    accepted = active & (error <= 1)
    rejected = active & ~accepted
    end_time = jnp.where(is_last, controls.horizon, state.time + size)
    time = jnp.where(accepted, end_time, state.time)
    y = jnp.where(accepted[None], step.end, state.y)
    next_size = jnp.where(active, size * step_factor(error, accepted), state.step_size)
    carry = jax.tree.map(
        lambda new, old: jnp.where(accepted[None], new, old), step.carry, state.carry
    )
    state = _State(
        time=time,
        y=y,
        carry=carry,
        step_size=next_size,
        accepted=state.accepted + accepted.astype(int),
        rejected=state.rejected + rejected.astype(int),
        failed=state.failed | (rejected & (next_size < controls.smallest_step)),
        terminated=system.is_terminated(y),
    )
    return state, _DenseOutput(time, y, step.coefficients)


def _interpolate(
    buffer: _DenseOutput, times: Float[Array, "times batch"]
) -> Float[Array, "times dim batch"]:
    """The solution at the times that the buffer covers; arbitrary numbers elsewhere."""

    def find(buffer: _DenseOutput, times: Float[Array, " times"]) -> tuple[Any, ...]:
        # Of several steps with the same end, the first was accepted.
        last = jnp.clip(jnp.searchsorted(buffer.time, times), 1, buffer.time.size - 1)
        size = buffer.time[last] - buffer.time[last - 1]
        fraction = (times - buffer.time[last - 1]) / jnp.where(size > 0, size, 1.0)
        coefficients = [c[last] for c in buffer.coefficients]
        return buffer.y[last - 1], buffer.y[last], coefficients, fraction

    before, after, c, s = jax.vmap(find, in_axes=-1, out_axes=-1)(buffer, times)
    s = s[:, None]
    return (1 - s) * before + s * (after + (1 - s) * (c[0] + s * (c[1] + s * c[2])))
