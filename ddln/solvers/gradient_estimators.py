"""Gradient estimators: exact, on minibatches, with label noise, or sharpness-aware.

    `Sampling`          ∂ℓ/∂u^j = ∇ℓ(θ) ⊙ ⊙_{i≠j} uⁱ       with ℓ an unbiased estimate of ℒ
    `SharpnessAware`    the same at u + ρ ∂ℓ/∂u

The draws of a step depend only on the key and the number of the step, so a resumed run draws the
same numbers as an uninterrupted one.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ddln._internal.validation import ArrayLike, Number, as_floats, is_concrete, refuse
from ddln.networks.layers import Function, layer_gradient, theta_of
from ddln.problems.base import Problem


class Batch(NamedTuple):
    """Samples of a step: their rows, None for all; and noise on their targets, None for none."""

    rows: Int[Array, " batch"] | None
    noise: Float[Array, " batch"] | None


def estimated_loss(problem: Problem, theta: Float[Array, " dim"], batch: Batch) -> Float[Array, ""]:
    """ℓ(θ), the estimate of ℒ(θ) from a batch."""
    if batch.rows is None and batch.noise is None:
        return problem.loss(theta)
    return problem.estimate(theta, *batch)


def estimated_gradient(
    problem: Problem, theta: Float[Array, " dim"], batch: Batch
) -> Float[Array, " dim"]:
    """∇ℓ(θ)."""
    if batch.rows is None and batch.noise is None:
        return problem.gradient(theta)
    return jax.grad(estimated_loss, argnums=1)(problem, theta, batch)


def _estimate(
    problem: Problem, layers: Float[Array, "depth dim"], batch: Batch, function: Function | None
) -> tuple[Float[Array, "depth dim"], Float[Array, " dim"]]:
    """∂ℓ/∂u and ∇ℓ(θ)."""
    gradient = estimated_gradient(problem, theta_of(layers, function), batch)
    return layer_gradient(layers, gradient, function), gradient


class Sampling(eqx.Module):
    """Minibatch gradients ∂ℓ/∂u, with ℓ(θ) = n/b times the terms of b samples in ℒ.

    Args:
        batch: b, the number of samples in a step; None for all n.
        replacement: every step draws from all samples. Otherwise an epoch of n // b steps goes
            through the samples in a random order, and the next one in a new order.
        label_noise: σ. Each step adds new N(0, σ²) noise to each target. None for no noise.
        noisy: number of targets in the batch with noise, drawn at each step; their noise is
            b/noisy times as large. None for all.
        rows: your own draws instead of `batch`: the samples of each step, counted from 0, shape
            (steps, b). Not checked if traced.
        noise: your own draws instead of `label_noise`: the noise of each step on the targets of its
            samples, shape (steps, b).

    With `rows` or `noise` a run can have at most that many steps, counted from its start even if it
    continues from a state. (Under `jit` a longer run is NaN.)

    Raises:
        ValueError: sizes < 1, `noisy` above `batch` or without noise, σ < 0 (traced: NaN); both
            `rows` and `batch`, both `noise` and `label_noise`, or inconsistent shapes of them.

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

    Your own draws, here each sample in turn, with noise on the first:

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
            raise ValueError("`label_noise` must be given together with `noisy`.")
        for name, own, instead, drawn in (
            ("rows", rows, "batch", batch),
            ("noise", noise, "label_noise", label_noise),
        ):
            if own is not None and drawn is not None:
                raise ValueError(f"`{name}` must be None if `{instead}` is given.")
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
        """The sampling itself; every estimator has one."""
        return self

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn, which requires a key."""
        return self.batch is not None or self.label_noise is not None

    @property
    def steps(self) -> int | None:
        """Number of steps for which `rows` or `noise` has draws; None without them."""
        own = self.noise if self.rows is None else self.rows
        return None if own is None else own.shape[0]

    @property
    def is_exact(self) -> bool:
        """Whether every step uses all samples, without noise."""
        return not self.is_random and self.steps is None

    def size(self, problem: Problem) -> int:
        """Number of samples in a step."""
        return (self.batch or problem.samples) if self.rows is None else self.rows.shape[1]

    def check(self, problem: Problem) -> None:
        """Raise an error if the problem cannot be sampled like this."""
        if self.is_exact:
            return
        if problem.samples == 0:
            raise ValueError(
                "`problem` must be a sum over samples if samples or label noise are drawn."
            )
        for name in ("batch", "noisy"):
            size = getattr(self, name)
            if size is not None and size > problem.samples:
                raise ValueError(
                    f"`{name}` must be at most the number of samples, {problem.samples}, "
                    f"got {size}."
                )
        if self.noise is not None and self.noise.shape[1] != self.size(problem):
            raise ValueError(
                f"`noise` must have shape (steps, {self.size(problem)}), one for each target of "
                f"a step, got {self.noise.shape}."
            )
        if self.rows is not None and is_concrete(self.rows):
            last = np.max(np.asarray(self.rows))
            if last >= problem.samples:
                raise ValueError(f"`rows` must be below {problem.samples}, got {last}.")

    def first_order(self, problem: Problem) -> Int[Array, " samples"] | None:
        """Initial order of the samples, which `draw` passes on; None with replacement."""
        if self.batch is None or self.replacement:
            return None
        return jnp.arange(problem.samples, dtype=jnp.int32)

    def draw(
        self,
        problem: Problem,
        key: PRNGKeyArray | None,
        step: Int[Array, ""],
        order: Int[Array, " samples"] | None,
    ) -> tuple[Batch, Int[Array, " samples"] | None]:
        """Draw the batch of a step; also returns the order of the samples for the next step."""
        dtype = problem.minimum.dtype
        rows = None if self.rows is None else self.rows[step]
        noise = None if self.noise is None else self.noise[step].astype(dtype)
        if key is None or not self.is_random:
            return Batch(rows, noise), None
        rows_key, noise_key, places_key = (jax.random.fold_in(key, 3 * step + i) for i in range(3))
        size = self.size(problem)
        if order is not None:
            index = step % (problem.samples // size)  # of the step in its epoch
            order = jax.lax.cond(
                index == 0, partial(jax.random.permutation, rows_key), lambda order: order, order
            )
            rows = jax.lax.dynamic_slice_in_dim(jnp.asarray(order), index * size, size)
        elif self.batch is not None:
            rows = jax.random.randint(rows_key, (size,), 0, problem.samples, jnp.int32)
        if self.label_noise is not None:
            noise = self._draw_label_noise(noise_key, places_key, size, dtype)
        return Batch(rows, noise), order

    def _draw_label_noise(
        self, key: PRNGKeyArray, places_key: PRNGKeyArray, size: int, dtype: jnp.dtype
    ) -> Float[Array, " batch"]:
        scale = jnp.asarray(self.label_noise, dtype)
        if self.noisy is None:
            return scale * jax.random.normal(key, (size,), dtype)
        # A single draw is the same with replacement, and avoids a permutation.
        places = jax.random.choice(places_key, size, (self.noisy,), replace=self.noisy == 1)
        drawn = scale * (size / self.noisy) * jax.random.normal(key, (self.noisy,), dtype)
        return jnp.zeros(size, dtype).at[places].set(drawn)

    def gradient(
        self,
        problem: Problem,
        layers: Float[Array, "depth dim"],
        batch: Batch,
        function: Function | None = None,
    ) -> tuple[Float[Array, "depth dim"], Float[Array, " dim"]]:
        """∂ℓ/∂u, and the ∇ℓ(θ) of which it is the pullback."""
        return _estimate(problem, layers, batch, function)


class SharpnessAware(eqx.Module):
    """Sharpness-aware gradients: ∂ℓ/∂u at u + ρ ∂ℓ/∂u, or at u + ρ ∂ℓ/∂u / ‖∂ℓ/∂u‖.

    Args:
        rho: ρ ≥ 0, the size of the ascent step.
        group: m, the size of a microbatch ("m-SAM"). Each microbatch ascends its own loss, and the
            gradients at these points are averaged. With 1 the losses are ℓ_i, n times the term of
            sample i in ℒ ("1-SAM"). None for the whole batch ("n-SAM").
        normalised: whether the ascent step has length ρ.
        sampling: the batch of each step, and its noise.

    Raises:
        ValueError: ρ < 0 (traced: NaN), m < 1, or a batch that m does not divide.

    Source: Foret et al. 2021 (normalised); Andriushchenko & Flammarion 2022 (m-SAM, not
    normalised: a factor in the loss also multiplies ρ).

    >>> problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    >>> layers = jnp.array([[1.0], [0.0]])  # ∂ℓ/∂u = (0, −1): ascend to (1, −0.5), θ = −0.5
    >>> estimator = ddln.SharpnessAware(rho=0.5)
    >>> all_samples = ddln.solvers.gradient_estimators.Batch(None, None)
    >>> estimator.gradient(problem, layers, all_samples)[0].ravel().tolist()
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
        """Raise an error if the problem cannot be sampled like this."""
        self.sampling.check(problem)
        if self.group is None:
            return
        if problem.samples == 0:
            raise ValueError("`problem` must be a sum over samples for a `group` of them.")
        size = self.sampling.size(problem)
        if size % self.group:
            raise ValueError(f"`group` must divide the batch of {size}, got {self.group}.")

    def gradient(
        self,
        problem: Problem,
        layers: Float[Array, "depth dim"],
        batch: Batch,
        function: Function | None = None,
    ) -> tuple[Float[Array, "depth dim"], None]:
        """The gradient; and None, because it is not the pullback of a ∇ℓ(θ) at these layers."""
        if self.group is None:
            return self._gradient_after_ascent(problem, layers, function, batch), None
        rows = jnp.arange(problem.samples) if batch.rows is None else batch.rows
        microbatches = jax.tree.map(lambda x: x.reshape(-1, self.group), Batch(rows, batch.noise))
        ascend = partial(self._gradient_after_ascent, problem, layers, function)
        return jnp.mean(jax.vmap(ascend)(microbatches), axis=0), None

    def _gradient_after_ascent(
        self,
        problem: Problem,
        layers: Float[Array, "depth dim"],
        function: Function | None,
        batch: Batch,
    ) -> Float[Array, "depth dim"]:
        ascent, _ = _estimate(problem, layers, batch, function)
        if self.normalised:
            length = jnp.linalg.norm(ascent)
            ascent = ascent / jnp.where(length > 0, length, 1.0)
        top = layers + jnp.asarray(self.rho, layers.dtype) * ascent
        return _estimate(problem, top, batch, function)[0]


GradientEstimator = Sampling | SharpnessAware


def _as_rows(rows: ArrayLike) -> Int[Array, "steps batch"]:
    """Check the numbers of samples, except against the number of samples in a problem."""
    numbers = jnp.asarray(rows)
    if numbers.ndim != 2 or 0 in numbers.shape or not jnp.issubdtype(numbers.dtype, jnp.integer):
        raise ValueError(
            "`rows` must be whole numbers of shape (steps, batch), got shape "
            f"{numbers.shape} of {numbers.dtype}."
        )
    if is_concrete(numbers):
        values = np.asarray(numbers)
        wrong = values[(values < 0) | (values >= 2**31)]
        if wrong.size:
            raise ValueError(f"`rows` must be ≥ 0 and below 2³¹, got {wrong[0]}.")
    return numbers.astype(jnp.int32)


def _at_least_zero(name: str, value: Number) -> Array:
    value = as_floats(name, value, 0)
    return refuse(value < 0, f"`{name}` must be ≥ 0, got {value}.", value)
