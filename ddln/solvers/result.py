"""What flows, descents and stochastic flows have in common: what was recorded of a curve."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.html import card, number
from ddln._internal.svg import Axis, Curve, beside, chart, subscript
from ddln._internal.validation import is_concrete
from ddln.solvers.cost_model import FINISHED

_ROUNDING = 1e-14
"""A gap below this share of the first one is rounding, and not drawn."""
_DRAWN, _SIZE = 6, (340, 220)


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
        """What a notebook shows: how it ended, and its curves."""
        name = type(self).__name__
        if not is_concrete(self.status) or self.status.ndim:
            return card(repr(self), {})
        depth, dim = self.layers.shape[1:]
        facts = {
            "ended": self.endings[int(self.status)],
            "points": f"{self.times.size:,}",
            "steps": f"{int(self.stats['num_steps']):,}",
            "depth": str(depth),
            "dim": str(dim),
            "gap": f"{number(float(self.gap[0]))} → {number(float(self.gap[-1]))}",
        }
        times, gap = np.asarray(self.times), np.asarray(self.gap)
        time = Axis("time t", float(times[0]), float(times[-1]))
        gap = np.where(gap > _ROUNDING * gap[0], gap, np.nan)
        theta = [
            Curve(times, self.theta[:, k], f"θ{subscript(k + 1)}", k, shape=k)
            for k in range(min(dim, _DRAWN))
        ]
        drawn = beside(
            chart([Curve(times, gap)], time, Axis("gap", log=True), size=_SIZE),
            chart(theta, time, Axis("θ"), size=_SIZE),
        )
        return card(name, facts, drawn)

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
