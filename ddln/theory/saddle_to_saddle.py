"""Small initialisations: how long the flow stays near a saddle, and which saddles it visits.

Of layers α·u, α → 0, θ_k is of order one only where ∇Q(θ)_k is at an end of its range to leading
order: ± log(1/α) at depth 2, and the range of ∇Q for u times α^{2−L} from depth 3 on. In between
∇Q(θ) = −∫∇ℒ moves in a straight line, and θ rests at a minimiser over the coordinates at an end.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, as_layers, as_vector
from ddln.networks.entropy import Entropy
from ddln.networks.layers import effective_parameter
from ddln.problems.base import LeastSquares, Problem, Signed

_NOTHING = 1e-9
"""A gradient below this share of the first one is none."""


def escape_times(
    problem: Problem, layers: ArrayLike, theta: ArrayLike | None = None
) -> Float[Array, " dim"]:
    """Flow time in which every θ_k would grow without bound if the gradient stayed as it is at θ.

    The end of the range of ∇Q_k in the direction of −∇ℒ_k, over |∇ℒ_k|. For layers (s, …, s, 0) it
    is s^{2−L} (√π/2) Γ((L−2)/2) / Γ((L−1)/2) per unit of gradient. Infinite at depth 2, where
    growth is exponential; without a gradient; towards the end 0 of a half-line; and where frozen.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        theta: where the gradient is taken, shape (dim,); θ(0) by default.

    Returns:
        Flow times, shape (dim,).

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    >>> round(float(ddln.escape_times(problem, [[0.0], [0.01], [0.01]])[0]), 3)
    157.08
    """
    layers = as_layers(layers, problem.dim)
    start = effective_parameter(layers)
    theta = start if theta is None else as_vector("theta", theta, problem.dim)
    low, high = Entropy(layers).range()
    drive = -problem.gradient(theta)
    end = jnp.where(drive > 0, high, -low)
    return jnp.where((drive == 0) | (end == 0), jnp.inf, end / jnp.abs(drive))


class SaddlePath(NamedTuple):
    """The saddles of the small-scale limit, in the order of the flow.

    The last is a minimiser of the loss over what the network can reach.
    """

    times: np.ndarray
    """When each is reached, shape (saddles,), in units of log(1/α) or α^{2−L}; the first is 0."""
    theta: np.ndarray
    """shape (saddles, dim)."""


def saddle_path(problem: Problem, layers: ArrayLike, *, max_jumps: int = 10_000) -> SaddlePath:
    """The saddles that gradient flow from α·layers visits as α → 0, and when it jumps.

    Time is in units of log(1/α) at depth 2, of α^{2−depth} from there on. The dual s = −∫∇ℒ grows
    linearly until a coordinate reaches an end of its range; then θ jumps to the minimiser of the
    loss over the coordinates at an end, with that end's sign.

    Args:
        problem: least squares, signed or not.
        layers: shape (depth, dim); at depth 2 only their kinds of coordinate count.
        max_jumps: at most.

    Returns:
        The times and saddles, from θ = 0 at time 0.

    Raises:
        ValueError: another loss.
        RuntimeError: more jumps than `max_jumps`.

    Source: depth 2: Pesme & Flammarion 2023; other depths as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [2.0], normalisation="half")
    >>> path = ddln.theory.saddle_path(problem, [[0.0, 0.0], [1.0, 1.0]])
    >>> path.times.tolist(), path.theta.tolist()
    ([0.0, 0.5], [[0.0, 0.0], [2.0, 0.0]])
    """
    from scipy.optimize import nnls

    inner = problem.unsigned if isinstance(problem, Signed) else problem
    if not isinstance(inner, LeastSquares):
        raise ValueError(
            f"`problem` must be least squares, signed or not, got {type(inner).__name__}."
        )
    entropy = Entropy(as_layers(layers, problem.dim))
    affine = problem.minimisers()
    matrix, values = (np.asarray(part, float) for part in affine or ())
    low, high = (np.asarray(end) for end in entropy.range())
    if entropy.reduction.other_imbalances.shape[0] == 0:
        side = np.asarray(entropy.reduction.half_line_sign)
        frozen = np.asarray(entropy.reduction.is_frozen)
        high = np.where(frozen, 0.0, np.where(side < 0, np.inf, 1.0))
        low = np.where(frozen, 0.0, np.where(side > 0, -np.inf, -1.0))
    movable = high > low
    theta, dual, time = np.zeros(problem.dim), np.zeros(problem.dim), 0.0
    times, saddles, first = [time], [theta], None
    for _ in range(max_jumps):
        drive = 2 * inner.factor * matrix.T @ (values - matrix @ theta)
        first = np.max(np.abs(drive)) if first is None else first
        sign = np.where(np.abs(drive) > _NOTHING * first, np.sign(drive), 0.0)
        room = np.where(sign > 0, high - dual, np.where(sign < 0, dual - low, np.inf))
        wait = np.where(movable & (room > 0) & (sign != 0), room, np.inf)
        wait = wait / np.where(sign == 0, 1.0, np.abs(drive))
        step = np.min(wait)
        if not np.isfinite(step):
            return SaddlePath(np.array(times), np.array(saddles))
        time, dual = time + step, np.where(movable, dual + step * drive * (sign != 0), dual)
        reached = wait <= step * (1 + _NOTHING)
        dual = np.where(reached, np.where(sign > 0, high, low), dual)
        ends = np.where(dual >= high, 1.0, np.where(dual <= low, -1.0, 0.0)) * movable
        active = ends != 0
        theta = np.zeros(problem.dim)
        theta[active] = ends[active] * nnls(matrix[:, active] * ends[None, active], values)[0]
        times.append(time)
        saddles.append(theta)
    raise RuntimeError(f"The path has more than {max_jumps} jumps: raise `max_jumps`.")
