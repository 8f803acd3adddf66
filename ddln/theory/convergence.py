"""Upper bounds on the gap ℒ − ℒ* along the flow, one statement a function."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._internal.validation import (
    ArrayLike,
    Number,
    as_layers,
    as_positive,
    largest,
    smallest,
)
from ddln.networks.entropy import as_entropy
from ddln.networks.layers import imbalance
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.problems.base import Problem
from ddln.solvers.trajectory import Trajectory
from ddln.theory import _hermite


def rate_bound(problem: Problem, layers: ArrayLike) -> Float[Array, ""]:
    """The rate μc with c = min_k Π_{j≠m_k} λ_jk: the gap is at most gap(0) · exp(−2 μ c t).

    m_k is the smallest layer at coordinate k and λ_jk = (u^j_k)² − (u^{m_k}_k)² at time 0. Scaling
    the layers by a multiplies the rate by a^{2(depth−1)}. The rate is 0, and the bound trivial, if
    any coordinate's smallest layer is tied.

    Args:
        problem: a loss with a PL constant μ.
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
    return _pl_constant(problem) * smallest(jnp.prod(ascending[1:], axis=0))


def exponential_bound(
    problem: Problem, layers: ArrayLike, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    """The bound gap(0) · exp(−2 μ c t) ≥ gap(t), with t counted from `times[0]`.

    Args:
        problem: a loss with a PL constant μ.
        layers: initial layers, shape (depth, dim).
        times: shape (times,).

    Returns:
        The bound at each time, shape (times,).

    Raises:
        ValueError: the problem has no PL constant.

    Source: Theorem 2 and Corollary 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> ddln.theory.exponential_bound(problem, [[0.0], [3.0]], jnp.array([0.0, 1.0]))[0].item()
    4.0
    """
    start = problem.gap(jnp.prod(as_layers(layers), axis=0))
    return start * jnp.exp(-2 * rate_bound(problem, layers) * (times - times[0]))


def divergence_bound(
    problem: Problem, layers: ArrayLike | SeparableEntropy, times: Float[Array, " times"]
) -> Float[Array, " times"]:
    """The bound D_Q(θ*, θ(0)) / t ≥ gap(t) for a convex loss with minimiser θ*.

    It is infinite at the start, or NaN if the start is the minimiser. It is NaN if there is no
    minimiser or θ* lies outside the domain of Q.

    Args:
        problem: a convex loss.
        layers: initial layers, shape (depth, dim); or the entropy of another parametrisation.
        times: shape (times,); t is counted from the first.

    Returns:
        The bound at each time, shape (times,).

    Source: Theorem 2, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> bound = ddln.theory.divergence_bound(problem, [[0.0], [3.0]], jnp.array([0.0, 1.0]))
    >>> bool(bound[1] > 0)
    True
    """
    divergence = eqx.filter_jit(lambda entropy, theta: entropy.value(theta))
    return divergence(as_entropy(layers, problem.dim), problem.minimiser) / (times - times[0])


def posterior_bound(problem: Problem, run: Trajectory) -> Float[Array, " times"]:
    """The bound gap(0) · exp(−2 μ ∫₀ᵗ min_k M_k(s) ds) ≥ gap(t), from the mobilities of a run.

    Args:
        problem: a loss with a PL constant μ.
        run: from `gradient_flow` or `mirror_flow`.

    Returns:
        The bound at each saved time, shape (times,).

    Raises:
        ValueError: the problem has no PL constant.

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

    Between saved times log M is interpolated by the cubic Hermite polynomial through its values and
    slopes, and the exponential of the smallest interpolant is integrated by Simpson's rule.

    Args:
        run: from `gradient_flow` or `mirror_flow`.

    Returns:
        The integrals, shape (times,), and the estimated error of the last one, shape (). Both are 0
        if a coordinate is frozen, because its mobility is 0.

    Source: as derived in docs/theory.md from Proposition 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [0.0])  # at rest, with M = 2² = 4
    >>> run = ddln.gradient_flow(problem, [[0.0], [2.0]], [0.0, 0.5, 1.0])
    >>> ddln.theory.smallest_mobility_integral(run)[0].tolist()
    [0.0, 2.0, 4.0]
    """
    entropy = run.flow_entropy
    moves, least = entropy.is_mobile[None], jnp.finfo(run.theta.dtype).tiny
    mobility, slope = jax.vmap(entropy.mobility_and_slope)(run.layers)
    slope = jnp.where(moves & (mobility > least), slope, 0.0)
    # On a half-line M can underflow to 0.
    mobility = jnp.where(moves, jnp.maximum(mobility, least), 1.0)
    log_slope = slope / mobility * (run.velocity / mobility)  # dξ/dt is dθ/dt / M
    step = jnp.diff(run.times)
    nodes = jnp.linspace(0.0, 1.0, 17, dtype=step.dtype)
    negative_log = _hermite.interpolate(run.times, -jnp.log(mobility), -log_slope, nodes)
    simpson = jnp.asarray([1.0] + [4.0, 2.0] * 7 + [4.0, 1.0], step.dtype) / 48
    pieces = step * (jnp.exp(-largest(negative_log, axis=1)) @ simpson)
    relative_error = _hermite.relative_error(run.times, mobility, mobility * log_slope)
    error = jnp.sum(pieces * largest(relative_error, axis=1))
    integral = jnp.concatenate([jnp.zeros_like(step[:1]), jnp.cumsum(pieces)])
    some_frozen = ~jnp.all(moves)
    return jnp.where(some_frozen, 0.0, integral), jnp.where(some_frozen, 0.0, error)


def time_to_gap(problem: Problem, layers: ArrayLike, gap: Number) -> Float[Array, ""]:
    """The flow time by which Theorem 2 guarantees ℒ(θ(t)) − ℒ* ≤ gap.

    The smaller of log(gap(0)/gap) / (2μc), from the exponential bound, and D_Q(θ*, θ(0)) / gap,
    from the divergence bound; infinite if neither applies.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        gap: > 0, shape ().

    Returns:
        A flow time ≥ 0, shape ().

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
        time = divergence_bound(problem, layers, jnp.asarray([0.0, 1.0], gap.dtype))[1] / gap
        times.append(jnp.where(jnp.isnan(time), jnp.inf, time))
    return jnp.maximum(smallest(jnp.stack(times)), 0.0)


class Predictions(eqx.Module):
    """The theorems' bounds for a run; NaN where their hypotheses fail, as under weight decay."""

    rate_bound: Float[Array, ""]
    """μc, see `rate_bound`."""
    exponential_bound: Float[Array, " times"]
    divergence_bound: Float[Array, " times"]
    posterior_bound: Float[Array, " times"]
    posterior_error: Float[Array, ""]
    """Estimated relative error of the last posterior bound."""


def predict(problem: Problem, run: Trajectory) -> Predictions:
    """All bounds for a run.

    Args:
        problem: the loss.
        run: from `gradient_flow` or `mirror_flow`.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.gradient_flow(problem, [[0.0], [3.0]], jnp.linspace(0.0, 0.2, 11))
    >>> float(ddln.theory.predict(problem, run).rate_bound)
    18.0
    """
    unknown = jnp.full_like(run.times, jnp.nan)
    rate, exponential, posterior, error = unknown[0], unknown, unknown, unknown[0]
    if run.decay is not None:
        return Predictions(rate, exponential, unknown, posterior, error)
    if problem.pl_constant is not None and run.entropy is None:
        rate = rate_bound(problem, run.layers[0])
        exponential = exponential_bound(problem, run.layers[0], run.times)
    if problem.pl_constant is not None:
        integral, integral_error = smallest_mobility_integral(run)
        posterior = run.gap[0] * jnp.exp(-2 * problem.pl_constant * integral)
        error = 2 * problem.pl_constant * integral_error
    return Predictions(
        rate_bound=rate,
        exponential_bound=exponential,
        divergence_bound=divergence_bound(problem, run.flow_entropy, run.times),
        posterior_bound=posterior,
        posterior_error=error,
    )


def _pl_constant(problem: Problem) -> Float[Array, ""]:
    if problem.pl_constant is None:
        raise ValueError("`problem` must have a PL constant for an exponential bound, got None.")
    return problem.pl_constant
