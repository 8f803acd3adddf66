"""The stochastic flow of training with noise, and the second-order flow of momentum, with diffrax.

    plain steps    du = −∂ℒ/∂u dt + √s Σ^{1/2}(u) dB                                 s = γ
    heavy ball     du = w dt,   μ dw = −(w + ∂ℒ/∂u) dt + √s Σ^{1/2}(u) dB       s = γ/(1 − β)

Σ(u) is the covariance of the gradient that a step sees, a step being s of flow time. It is used
through a square root with one or two Brownian motions for each of the n samples: with ℓ_i, n times
the part of sample i in ℒ, and y_i, its target,

    Σ^{1/2} dB = (n b)^{−1/2} Σ_i (∂ℓ_i/∂u − ∂ℒ/∂u) dB_i         of b samples that are drawn
               + σ (n/r)^{1/2} Σ_i ∂²ℒ/∂u∂y_i dB_i               of noise σ on r targets

Without momentum a step of Euler's scheme of length γ is one of training, but for its noise, which
is normal with the same covariance.
"""

import math
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float, Int

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import (
    ArrayLike,
    Number,
    as_floats,
    as_layers,
    as_positive,
    is_concrete,
    refuse,
)
from ddln.networks.layers import effective_parameter, layer_gradient
from ddln.problems.base import Problem
from ddln.solvers.gradient_estimators import Oracle, Sampling
from ddln.solvers.gradient_flow import as_times
from ddln.solvers.result import Run

STATUS = ("ok", "diverged")
"""What the codes in `Diffusion.status` mean, in order."""

_SLACK = 1e-3  # by which a step may be longer than `dt`, rather than be two for a rounding


class Diffusion(Run):
    """A run: what was saved at `times`. NaN from where it diverged."""

    layer_velocity: Float[Array, "points depth dim"] | None
    """w = du/dt of the layers, with momentum; None without."""

    endings: ClassVar = STATUS


def noise(
    problem: Problem,
    layers: Float[Array, "depth dim"],
    oracle: Sampling,
    motion: Float[Array, "kinds samples"],
) -> Float[Array, "depth dim"]:
    """Σ^{1/2}(u) dB, with Σ the covariance of `oracle.gradient` and dB the given increments.

    Args:
        problem: a sum over samples.
        layers: u, shape (depth, dim).
        oracle: what draws: samples with replacement, label noise, or both.
        motion: one increment per sample for each kind of noise, that of the samples first.

    Source: samples as in Pesme et al. 2021, label noise as in HaoChen et al. 2021; the factors as
    derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [2.0], normalisation="half")
    >>> layers = jnp.array([[3.0], [1.0]])  # ∂²ℒ/∂u∂y = −(1, 3)
    >>> ddln.solvers.sde.noise(problem, layers, ddln.Sampling(label_noise=0.5), jnp.ones((1, 1)))
    Array([[-0.5],
           [-1.5]], dtype=float64)
    """
    theta = effective_parameter(layers)
    samples = problem.samples
    slope = jnp.zeros_like(theta)
    if oracle.batch is not None:
        weights = (motion[0] - jnp.mean(motion[0])) / math.sqrt(samples * oracle.batch)
        each = jax.vmap(problem.estimate, (None, 0))
        rows = jnp.arange(samples)[:, None]
        slope += jax.grad(lambda theta: weights @ each(theta, rows))(theta)
    if oracle.label_noise is not None:
        noisy = oracle.noisy or oracle.batch or samples
        scale = jnp.asarray(oracle.label_noise, layers.dtype) * math.sqrt(samples / noisy)
        targets = jnp.zeros_like(motion[-1])
        slope += jax.jvp(
            lambda moved: jax.grad(problem.estimate)(theta, None, moved),
            (targets,),
            (scale * motion[-1],),
        )[1]
    return layer_gradient(layers, slope)


