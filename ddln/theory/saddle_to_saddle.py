"""Small initialisations: how long the flow stays near a saddle, and which saddles it visits.

From layers α·u with α → 0, θ_k is of order one only where ∇Q(θ)_k is at an end of its range to
leading order. These ends are ± log(1/α) at depth 2 and, from depth 3 on, the range of ∇Q for u
times α^{2−L}. In between, the dual ∇Q(θ) = −∫∇ℒ moves in a straight line while θ rests at a
minimiser over the coordinates at an end.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, as_layers, as_vector
from ddln.networks.entropy import Entropy
from ddln.networks.layers import effective_parameter
from ddln.problems.base import Problem
from ddln.problems.least_squares import LeastSquares
from ddln.problems.signed import Signed

_NEGLIGIBLE = 1e-9
"""A gradient below this fraction of the first one counts as zero."""
_KKT = 1e-6
"""Largest violation of the optimality conditions of a saddle, relative to ‖column‖ · ‖targets‖."""


def escape_times(
    problem: Problem, layers: ArrayLike, theta: ArrayLike | None = None
) -> Float[Array, " dim"]:
    """The flow time in which each θ_k would grow without bound under the constant gradient at θ.

    It is the end of the range of ∇Q_k in the direction of −∇ℒ_k, divided by |∇ℒ_k|. For layers
    (s, …, s, 0) this end is s^{2−L} (√π/2) Γ((L−2)/2) / Γ((L−1)/2). The time is infinite at
    depth 2, where growth is exponential, without a gradient, towards the end 0 of a half-line, and
    on frozen coordinates.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        theta: where to evaluate the gradient, shape (dim,); θ(0) by default.

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

    The last one minimises the loss over the θ that the network can reach.
    """

    times: np.ndarray
    """When the flow reaches each, shape (saddles,), in units of log(1/α) or α^{2−L}; first 0."""
    theta: np.ndarray
    """shape (saddles, dim)."""

    def time_average(self, times: ArrayLike) -> np.ndarray:
        """(1/t) ∫₀ᵗ θ along the path up to each of the positive times, shape (times, dim)."""
        ends = np.asarray(times)[:, None]
        spent = np.diff(np.minimum(np.append(self.times, np.inf), ends), axis=1)
        return spent @ self.theta / ends


def saddle_path(problem: Problem, layers: ArrayLike, *, max_jumps: int = 10_000) -> SaddlePath:
    """The saddles that gradient flow from α·layers visits as α → 0, and the times of its jumps.

    The unit of time is log(1/α) at depth 2 and α^{2−depth} at larger depths. The dual s = −∫∇ℒ
    grows linearly until a coordinate reaches an end of its range. Then θ jumps to the minimiser of
    the loss over the coordinates at an end, each with the sign of that end.

    Args:
        problem: least squares, signed or not.
        layers: shape (depth, dim), depth ≥ 2; at depth 2 only the kinds of coordinates matter.
        max_jumps: the largest number of jumps.

    Returns:
        The times and saddles, from θ = 0 at time 0.

    Raises:
        ValueError: another loss, or a single layer, whose flow has no saddles.
        RuntimeError: more jumps than `max_jumps`, or SciPy's non-negative least squares did not
            find a saddle.

    Source: depth 2: Pesme & Flammarion 2023; other depths as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [2.0], normalisation="half")
    >>> path = ddln.theory.saddle_path(problem, [[0.0, 0.0], [1.0, 1.0]])
    >>> path.times.tolist(), path.theta.tolist()
    ([0.0, 0.5], [[0.0, 0.0], [2.0, 0.0]])
    """
    inner = problem.unsigned if isinstance(problem, Signed) else problem
    if not isinstance(inner, LeastSquares):
        raise ValueError(
            f"`problem` must be least squares, signed or not, got {type(inner).__name__}."
        )
    layers = as_layers(layers, problem.dim)
    if len(layers) < 2:
        raise ValueError("`layers` must be at least two: the flow of a single one has no saddles.")
    affine = problem.minimisers()
    matrix, values = (np.asarray(part, float) for part in affine or ())
    low, high = _dual_range(Entropy(layers))
    movable = high > low
    theta, dual, time = np.zeros(problem.dim), np.zeros(problem.dim), 0.0
    times, saddles, first = [time], [theta], None
    for _ in range(max_jumps):
        drive = 2 * inner.factor * matrix.T @ (values - matrix @ theta)
        first = np.max(np.abs(drive)) if first is None else first
        drive = np.where(movable & (np.abs(drive) > _NEGLIGIBLE * first), drive, 0.0)
        wait = _times_to_end(dual, drive, low, high)
        step = np.min(wait)
        if not np.isfinite(step):
            return SaddlePath(np.array(times), np.array(saddles))
        arrived = wait <= step * (1 + _NEGLIGIBLE)
        time, dual = time + step, dual + step * drive
        dual = np.where(arrived, np.where(drive > 0, high, low), dual)
        signs = np.where(dual >= high, 1.0, np.where(dual <= low, -1.0, 0.0)) * movable
        theta = _constrained_minimiser(matrix, values, signs)
        times.append(time)
        saddles.append(theta)
    raise RuntimeError(f"The path has more than {max_jumps} jumps: raise `max_jumps`.")


def _dual_range(
    entropy: Entropy,
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]:
    """The ends of each coordinate's range of ∇Q, in the units of time of `saddle_path`."""
    reduction = entropy.reduction
    if reduction.other_imbalances.shape[0] > 0:
        low, high = entropy.range()
        return np.asarray(low), np.asarray(high)
    side, frozen = np.asarray(reduction.half_line_sign), np.asarray(reduction.is_frozen)
    high = np.where(frozen, 0.0, np.where(side < 0, np.inf, 1.0))
    low = np.where(frozen, 0.0, np.where(side > 0, -np.inf, -1.0))
    return low, high


