"""State of gradient descent between two steps, and what a run needs to repeat its steps.

At depth 2, plain steps u ← u − γ (∇ℓ ⊙ v), v ← v − γ (∇ℓ ⊙ u) satisfy, for any samples and any γ,

    u ± v  ←  (1 ∓ γ ∇ℓ) ⊙ (u ± v),       u² − v²  ←  (1 − γ² (∇ℓ)²) ⊙ (u² − v²),

so a run accumulates the products of these factors for its certificates.

Source: u² − v² and its consequences for the limit, Even et al. 2023.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

from ddln.networks.layers import Function
from ddln.solvers.gradient_estimators import GradientEstimator
from ddln.solvers.optimisers import Optimiser

BLOCK = 64
"""Number of steps whose factors are accumulated relative to 1."""


class AccumulatedSteps(eqx.Module):
    """Products and sums over all steps from the start; for plain steps at depth 2."""

    growth: Float[Array, "*records 2 dim"]
    """Π_k (1 − γ_k ∇ℓ_k) and Π_k (1 + γ_k ∇ℓ_k), the growth factors of u + v and u − v."""
    dual: Float[Array, "*records dim"]
    """−Σ_k γ_k ∇ℓ_k."""
    squares: Float[Array, "*records dim"]
    """Σ_k r_k² Π_{j>k} (1 − x_j²)² for x = γ ∇ℓ, with r_k the rounding error, in units of ε, that
    step k makes in u² − v² or in its product of growth factors."""


class StepAccumulator(eqx.Module):
    """Accumulates the steps of a run.

    A single running product would lose the small difference of each factor from 1. So each block of
    64 steps has its own product, stored less 1. Blocks are counted from the start of the run, not
    from a record.
    """

    completed: AccumulatedSteps
    """All completed blocks."""
    block: AccumulatedSteps
    """The current block; its growth is stored less 1."""

    @classmethod
    def start(cls, layers: Float[Array, "2 dim"]) -> "StepAccumulator":
        """The accumulator before the first step."""
        zero = jnp.zeros_like(layers[0])
        nothing = AccumulatedSteps(jnp.ones_like(layers), zero, zero)
        return cls(nothing, jax.tree.map(jnp.zeros_like, nothing))

    @property
    def total(self) -> AccumulatedSteps:
        """All steps so far."""
        growth, dual = self.completed.growth, self.completed.dual
        factor = jnp.prod(1 + self.block.growth, axis=0)
        return AccumulatedSteps(
            growth + growth * self.block.growth,
            dual + self.block.dual,
            factor**2 * self.completed.squares + self.block.squares,
        )

    def with_block(self, block: AccumulatedSteps, step: Int[Array, ""]) -> "StepAccumulator":
        """Replace the current block; begin a new one if the number of steps completes it."""
        unfinished = StepAccumulator(self.completed, block)
        finished = StepAccumulator(unfinished.total, jax.tree.map(jnp.zeros_like, block))
        return jax.tree.map(partial(jnp.where, step % BLOCK == 0), finished, unfinished)


def add_step(
    block: AccumulatedSteps,
    layers: Float[Array, "2 dim"],
    rate: Float[Array, ""],
    gradient: Float[Array, " dim"],
) -> AccumulatedSteps:
    """Add a step from these layers, of the given learning rate and ∇ℓ(θ), to a block."""
    step = rate * gradient
    factor = jnp.asarray([[-1.0], [1.0]], gradient.dtype) * step[None]
    growth = block.growth + (factor + block.growth * factor)
    squares = (1 - step**2) ** 2 * block.squares + _rounding(layers, step, 1 + growth) ** 2
    return AccumulatedSteps(growth, block.dual - step, squares)


def _rounding(
    layers: Float[Array, "2 dim"], step: Float[Array, " dim"], product: Float[Array, "2 dim"]
) -> Float[Array, " dim"]:
    """Bound, in units of ε, on the rounding errors of a step in u² − v² and in its growth factors.

    They are (1 + x²)(u² + v²), and u² − v² over the block's product, which is stored less 1.
    """
    u, v = layers
    difference = jnp.abs((u - v) * (u + v) * (1 - step**2))
    plus, minus = jnp.abs(product)
    whole = jnp.where(plus * minus == 0, 1.0, plus * minus)
    return (1 + step**2) * (u**2 + v**2) + difference * ((plus + minus) / whole)


class State(eqx.Module):
    """State of a run after some steps. `descend` continues from it."""

    layers: Float[Array, "depth dim"]
    carry: Any
    """State of the optimiser."""
    ledger: StepAccumulator | None
    taken: Int[Array, ""]
    """Number of steps until the run ended. `step` and `time` go on after the end, so that all runs
    of a batch share them."""
    step: Int[Array, ""]
    time: Float[Array, ""]
    order: Int[Array, " samples"] | None
    """Order of the samples in the current epoch, if they are drawn without replacement."""
    key: UInt[Array, " words"] | None
    """Key data, so that `eqx.tree_serialise_leaves` can write a state to a file."""
    generator: str | None = eqx.field(static=True)
    """Name of the key's generator."""
    function: Function | None = eqx.field(static=True, default=None)
    """G, if `layers` are the parameters w of another parametrisation θ_k = G(w_k)."""


class Method(eqx.Module):
    """Optimiser and gradient estimator of a run, as a pytree of arrays that `jax.vmap` can return.

    Optimisers and estimators themselves can have Python numbers as leaves.
    """

    arrays: list[Any]
    others: tuple[Any, ...] = eqx.field(static=True)
    structure: Any = eqx.field(static=True)

    def __init__(self, optimiser: Optimiser, estimator: GradientEstimator):
        leaves, self.structure = jax.tree.flatten((optimiser, estimator))
        self.arrays = [leaf if eqx.is_array(leaf) else None for leaf in leaves]
        self.others = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)

    def unpack(self) -> tuple[Optimiser, GradientEstimator]:
        """Optimiser and gradient estimator."""
        leaves = [
            other if array is None else array
            for array, other in zip(self.arrays, self.others, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)
