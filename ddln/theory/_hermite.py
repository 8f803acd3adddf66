"""Cubic Hermite interpolation between saved times: values, integrals and their error."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_COMPARABLE = 4
"""Intervals are comparable if their lengths differ by at most this factor."""


def interpolate(
    times: Float[Array, " times"],
    value: Float[Array, "times dim"],
    slope: Float[Array, "times dim"],
    x: Float[Array, " nodes"],
) -> Float[Array, "times-1 dim nodes"]:
    """The interpolants at the fractions 0 ≤ x ≤ 1 of every interval.

    >>> times, cube = jnp.array([0.0, 2.0]), jnp.array([[0.0], [8.0]])
    >>> interpolate(times, cube, jnp.array([[0.0], [12.0]]), jnp.array([0.5])).ravel().tolist()
    [1.0]
    """
    step = jnp.diff(times)[:, None]
    ends = jnp.stack([value[:-1], value[1:], step * slope[:-1], step * slope[1:]], axis=-1)
    # A matrix product is many times faster than the sum written out, in this order of the axes.
    return jnp.einsum("tkb,bn->tkn", ends, _basis(x), precision="highest")


def _basis(x: Float[Array, "*shape"]) -> Float[Array, "4 *shape"]:
    """The Hermite basis at x: the weights of the values and of the slopes at both ends."""
    rest = 1 - x
    return jnp.stack([rest**2 * (1 + 2 * x), x**2 * (3 - 2 * x), x * rest**2, -rest * x**2])


def integrate(
    times: Float[Array, " times"],
    value: Float[Array, "times dim"],
    slope: Float[Array, "times dim"],
    at: Int[np.ndarray, " points"] | None = None,
) -> Float[Array, "points dim"]:
    """The integral of the interpolants from the first time to each time.

    Args:
        times, value, slope: of the function.
        at: indices of a few times; `None` for all.

    >>> times, cube = jnp.array([0.0, 2.0]), jnp.array([[0.0], [8.0]])
    >>> integrate(times, cube, jnp.array([[0.0], [12.0]]))[-1].item()  # 2⁴/4
    4.0
    """
    step = jnp.diff(times)[:, None]
    pieces = step / 2 * (value[1:] + value[:-1]) + step**2 / 12 * (slope[:-1] - slope[1:])
    if at is None:
        return jnp.concatenate([jnp.zeros_like(value[:1]), jnp.cumsum(pieces, axis=0)])
    is_before = np.arange(len(pieces)) < at[:, None]
    return jnp.matmul(jnp.asarray(is_before, pieces.dtype), pieces, precision="highest")


def relative_error(
    times: Float[Array, " times"],
    value: Float[Array, "times dim"],
    slope: Float[Array, "times dim"],
) -> Float[Array, "times-1 dim"]:
    """Estimate of the error of each interval's integral, relative to its length and largest value.

    It is the sum of two terms:

    - from the slopes. Their change takes the cubic's integral from the trapezoidal one, by a term
      of second order in the step. If it is small, three times its square is an estimate of the
      cubic's order four; if not, the interval is not resolved and the term itself counts.
    - from the value between two intervals, which the cubic over both misses. It says little of an
      interval much longer than its neighbours: there the first term counts in full, and half the
      change of the value, the largest error of the trapezoidal rule for a monotone function.

    A kink inside the interval can be worse, see `kink_error`.

    >>> times, jump = jnp.array([0.0, 0.1, 9.9, 10.0]), jnp.array([0.0, 0.0, 1.0, 1.0])[:, None]
    >>> relative_error(times, jump, jnp.zeros((4, 1)))[1].item() >= 0.5
    True
    """
    step = jnp.diff(times)[:, None]
    largest = jnp.maximum(jnp.abs(value[:-1]), jnp.abs(value[1:]))
    size = jnp.where(largest > 0, largest, 1.0)
    bend = jnp.abs(step * jnp.diff(slope, axis=0)) / (12 * size)

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
    change = jnp.abs(jnp.diff(value, axis=0))
    alone = longest < step / _COMPARABLE
    resolved = 3 * bend * jnp.minimum(bend, 1.0)
    return jnp.where(alone, bend, resolved) + jnp.where(alone, change / 2, beside) / size


def kink_error(
    times: Float[Array, " times"], slope: Float[Array, "times dim"]
) -> Float[Array, "times-1 dim"]:
    """Error of each interval's integral per length, due to a jump J of the slope inside it.

    With the kink at the fraction x of an interval of length h, the integral of the cubic through
    J (t − τ)₊ is off by J h² (x (1 − x)/2 − 1/12), at most J h²/12. J is estimated by how far the
    change of the slope per time is off the line through its two neighbours. For a smooth function
    that makes an error of the same order as the cubic's.

    >>> times, kink = jnp.arange(7.0), jnp.array([0.0, 0, 0, 0, 1, 1, 1])[:, None]
    >>> kink_error(times, kink)[3].item()  # 1/12
    0.08333333333333333
    """
    step = jnp.diff(times)[:, None]
    if step.size < 3:
        return jnp.zeros_like(slope[1:])
    middle = (times[1:] + times[:-1])[:, None] / 2
    bend = jnp.diff(slope, axis=0) / jnp.where(step > 0, step, 1.0)
    gap, span = jnp.diff(middle, axis=0), middle[2:] - middle[:-2]
    change = jnp.diff(bend, axis=0) / jnp.where(gap > 0, gap, 1.0)
    curvature = jnp.abs(jnp.diff(change, axis=0)) / jnp.where(span > 0, span, 1.0)
    # By Newton's form of the interpolant; the first and the last interval have both on one side.
    distances = jnp.concatenate(
        [gap[:1] * span[:1], gap[:-1] * gap[1:], gap[-1:] * span[-1:]], axis=0
    )
    jump = jnp.concatenate([curvature[:1], curvature, curvature[-1:]], axis=0) * distances
    return step**2 / 12 * jump