def _times_to_end(
    dual: Float[np.ndarray, " dim"],
    drive: Float[np.ndarray, " dim"],
    low: Float[np.ndarray, " dim"],
    high: Float[np.ndarray, " dim"],
) -> Float[np.ndarray, " dim"]:
    """When each coordinate of the dual reaches an end at the speed `drive`; inf if it never does.

    A coordinate already at the end it moves towards stays there, and its time is infinite too.
    """
    distance = np.where(drive > 0, high - dual, dual - low)
    moves = (drive != 0) & (distance > 0)
    return np.where(moves, distance, np.inf) / np.where(moves, np.abs(drive), 1.0)


def _constrained_minimiser(
    matrix: Float[np.ndarray, "samples dim"],
    values: Float[np.ndarray, " samples"],
    signs: Float[np.ndarray, " dim"],
) -> Float[np.ndarray, " dim"]:
    """argmin { ‖matrix θ − values‖ : signs_k θ_k ≥ 0, and θ_k = 0 where signs_k = 0 }.

    SciPy's `nnls` can return a point that is not optimal, so that its optimality conditions are
    verified: with g = Aᵀ(Ax − b) for x ≥ 0, g ≥ 0 and g = 0 where x > 0.
    """
    from scipy.optimize import nnls

    active = signs != 0
    columns = matrix[:, active] * signs[active]
    try:
        x, _ = nnls(columns, values)
    except RuntimeError as error:
        raise RuntimeError(f"SciPy's nnls did not find a saddle of `problem`: {error}") from None
    gradient = columns.T @ (columns @ x - values)
    violation = np.where(x > 0, np.abs(gradient), -gradient)
    allowed = _KKT * np.linalg.norm(columns, axis=0) * np.linalg.norm(values)
    if (x < 0).any() or not (violation <= allowed).all():
        worst = np.max(violation / np.where(allowed > 0, allowed, 1.0)) * _KKT
        raise RuntimeError(
            "SciPy's nnls did not find a saddle of `problem`: its result violates the optimality "
            f"conditions by {worst:.1e} relative to the data; at most {_KKT:.0e} is allowed."
        )
    theta = np.zeros(signs.size)
    theta[active] = signs[active] * x
    return theta
