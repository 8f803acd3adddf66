"""Schedules of weight decay ω(t) ≥ 0, constant or not, and their dose Ω(t) = ∫₀ᵗ ω.

Gradient flow with weight decay is u̇^j = −∂ℒ/∂u^j − ω(t) u^j. Then e^Ω u moves like layers without
decay (docs/theory.md), so that the flow needs no more of a schedule than ω and Ω. Time is flow
time: k steps of training reach kγ/(1 − β).

Every solver takes a schedule, or a number for a constant ω.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, Number, as_floats, as_positive, is_concrete, refuse


class WeightDecay(eqx.Module):
    """A schedule ω(t): a sequence of pieces, on each of which ω follows half a cosine.

    Made by `constant`, `piecewise` and `cosine`. All operations are elementwise: the times, and the
    arrays of the schedule with them, may have more axes for a batch of networks.

    >>> decay = ddln.weight_decay.cosine(0.2, until=10.0)
    >>> round(float(decay.rate(5.0)), 6), round(float(decay.dose(10.0)), 6)
    (0.1, 1.0)
    """

    edges: Float[Array, "edges ..."]
    """Where the pieces begin, and the end of the last one: infinite if the schedule never ends."""
    first: Float[Array, "pieces ..."]
    """ω at the beginning of each piece."""
    last: Float[Array, "pieces ..."] | None
    """ω at its end; `None` if ω is constant on every piece."""

    def rate(self, time: Number) -> Float[Array, "*batch"]:
        """ω(t). Where it jumps, its value from then on."""
        time = jnp.asarray(time, self.edges.dtype)
        value = self.first
        if self.last is not None:
            bend = (1 + jnp.cos(jnp.pi * self._fraction(time))) / 2
            value = self.last + (self.first - self.last) * bend
        # Rounding can lead beyond either end of the schedule.
        started = jnp.concatenate(
            [jnp.full_like(time, True, bool)[None], time[None] >= self.edges[1:-1]]
        )
        ended = jnp.concatenate([started[1:], ~started[:1]])
        active = started & ~ended
        return jnp.sum(jnp.where(active, value, 0.0), axis=0)

    def dose(self, time: Number) -> Float[Array, "*batch"]:
        """Ω(t) = ∫₀ᵗ ω."""
        time = jnp.asarray(time, self.edges.dtype)
        return jnp.sum(self._integrals(time) - self._integrals(jnp.zeros_like(time)), axis=0)

    def _passed(self, time: Float[Array, "*batch"]) -> Float[Array, "pieces *batch"]:
        """The length of the part of every piece that has passed."""
        return jnp.clip(time[None], self.edges[:-1], self.edges[1:]) - self.edges[:-1]

    def _fraction(self, time: Float[Array, "*batch"]) -> Float[Array, "pieces *batch"]:
        """That part as a fraction of the piece, which must be finite."""
        return self._passed(time) / (self.edges[1:] - self.edges[:-1])

    def _integrals(self, time: Float[Array, "*batch"]) -> Float[Array, "pieces *batch"]:
        """The integral of ω over the part of every piece that has passed."""
        passed = self._passed(time)
        if self.last is None:
            return self.first * passed
        length = self.edges[1:] - self.edges[:-1]
        bend = (passed + length * jnp.sin(jnp.pi * self._fraction(time)) / jnp.pi) / 2
        return self.last * passed + (self.first - self.last) * bend


def constant(rate: Number, *, until: Number | None = None) -> WeightDecay:
    """Constant ω, for ever or up to some time, after which there is no decay.

    Args:
        rate: ω ≥ 0, per unit of flow time.
        until: flow time > 0 from which on ω = 0; `None` for never.

    Raises:
        ValueError: a number that is negative or not finite (traced: NaN).

    >>> decay = ddln.weight_decay.constant(0.5, until=4.0)
    >>> float(decay.rate(3.0)), float(decay.rate(4.0)), float(decay.dose(10.0))
    (0.5, 0.0, 2.0)
    """
    number = _as_rates("rate", rate)
    begin, never = jnp.zeros_like(number), jnp.full_like(number, jnp.inf)
    if until is None:
        return WeightDecay(jnp.stack([begin, never]), number[None], None)
    end = as_positive("until", until).astype(number.dtype)
    return WeightDecay(jnp.stack([begin, end, never]), jnp.stack([number, begin]), None)


def piecewise(rates: ArrayLike, until: ArrayLike) -> WeightDecay:
    """Piecewise constant ω: `rates[i]` up to the flow time `until[i]`.

    Args:
        rates: ω ≥ 0 of each piece, shape (pieces,).
        until: flow times > 0 at which the pieces end, increasing, shape (pieces,). The schedule
            ends with the last piece, which holds for ever if it ends at `inf`.

    Raises:
        ValueError: shapes that differ, times that do not increase, or rates that are negative or
            not finite.

    >>> float(ddln.weight_decay.piecewise([0.1, 0.0, 0.3], until=[10.0, 20.0, 30.0]).dose(25.0))
    2.5
    """
    numbers = _as_rates("rates", rates, 1)
    ends = jnp.asarray(until, numbers.dtype)
    if ends.shape != numbers.shape or not numbers.size:
        raise ValueError(
            f"`until` must have an end for each of the rates, {numbers.shape}, got {ends.shape}."
        )
    if is_concrete(ends) and not (np.diff(np.asarray(ends), prepend=0.0) > 0).all():
        raise ValueError(f"`until` must increase, and be > 0, got {ends.tolist()}.")
    return WeightDecay(jnp.concatenate([jnp.zeros_like(ends[:1]), ends]), numbers, None)


def cosine(rate: Number, *, until: Number, final: Number = 0.0) -> WeightDecay:
    """ω(t) = ω₁ + (ω₀ − ω₁)(1 + cos πt/T)/2 for 0 ≤ t ≤ T, where the schedule ends.

    Args:
        rate: ω₀ ≥ 0, at time 0.
        until: flow time T > 0.
        final: ω₁ ≥ 0, at time T.

    Raises:
        ValueError: a number that is negative or not finite (traced: NaN).

    >>> decay = ddln.weight_decay.cosine(0.3, until=2.0, final=0.1)
    >>> [round(float(decay.rate(t)), 6) for t in (0.0, 1.0, 2.0)]
    [0.3, 0.2, 0.1]
    """
    first = _as_rates("rate", rate)
    last, end = _as_rates("final", final), as_positive("until", until)
    return WeightDecay(jnp.stack([jnp.zeros_like(end), end]), first[None], last[None])


def _as_rates(name: str, value: ArrayLike, ndim: int = 0) -> Float[Array, "*rates"]:
    """ω as an array of numbers ≥ 0."""
    rates = as_floats(name, value, ndim)
    return refuse(rates < 0, f"`{name}` must be ≥ 0, got {rates}.", rates)
