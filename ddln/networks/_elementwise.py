"""What the coordinate maps share: blocks of coordinates, Newton's method, rules of derivatives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from ddln.networks._quadrature import Mask, Vector

_MAX_NEWTON_STEPS = 60
_BLOCK = 256
"""Coordinates that share an iteration: each waits for the slowest of them."""

Tangent = Vector | None
"""A derivative along a direction; Equinox passes `None` for that of a constant."""


def in_blocks(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), over blocks of coordinates, the last axis of all arrays."""
    dim = arguments[0].shape[0]
    if dim <= 2 * _BLOCK:
        return function(*arguments)
    blocks = jax.tree.map(_split, arguments)
    results = jax.lax.map(lambda block: function(*block), blocks)
    return jax.tree.map(lambda result: result.reshape(-1)[:dim], results)


def _split(array: Shaped[Array, "*rows dim"]) -> Shaped[Array, "count *rows block"]:
    """Blocks along a new first axis; the last coordinate is repeated to fill the last block."""
    *rows, dim = array.shape
    count = -(-dim // _BLOCK)
    padding = jnp.broadcast_to(array[..., -1:], (*rows, count * _BLOCK - dim))
    blocks = jnp.concatenate([array, padding], axis=-1).reshape(*rows, count, _BLOCK)
    return jnp.moveaxis(blocks, -2, 0)


def refuse_layer_derivative(tangent: Any) -> None:
    """Raise a ValueError if a reduction has a tangent."""
    if jax.tree.leaves(tangent):
        raise ValueError(
            "An entropy can be differentiated with respect to θ or ξ, not to its initial layers: "
            "wrap the layers in `jax.lax.stop_gradient`."
        )


def or_zero(tangent: Tangent, primal: Vector) -> Vector:
    """The tangent, zero for `None`."""
    return jnp.zeros_like(primal) if tangent is None else tangent


class NewtonState(NamedTuple):
    """An iterate, where it still moves, and the number of steps so far."""

    x: Vector
    is_active: Mask
    count: Int[Array, ""]


def newton(step: Callable[[NewtonState], NewtonState], x: Vector, active: Mask) -> NewtonState:
    """Repeat a step of Newton's method until no coordinate is active, at most 60 times.

    Args:
        step: makes one step; coordinates that have converged become inactive.
        x: where to start.
        active: where to iterate.
    """
    return jax.lax.while_loop(
        lambda state: jnp.any(state.is_active) & (state.count < _MAX_NEWTON_STEPS),
        step,
        NewtonState(x, active, jnp.zeros((), jnp.int32)),
    )
