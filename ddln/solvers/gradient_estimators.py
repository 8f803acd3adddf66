"""The gradient that a step of training sees: of all samples or of some, of noisy targets, at
another point.

    `Sampling`          ∂ℓ/∂u^j = ∇ℓ(θ) ⊙ ⊙_{i≠j} uⁱ       with ℓ an unbiased estimate of ℒ
    `SharpnessAware`    the same at u + ρ ∂ℓ/∂u

What is drawn at a step follows from the key and the number of the step, so that a resumed run
draws what it would have drawn.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddln._internal.validation import Number, as_floats, refuse
from ddln.networks.layers import effective_parameter
from ddln.problems.base import Problem


class Batch(NamedTuple):
    """Which rows of the data, None for all, and what is added to their targets, None for 0."""

    rows: Int[Array, " batch"] | None
    noise: Float[Array, " batch"] | None


def value(problem: Problem, theta: Float[Array, " dim"], batch: Batch) -> Float[Array, ""]:
    """ℓ(θ), the loss as a batch estimates it."""
    if batch.rows is None and batch.noise is None:
        return problem.loss(theta)
    return problem.estimate(theta, *batch)


def slope(problem: Problem, theta: Float[Array, " dim"], batch: Batch) -> Float[Array, " dim"]:
    """∇ℓ(θ)."""
    if batch.rows is None and batch.noise is None:
        return problem.gradient(theta)
    return jax.grad(value, argnums=1)(problem, theta, batch)


def _on_layers(problem, layers, batch):
    """∂ℓ/∂u and ∇ℓ(θ)."""
    theta, pull_back = jax.vjp(effective_parameter, layers)
    gradient = slope(problem, theta, batch)
    return pull_back(gradient)[0], gradient


class Sampling(eqx.Module):
    """∂ℓ/∂u with ℓ(θ) = n/b times the part of b samples in ℒ, noise added to their targets.

    Args:
        batch: b, how many samples a step sees; None for all n.
        replacement: every step draws from all samples; else n // b steps share them out in a
            random order, then a new order is drawn.
        label_noise: σ. Each step adds a fresh N(0, σ²) to each target. None for no noise.
        noisy: how many targets of the batch the noise falls on, drawn at each step, b/noisy times
            as large to make up for it. None for all.

    Raises:
        ValueError: sizes < 1, `noisy` above `batch` or without noise, σ < 0 (traced: NaN).

    Source: label noise as in HaoChen et al. 2021.

    >>> problem = ddln.least_squares([[1.0], [1.0]], [1.0, 1.0])
    >>> run = ddln.descend(
    ...     problem,
    ...     [[0.5], [0.5]],
    ...     ddln.optimiser("sgd", learning_rate=0.1),
    ...     steps=100,
    ...     oracle=ddln.Sampling(batch=1),
    ...     key=jax.random.key(0),
    ... )
    >>> bool(run.gap[-1] < 1e-20)
    True
    """

    batch: int | None = eqx.field(static=True, default=None)
    replacement: bool = eqx.field(static=True, default=True)
    label_noise: Number | None = None
    noisy: int | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        batch: int | None = None,
        replacement: bool = True,
        label_noise: Number | None = None,
        noisy: int | None = None,
    ):
        if batch is not None and batch < 1:
            raise ValueError(f"`batch` must be ≥ 1, got {batch}.")
        if noisy is not None and label_noise is None:
            raise ValueError("`label_noise` must be given where `noisy` is.")
        if noisy is not None and not 1 <= noisy <= (batch or noisy):
            raise ValueError(f"`noisy` must be from 1 to the size of the batch, got {noisy}.")
        if label_noise is not None:
            label_noise = _at_least_zero("label_noise", label_noise)
        self.batch, self.replacement = batch, replacement
        self.label_noise, self.noisy = label_noise, noisy

    @property
    def sampling(self) -> "Sampling":
        """What draws: every oracle has one."""
        return self

    @property
    def is_random(self) -> bool:
        return self.batch is not None or self.label_noise is not None

    def check(self, problem: Problem) -> None:
        """Refuse a problem that cannot be sampled so."""
        if not self.is_random:
            return
        if problem.samples == 0:
            raise ValueError("`problem` must be a sum over samples for an oracle to draw from.")
        for name in ("batch", "noisy"):
            size = getattr(self, name)
            if size is not None and size > problem.samples:
                raise ValueError(
                    f"`{name}` must be at most the number of samples, {problem.samples}, "
                    f"got {size}."
                )

    def first_order(self, problem: Problem) -> Int[Array, " samples"] | None:
        """What `draw` passes on from step to step: the order of a pass through the samples."""
        if self.batch is None or self.replacement:
            return None
        return jnp.arange(problem.samples, dtype=jnp.int32)

    def draw(
        self,
        problem: Problem,
        key: Array | None,
        step: Int[Array, ""],
        order: Int[Array, " samples"] | None,
    ) -> tuple[Batch, Int[Array, " samples"] | None]:
        """The batch of a step, and the order for the next one."""
        if key is None or not self.is_random:
            return Batch(None, None), None
        for_rows, for_noise, for_places = (jax.random.fold_in(key, 3 * step + i) for i in range(3))
        size, rows = self.batch or problem.samples, None
        if order is not None:
            place = step % (problem.samples // size)
            order = jax.lax.cond(
                place == 0, partial(jax.random.permutation, for_rows), lambda order: order, order
            )
            rows = jax.lax.dynamic_slice_in_dim(jnp.asarray(order), place * size, size)
        elif self.batch is not None:
            rows = jax.random.randint(for_rows, (size,), 0, problem.samples, jnp.int32)
        return Batch(rows, self._noise(for_noise, for_places, size, problem.minimum.dtype)), order

    def _noise(self, key, for_places, size, dtype):
        if self.label_noise is None:
            return None
        scale = jnp.asarray(self.label_noise, dtype)
        if self.noisy is None:
            return scale * jax.random.normal(key, (size,), dtype)
        # Drawing one with replacement is the same, and takes no permutation.
        places = jax.random.choice(for_places, size, (self.noisy,), replace=self.noisy == 1)
        drawn = scale * (size / self.noisy) * jax.random.normal(key, (self.noisy,), dtype)
        return jnp.zeros(size, dtype).at[places].set(drawn)

    def gradient(
        self, problem: Problem, layers: Float[Array, "depth dim"], batch: Batch
    ) -> tuple[Float[Array, "depth dim"], Float[Array, " dim"] | None]:
        """∂ℓ/∂u, and the ∇ℓ(θ) whose pullback it is, None where it is of none."""
        return _on_layers(problem, layers, batch)


class SharpnessAware(eqx.Module):
    """The gradient uphill: ∂ℓ/∂u at u + ρ ∂ℓ/∂u, or at u + ρ ∂ℓ/∂u / ‖∂ℓ/∂u‖.

    Args:
        rho: ρ ≥ 0, how far uphill.
        group: m, how many samples of the batch climb the loss of theirs together, the gradients
            there being averaged ("m-SAM"): 1 is each its own ℓ_i, n times its part of ℒ ("1-SAM").
            None for all ("n-SAM").
        normalised: whether the climb has length ρ.
        sampling: the batch of each step, and its noise.

    Raises:
        ValueError: ρ < 0 (traced: NaN), m < 1, or a batch that m does not divide.

    Source: Foret et al. 2021 (normalised); Andriushchenko & Flammarion 2022 (m-SAM, not
    normalised: the factor of the loss is one of ρ too).

    >>> problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    >>> layers = jnp.array([[1.0], [0.0]])  # ∂ℓ/∂u = (0, −1): climb to (1, −0.5), θ = −0.5
    >>> oracle = ddln.SharpnessAware(rho=0.5)
    >>> everything = ddln.solvers.gradient_estimators.Batch(None, None)
    >>> oracle.gradient(problem, layers, everything)[0].ravel().tolist()
    [0.75, -1.5]
    """

    rho: Number
    group: int | None = eqx.field(static=True, default=None)
    normalised: bool = eqx.field(static=True, default=False)
    sampling: Sampling = Sampling()

    def __init__(
        self,
        rho: Number,
        group: int | None = None,
        normalised: bool = False,
        sampling: Sampling | None = None,
    ):
        if group is not None and group < 1:
            raise ValueError(f"`group` must be ≥ 1, got {group}.")
        self.rho = _at_least_zero("rho", rho)
        self.group, self.normalised = group, normalised
        self.sampling = Sampling() if sampling is None else sampling

    def check(self, problem: Problem) -> None:
        """Refuse a problem that cannot be sampled so."""
        self.sampling.check(problem)
        if self.group is None:
            return
        if problem.samples == 0:
            raise ValueError("`problem` must be a sum over samples for a `group` of them.")
        size = self.sampling.batch or problem.samples
        if size % self.group:
            raise ValueError(f"`group` must divide the batch of {size}, got {self.group}.")

    def gradient(
        self, problem: Problem, layers: Float[Array, "depth dim"], batch: Batch
    ) -> tuple[Float[Array, "depth dim"], Float[Array, " dim"] | None]:
        """As that of `Sampling`: the pullback of no ∇ℓ(θ) at these layers."""
        if self.group is None:
            return self._uphill(problem, layers, batch), None
        rows = jnp.arange(problem.samples) if batch.rows is None else batch.rows
        parts = Batch(rows, batch.noise)
        parts = jax.tree.map(lambda x: x.reshape(-1, self.group), parts)
        each = jax.vmap(lambda part: self._uphill(problem, layers, part))(parts)
        return jnp.mean(each, axis=0), None

    def _uphill(self, problem, layers, batch):
        climb, _ = _on_layers(problem, layers, batch)
        if self.normalised:
            length = jnp.linalg.norm(climb)
            climb = climb / jnp.where(length > 0, length, 1.0)
        return _on_layers(problem, layers + jnp.asarray(self.rho, layers.dtype) * climb, batch)[0]


Oracle = Sampling | SharpnessAware


def _at_least_zero(name: str, value: Number) -> Array:
    value = as_floats(name, value, 0)
    return refuse(value < 0, f"`{name}` must be ≥ 0, got {value}.", value)
