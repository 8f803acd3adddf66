"""The geometry of products of layers, with a single copy of the weights.

Mirror descent with the entropy of a product follows the same flow as gradient descent on its layers
(Theorem 1, arXiv 2412.16765), but stores the product alone.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ddln._internal.validation import Number, as_floats, refuse
from ddln.networks import init
from ddln.networks.entropy import Entropy


class Factored(eqx.Module):
    """The mirror map of products of layers, for arrays of any shape; made by `factored`."""

    depth: int = eqx.field(static=True)
    imbalance: Float[Array, ""]

    def mirror_map(self, theta: PyTree) -> PyTree:
        """∇Q(θ) of every array."""
        return jax.tree.map(lambda leaf: self._map(leaf, Entropy.mirror_map), theta)

    def inverse(self, xi: PyTree) -> PyTree:
        """θ with ∇Q(θ) = ξ, of every array. Raises as `Entropy.inverse` does."""
        return jax.tree.map(lambda leaf: self._map(leaf, Entropy.inverse), xi)

    def _map(
        self,
        leaf: Float[Array, "*shape"],
        function: Callable[[Entropy, Float[Array, " size"]], Float[Array, " size"]],
    ) -> Float[Array, "*shape"]:
        size = leaf.size
        imbalances = jnp.full((self.depth - 1, size), self.imbalance, leaf.dtype)
        entropy = Entropy(init.imbalanced(jnp.zeros(size, leaf.dtype), imbalances))
        return function(entropy, leaf.ravel()).reshape(leaf.shape)


def factored(*, depth: int = 2, imbalance: Number = 1.0) -> Factored:
    """The geometry of products of `depth` layers, for `ddln.mirror_descent` on any parameters.

    Gradient descent on the layers of `factorise(model, …, depth=…, imbalance=…)` and mirror descent
    on the model itself discretise one flow: after the same flow time they differ by a multiple of
    the step. This holds for plain gradients. Adam and momentum act on other numbers in each case,
    and lead elsewhere.

    Args:
        depth: L ≥ 2.
        imbalance: λ = (u^j)² − (u¹)² > 0 of the layers j ≥ 2. The smaller, the nearer to sparse
            solutions.

    Returns:
        An object with `mirror_map` and `inverse`, which take pytrees of arrays.

    Raises:
        ValueError: `depth` < 2 or λ ≤ 0.

    Source: Theorem 1, arXiv 2412.16765.

    >>> import optax
    >>> rule = ddln.mirror_descent(ddln.factored(depth=3, imbalance=0.1), learning_rate=0.1)
    >>> params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.zeros(1)}
    >>> updates, _ = rule.update(params, rule.init(params), params)
    >>> jax.tree.map(jnp.shape, updates)
    {'b': (1,), 'w': (1, 2)}
    """
    if depth < 2:
        raise ValueError(f"`depth` must be ≥ 2, got {depth}.")
    scalar = as_floats("imbalance", imbalance, 0)
    return Factored(
        depth, refuse(scalar <= 0, f"`imbalance` must be > 0, got {imbalance}.", scalar)
    )
