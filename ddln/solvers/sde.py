"""Stochastic flows: the diffusions that noisy training follows, with or without momentum.

    plain steps    du = −∂ℒ/∂u dt + √s Σ^{1/2}(u) dB                                 s = γ
    heavy ball     du = w dt,   μ dw = −(w + ∂ℒ/∂u) dt + √s Σ^{1/2}(u) dB       s = γ/(1 − β)

Σ(u) is the covariance of the gradient estimator. A step covers the flow time s. The square root of
Σ has one or two Brownian motions for each of the n samples: with n times the term of sample i in ℒ
as ℓ_i, and its target y_i,

    Σ^{1/2} dB = (n b)^{−1/2} Σ_i (∂ℓ_i/∂u − ∂ℒ/∂u) dB_i         for minibatches of b samples
               + σ (n/r)^{1/2} Σ_i ∂²ℒ/∂u∂y_i dB_i               for noise σ on r targets

Without momentum, a step of Euler's scheme of length γ is a step of training with normal noise of
the same covariance.
"""

from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import (
    ArrayLike,
    Number,
    as_floats,
    as_layers,
    as_positive,
    refuse,
)
from ddln.networks.layers import effective_parameter
from ddln.problems.base import Problem, refuse_kinks
from ddln.solvers._sde_terms import Brownian, State, System
from ddln.solvers.gradient_estimators import GradientEstimator, Sampling
from ddln.solvers.result import Run, raise_on_failure
from ddln.solvers.status import Status
from ddln.solvers.trajectory import as_times

_SLACK = 1e-3
"""A step may exceed `dt` by this fraction of it, so that rounding does not add a step."""


class Diffusion(Run):
    """A stochastic flow, saved at `times`. NaN from where it diverged."""

    layer_velocity: Float[Array, "points depth dim"] | None
    """w = du/dt with momentum; None without."""

    statuses: ClassVar = (Status.OK, Status.DIVERGED)


@jax.jit
def _schedule(
    times: Float[Array, " times"],
    rate: Float[Array, ""],
    momentum: Float[Array, ""] | None,
    dt: Float[Array, ""] | None,
) -> tuple[Float[Array, ""], Float[Array, ""] | None, Float[Array, " intervals"]]:
    """s, μ, and the number of steps of the scheme between saved times."""
    step, mass = rate, None
    if momentum is not None:
        step = rate / (1 - momentum)
        mass = step * (1 + momentum) / (2 * (1 - momentum))
    if dt is None:
        dt = step if mass is None else jnp.minimum(step, mass)
    return step, mass, jnp.maximum(jnp.ceil(jnp.diff(times) / dt - _SLACK), 1.0)


def _check_counts(counts: Float[Array, " intervals"], halvings: int) -> Float[Array, " intervals"]:
    """Check that floating-point times and 32-bit integers can count the steps."""
    most = min(0.1 / float(jnp.finfo(counts.dtype).eps), 2**31 / len(counts)) / 2**halvings
    longest = jnp.max(counts)
    return refuse(
        longest > most,
        f"`times` must be at most {most:.3g} steps of the scheme apart, got {longest}: save "
        "more often, or choose a longer `dt`.",
        counts,
    )


_Interval = tuple[Float[Array, ""], Float[Array, ""], Int[Array, ""]]
"""Flow time, number of steps, and number of the first step."""


@eqx.filter_jit
def _integrate(
    system: System,
    layers: Float[Array, "depth dim"],
    times: Float[Array, " times"],
    key: PRNGKeyArray | None,
    counts: Float[Array, " intervals"],
    halvings: int,
) -> Diffusion:
    """Integrate from each saved time to the next, in the given number of steps."""
    numbers = counts.astype(jnp.int32)
    first_steps = jnp.cumsum(numbers) - numbers

    def interval(state: State, given: _Interval) -> tuple[State, State]:
        span, count, first = given
        path = None
        if system.estimator.is_random and key is not None:
            path = Brownian(key, first, system.motions, halvings)
        state = _solve_interval(system, state, span, count, path, halvings)
        return state, state

    start = system.initial(layers)
    _, later = jax.lax.scan(interval, start, (jnp.diff(times), counts, first_steps))
    path, velocity = jax.tree.map(
        lambda one, more: jnp.concatenate([one[None], more]), start, later
    )
    return _observe(system.problem, times, path, velocity, counts, halvings)


