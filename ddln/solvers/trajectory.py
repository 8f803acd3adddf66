"""The result of a flow, and the checks of its saved times and tolerances.

Apart from `gradient_flow`, so that what only reads or certifies flows does not load diffrax.
"""

import warnings
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, as_floats, is_concrete
from ddln.solvers.result import Run
from ddln.solvers.status import Status


class Trajectory(Run):
    """A gradient or mirror flow, saved at `times`. A failed flow is NaN from where it ended."""

    velocity: Float[Array, "points dim"]
    """dθ/dt, from the right-hand side of the integrated equation."""
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    coordinates: str = eqx.field(static=True)
    """The integrated state: "layers", "reduced" or "mirror"."""

    curves: ClassVar = (*Run.curves, "velocity")
    statuses: ClassVar = (Status.OK, Status.MAX_STEPS, Status.DIVERGED, Status.STOPPED)


def as_times(times: Float[Array, "*batch times"]) -> Float[Array, "*batch times"]:
    """Check saved times: they must be ≥ 0 and increase strictly."""
    if times.shape[-1] < 2:
        raise ValueError(f"`times` must hold at least two times, got {times.shape[-1]}.")
    if is_concrete(times):
        values = np.asarray(times)
        if not ((np.diff(values) > 0).all() and (values[..., 0] >= 0).all()):
            raise ValueError("`times` must be ≥ 0 and strictly increasing; the first is the start.")
    return times


def as_tolerances(
    rtol: ArrayLike | None,
    atol: ArrayLike | None,
    default: float,
    dtype: jnp.dtype,
    shape: tuple[int, ...] = (),
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Check tolerances and broadcast them.

    Args:
        rtol, atol: scalars or arrays of the given shape; `None` for the defaults.
        default: default of `rtol`; that of `atol` is a thousandth of it. Both are larger if dtype
            requires it.
        dtype: of the results.
        shape: of the results.
    """
    precision = float(jnp.finfo(dtype).eps)
    rtol = max(default, 100 * precision) if rtol is None else rtol
    atol = max(1e-3 * default, precision / 10) if atol is None else atol
    checked = []
    for name, value in (("rtol", rtol), ("atol", atol)):
        if np.shape(value) not in ((), shape):
            raise ValueError(f"`{name}` must have shape {shape or ()}, got {np.shape(value)}.")
        tolerance = as_floats(name, value, np.ndim(value))
        if is_concrete(tolerance) and not (np.asarray(tolerance) > 0).all():
            raise ValueError(f"`{name}` must be > 0, got {float(np.min(tolerance))}.")
        checked.append(jnp.broadcast_to(tolerance.astype(dtype), shape))
    if is_concrete(checked[0]) and (finest := float(np.min(checked[0]))) < precision:
        warnings.warn(
            f"`rtol` = {finest:g} is finer than the {precision:.1g} of {dtype}.", stacklevel=4
        )
    return checked[0], checked[1]
