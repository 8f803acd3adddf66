"""What flows, descents and stochastic flows have in common: what was recorded of a curve."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln._internal import display
from ddln._internal.validation import is_concrete
from ddln.solvers.cost_model import FINISHED


class Run(eqx.Module):
    """A curve of layers at some of its points."""

    times: Float[Array, " points"]
    """Flow time: k steps of training reach kγ/(1 − β)."""
    layers: Float[Array, "points depth dim"]
    theta: Float[Array, "points dim"]
    loss: Float[Array, " points"]
    gap: Float[Array, " points"]
    """ℒ(θ) − ℒ*."""
    status: Int[Array, ""]
    """Index into `endings`."""
    stats: dict[str, Array]
    """Counts, num_steps among them."""

    endings: ClassVar[tuple[str, ...]]
    """How a run can end, in words."""

    @property
    def ok(self) -> Bool[Array, "..."]:
        """Whether it came to its end: the last of its points, or the gap that it was to reach."""
        ends = [self.endings.index(word) for word in FINISHED if word in self.endings]
        return jnp.isin(self.status, jnp.asarray(ends))

    def _repr_html_(self) -> str:
        return display.html(self)

    def __repr__(self) -> str:
        name = type(self).__name__
        if not is_concrete(self.status) or self.status.ndim:
            return f"{name}(theta={self.theta.shape})"
        return (
            f"{name}({self.endings[int(self.status)]}, {self.times.size} points up to "
            f"{float(self.times[-1]):g}, depth {self.layers.shape[1]}, dim {self.layers.shape[2]}, "
            f"gap {float(self.gap[0]):.3g} → {float(self.gap[-1]):.3g}, "
            f"{int(self.stats['num_steps'])} steps)"
        )