def _solve_interval(
    system: System,
    state: State,
    span: Float[Array, ""],
    count: Float[Array, ""],
    path: Brownian | None,
    halvings: int,
) -> State:
    """The state `span` of flow time later, after `count` steps; NaN if diffrax fails."""
    terms = diffrax.ODETerm(system.drift)
    if path is not None:
        terms = diffrax.MultiTerm(terms, diffrax.ControlTerm(system.diffusion, path))
    solution = diffrax.diffeqsolve(
        terms,
        diffrax.Tsit5() if path is None else diffrax.Euler(),
        jnp.zeros_like(count),
        count,
        jnp.asarray(0.5**halvings, count.dtype),
        state,
        args=span / count,
        saveat=diffrax.SaveAt(t1=True),
        adjoint=diffrax.ForwardMode(),
        max_steps=None,
        throw=False,
    )
    is_solved = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda saved: jnp.where(is_solved, saved[0], jnp.nan), solution.ys)


def _observe(
    problem: Problem,
    times: Float[Array, " times"],
    path: Float[Array, "times depth dim"],
    velocity: Float[Array, "times depth dim"] | None,
    counts: Float[Array, " intervals"],
    halvings: int,
) -> Diffusion:
    """The result; NaN at points that are not finite, or after too many steps to count."""
    theta = jax.vmap(effective_parameter)(path)
    saved = path, velocity, theta, jax.vmap(problem.loss)(theta), jax.vmap(problem.gap)(theta)

    def is_finite(*arrays: Float[Array, "..."]) -> Bool[Array, ""]:
        return jnp.all(jnp.isfinite(jnp.concatenate(arrays, axis=None)))

    lost = ~(jax.vmap(is_finite)(*jax.tree.leaves(saved)) & jnp.isfinite(jnp.append(0.0, counts)))
    path, velocity, theta, loss, gap = jax.tree.map(
        lambda x: jnp.where(lost.reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, x), saved
    )
    ok, diverged = map(Diffusion.code_of, (Status.OK, Status.DIVERGED))
    return Diffusion(
        times=times,
        layers=path,
        layer_velocity=velocity,
        theta=theta,
        loss=loss,
        gap=gap,
        status=jnp.where(jnp.any(lost), diverged, ok),
        stats={"num_steps": jnp.sum(counts.astype(jnp.int32)) * 2**halvings},
    )


