"""The geometry of products of layers, with a single copy of the weights.

Mirror descent with the entropy of a product follows the same flow as gradient descent on its layers
(Theorem 1, arXiv 2412.16765), but stores the product alone. Weight decay of the layers shrinks the
product and, with the imbalances of the layers, changes the entropy.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from ddln._internal.validation import Number, as_floats, refuse
from ddln.networks import init
from ddln.networks.entropy import Entropy
from ddln.networks.factorised import imbalanced_layers


class Factored(eqx.Module):
    """The mirror map of products of layers, for arrays of any shape; made by `factored`."""

    depth: int = eqx.field(static=True)
    imbalance: Float[Array, ""]
    decay: Float[Array, ""] | optax.Schedule

    def mirror_map(self, theta: PyTree) -> PyTree:
        """∇Q(θ) of every array."""
        return jax.tree.map(lambda leaf: self._map(leaf, Entropy.mirror_map), theta)

    def inverse(self, xi: PyTree) -> PyTree:
        """θ with ∇Q(θ) = ξ, of every array. Raises as `Entropy.inverse` does."""
        return jax.tree.map(lambda leaf: self._map(leaf, Entropy.inverse), xi)

    def moved(self, theta: PyTree, change: PyTree) -> PyTree:
        """θ' with ∇Q(θ') = ∇Q(θ) + change, of every array. Raises as `inverse` does.

        At small imbalances it keeps the digits that `inverse` after `mirror_map` loses: from depth
        3 on, ∇Q is then close to an end of its range.
        """

        def move(leaf: Float[Array, "*shape"], change: Float[Array, "*shape"]) -> Any:
            imbalance = self._imbalance(leaf.dtype)
            layers = imbalanced_layers(leaf.ravel(), self.depth, imbalance)
            return Entropy(layers).inverse(change.ravel()).reshape(leaf.shape)

        return jax.tree.map(move, theta, change)

    def decay_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """ω of a step. Raises as `factored` does."""
        return _as_decay(self.decay(step) if callable(self.decay) else self.decay)

    def decayed(self, dose: Number) -> "Factored":
        """The geometry after a dose Ω of decay, that of layers of imbalance e^{−2Ω} λ.

        Source: as derived in docs/theory.md; `Entropy.decayed` is the same for one network.
        """
        decayed = self.imbalance * jnp.exp(-2 * as_floats("dose", dose, 0)).astype(
            self.imbalance.dtype
        )
        return eqx.tree_at(lambda geometry: geometry.imbalance, self, decayed)

    def shrunk(self, theta: PyTree, dose: Number) -> PyTree:
        """The products e^{−LΩ} θ of layers that shrink by e^{−Ω}."""
        factor = jnp.exp(-self.depth * as_floats("dose", dose, 0))
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), theta)

    def _map(
        self,
        leaf: Float[Array, "*shape"],
        function: Callable[[Entropy, Float[Array, " size"]], Float[Array, " size"]],
    ) -> Float[Array, "*shape"]:
        imbalances = jnp.full((self.depth - 1, leaf.size), self._imbalance(leaf.dtype))
        entropy = Entropy(init.imbalanced(jnp.zeros(leaf.size, leaf.dtype), imbalances))
        return function(entropy, leaf.ravel()).reshape(leaf.shape)

    def _imbalance(self, dtype: Any) -> Float[Array, ""]:
        """λ in the type of an array. An underflow to 0 would freeze the zeros of θ."""
        return jnp.maximum(self.imbalance.astype(dtype), jnp.finfo(dtype).tiny)


def factored(
    *, depth: int = 2, imbalance: Number = 1.0, decay: Number | optax.Schedule | Any = 0.0
) -> Factored:
    """The geometry of products of `depth` layers, for `ddln.mirror_descent` on any parameters.

    Gradient descent on the layers of `factorise(model, …, depth=…, imbalance=…)` and mirror descent
    on the model itself discretise one flow: after the same flow time they differ by a multiple of
    the step. With `decay` the gradient descent has the same weight decay on its layers, as by
    `optax.add_decayed_weights` before `optax.sgd`. A step of size γ then multiplies θ by e^{−Lγω}
    and the imbalances by e^{−2γω}, in every array: `optax.masked` leaves out others.

    This holds for plain gradients. Adam and momentum act on other numbers in each case, and lead
    elsewhere, with decay or without.

    Args:
        depth: L ≥ 2.
        imbalance: λ = (u^j)² − (u¹)² > 0 of the layers j ≥ 2. The smaller, the nearer to sparse
            solutions.
        decay: ω ≥ 0 per unit of flow time, which can be traced, or an optax schedule: ω of the
            steps 0, 1, ….

    Returns:
        An object with `mirror_map` and `inverse`, which take pytrees of arrays.

    Raises:
        ValueError: `depth` < 2, λ ≤ 0 or ω < 0 (traced: NaN); of a schedule, at its step.

    Source: Theorem 1, arXiv 2412.16765; decay as derived in docs/theory.md.

    >>> import optax
    >>> geometry = ddln.factored(depth=3, imbalance=0.1, decay=0.01)
    >>> rule = ddln.mirror_descent(geometry, learning_rate=0.1)
    >>> params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.zeros(1)}
    >>> updates, state = rule.update(params, rule.init(params), params)
    >>> jax.tree.map(jnp.shape, updates)
    {'b': (1,), 'w': (1, 2)}
    >>> round(float(state.dose), 6)
    0.001
    """
    if depth < 2:
        raise ValueError(f"`depth` must be ≥ 2, got {depth}.")
    scalar = as_floats("imbalance", imbalance, 0)
    scalar = refuse(scalar <= 0, f"`imbalance` must be > 0, got {imbalance}.", scalar)
    rate: Any = decay if callable(decay) else _as_decay(decay)
    return Factored(depth, scalar, rate)


def _as_decay(decay: Any) -> Float[Array, ""]:
    """ω as a number ≥ 0."""
    if not isinstance(decay, (jax.Array, np.ndarray, np.number, int, float)):
        raise ValueError(f"`decay` must be a number or a schedule of the step, got {decay!r}.")
    rate = as_floats("decay", decay, 0)
    is_valid = (rate >= 0) & jnp.isfinite(rate)
    return refuse(~is_valid, f"`decay` must be ≥ 0, got {rate}.", rate)
