"""Validate user input and convert it to floating-point arrays of the right shape."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

Number = jaxtyping.ArrayLike
ArrayLike = jaxtyping.ArrayLike | Sequence[Any]
"""What public parameters take: arrays, numbers, and nested sequences of them."""
AnyArray = Shaped[Array, "..."]


def is_concrete(*arrays: object) -> bool:
    """Whether all arrays have values, that is, none is traced by `jit`, `vmap` or `grad`."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def as_floats(name: str, values: ArrayLike, ndim: int) -> Array:
    """Convert `values` to a floating-point array of `ndim` dimensions.

    Half precision becomes single, since LAPACK has no half precision.

    Raises:
        ValueError: the values are not real numbers, have another number of dimensions, or are
            concrete and not finite.
    """
    is_jax_array = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(values))
    if not is_jax_array and type(values) not in (float, complex):  # their types are weak
        # `jnp.asarray` would compile a program for each shape. Both may keep the memory they are
        # given, which is the user's to change: hence the copy.
        values = jax.device_put(np.array(as_numpy_floats(name, values)))
    array = jnp.asarray(values)
    if array.dtype not in (jnp.float32, jnp.float64):
        array = array.astype(_float_type(name, array.dtype))
    if array.ndim != ndim:
        raise ValueError(f"`{name}` must have {ndim} dimension(s), got shape {array.shape}.")
    if is_concrete(array):
        # By NumPy: inside `jit`, jax.numpy traces even what it computes of constants. By shards: a
        # sharded array may be too large for one device, or partly in another process.
        for shard in array.addressable_shards:
            refuse_infinite(name, np.asarray(shard.data), [axis.start or 0 for axis in shard.index])
    return array


def as_numpy_floats(name: str, values: ArrayLike) -> np.ndarray:
    """Convert `values` to a NumPy array of JAX's floating-point types, in native byte order.

    Raises:
        ValueError: the values are not real numbers, some are masked, or some overflow that type.
    """
    if np.ma.is_masked(values):
        raise ValueError(f"`{name}` must have no masked entries.")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be an array of real numbers: {error}.") from None
    dtype = _float_type(name, array.dtype)
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaN are invalid
        floats = array.astype(dtype)
    lost = np.isfinite(array) & ~np.isfinite(floats)
    if lost.any():
        where = tuple(np.argwhere(lost)[0].tolist())
        raise ValueError(f"`{name}` must fit into {dtype}, got {array[where]!s} at index {where}.")
    return floats


def _float_type(name: str, dtype: np.dtype) -> np.dtype:
    """The type to compute with for input of type `dtype`."""
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise ValueError(f"`{name}` must be real, got {dtype}.")
    is_short = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4
    return np.dtype(np.float32) if is_short else jnp.result_type(float)


def refuse_infinite(name: str, values: Float[np.ndarray, "..."], offset: Sequence[int]) -> None:
    """Raise a ValueError if an entry is not finite; `offset` is the index of the first entry."""
    if not np.isfinite(values).all():
        inside = np.argwhere(~np.isfinite(values))[0]
        where = tuple(int(i) + k for i, k in zip(inside, offset, strict=True))
        value = values[tuple(inside)]
        raise ValueError(f"`{name}` must be finite, got {value} at index {where}.")


def as_layers(layers: ArrayLike, dim: int | None = None) -> Float[Array, "depth dim"]:
    """Convert `layers` to an array of shape (depth, dim), depth ≥ 1; dim ≥ 1 or as given."""
    shape = _shape("layers", layers)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"`layers` must have shape (depth, dim) with depth ≥ 1 and dim ≥ 1, got {shape}."
        )
    if dim is not None and shape[1] != dim:
        raise ValueError(f"`layers` must have shape (depth, {dim}), got {shape}.")
    return as_floats("layers", layers, 2)


def as_vector(name: str, values: ArrayLike, size: int) -> Float[Array, " dim"]:
    """Convert `values` to a vector of `size` entries."""
    if (shape := _shape(name, values)) != (size,):
        raise ValueError(f"`{name}` must have shape ({size},), got {shape}.")
    return as_floats(name, values, 1)


def _shape(name: str, values: ArrayLike) -> tuple[int, ...]:
    try:
        return np.shape(values)
    except ValueError as error:
        raise ValueError(f"`{name}` must be an array of real numbers: {error}.") from None


def refuse(wrong: Bool[Array, "..."], message: str, values: AnyArray) -> AnyArray:
    """Return `values` unless an entry of `wrong` is true.

    A concrete `wrong` then raises a ValueError with the message, a traced one yields NaN there.
    """
    if is_concrete(wrong):
        if np.asarray(wrong).any():
            raise ValueError(message)
        return values
    return jnp.where(wrong, jnp.nan, values)


def largest(
    values: AnyArray,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
) -> AnyArray:
    """The largest value; NaN if any value is NaN.

    `jnp.max` alone loses NaN among 4,096 numbers or more on CPUs (jaxlib 0.10.2).

    >>> float(largest(jnp.zeros(5000).at[7].set(jnp.nan)))
    nan
    """
    unknown = jnp.any(jnp.isnan(values), axis, keepdims=keepdims)
    return jnp.where(unknown, jnp.nan, jnp.max(values, axis, keepdims=keepdims))


def smallest(
    values: AnyArray,
    axis: int | tuple[int, ...] | None = None,
    *,
    keepdims: bool = False,
) -> AnyArray:
    """The smallest value; NaN if any value is NaN. See `largest`.

    >>> float(smallest(jnp.ones(5000).at[7].set(jnp.nan)))
    nan
    """
    return -largest(-values, axis, keepdims=keepdims)


def as_positive(name: str, value: Number) -> Float[Array, ""]:
    """Convert `value` to a number > 0; a traced number ≤ 0 becomes NaN."""
    number = as_floats(name, value, 0)
    return refuse(number <= 0, f"`{name}` must be > 0, got {number}.", number)