def stochastic_flow(
    problem: Problem,
    layers: ArrayLike,
    times: ArrayLike,
    *,
    learning_rate: Number,
    oracle: GradientEstimator | None = None,
    momentum: Number | None = None,
    key: PRNGKeyArray | None = None,
    dt: Number | None = None,
    halvings: int = 0,
    throw: bool = True,
) -> Diffusion:
    """Solve the Itô equation whose law is that of noisy training, to first order in its step.

        du = −∂ℒ/∂u dt + √γ Σ^{1/2}(u) dB

    and with momentum β, for s = γ/(1 − β) and μ = γ(1 + β)/(2(1 − β)²),

        du = w dt,   μ dw = −(w + ∂ℒ/∂u) dt + √s Σ^{1/2}(u) dB,   w(0) = −(s/2μ) ∂ℒ/∂u.

    Args:
        problem: the loss; a sum over samples if the estimator draws.
        layers: initial layers, shape (depth, dim).
        times: flow times to save at, strictly increasing; the first is the start.
        learning_rate: γ > 0, the step size of the training.
        oracle: gradient estimator of the training, which determines Σ: samples, noise on their
            targets (to first order in σ, which is exact for least squares and Poisson), or both.
            `None` draws nothing, which leaves the deterministic flow of momentum.
        momentum: β of heavy ball, 0 ≤ β < 1; `None` for plain steps, with a first-order flow.
        key: for the Brownian motions, if the estimator draws.
        dt: longest step of the scheme, in flow time; `None` is one step of training, but at most μ.
            Equal steps, up to a thousandth longer than `dt`, lead from each saved time to the next.
        halvings: number of times that these steps are halved. The key's Brownian motion stays the
            same, so that runs converge to one path. Another `dt` or `times` has another path.
        throw: raise an error if the run diverges; otherwise `status` tells.

    Returns:
        A `Diffusion`. The scheme is Euler's if the estimator draws (strong order ½, weak order 1),
        and `diffrax.Tsit5` otherwise. Calls that differ only in numbers and keys share a compiled
        program, and `jax.vmap` solves a batch. Memory is needed only for the saved times. Supports
        pathwise forward-mode differentiation (`jax.jvp`).

    Raises:
        ValueError: invalid shapes, times or numbers (traced numbers: NaN); no key for an estimator
            that draws; an estimator other than `ddln.Sampling` with replacement; or neither draws
            nor momentum, which is `ddln.gradient_flow`.
        RuntimeError: the run diverged, and `throw` is true.

    Source: samples Pesme et al. 2021, label noise HaoChen et al. 2021, momentum Papazov et al.
    2024, whose mass is λ = γ/(1 − β)²; μ = λ(1 + β)/2 and w(0) add the next order in s, as
    derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.stochastic_flow(
    ...     problem,
    ...     [[0.0], [1.0]],
    ...     [0.0, 1.0, 3.0],
    ...     learning_rate=0.01,
    ...     oracle=ddln.Sampling(label_noise=0.3),
    ...     key=jax.random.key(0),
    ... )
    >>> bool(abs(run.theta[-1, 0] - 2.0) < 0.5), int(run.stats["num_steps"])
    (True, 300)
    """
    drop_programs()
    refuse_kinks(problem)
    layers = as_layers(layers, problem.dim)
    layers = layers.astype(jnp.promote_types(layers.dtype, problem.minimum.dtype))
    times = as_times(as_floats("times", times, 1).astype(layers.dtype))
    estimator = _check_estimator(problem, oracle, key, momentum)
    if halvings < 0:
        raise ValueError(f"`halvings` must be ≥ 0, got {halvings}.")
    rate = as_positive("learning_rate", learning_rate).astype(layers.dtype)
    if momentum is not None:
        momentum = as_floats("momentum", momentum, 0).astype(layers.dtype)
        wrong = (momentum < 0) | (momentum >= 1)
        momentum = refuse(wrong, f"`momentum` must be ≥ 0 and < 1, got {momentum}.", momentum)
    if dt is not None:
        dt = as_positive("dt", dt).astype(layers.dtype)
    step, mass, counts = _schedule(times, rate, momentum, dt)
    run = _integrate(
        System(problem, estimator, step, mass),
        layers,
        times,
        key,
        _check_counts(counts, halvings),
        halvings,
    )
    return raise_on_failure(run) if throw else run


def _check_estimator(
    problem: Problem,
    oracle: GradientEstimator | None,
    key: PRNGKeyArray | None,
    momentum: Number | None,
) -> Sampling:
    """Check that there is a stochastic flow for the gradient estimator."""
    estimator = Sampling() if oracle is None else oracle
    if not isinstance(estimator, Sampling) or estimator.first_order(problem) is not None:
        raise ValueError(
            f"`oracle` must be a `ddln.Sampling`, and with replacement, got {estimator}."
        )
    if estimator.steps is not None:
        raise ValueError("`oracle` must draw at random, got your own `rows` or `noise`.")
    estimator.check(problem)
    if estimator.is_random and key is None:
        raise ValueError("`key` must be given if `oracle` draws at random.")
    if not estimator.is_random and momentum is None:
        raise ValueError(
            "`oracle` must draw something if there is no `momentum`: without both, use "
            "`ddln.gradient_flow`."
        )
    return estimator
