"""The door: what comes in becomes a floating-point array of the right shape, or one clear error."""

from collections.abc import Sequence
from typing import Any

import jax.core
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jaxtyping import Array, Bool, Float

Number = jaxtyping.ArrayLike
ArrayLike = jaxtyping.ArrayLike | Sequence[Any]
"""What public parameters take: arrays, numbers, and nested sequences of them."""


def is_concrete(*arrays: object) -> bool:
    """Whether the values can be looked at now, that is, outside `jit`, `vmap` and `grad`."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def as_floats(name: str, values: ArrayLike, ndim: int) -> Array:
    """`values` as a floating-point array of `ndim` dimensions, finite where that can be seen."""
    array = jnp.asarray(values)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(f"`{name}` must be real, got {array.dtype}.")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(jnp.result_type(float))
    if array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} dimension(s), got shape {array.shape}.")
    if is_concrete(array):
        # In NumPy: even on constants, what jax.numpy computes inside `jit` is traced. By parts: one
        # that is cut over devices may be too large for any, or partly another process's.
        for part in array.addressable_shards:
            seen = np.asarray(part.data)
            if not np.isfinite(seen).all():
                inside = np.argwhere(~np.isfinite(seen))[0]
                first = (axis.start or 0 for axis in part.index)
                where = tuple(int(i) + k for i, k in zip(inside, first, strict=True))
                value = seen[tuple(inside)]
                raise ValueError(f"`{name}` must be finite, got {value} at index {where}.")
    return array


def as_layers(layers: ArrayLike, dim: int | None = None) -> Float[Array, "depth dim"]:
    """`layers` as an array of shape (depth, dim), with depth ≥ 2 and dim ≥ 1, or the given one."""
    shape = np.shape(layers)
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
        raise ValueError(
            f"`layers` must have shape (depth, dim) with depth ≥ 2 and dim ≥ 1, got {shape}."
        )
    if dim is not None and shape[1] != dim:
        raise ValueError(f"`layers` must have shape (depth, {dim}), got {shape}.")
    return as_floats("layers", layers, 2)


def as_vector(name: str, values: ArrayLike, size: int) -> Float[Array, " dim"]:
    """`values` as a vector of `size` entries."""
    if np.shape(values) != (size,):
        raise ValueError(f"`{name}` must have shape ({size},), got {np.shape(values)}.")
    return as_floats(name, values, 1)


def refuse(wrong: Bool[Array, "..."], message: str, values: Array) -> Array:
    """`values`; where `wrong`, a `ValueError` if that can be seen now and NaN if it is traced."""
    if is_concrete(wrong):
        if np.asarray(wrong).any():
            raise ValueError(message)
        return values
    return jnp.where(wrong, jnp.nan, values)


def as_positive(name: str, value: Number) -> Float[Array, ""]:
    """`value` as a number > 0; NaN where it is traced and is not."""
    number = as_floats(name, value, 0)
    return refuse(number <= 0, f"`{name}` must be > 0, got {number}.", number)
