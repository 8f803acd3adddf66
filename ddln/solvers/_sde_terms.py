"""Drift and diffusion of the stochastic flow, and the Brownian motions that drive it."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float, Int

from ddln._internal.validation import Number
from ddln.networks.layers import effective_parameter, layer_gradient
from ddln.problems.base import Problem
from ddln.solvers.gradient_estimators import Sampling


def noise(
    problem: Problem,
    layers: Float[Array, "depth dim"],
    estimator: Sampling,
    motion: Float[Array, "kinds samples"],
) -> Float[Array, "depth dim"]:
    """Σ^{1/2}(u) dB, with Σ the covariance of `estimator.gradient` and dB the given increments.

    Args:
        problem: a sum over samples.
        layers: u, shape (depth, dim).
        estimator: draws samples with replacement, label noise, or both.
        motion: an increment per sample for each kind of noise; that for the samples comes first.

    Source: samples as in Pesme et al. 2021, label noise as in HaoChen et al. 2021; the factors as
    derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [2.0], normalisation="half")
    >>> layers = jnp.array([[3.0], [1.0]])  # ∂²ℒ/∂u∂y = −(1, 3)
    >>> noise(problem, layers, ddln.Sampling(label_noise=0.5), jnp.ones((1, 1)))
    Array([[-0.5],
           [-1.5]], dtype=float64)
    """
    theta = effective_parameter(layers)
    samples = problem.samples
    slope = jnp.zeros_like(theta)
    if estimator.batch is not None:
        weights = (motion[0] - jnp.mean(motion[0])) / math.sqrt(samples * estimator.batch)
        losses = jax.vmap(problem.estimate, (None, 0))
        rows = jnp.arange(samples)[:, None]
        slope += jax.grad(lambda theta: weights @ losses(theta, rows))(theta)
    if estimator.label_noise is not None:
        noisy = estimator.noisy or estimator.batch or samples
        scale = jnp.asarray(estimator.label_noise, layers.dtype) * math.sqrt(samples / noisy)
        targets = jnp.zeros_like(motion[-1])
        slope += jax.jvp(
            lambda added: jax.grad(problem.estimate)(theta, None, added),
            (targets,),
            (scale * motion[-1],),
        )[1]
    return layer_gradient(layers, slope)


class Brownian(diffrax.AbstractPath):
    """Independent Brownian motions. Their time counts steps, from the `first` on.

    Each step has its own increment, which stays the same when the step is halved. The motions need
    no tree over the whole run.
    """

    key: Array
    first: Int[Array, ""]
    shape: tuple[int, int] = eqx.field(static=True)
    halvings: int = eqx.field(static=True)

    @property
    def t0(self) -> float:
        return 0.0

    @property
    def t1(self) -> Float[Array, ""] | float:
        return jnp.inf

    def evaluate(
        self, t0: Number, t1: Number | None = None, left: bool = True
    ) -> Float[Array, "kinds samples"]:
        """The increment over the part of a step that starts at t0."""
        t0, parts = jnp.asarray(t0), 2**self.halvings
        index = jnp.round(t0 * parts).astype(jnp.int32)
        key = jax.random.fold_in(self.key, self.first + index // parts)
        part = index % parts

        def normal(node: int | Int[Array, ""]) -> Float[Array, "kinds samples"]:
            return jax.random.normal(jax.random.fold_in(key, node), self.shape, t0.dtype)

        # A Brownian bridge from the whole step down to the part.
        increment = normal(0)
        for level in range(self.halvings):
            node = 2**level + (part >> (self.halvings - level))
            is_second = (part >> (self.halvings - level - 1)) % 2 == 1
            bridge = 2 ** (-level / 2) * normal(node)
            increment = (increment + jnp.where(is_second, -bridge, bridge)) / 2
        return increment


State = tuple[Float[Array, "depth dim"], Float[Array, "depth dim"] | None]
"""Layers u, and their velocity w with momentum."""


class System(eqx.Module):
    """The stochastic differential equation, on a time that counts steps."""

    problem: Problem
    estimator: Sampling
    step: Float[Array, ""]
    """s, the flow time of a step."""
    mass: Float[Array, ""] | None
    """μ, with momentum."""

    def initial(self, layers: Float[Array, "depth dim"]) -> State:
        """The state at the start. Heavy ball is at rest half a step before: μẇ = −∂ℒ/∂u there."""
        if self.mass is None:
            return layers, None
        return layers, -self.step / (2 * self.mass) * self._gradient(layers)

    def drift(self, t: Number, state: State, width: Float[Array, ""]) -> State:
        """Change of the state in a step of the scheme, of the given width in flow time."""
        layers, velocity = state
        force = -width * self._gradient(layers)
        if self.mass is None or velocity is None:
            return force, None
        return width * velocity, (force - width * velocity) / self.mass

    def diffusion(
        self, t: Number, state: State, width: Float[Array, ""]
    ) -> lineax.FunctionLinearOperator:
        """The operator from increments of the Brownian motions to changes of the state."""
        layers, _ = state

        def kick(motion: Float[Array, "kinds samples"]) -> State:
            push = noise(self.problem, layers, self.estimator, motion)
            force = jnp.sqrt(self.step * width) * push
            if self.mass is None:
                return force, None
            return jnp.zeros_like(force), force / self.mass

        shape = jax.ShapeDtypeStruct(self.motions, layers.dtype)
        return lineax.FunctionLinearOperator(kick, shape)

    @property
    def motions(self) -> tuple[int, int]:
        """Number of Brownian motions: kinds of noise, samples."""
        kinds = (self.estimator.batch, self.estimator.label_noise)
        return sum(kind is not None for kind in kinds), self.problem.samples

    def _gradient(self, layers: Float[Array, "depth dim"]) -> Float[Array, "depth dim"]:
        return layer_gradient(layers, self.problem.gradient(effective_parameter(layers)))
