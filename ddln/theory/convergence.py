"""How fast: bounds and rates, one statement a function."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import (
    ArrayLike,
    Number,
    as_layers,
    as_positive,
    as_vector,
    is_concrete,
    refuse,
)
from ddln.networks.entropy import Entropy
from ddln.networks.layers import imbalance, mobility_of_squares
from ddln.networks.reparametrisation import Reduction
from ddln.problems.base import Problem
from ddln.solvers.gradient_flow import Trajectory
from ddln.theory import _hermite


def rate_bound(problem: Problem, layers: ArrayLike) -> Float[Array, ""]:
    """μ · c with c = min_k Π_{j≠m_k} λ_jk: the gap is at most gap(0) · exp(−2 μ c t).

    m_k is the smallest layer at coordinate k and λ_jk = (u^j_k)² − (u^{m_k}_k)² at time 0. Scaling
    the layers by a multiplies it by a^{2(depth−1)}. It is 0, and says nothing, where a smallest
    layer is tied.

    Args:
        problem: with its `pl_constant` μ.
        layers: initial layers, shape (depth, dim).

    Returns:
        A rate per unit of flow time, shape ().

    Raises:
        ValueError: the problem has no PL constant.

    Source: Theorem 2 and Corollary 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])  # μ = 2
    >>> float(ddln.rate_bound(problem, [[0.0], [3.0]]))  # c = 3²
    18.0
    """
    ascending = jnp.sort(imbalance(as_layers(layers)), axis=0)
    return _pl_constant(problem) * _least(jnp.prod(ascending[1:], axis=0))


def exponential_bound(
    problem: Problem, layers: ArrayLike, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    """gap(0) · exp(−2 μ c t) ≥ gap(t), at each time from the start `times[0]`.

    Source: Theorem 2 and Corollary 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> ddln.theory.exponential_bound(problem, [[0.0], [3.0]], jnp.array([0.0, 1.0]))[0].item()
    4.0
    """
    start = problem.gap(jnp.prod(as_layers(layers), axis=0))
    return start * jnp.exp(-2 * rate_bound(problem, layers) * (times - times[0]))


def divergence_bound(
    problem: Problem, layers: ArrayLike, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    """D_Q(θ*, θ(0)) / t ≥ gap(t) for a convex loss with minimiser θ*; infinite at the start
    (NaN if that is a minimiser).

    NaN where there is no minimiser, or it lies outside the domain of Q.

    Source: Theorem 2, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> bound = ddln.theory.divergence_bound(problem, [[0.0], [3.0]], jnp.array([0.0, 1.0]))
    >>> bool(bound[1] > 0)
    True
    """
    divergence = eqx.filter_jit(lambda entropy, theta: entropy.value(theta))
    return divergence(Entropy(layers), problem.minimiser) / (times - times[0])


def posterior_bound(problem: Problem, run: Trajectory) -> Float[Array, " times"]:
    """gap(0) · exp(−2 μ ∫₀ᵗ min_k M_k(s) ds) ≥ gap(t), from the mobilities the run went through.

    Source: as derived in docs/theory.md from Proposition 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.gradient_flow(problem, [[0.0], [3.0]], jnp.linspace(0.0, 0.2, 11))
    >>> bool((run.gap <= ddln.theory.posterior_bound(problem, run) * 1.000001).all())
    True
    """
    integral, _ = smallest_mobility_integral(run)
    return run.gap[0] * jnp.exp(-2 * _pl_constant(problem) * integral)


@eqx.filter_jit
def smallest_mobility_integral(
    run: Trajectory,
) -> tuple[Float[Array, " times"], Float[Array, ""]]:
    """∫₀ᵗ min_k M_k(s) ds at each saved time of a run, and an estimate of its error at the end.

    Between two saved times log M is the cubic through its values and slopes there.

    Source: as derived in docs/theory.md from Proposition 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [0.0])  # at rest, with M = 2² = 4
    >>> run = ddln.gradient_flow(problem, [[0.0], [2.0]], [0.0, 0.5, 1.0])
    >>> ddln.theory.smallest_mobility_integral(run)[0].tolist()
    [0.0, 2.0, 4.0]
    """
    squares, moves = run.layers**2, ~Reduction(run.layers[0]).is_frozen

    def mobility_of(squares):
        # A half-line can be followed until its M is nothing.
        least = jnp.finfo(squares.dtype).tiny
        return jnp.where(moves, jnp.maximum(mobility_of_squares(squares), least), 1.0)

    def log_mobility(squares):
        return jnp.log(mobility_of(squares))

    # Along the flow the squares of all layers grow by the same, 2θ dθ/dt / M.
    mobility = jax.vmap(mobility_of)(squares)
    growth = jnp.broadcast_to((2 * run.theta * run.velocity / mobility)[:, None], squares.shape)
    value, slope = jax.vmap(lambda x, dx: jax.jvp(log_mobility, (x,), (dx,)))(squares, growth)
    step = jnp.diff(run.times)
    nodes = jnp.linspace(0.0, 1.0, 17, dtype=step.dtype)
    curve = _hermite.interpolate(run.times, value, slope, nodes)
    smallest = jnp.exp(_least(curve, axis=2))
    simpson = jnp.asarray([1.0] + [4.0, 2.0] * 7 + [4.0, 1.0], step.dtype) / 48
    pieces = step * (smallest @ simpson)
    doubt = _hermite.relative_error(run.times, mobility, mobility * slope)
    error = jnp.sum(pieces * -_least(-doubt, axis=1))
    integral = jnp.concatenate([jnp.zeros_like(step[:1]), jnp.cumsum(pieces)])
    some_frozen = ~jnp.all(moves)
    return jnp.where(some_frozen, 0.0, integral), jnp.where(some_frozen, 0.0, error)


def mode_rates(
    problem: Problem, theta: ArrayLike, layers: ArrayLike
) -> tuple[Float[Array, " modes"], Float[Array, "dim modes"]]:
    """Eigenvalues, ascending, and eigenvectors of M^{1/2} ∇²ℒ(θ) M^{1/2}: the flow linearised at θ.

    A mode with eigenvalue r decays like exp(−r t); one with eigenvalue 0 to rounding does not move.
    Of n < dim samples there are only n modes to look at, found in n² · dim operations.

    Args:
        problem: the loss.
        theta: where to linearise, shape (dim,).
        layers: initial layers of the run, shape (depth, dim).

    Returns:
        Rates, shape (modes,), and the modes as columns, shape (dim, modes), in the coordinates
        M^{−1/2} θ: dim of them, or n where there are fewer samples; what is left does not move.

    Raises:
        ValueError: θ outside the domain of the flow, see `asymptotic_rate` (traced: NaN).

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0, 0.0]], [2.0])
    >>> ddln.theory.mode_rates(problem, [0.0, 0.0], [[0.0, 0.0], [3.0, 1.0]])[0].round(9).tolist()
    [18.0]
    """
    return _mode_rates(problem, *_in_domain(problem, theta, layers))


def _in_domain(problem: Problem, theta: ArrayLike, layers: ArrayLike) -> tuple[Array, Array]:
    """θ and the layers; where no layers of the same imbalance have this θ it is refused."""
    theta, layers = as_vector("theta", theta, problem.dim), as_layers(layers, problem.dim)
    reduction = Reduction(layers)
    outward = theta * jnp.prod(jnp.sign(layers), axis=0) < 0
    wrong = jnp.where(reduction.is_frozen, theta != 0, ~reduction.is_open & outward)
    message = ""
    if is_concrete(wrong) and np.asarray(wrong).any():
        k = int(np.argmax(np.asarray(wrong)))
        message = (
            f"`theta` must be 0 on frozen coordinates and keep the sign of θ(0) on half-lines (see "
            f"`ddln.describe(layers)`), got {float(theta[k]):g} at index {k}."
        )
    return refuse(jnp.any(wrong), message, theta), layers


@eqx.filter_jit
def _mode_rates(problem, theta, layers):
    root = 1 / jnp.sqrt(Entropy(layers).hessian(theta))
    thin = problem.hessian_root(theta)
    if thin is not None and thin.shape[0] < problem.dim:
        _, singular, rows = jnp.linalg.svd(thin * root[None], full_matrices=False)
        rates, modes = singular[::-1] ** 2, rows[::-1].T
    else:
        rates, modes = jnp.linalg.eigh(root[:, None] * problem.hessian(theta) * root[None])
    zero = rates <= rates[-1] * problem.dim * jnp.finfo(rates.dtype).eps
    return jnp.where(zero, 0.0, rates), modes


def asymptotic_rate(problem: Problem, theta: ArrayLike, layers: ArrayLike) -> Float[Array, ""]:
    """r, the smallest nonzero eigenvalue of M^{1/2} ∇²ℒ(θ) M^{1/2}: the gap ends like exp(−2 r t).

    Sharp at the limit point θ = θ_∞. Where θ_∞ is on the edge θ_k = 0 of a half-line M_k is 0, and
    the flow is not linear in θ_k. With m smallest layers w tied, C the product of the others and
    g = |∂ℒ/∂θ_k| at the edge,

        ẇ = −C g w^{m−1}        if g > 0: θ_k = C w^m falls like exp(−2 C g t) if m = 2, and r is at
                                most C g; like a power of t if m > 2, and r = 0;
        θ̇_k ∝ −θ_k^{3−2/m}      if g = 0 and ℒ grows with θ_k, whatever the other coordinates do:
                                θ_k and the gap fall like powers of t, and r = 0.

    There the gap is that to ℒ(θ_∞), should this not be ℒ*.

    Args:
        problem: the loss.
        theta: the limit point, or where a run has got to, shape (dim,).
        layers: initial layers of the run, shape (depth, dim).

    Returns:
        A rate per unit of flow time, shape (): 0 where the gap falls more slowly than any
        exponential, infinite where nothing moves.

    Raises:
        ValueError: θ outside the domain of the flow: not 0 where a coordinate is frozen, or of the
            other sign than θ(0) on a half-line (traced: NaN).

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> round(float(ddln.asymptotic_rate(problem, [2.0], [[0.0], [3.0]])), 6)  # 2 √(4·2² + 3⁴)
    19.697716
    """
    return _asymptotic_rate(problem, *_in_domain(problem, theta, layers))


@eqx.filter_jit
def _asymptotic_rate(problem, theta, layers):
    rates, modes = _mode_rates(problem, theta, layers)
    moves = rates > 0
    interior = _least(jnp.where(moves, rates, jnp.inf))
    rate = jnp.minimum(interior, _edge_rate(problem, theta, layers, rates, modes))
    known = jnp.all(jnp.isfinite(theta)) & jnp.all(jnp.isfinite(rates))
    return jnp.where(known, rate, jnp.nan)


def _edge_rate(problem, theta, layers, rates, modes):
    """The slowest rate of the coordinates on the edge of their half-lines; inf where none is."""
    reduction = Reduction(layers)
    on_edge = (theta == 0) & ~reduction.is_open & ~reduction.is_frozen
    tied = jnp.sum(imbalance(layers) == 0, axis=0)
    others = jnp.prod(jnp.sqrt(jnp.where(imbalance(layers) == 0, 1.0, imbalance(layers))), axis=0)
    gradient = problem.gradient(theta) * jnp.prod(jnp.sign(layers), axis=0)

    # What ℒ grows by with θ_k when all coordinates inside follow: a Schur complement.
    root = 1 / jnp.sqrt(Entropy(layers).hessian(theta))
    thin = problem.hessian_root(theta)
    if thin is None:
        hessian = problem.hessian(theta)
        own, shared = jnp.diagonal(hessian), modes.T @ (root[:, None] * hessian)
    else:
        own, shared = jnp.sum(thin**2, axis=0), ((thin * root[None]) @ modes).T @ thin
    followed = shared**2 / jnp.where(rates > 0, rates, jnp.inf)[:, None]
    precision = jnp.finfo(theta.dtype).eps
    counts = own - jnp.sum(followed, axis=0) > jnp.sqrt(precision) * own
    noise = 1e3 * precision * jnp.max(own) * jnp.max(jnp.abs(theta))
    exponential = jnp.where(tied == 2, others * gradient, 0.0)
    slowest = jnp.where(counts, 0.0, jnp.inf)
    slowest = jnp.where(gradient > noise, exponential, slowest)
    slowest = jnp.where(gradient < -noise, 0.0, slowest)  # leaves the edge again
    return _least(jnp.where(on_edge, slowest, jnp.inf))


def time_to_gap(problem: Problem, layers: ArrayLike, gap: Number) -> Float[Array, ""]:
    """Flow time by which a theorem guarantees ℒ(θ(t)) − ℒ* ≤ gap: the earlier of both bounds'.

    log(gap(0)/gap) / (2μc) of the exponential bound, D_Q(θ*, θ(0)) / gap of the other. Infinite
    where neither has anything to say.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        gap: > 0, shape ().

    Raises:
        ValueError: the gap is not positive.

    Source: Theorem 2 and Corollary 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])  # gap(0) = 4, μc = 18
    >>> round(float(ddln.theory.time_to_gap(problem, [[0.0], [3.0]], 1e-6)), 6)
    0.422272
    """
    gap = as_positive("gap", gap)
    start = problem.gap(jnp.prod(as_layers(layers), axis=0))
    times = [jnp.asarray(jnp.inf, gap.dtype)]
    if problem.pl_constant is not None:
        rate = rate_bound(problem, layers)
        times.append(jnp.where(rate > 0, jnp.log(start / gap) / (2 * rate), jnp.inf))
    if problem.convex:
        later = divergence_bound(problem, layers, jnp.asarray([0.0, 1.0], gap.dtype))[1] / gap
        times.append(jnp.where(jnp.isnan(later), jnp.inf, later))
    return jnp.maximum(_least(jnp.stack(times)), 0.0)


class Predictions(eqx.Module):
    """What the theorems bound of a run; NaN where a hypothesis of theirs fails."""

    rate_bound: Float[Array, ""]
    """μc, of `rate_bound`."""
    exponential_bound: Float[Array, " times"]
    divergence_bound: Float[Array, " times"]
    posterior_bound: Float[Array, " times"]
    posterior_error: Float[Array, ""]
    """Estimated relative error of the last posterior bound."""


def predict(problem: Problem, run: Trajectory) -> Predictions:
    """Every bound for a run.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.gradient_flow(problem, [[0.0], [3.0]], jnp.linspace(0.0, 0.2, 11))
    >>> float(ddln.theory.predict(problem, run).rate_bound)
    18.0
    """
    layers, unknown = run.layers[0], jnp.full_like(run.times, jnp.nan)
    rate, exponential, posterior, error = unknown[0], unknown, unknown, unknown[0]
    if problem.pl_constant is not None:
        rate = rate_bound(problem, layers)
        exponential = exponential_bound(problem, layers, run.times)
        integral, doubt = smallest_mobility_integral(run)
        posterior = run.gap[0] * jnp.exp(-2 * problem.pl_constant * integral)
        error = 2 * problem.pl_constant * doubt
    return Predictions(
        rate_bound=rate,
        exponential_bound=exponential,
        divergence_bound=divergence_bound(problem, layers, run.times),
        posterior_bound=posterior,
        posterior_error=error,
    )


def _pl_constant(problem: Problem) -> Float[Array, ""]:
    if problem.pl_constant is None:
        raise ValueError("`problem` must have a PL constant for an exponential bound, got None.")
    return problem.pl_constant


def _least(values: Array, axis: int | None = None) -> Array:
    """The minimum; NaN where there is one, which XLA's own on the CPU drops from large arrays."""
    unknown = jnp.any(jnp.isnan(values), axis=axis)
    return jnp.where(unknown, jnp.nan, jnp.min(values, axis=axis))
