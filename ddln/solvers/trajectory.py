"""The result of a flow, and the checks of its saved times and tolerances.

Apart from `gradient_flow`, so that what only reads or certifies flows does not load diffrax.
"""

import math
import warnings
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, as_floats, is_concrete, refuse
from ddln.networks.entropy import Entropy
from ddln.networks.layers import Function
from ddln.networks.parametrisation import Parametrisation
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.solvers.result import Run
from ddln.solvers.status import Status
from ddln.solvers.weight_decay import WeightDecay, constant


class AppliedDecay(NamedTuple):
    """Weight decay along a run, from its start."""

    rate: Float[Array, " points"]
    """ω, per unit of flow time."""
    dose: Float[Array, " points"]
    """Ω = ∫ω."""


def applied(decay: WeightDecay | None, elapsed: Float[Array, " points"]) -> AppliedDecay | None:
    """Weight decay at the given times since its start; `None` without."""
    if decay is None:
        return None
    return AppliedDecay(jax.vmap(decay.rate)(elapsed), jax.vmap(decay.dose)(elapsed))


class Trajectory(Run):
    """A gradient or mirror flow, saved at `times`. A failed flow is NaN from where it ended."""

    velocity: Float[Array, "points dim"]
    """dθ/dt, from the right-hand side of the integrated equation."""
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    coordinates: str = eqx.field(static=True)
    """The integrated state: "layers", "reduced" or "mirror"."""
    decay: AppliedDecay | None = None
    """The weight decay at each point; `None` without."""
    entropy: SeparableEntropy | None = None
    """The parametrisation in place of layers; `layers` has its parameters. `None` for layers."""

    curves: ClassVar = (*Run.curves, "velocity")
    statuses: ClassVar = (Status.OK, Status.MAX_STEPS, Status.DIVERGED, Status.STOPPED)

    @property
    def function(self) -> Function | None:
        return self.entropy.function if isinstance(self.entropy, Parametrisation) else None

    @property
    def depth(self) -> int:
        """The number of layers, or of parameters of each coordinate."""
        return self.layers.shape[-2]

    @property
    def flow_entropy(self) -> SeparableEntropy:
        """The entropy whose mirror flow this is: of the parametrisation, or of the first layers."""
        return Entropy(self.layers[0]) if self.entropy is None else self.entropy


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


def as_weight_decay(
    value: WeightDecay | ArrayLike,
    times: Float[Array, "*batch times"],
    *,
    is_reduced: bool,
) -> WeightDecay:
    """Check a schedule, or a number for a constant one, for runs with the given saved times.

    Args:
        value: a schedule or number for all runs; or one for each, with a leading axis.
        times: saved times of each run; they determine the axes of the result.
        is_reduced: whether the flow is integrated in reduced coordinates, in which e^{−2Ω} must be
            a number.

    Returns:
        The schedule, with time 0 at the first of the times.

    Raises:
        ValueError: a number that is negative or not finite, a schedule that ends before the last of
            the times, or too large a dose (traced: NaN).
    """
    batch, dtype = times.shape[:-1], times.dtype
    if not isinstance(value, WeightDecay):
        rates = as_floats("weight_decay", value, np.ndim(value))
        rates = refuse(rates < 0, f"`weight_decay` must be ≥ 0, got {rates}.", rates)
        value = constant(rates) if not rates.ndim else jax.vmap(constant)(rates)
    if value.edges.shape[:-1] not in ((), batch):
        raise ValueError(
            f"`weight_decay` must be one schedule or one for each of {batch} runs, got "
            f"{value.edges.shape[:-1]}."
        )

    def of_every_run(array: Float[Array, "..."]) -> Float[Array, "*batch size"]:
        return jnp.broadcast_to(array.astype(dtype), (*batch, array.shape[-1]))

    decay: WeightDecay = jax.tree.map(of_every_run, value)
    is_short = decay.edges[..., -1:] < times[..., -1:]
    message = (
        "`weight_decay` must cover all of `times`, got a schedule that ends before the last of "
        "them: add a piece, or let `ddln.weight_decay.piecewise` end at inf."
    )
    first = refuse(is_short, message, decay.first)
    decay = WeightDecay(decay.edges - times[..., :1], first, decay.last)
    if not is_reduced:
        return decay
    dose, largest = dose_at(decay, times[..., -1] - times[..., 0]), _largest_dose(dtype)
    message = (
        f"`weight_decay` must have a dose ∫ω of at most {largest:.0f} over `times` for reduced "
        f"coordinates in {dtype}, got up to {dose.max()}: integrate the layers "
        '(`coordinates="layers"`), or end earlier.'
    )
    return eqx.tree_at(
        lambda d: d.first, decay, refuse((dose > largest)[..., None], message, first)
    )


@jax.jit
def dose_at(decay: WeightDecay, time: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Ω of each run at a time of its own."""
    return jax.vmap(WeightDecay.dose)(decay, time) if time.ndim else decay.dose(time)


def _largest_dose(dtype: jnp.dtype) -> float:
    """The dose Ω at which e^{2Ω} reaches the largest number."""
    return math.log(float(jnp.finfo(dtype).max)) / 2
