"""Many lanes integrated side by side, each with steps of its own size, and saved at given times.

All lanes take a step at once; a lane whose step is rejected tries a smaller one next time, a lane
that is done waits. Steps are noted in a ring of polynomials, and whenever it is full, or every lane
is done, the saved times that they cover are read off.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln.solvers._steppers import Rodas5P, System, Tsit5
from ddln.solvers.formulations import smallest_step
from ddln.solvers.gradient_flow import STATUS

OK, MAX_STEPS, DIVERGED, STOPPED = map(STATUS.index, ("ok", "max_steps", "diverged", "stopped"))

_RING_BYTES = 1_000_000


class March(NamedTuple):
    """Lanes at the end.

    Attributes:
        saved: states at the saved times, NaN from where a lane failed, at rest from where it
            arrived.
        status: `OK`, `MAX_STEPS`, `DIVERGED` or `STOPPED`.
        accepted, rejected: steps of each lane.
        rounds: steps that were computed for each of the lanes, also while it waited.
    """

    saved: Float[Array, "times dim lanes"]
    status: Int[Array, " lanes"]
    accepted: Int[Array, " lanes"]
    rejected: Int[Array, " lanes"]
    rounds: Int[Array, ""]


class _Ring(NamedTuple):
    """The ends of steps, the first entry being where the ring starts.

    A step that was rejected, or not made, ends where it started.
    """

    time: Float[Array, "ring lanes"]
    state: Float[Array, "ring dim lanes"]
    between: tuple[Float[Array, "ring dim lanes"], ...]
    """The coefficients of the polynomials."""


class _Lanes(NamedTuple):
    time: Float[Array, " lanes"]
    state: Float[Array, "dim lanes"]
    memory: object
    size: Float[Array, " lanes"]
    """Of the next step."""
    accepted: Int[Array, " lanes"]
    rejected: Int[Array, " lanes"]
    failed: Bool[Array, " lanes"]
    arrived: Bool[Array, " lanes"]


def march(
    system: System,
    stepper: type[Tsit5] | type[Rodas5P],
    start: Float[Array, "dim lanes"],
    first_step: Float[Array, " lanes"],
    times: Float[Array, "times lanes"],
    rtol: Float[Array, " lanes"],
    atol: Float[Array, "dim lanes"],
    max_steps: Int[Array, ""],
) -> March:
    """Integrate from time 0.

    Args:
        system: the equation.
        stepper: the method.
        start: states at time 0.
        first_step: sizes of the first steps; a lane whose first is too small for its time fails.
        times: saved times, increasing from 0 in each lane.
        rtol, atol: tolerances of each lane, absolute ones of each of its numbers.
        max_steps: budget of steps of each lane, rejected ones included.
    """
    horizon, dtype = times[-1], start.dtype
    smallest, budget = smallest_step(horizon), jnp.asarray(max_steps, int)
    ring_size = max(16, min(256, _RING_BYTES // (4 * start.nbytes)))

    def is_active(lanes: _Lanes):
        spent = lanes.accepted + lanes.rejected >= budget
        return (lanes.time < horizon) & ~lanes.failed & ~lanes.arrived & ~spent

    def advance(index, lanes: _Lanes, ring: _Ring):
        active = is_active(lanes)
        remaining = horizon - lanes.time
        # A last step a hair longer than the one before, rather than a sliver of a step.
        is_last = lanes.size >= 0.999 * remaining
        size = jnp.where(active, jnp.where(is_last, remaining, lanes.size), 1.0)
        step = stepper.step(system, lanes.state, lanes.memory, size)
        scale = atol + rtol[None] * jnp.maximum(jnp.abs(lanes.state), jnp.abs(step.end))
        error = jnp.sqrt(jnp.mean((step.error / scale) ** 2, axis=0))
        accepted = active & (error <= 1)
        rejected = active & ~accepted
        time = jnp.where(accepted, jnp.where(is_last, horizon, lanes.time + size), lanes.time)
        state = jnp.where(accepted[None], step.end, lanes.state)
        ring = jax.tree.map(
            lambda kept, new: jax.lax.dynamic_update_index_in_dim(kept, new, index, 0),
            ring,
            _Ring(time, state, step.coefficients),
        )
        growth = jnp.where(error < 1e8, 0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.0)
        growth = jnp.clip(growth, 0.2, jnp.where(accepted, 6.0, 0.9))
        following = jnp.where(active, size * growth, lanes.size)
        lanes = _Lanes(
            time,
            state,
            jax.tree.map(
                lambda new, old: jnp.where(accepted[None], new, old), step.memory, lanes.memory
            ),
            following,
            lanes.accepted + accepted.astype(int),
            lanes.rejected + rejected.astype(int),
            lanes.failed | (rejected & (following < smallest)),
            system.arrived(state),
        )
        return index + 1, lanes, ring

    def round_trip(carry):
        rounds, lanes, saved = carry
        before = lanes.time
        empty = jnp.zeros((ring_size, *start.shape), dtype)
        ring = _Ring(
            jnp.full((ring_size, *horizon.shape), jnp.inf, dtype).at[0].set(lanes.time),
            empty.at[0].set(lanes.state),
            (empty,) * 3,
        )
        index, lanes, ring = jax.lax.while_loop(
            lambda carry: (carry[0] < ring_size) & jnp.any(is_active(carry[1])),
            lambda carry: advance(*carry),
            (1, lanes, ring),
        )
        covered = (times > before[None]) & (times <= lanes.time[None])
        saved = jnp.where(covered[:, None], _read(ring, times), saved)
        return rounds + index - 1, lanes, saved

    lanes = _Lanes(
        jnp.zeros_like(horizon),
        start,
        stepper.start(system, start),
        first_step,
        jnp.zeros(horizon.shape, int),
        jnp.zeros(horizon.shape, int),
        ~(first_step > smallest),  # what happens at the start cannot be resolved
        system.arrived(start),
    )
    unsaved = jnp.where((times == 0)[:, None], start[None], jnp.nan)
    rounds, lanes, saved = jax.lax.while_loop(
        lambda carry: jnp.any(is_active(carry[1])), round_trip, (0, lanes, unsaved)
    )
    rests = lanes.arrived & (lanes.time < horizon)
    saved = jnp.where((rests[None] & (times > lanes.time[None]))[:, None], lanes.state[None], saved)
    status = jnp.where(lanes.time < horizon, jnp.where(rests, STOPPED, MAX_STEPS), OK)
    status = jnp.where(lanes.failed, DIVERGED, status)
    return March(saved, status, lanes.accepted, lanes.rejected, jnp.asarray(rounds))


def _read(ring: _Ring, times: Float[Array, "times lanes"]) -> Float[Array, "times dim lanes"]:
    """The states at those times that the ring's steps cover; anything at others."""

    def lane(ends, states, between, times):
        # Of steps that end at the same time the first was made, the others were not.
        last = jnp.clip(jnp.searchsorted(ends, times), 1, ends.size - 1)
        size = ends[last] - ends[last - 1]
        s = (times - ends[last - 1]) / jnp.where(size > 0, size, 1.0)
        return states[last - 1], states[last], [c[last] for c in between], s

    before, after, c, s = jax.vmap(lane, in_axes=-1, out_axes=-1)(*ring, times)
    s = s[:, None]
    return (1 - s) * before + s * (after + (1 - s) * (c[0] + s * (c[1] + s * c[2])))
