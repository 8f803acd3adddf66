"""Cubic Hermite interpolation between saved times: values, integrals and their error."""

import jax.numpy as jnp
from jaxtyping import Array, Float

_COMPARABLE = 4
"""Intervals are comparable if their lengths differ by at most this factor."""


def interpolate(
    times: Float[Array, " times"],
    value: Float[Array, "times dim"],
    slope: Float[Array, "times dim"],
    x: Float[Array, " nodes"],
) -> Float[Array, "times-1 nodes dim"]:
    """The interpolants at the fractions 0 ≤ x ≤ 1 of every interval.

    >>> times, cube = jnp.array([0.0, 2.0]), jnp.array([[0.0], [8.0]])
    >>> interpolate(times, cube, jnp.array([[0.0], [12.0]]), jnp.array([0.5])).ravel().tolist()
    [1.0]
    """
    step = jnp.diff(times)[:, None]
    ends = jnp.stack([value[:-1], value[1:], step * slope[:-1], step * slope[1:]])
    # A matrix product is many times faster than the sum written out.
    return jnp.einsum("bn,btk->tnk", _basis(x), ends, precision="highest")


def _basis(x: Float[Array, "*shape"]) -> Float[Array, "4 *shape"]:
    """The Hermite basis at x: the weights of the values and of the slopes at both ends."""
    rest = 1 - x
    return jnp.stack([rest**2 * (1 + 2 * x), x**2 * (3 - 2 * x), x * rest**2, -rest * x**2])


def integrate(
    times: Float[Array, " times"],
    value: Float[Array, "times dim"],
    slope: Float[Array, "times dim"],
) -> Float[Array, "times dim"]:
    """The integral of the interpolants from the first time to each time.

    >>> times, cube = jnp.array([0.0, 2.0]), jnp.array([[0.0], [8.0]])
    >>> integrate(times, cube, jnp.array([[0.0], [12.0]]))[-1].item()  # 2⁴/4
    4.0
    """
    step = jnp.diff(times)[:, None]
    pieces = step / 2 * (value[1:] + value[:-1]) + step**2 / 12 * (slope[:-1] - slope[1:])
    return jnp.concatenate([jnp.zeros_like(value[:1]), jnp.cumsum(pieces, axis=0)])


def relative_error(
    times: Float[Array, " times"],
    value: Float[Array, "times dim"],
    slope: Float[Array, "times dim"],
) -> Float[Array, "times-1 dim"]:
    """Estimate of the error of each interval's integral, relative to its length and largest value.

    Two signs of it, added. How far the slopes take the cubic's integral from the trapezoid's is of
    second order in the step; where that is small its square is of the fourth order that the cubic
    has (thrice, to be safe), and where it is not, the interval is not resolved and it counts
    itself. And how far the cubic over two intervals misses the value between them, which tells
    little of an interval beside which all are short: there the slopes count in full, and half the
    change of the value, by which the trapezoid's integral of what is monotone can be off.

    >>> times, jump = jnp.array([0.0, 0.1, 9.9, 10.0]), jnp.array([0.0, 0.0, 1.0, 1.0])[:, None]
    >>> relative_error(times, jump, jnp.zeros((4, 1)))[1].item() >= 0.5
    True
    """
    step = jnp.diff(times)[:, None]
    largest = jnp.maximum(jnp.abs(value[:-1]), jnp.abs(value[1:]))
    size = jnp.where(largest > 0, largest, 1.0)
    bend = jnp.abs(step / 12 * jnp.diff(slope, axis=0)) / size

    span = step[1:] + step[:-1]
    # Where a run stopped, its last point is there again.
    before, after, rising, falling = _basis(step[:-1] / jnp.where(span > 0, span, 1.0))
    over_two = before * value[:-2] + after * value[2:]
    over_two += span * (rising * slope[:-2] + falling * slope[2:])
    miss = jnp.abs(over_two - value[1:-1])
    beside = jnp.maximum(
        jnp.concatenate([miss[:1], miss], axis=0), jnp.concatenate([miss, miss[-1:]], axis=0)
    )
    edge = jnp.zeros_like(step[:1])
    longest = jnp.maximum(
        jnp.concatenate([edge, step[:-1]], axis=0), jnp.concatenate([step[1:], edge], axis=0)
    )
    change = jnp.abs(jnp.diff(value, axis=0)) / size
    alone = longest < step / _COMPARABLE
    smooth = 3 * bend * jnp.minimum(bend, 1.0) + beside / size
    return jnp.where(alone, bend + change / 2, smooth)
