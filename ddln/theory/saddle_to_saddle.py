"""Small initialisations: how long the flow stays near a saddle, and which saddles it visits.

From layers α·u with α → 0, θ_k is of order one only where ∇Q(θ)_k is at an end of its range to
leading order. These ends are ± log(1/α) at depth 2 and, from depth 3 on, the range of ∇Q for u
times α^{2−L}. In between, the dual ∇Q(θ) = −∫∇ℒ moves in a straight line while θ rests at a
minimiser over the coordinates at an end. For any other parametrisation G with a saddle at the start
the ends are those of exponential growth along an eigenvector of ∇²G.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, as_floats, as_layers, as_vector
from ddln.networks.entropy import Entropy
from ddln.networks.layers import Function, effective_parameter
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


class GrowthRange(NamedTuple):
    """How far each dual coordinate −∫∂ℒ/∂θ_k moves before θ_k leaves zero, to leading order."""

    low: np.ndarray
    """≤ 0, where θ_k turns negative, shape (dim,); −∞ if it never does."""
    high: np.ndarray
    """≥ 0, where θ_k turns positive, shape (dim,); ∞ if it never does."""


def growth_range(function: Function, saddle: ArrayLike) -> GrowthRange:
    """The growth range of θ_k = G(w_k) from a start at distance α of a saddle of G, as α → 0.

    Near w* the flow dw/ds = ∇G grows like e^{λ₊ s}, and backwards like e^{|λ₋| s}, with λ₊ and λ₋
    the extreme eigenvalues of ∇²G(w*). So w leaves at s = log(1/α)/λ₊ or −log(1/α)/|λ₋|.

    Args:
        function: G, a JAX function from shape (m,) to shape ().
        saddle: w*, shape (m, dim), with G(w*) = 0 and ∇G(w*) = 0.

    Returns:
        −1/|λ₋| and 1/λ₊, in units of log(1/α), for almost every direction of the start.

    Raises:
        ValueError: G or ∇G is not 0 at some w*_k.

    Source: Zhao et al. 2026, arXiv 2607.12332, for two analytic layers.

    >>> low, high = growth_range(lambda w: w[0] ** 2 - 2 * w[1] ** 2, [[0.0], [0.0]])
    >>> low.tolist(), high.tolist()
    ([-0.25], [0.5])
    """
    saddle = as_floats("saddle", saddle, 2)
    values = jax.vmap(function, 1)(saddle)
    slopes = jax.vmap(jax.grad(function), 1, 1)(saddle)
    if not (np.all(values == 0) and np.all(slopes == 0)):
        raise ValueError("`saddle` must have G(w_k) = 0 and ∇G(w_k) = 0 for every k.")
    rates = np.linalg.eigvalsh(np.asarray(jax.vmap(jax.hessian(function), 1)(saddle)))
    with np.errstate(divide="ignore"):
        return GrowthRange(-1 / np.maximum(-rates[:, 0], 0.0), 1 / np.maximum(rates[:, -1], 0.0))


class SaddlePath(NamedTuple):
    """The saddles of the small-scale limit, in the order of the flow.

    The last one minimises the loss over the θ that the network can reach.
    """

    times: np.ndarray
    """When the flow reaches each, shape (saddles,), in units of log(1/α) or α^{2−L}; first 0."""
    theta: np.ndarray
    """shape (saddles, dim)."""
    growth: GrowthRange
    """Where each coordinate of the dual makes θ_k leave zero."""

    def time_average(self, times: ArrayLike) -> np.ndarray:
        """(1/t) ∫₀ᵗ θ along the path up to each of the positive times, shape (times, dim)."""
        ends = np.asarray(times)[:, None]
        spent = np.diff(np.minimum(np.append(self.times, np.inf), ends), axis=1)
        return spent @ self.theta / ends


def saddle_path(
    problem: Problem, layers: ArrayLike | GrowthRange, *, max_jumps: int = 10_000
) -> SaddlePath:
    """The saddles that gradient flow from α·layers visits as α → 0, and the times of its jumps.

    The unit of time is log(1/α) at depth 2 and α^{2−depth} at larger depths. The dual s = −∫∇ℒ
    grows linearly until a coordinate reaches an end of its range. Then θ jumps to the minimiser of
    the loss over the coordinates at an end, each with the sign of that end.

    Args:
        problem: least squares, signed or not.
        layers: shape (depth, dim), depth ≥ 2; at depth 2 only the kinds of coordinates matter. Or
            the growth range of another parametrisation, from `growth_range`.
        max_jumps: the largest number of jumps.

    Returns:
        The times and saddles, from θ = 0 at time 0.

    Raises:
        ValueError: another loss, or a single layer, whose flow has no saddles.
        RuntimeError: more jumps than `max_jumps`, or SciPy's non-negative least squares did not
            find a saddle.

    Source: depth 2: Pesme & Flammarion 2023; two analytic layers: Zhao et al. 2026; other depths as
    derived in docs/theory.md.

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
    growth = layers if isinstance(layers, GrowthRange) else _growth_of(layers, problem.dim)
    low, high = growth
    if low.shape != (problem.dim,):
        raise ValueError(f"`layers` must have {problem.dim} coordinates, got {low.size}.")
    matrix, values = _linear_model(problem)
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
            return SaddlePath(np.array(times), np.array(saddles), growth)
        arrived = wait <= step * (1 + _NEGLIGIBLE)
        time, dual = time + step, dual + step * drive
        dual = np.where(arrived, np.where(drive > 0, high, low), dual)
        signs = np.where(dual >= high, 1.0, np.where(dual <= low, -1.0, 0.0)) * movable
        theta = _constrained_minimiser(matrix, values, signs)
        times.append(time)
        saddles.append(theta)
    raise RuntimeError(f"The path has more than {max_jumps} jumps: raise `max_jumps`.")


