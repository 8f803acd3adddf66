"""Products in place of the weights of any model, and the plain model again.

`factorise` replaces chosen arrays W of a model by `Factorised` products u¹ ⊙ … ⊙ u^L of the same
value, elementwise; `collapse` multiplies them out. A training loop collapses the model inside its
loss, so that gradients reach the layers:

    def loss(model, x, y):
        predictions = jax.vmap(ddln.collapse(model))(x)

Weight decay ω on the layers is the penalty (ω L/2) Σ |W|^{2/L} on their product at its minima: the
lasso at depth 2, and sparser the deeper.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ddln._internal.validation import Number, as_floats, refuse
from ddln.networks import _coordinate_maps, init
from ddln.networks.layers import effective_parameter
from ddln.networks.reparametrisation import Reduction


class Factorised(eqx.Module):
    """An array as the elementwise product of layers, to be trained in its place.

    >>> ddln.Factorised(jnp.array([[1.0, 2.0], [3.0, -1.0]])).value
    Array([ 3., -2.], dtype=float64)
    """

    layers: Float[Array, "depth *shape"]

    @property
    def value(self) -> Float[Array, "*shape"]:
        """u¹ ⊙ … ⊙ u^L."""
        depth, *shape = self.layers.shape
        return effective_parameter(self.layers.reshape(depth, -1)).reshape(shape)


def factorise(
    model: PyTree,
    where: Callable[[PyTree], Any],
    *,
    depth: int = 2,
    imbalance: float | int = 1.0,
) -> PyTree:
    """Replace arrays of a model by products of `depth` layers with the same value.

    At an imbalance λ > 0 the first layer w has the sign of the array, and the others are
    √(w² + λ) > 0: every entry can change its sign. At λ = 0 all layers have the same magnitude, and
    an entry keeps its sign.

    Args:
        model: any pytree, such as an equinox module.
        where: the arrays, as for `equinox.tree_at`: takes the model and returns one of its leaves,
            or a list or tuple of them.
        depth: L ≥ 2.
        imbalance: λ = (u^j)² − (u¹)² ≥ 0 of the layers j ≥ 2.

    Returns:
        The model with a `Factorised` for each array.

    Raises:
        ValueError: `depth` < 2; λ < 0 or infinite; `where` returns something that is not a leaf of
            the model; an array that is empty, does not hold finite floating-point numbers, or has
            zeros at λ = 0, which no gradient would ever move (traced: NaN).

    Source: Ziyin and Wang 2023 (depth 2), Kolb et al. 2025 (any depth).

    >>> model = {"weight": jnp.array([0.5, -2.0, 0.0]), "bias": jnp.zeros(1)}
    >>> trained = ddln.factorise(model, lambda model: model["weight"], depth=3)
    >>> trained["weight"].layers.shape
    (3, 3)
    >>> ddln.collapse(trained)["weight"].round(12).tolist()
    [0.5, -2.0, 0.0]
    """
    if depth < 2:
        raise ValueError(f"`depth` must be ≥ 2, got {depth}.")
    if not 0 <= imbalance < float("inf"):
        raise ValueError(f"`imbalance` must be ≥ 0 and finite, got {imbalance}.")
    leaves = where(model)
    for leaf in leaves if isinstance(leaves, list | tuple) else [leaves]:
        if not any(leaf is other for other in jax.tree.leaves(model)):
            raise ValueError(f"`where` must return leaves of `model`, got {leaf!r}.")
    return eqx.tree_at(where, model, replace_fn=lambda leaf: _split(leaf, depth, imbalance))


def collapse(model: PyTree, *, threshold: Number = 0.0) -> PyTree:
    """Multiply out every `Factorised` of a model; small entries become exact zeros.

    Args:
        model: as from `factorise`. A model without products is returned as it is.
        threshold: entries of smaller magnitude become 0.

    Raises:
        ValueError: `threshold` < 0.

    >>> model = [ddln.Factorised(jnp.array([[1.0, 1e-4], [3.0, 1e-4]]))]
    >>> ddln.collapse(model, threshold=1e-3)
    [Array([3., 0.], dtype=float64)]
    """
    limit = as_floats("threshold", threshold, 0)
    limit = refuse(limit < 0, f"`threshold` must be ≥ 0, got {threshold}.", limit)

    def multiply(leaf: Any) -> Any:
        if not isinstance(leaf, Factorised):
            return leaf
        value = leaf.value
        return jnp.where(jnp.abs(value) < limit.astype(value.dtype), 0, value).astype(value.dtype)

    return jax.tree.map(multiply, model, is_leaf=lambda leaf: isinstance(leaf, Factorised))


def _split(array: Any, depth: int, imbalance: float | int) -> Factorised:
    """Layers of the given imbalance whose product is the array."""
    if not eqx.is_inexact_array(array) or jnp.iscomplexobj(array):
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(
            f"factorised leaves must be arrays of real floating-point numbers, got {kind}."
        )
    if not array.size:
        raise ValueError(f"factorised leaves must have entries, got shape {array.shape}.")
    message = "factorised leaves must be finite, got NaN or infinite entries."
    flat = refuse(~jnp.isfinite(array), message, array).ravel()
    if imbalance == 0:
        message = (
            "factorised leaves must have no zeros at `imbalance` = 0: no gradient moves a product "
            "of layers that are all 0."
        )
        flat = refuse(flat == 0, message, flat)
        layers = _balanced_layers(flat, depth)
    else:
        layers = imbalanced_layers(flat, depth, imbalance)
    return Factorised(layers.reshape(depth, *np.shape(array)))


@eqx.filter_jit
def _balanced_layers(theta: Float[Array, " dim"], depth: int) -> Float[Array, "depth dim"]:
    """Layers of equal magnitude whose product is θ ≠ 0."""
    root = jnp.abs(theta) ** (1 / depth)
    return jnp.tile(root, (depth, 1)).at[0].multiply(jnp.sign(theta))


@eqx.filter_jit
def imbalanced_layers(
    theta: Float[Array, " dim"], depth: int, imbalance: Number
) -> Float[Array, "depth dim"]:
    """Layers of an imbalance λ > 0, the first of which has the sign of their product θ."""
    imbalances = jnp.full((depth - 1, theta.size), imbalance, theta.dtype)
    reduction = Reduction(init.imbalanced(jnp.zeros_like(theta), imbalances))
    return reduction.layers(_coordinate_maps.coordinate_of_theta(theta, reduction))
