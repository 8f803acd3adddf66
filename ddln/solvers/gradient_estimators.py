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
import numpy as np
from jaxtyping import Array, Float, Int

from ddln._internal.validation import ArrayLike, Number, as_floats, is_concrete, refuse
from ddln.networks.layers import effective_parameter, layer_gradient
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
    gradient = slope(problem, effective_parameter(layers), batch)
    return layer_gradient(layers, gradient), gradient


class Sampling(eqx.Module):
    """∂ℓ/∂u with ℓ(θ) = n/b times the part of b samples in ℒ, noise added to their targets.

    Args:
        batch: b, how many samples a step sees; None for all n.
        replacement: every step draws from all samples; else n // b steps share them out in a
            random order, then a new order is drawn.
        label_noise: σ. Each step adds a fresh N(0, σ²) to each target. None for no noise.
        noisy: how many targets of the batch the noise falls on, drawn at each step, b/noisy times
            as large to make up for it. None for all.
        rows: draws of your own in place of `batch`: the numbers of the samples that each step sees,
            counted from 0, shape (steps, b). Not looked at where they are traced.
        noise: draws of your own in place of `label_noise`: what each step adds to the targets that
            it sees, shape (steps, b).

    A run takes as many steps as it has `rows` or `noise` for, at most: counted from its start, also
    where it goes on from a state. (Under `jit` a longer one is NaN.)

    Raises:
        ValueError: sizes < 1, `noisy` above `batch` or without noise, σ < 0 (traced: NaN); `rows`
            beside `batch`, `noise` beside `label_noise`, or shapes of theirs that do not fit.

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

    Draws of your own, here the samples in turn, the first with noise:

    >>> rows, noise = jnp.array([[0], [1], [0], [1]]), jnp.array([[0.1], [0.0], [-0.1], [0.0]])
    >>> run = ddln.descend(
    ...     problem,
    ...     [[0.5], [0.5]],
    ...     ddln.optimiser("sgd", learning_rate=0.1),
    ...     steps=4,
    ...     oracle=ddln.Sampling(rows=rows, noise=noise),
    ... )
    >>> run.theta[:, 0].round(3).tolist()
    [0.25, 0.449, 0.669, 0.798, 0.932]
    """

    batch: int | None = eqx.field(static=True, default=None)
    replacement: bool = eqx.field(static=True, default=True)
    label_noise: Number | None = None
    noisy: int | None = eqx.field(static=True, default=None)
    rows: Int[Array, "steps batch"] | None = None
    noise: Float[Array, "steps batch"] | None = None

    def __init__(
        self,
        batch: int | None = None,
        replacement: bool = True,
        label_noise: Number | None = None,
        noisy: int | None = None,
        rows: ArrayLike | None = None,
        noise: ArrayLike | None = None,
    ):
        if batch is not None and batch < 1:
            raise ValueError(f"`batch` must be ≥ 1, got {batch}.")
        if noisy is not None and label_noise is None:
            raise ValueError("`label_noise` must be given where `noisy` is.")
        for name, own, instead, drawn in (
            ("rows", rows, "batch", batch),
            ("noise", noise, "label_noise", label_noise),
        ):
            if own is not None and drawn is not None:
                raise ValueError(f"`{name}` must be None where `{instead}` is given.")
        self.rows = None if rows is None else _as_rows(rows)
        self.noise = None if noise is None else as_floats("noise", noise, 2)
        if self.rows is not None and self.noise is not None and self.rows.shape != self.noise.shape:
            raise ValueError(
                f"`noise` must have the shape of `rows`, {self.rows.shape}, got {self.noise.shape}."
            )
        size = batch if self.rows is None else self.rows.shape[1]
        if noisy is not None and not 1 <= noisy <= (size or noisy):
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
        """Whether anything is drawn, for which a key is needed."""
        return self.batch is not None or self.label_noise is not None

    @property
    def steps(self) -> int | None:
        """How many steps there are draws of your own for; None without any."""
        own = self.noise if self.rows is None else self.rows
        return None if own is None else own.shape[0]

    @property
    def is_exact(self) -> bool:
        """Whether a step sees all samples and their targets as they are."""
        return not self.is_random and self.steps is None

    def size(self, problem: Problem) -> int:
        """How many samples a step sees."""
        return (self.batch or problem.samples) if self.rows is None else self.rows.shape[1]

    def check(self, problem: Problem) -> None:
        """Refuse a problem that cannot be sampled so."""
        if self.is_exact:
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
        if self.noise is not None and self.noise.shape[1] != self.size(problem):
            raise ValueError(
                f"`noise` must have shape (steps, {self.size(problem)}), one for each target that "
                f"a step sees, got {self.noise.shape}."
            )
        if self.rows is not None and is_concrete(self.rows):
            last = np.max(np.asarray(self.rows))
            if last >= problem.samples:
                raise ValueError(f"`rows` must be below {problem.samples}, got {last}.")

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
        dtype = problem.minimum.dtype
        rows = None if self.rows is None else self.rows[step]
        noise = None if self.noise is None else self.noise[step].astype(dtype)
        if key is None or not self.is_random:
            return Batch(rows, noise), None
        for_rows, for_noise, for_places = (jax.random.fold_in(key, 3 * step + i) for i in range(3))
        size = self.size(problem)
        if order is not None:
            place = step % (problem.samples // size)
            order = jax.lax.cond(
                place == 0, partial(jax.random.permutation, for_rows), lambda order: order, order
            )
            rows = jax.lax.dynamic_slice_in_dim(jnp.asarray(order), place * size, size)
        elif self.batch is not None:
            rows = jax.random.randint(for_rows, (size,), 0, problem.samples, jnp.int32)
        if self.label_noise is not None:
            noise = self._label_noise(for_noise, for_places, size, dtype)
        return Batch(rows, noise), order

    def _label_noise(self, key, for_places, size, dtype):
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
        size = self.sampling.size(problem)
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


def _as_rows(rows: ArrayLike) -> Int[Array, "steps batch"]:
    numbers = jnp.asarray(rows)
    if numbers.ndim != 2 or 0 in numbers.shape or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ValueError(
            "`rows` must be whole numbers of shape (steps, batch), got shape "
            f"{numbers.shape} of {numbers.dtype}."
        )
    if is_concrete(numbers):
        seen = np.asarray(numbers)
        wrong = seen[(seen < 0) | (seen >= 2**31)]
        if wrong.size:
            raise ValueError(f"`rows` must be ≥ 0 and below 2³¹, got {wrong[0]}.")
    return numbers.astype(jnp.int32)


def _at_least_zero(name: str, value: Number) -> Array:
    value = as_floats(name, value, 0)
    return refuse(value < 0, f"`{name}` must be ≥ 0, got {value}.", value)