class Brownian(diffrax.AbstractPath):
    """Brownian motions on a time that counts steps, from the `first` on.

    Each step has its increment, however often it is halved; no tree over the whole run is needed.
    """

    key: Array
    first: Int[Array, ""]
    shape: tuple[int, int] = eqx.field(static=True)
    halvings: int = eqx.field(static=True)

    @property
    def t0(self):
        return 0.0

    @property
    def t1(self):
        return jnp.inf

    def evaluate(self, t0, t1=None, left=True):
        """The increment over the piece of a step that starts at t0."""
        t0, pieces = jnp.asarray(t0), 2**self.halvings
        index = jnp.round(t0 * pieces).astype(jnp.int32)
        key = jax.random.fold_in(self.key, self.first + index // pieces)
        piece = index % pieces

        def normal(node):
            return jax.random.normal(jax.random.fold_in(key, node), self.shape, t0.dtype)

        increment = normal(0)
        for level in range(self.halvings):
            node = 2**level + (piece >> (self.halvings - level))
            is_second = (piece >> (self.halvings - level - 1)) % 2
            bridge = (1 - 2 * is_second) * 2 ** (-level / 2) * normal(node)
            increment = (increment + bridge) / 2
        return increment


class _System(eqx.Module):
    """State (u, w), or (u, None) without momentum, on a time that counts steps."""

    problem: Problem
    oracle: Sampling
    step: Float[Array, ""]
    """s."""
    mass: Float[Array, ""] | None
    """μ."""

    def initial(self, layers):
        """Heavy ball is at rest half a step before the start, where μẇ = −∂ℒ/∂u."""
        if self.mass is None:
            return layers, None
        return layers, -self.step / (2 * self.mass) * self._gradient(layers)

    def drift(self, t, state, width):
        layers, velocity = state
        force = -width * self._gradient(layers)
        if self.mass is None:
            return force, None
        return width * velocity, (force - width * velocity) / self.mass

    def diffusion(self, t, state, width):
        layers, _ = state

        def kick(motion):
            force = jnp.sqrt(self.step * width) * noise(self.problem, layers, self.oracle, motion)
            if self.mass is None:
                return force, None
            return jnp.zeros_like(force), force / self.mass

        shape = jax.ShapeDtypeStruct(self.motions, layers.dtype)
        return lineax.FunctionLinearOperator(kick, shape)

    @property
    def motions(self) -> tuple[int, int]:
        """How many Brownian motions: kinds of noise, samples."""
        kinds = (self.oracle.batch, self.oracle.label_noise)
        return sum(kind is not None for kind in kinds), self.problem.samples

    def _gradient(self, layers):
        return layer_gradient(layers, self.problem.gradient(effective_parameter(layers)))


@jax.jit
def _schedule(times, rate, momentum, dt):
    """s, μ, and how many steps lead from each saved time to the next."""
    step, mass = rate, None
    if momentum is not None:
        step = rate / (1 - momentum)
        mass = step * (1 + momentum) / (2 * (1 - momentum))
    if dt is None:
        dt = step if mass is None else jnp.minimum(step, mass)
    return step, mass, jnp.maximum(jnp.ceil(jnp.diff(times) / dt - _SLACK), 1.0)


def _countable(counts: Float[Array, " intervals"], halvings: int) -> Float[Array, " intervals"]:
    """The counts, where they are so few that the clock, and whole numbers, tell steps apart."""
    most = min(0.1 / float(jnp.finfo(counts.dtype).eps), 2**31 / len(counts)) / 2**halvings
    longest = jnp.max(counts)
    return refuse(
        longest > most,
        f"`times` must be at most {most:.3g} steps of the scheme apart, got {longest}: save "
        "more often, or choose a longer `dt`.",
        counts,
    )


@eqx.filter_jit
def _integrate(problem, layers, times, oracle, key, step, mass, counts, halvings) -> Diffusion:
    system = _System(problem, oracle, step, mass)
    spans, whole = jnp.diff(times), counts.astype(jnp.int32)
    firsts = jnp.cumsum(whole) - whole

    def interval(state, lengths):
        span, count, first = lengths
        terms = diffrax.ODETerm(system.drift)
        if oracle.is_random:
            path = Brownian(key, first, system.motions, halvings)
            terms = diffrax.MultiTerm(terms, diffrax.ControlTerm(system.diffusion, path))
        solution = diffrax.diffeqsolve(
            terms,
            diffrax.Euler() if oracle.is_random else diffrax.Tsit5(),
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
        state = jax.tree.map(lambda saved: jnp.where(is_solved, saved[0], jnp.nan), solution.ys)
        return state, state

    start = system.initial(layers)
    _, later = jax.lax.scan(interval, start, (spans, counts, firsts))
    path, velocity = jax.tree.map(
        lambda one, more: jnp.concatenate([one[None], more]), start, later
    )
    return _observed(problem, times, path, velocity, counts, halvings)


def _observed(problem, times, path, velocity, counts, halvings) -> Diffusion:
    """What was saved; NaN where it is not finite, or where there was no counting the steps."""
    theta = jax.vmap(effective_parameter)(path)
    saved = path, velocity, theta, jax.vmap(problem.loss)(theta), jax.vmap(problem.gap)(theta)
    fine = jax.vmap(lambda *saved: jnp.all(jnp.isfinite(jnp.concatenate(saved, axis=None))))
    lost = ~(fine(*jax.tree.leaves(saved)) & jnp.isfinite(jnp.append(0.0, counts)))
    path, velocity, theta, loss, gap = jax.tree.map(
        lambda x: jnp.where(lost.reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, x), saved
    )
    return Diffusion(
        times=times,
        layers=path,
        layer_velocity=velocity,
        theta=theta,
        loss=loss,
        gap=gap,
        status=jnp.where(jnp.any(lost), STATUS.index("diverged"), STATUS.index("ok")),
        stats={"num_steps": jnp.sum(counts.astype(jnp.int32)) * 2**halvings},
    )


def stochastic_flow(
    problem: Problem,
    layers: ArrayLike,
    times: ArrayLike,
    *,
    learning_rate: Number,
    oracle: Oracle | None = None,
    momentum: Number | None = None,
    key: Array | None = None,
    dt: Number | None = None,
    halvings: int = 0,
    throw: bool = True,
) -> Diffusion:
    """The Itô equation whose law is that of noisy training, to first order in its step.

        du = −∂ℒ/∂u dt + √γ Σ^{1/2}(u) dB

    and with momentum β, for s = γ/(1 − β) and μ = γ(1 + β)/(2(1 − β)²),

        du = w dt,   μ dw = −(w + ∂ℒ/∂u) dt + √s Σ^{1/2}(u) dB,   w(0) = −(s/2μ) ∂ℒ/∂u.

    Args:
        problem: the loss; a sum over samples where something is drawn.
        layers: initial layers, shape (depth, dim).
        times: flow times to save at, strictly increasing; the first is the start.
        learning_rate: γ > 0, the step of the training that is described.
        oracle: what its steps draw, which Σ follows from: samples, noise on their targets (to first
            order in σ, which is exact for least squares and Poisson), or both. `None` draws
            nothing, which leaves the flow of momentum.
        momentum: β of heavy ball, 0 ≤ β < 1; `None` for plain steps, the flow of first order.
        key: for the Brownian motions, where something is drawn.
        dt: longest step of the scheme, in flow time; `None` is one step of training, and no more
            than μ. Saved times are whole numbers of equal steps apart, a thousandth longer at most.
        halvings: halve these steps so often. A key's Brownian motion stays the same, so that runs
            converge to one path; one with other `dt` or `times` is another draw.
        throw: raise when the run diverges; else see `status`.

    Returns:
        A `Diffusion`. The scheme is Euler's where something is drawn (strong order ½, weak order 1)
        and `diffrax.Tsit5` elsewhere. Other numbers and keys run the same program; `jax.vmap` runs
        lanes side by side. Only what is saved is kept. Differentiable forwards (`jax.jvp`), path by
        path.

    Raises:
        ValueError: shapes, times or numbers that make no sense (traced numbers: NaN), no key for an
            oracle that draws, an oracle that is not one of `ddln.Sampling` with replacement,
            neither an oracle that draws nor momentum: that is `ddln.gradient_flow`.
        RuntimeError: the run diverged and `throw`.

    Source: samples Pesme et al. 2021, label noise HaoChen et al. 2021, momentum Papazov et al.
    2024, whose mass is λ = γ/(1 − β)²; to it μ = λ(1 + β)/2 and w(0) add the next order in s, as
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
    layers = as_layers(layers, problem.dim)
    layers = layers.astype(jnp.promote_types(layers.dtype, problem.minimum.dtype))
    times = as_times(as_floats("times", times, 1).astype(layers.dtype))
    oracle = Sampling() if oracle is None else oracle
    if not isinstance(oracle, Sampling) or oracle.first_order(problem) is not None:
        raise ValueError(f"`oracle` must be a `ddln.Sampling`, and with replacement, got {oracle}.")
    if oracle.steps is not None:
        raise ValueError("`oracle` must have a law, got `rows` or `noise` of your own.")
    oracle.check(problem)
    if oracle.is_random and key is None:
        raise ValueError("`key` must be given for an oracle that draws.")
    if not oracle.is_random and momentum is None:
        raise ValueError(
            "`oracle` must draw something where there is no `momentum`: without both it is "
            "`ddln.gradient_flow`."
        )
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
        problem, layers, times, oracle, key, step, mass, _countable(counts, halvings), halvings
    )
    if not throw:
        return run
    if is_concrete(run.status):
        if not run.ok:
            raise RuntimeError(
                "The flow diverged: lower `learning_rate` or `dt`, check the scale of the layers "
                "and of the data, or pass `throw=False` for the run."
            )
        return run
    return eqx.error_if(run, ~run.ok, "The flow diverged: pass `throw=False` for its status.")
