"""Initial layers: arrays of shape (depth, dim), drawn with an explicit key.

A *law* draws single weights: any `law(key, shape) -> array`, for instance `jax.random.normal` or
`functools.partial(jax.random.uniform, minval=0.5, maxval=1.2)`. Multiplication rescales: `1.4 *
layers` is the same network at 1.4 times the scale.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ddln._internal.validation import ArrayLike, Number, as_floats, as_layers, is_concrete

Law = Callable[[PRNGKeyArray, tuple[int, ...]], Array]

_positive: Law = partial(jax.random.uniform, minval=0.5, maxval=1.2)


def _check_shape(depth: int, dim: int) -> None:
    if depth < 1 or dim < 1:
        raise ValueError(f"`depth` must be ≥ 1 and `dim` ≥ 1, got depth={depth} and dim={dim}.")


def constant(depth: int, dim: int, value: Number) -> Float[Array, "depth dim"]:
    """Set every weight to `value`: balanced layers, θ_k on a half-line.

    Args:
        depth, dim: the shape, depth ≥ 1 and dim ≥ 1.
        value: any number; at 0 every coordinate is frozen.

    >>> ddln.init.constant(2, 3, 0.1).shape
    (2, 3)
    """
    _check_shape(depth, dim)
    return jnp.full((depth, dim), value, dtype=jnp.result_type(float))


def balanced(
    key: PRNGKeyArray, depth: int, dim: int, *, law: Law = _positive
) -> Float[Array, "depth dim"]:
    """Draw one layer and repeat it: every imbalance is zero.

    Args:
        key: from `jax.random.key`.
        depth, dim: the shape, depth ≥ 1 and dim ≥ 1.
        law: draws the layer; uniform on [0.5, 1.2) by default.

    >>> layers = ddln.init.balanced(jax.random.key(0), 3, 4)
    >>> bool((ddln.imbalance(layers) == 0).all())
    True
    """
    _check_shape(depth, dim)
    return jnp.tile(law(key, (1, dim)), (depth, 1))


def independent(
    key: PRNGKeyArray, depth: int, dim: int, *, law: Law = jax.random.normal
) -> Float[Array, "depth dim"]:
    """Draw every weight independently: almost surely every coordinate is open.

    Args:
        key: from `jax.random.key`.
        depth, dim: the shape, depth ≥ 1 and dim ≥ 1.
        law: draws the weights; standard normal by default.

    >>> layers = ddln.init.independent(jax.random.key(0), 3, 4)
    >>> print(ddln.describe(layers))
    4 of 4 coordinates open: a unique smallest layer; θ_k moves on the whole line.
    """
    _check_shape(depth, dim)
    return law(key, (depth, dim))


def uniform(
    key: PRNGKeyArray, depth: int, dim: int, *, low: Number = -1.0, high: Number = 1.0
) -> Float[Array, "depth dim"]:
    """Draw independent weights, uniform on [low, high).

    >>> bool((ddln.init.uniform(jax.random.key(0), 2, 5, low=0.5, high=1.2) >= 0.5).all())
    True
    """
    return independent(key, depth, dim, law=partial(jax.random.uniform, minval=low, maxval=high))


def normal(
    key: PRNGKeyArray, depth: int, dim: int, *, mean: Number = 0.0, std: Number = 1.0
) -> Float[Array, "depth dim"]:
    """Draw independent weights, normal with the given mean and standard deviation.

    >>> ddln.init.normal(jax.random.key(0), 2, 5, std=0.1).shape
    (2, 5)
    """
    return jnp.asarray(mean) + jnp.asarray(std) * independent(key, depth, dim)


def zero_first_layer(
    key: PRNGKeyArray, depth: int, dim: int, *, law: Law = _positive
) -> Float[Array, "depth dim"]:
    """Draw all layers but the first, which is zero: θ(0) = 0 at every scale.

    Args:
        key: from `jax.random.key`.
        depth, dim: the shape, depth ≥ 1 and dim ≥ 1.
        law: draws the weights of the other layers; uniform on [0.5, 1.2) by default.

    Source: the initialisation of Figure 4, arXiv 2412.16765 (there the law is unspecified).

    >>> layers = ddln.init.zero_first_layer(jax.random.key(0), depth=6, dim=8)
    >>> float(jnp.abs(ddln.effective_parameter(layers)).max())
    0.0
    """
    _check_shape(depth, dim)
    others = law(key, (depth - 1, dim))
    return jnp.concatenate([jnp.zeros((1, dim), others.dtype), others])


def imbalanced(smallest: ArrayLike, imbalance: ArrayLike) -> Float[Array, "depth dim"]:
    """Build layers from the smallest one and the conserved imbalances; all others are positive.

    Args:
        smallest: first layer, shape (dim,).
        imbalance: (u^j)² − (u^1)² ≥ 0 of the layers j ≥ 2, shape (depth − 1, dim).

    Raises:
        ValueError: an imbalance is negative, or the shapes do not fit.

    >>> layers = ddln.init.imbalanced(jnp.zeros(3), jnp.ones((2, 3)))
    >>> ddln.imbalance(layers)[:, 0].tolist()
    [0.0, 1.0, 1.0]
    """
    smallest = as_floats("smallest", smallest, 1)
    imbalance = as_floats("imbalance", imbalance, 2)
    _check_shape(1 + imbalance.shape[0], imbalance.shape[1])
    if imbalance.shape[1:] != smallest.shape:
        raise ValueError(
            f"`imbalance` must have shape (depth − 1, {smallest.size}), got {imbalance.shape}."
        )
    if is_concrete(imbalance) and (np.asarray(imbalance) < 0).any():
        raise ValueError(f"`imbalance` must be ≥ 0, got {float(imbalance.min())}.")
    return jnp.concatenate([smallest[None], jnp.sqrt(smallest[None] ** 2 + imbalance)])


def signed(positive: ArrayLike, negative: ArrayLike | None = None) -> Float[Array, "depth both"]:
    """Put the layers of a signed model ∏u − ∏v side by side: u, then v.

    Args:
        positive: u, shape (depth, dim).
        negative: v, shape (depth, dim); u by default.

    Returns:
        Layers of shape (depth, 2 · dim), for `ddln.signed(problem)`.

    Raises:
        ValueError: the shapes differ.

    >>> ddln.init.signed(ddln.init.constant(3, 4, 0.1)).shape
    (3, 8)
    """
    positive = as_layers(positive)
    negative = positive if negative is None else as_layers(negative)
    if positive.shape != negative.shape:
        raise ValueError(
            f"`negative` must have the shape {positive.shape} of `positive`, got {negative.shape}."
        )
    return jnp.concatenate([positive, negative], axis=1)