def excess_norm(problem: Problem, path: SaddlePath) -> np.ndarray:
    """By how much each saddle exceeds the least weighted ℓ1 norm among all θ with its predictions.

    The norm is Σ_k high_k θ_k⁺ − low_k θ_k⁻ of the growth range. The dual of a saddle lies in that
    range, at an end where θ_k ≠ 0, and is a sum of gradients, so that the saddle is a minimiser: a
    linear program, solved here from scratch, checks the path.

    Args:
        problem: as for `saddle_path`.
        path: from `saddle_path`.

    Returns:
        The excess relative to the norm, shape (saddles,): 0 to the tolerance 1e-9 of the program.

    Raises:
        RuntimeError: the linear program was not solved.

    Source: Zhao et al. 2026, arXiv 2607.12332, for two analytic layers; other depths as derived in
    docs/theory.md.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [2.0], normalisation="half")
    >>> path = ddln.theory.saddle_path(problem, [[0.0, 0.0], [1.0, 1.0]])
    >>> ddln.theory.excess_norm(problem, path).round(9).tolist()
    [0.0, 0.0]
    """
    from scipy.optimize import linprog

    matrix, _ = _linear_model(problem)
    columns = np.hstack([matrix, -matrix])
    weights = np.concatenate([path.growth.high, -path.growth.low])  # of θ⁺ and θ⁻
    movable = np.tile(path.growth.high > path.growth.low, 2) & np.isfinite(weights)
    weights = np.where(movable, weights, 0.0)
    bounds = [(0, None if moves else 0) for moves in movable]
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    excess = []
    for theta in path.theta:
        size = np.max(np.abs(theta), initial=0.0) or 1.0
        halves = np.concatenate([np.maximum(theta, 0.0), np.maximum(-theta, 0.0)]) / size
        found = linprog(weights, A_eq=columns, b_eq=columns @ halves, bounds=bounds, options=tight)
        if found.status != 0:
            raise RuntimeError(f"SciPy's linprog did not find the least norm: {found.message}")
        norm = weights @ halves
        excess.append((norm - found.fun) / (norm if norm > 0 else 1.0))
    return np.array(excess)


def _linear_model(
    problem: Problem,
) -> tuple[Float[np.ndarray, "samples dim"], Float[np.ndarray, " samples"]]:
    """Matrix and values of the least-squares problem, with the signs of a signed model."""
    affine = problem.minimisers()
    matrix, values = (np.asarray(part, float) for part in affine or ())
    return matrix, values


def _growth_of(layers: ArrayLike, dim: int) -> GrowthRange:
    """The ends of each coordinate's range of ∇Q, in the units of time of `saddle_path`."""
    layers = as_layers(layers, dim)
    if len(layers) < 2:
        raise ValueError("`layers` must be at least two: the flow of a single one has no saddles.")
    entropy = Entropy(layers)
    reduction = entropy.reduction
    if reduction.other_imbalances.shape[0] > 0:
        low, high = entropy.range()
        return GrowthRange(np.asarray(low), np.asarray(high))
    side, frozen = np.asarray(reduction.half_line_sign), np.asarray(reduction.is_frozen)
    high = np.where(frozen, 0.0, np.where(side < 0, np.inf, 1.0))
    low = np.where(frozen, 0.0, np.where(side > 0, -np.inf, -1.0))
    return GrowthRange(low, high)


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
