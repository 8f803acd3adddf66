"""`Run`, the base class of all results, and the error that a failed run raises."""

import dataclasses
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln._internal import display
from ddln._internal.validation import is_concrete
from ddln.networks.layers import Function
from ddln.solvers.status import Status


class Run(eqx.Module):
    """A computed curve of layers, saved at some of its points.

    Gradient flows, stochastic flows and gradient descent return subclasses of it.
    """

    times: Float[Array, " points"]
    """Flow time: k steps of training reach kγ/(1 − β)."""
    layers: Float[Array, "points depth dim"]
    theta: Float[Array, "points dim"]
    loss: Float[Array, " points"]
    gap: Float[Array, " points"]
    """ℒ(θ) − ℒ*."""
    status: Int[Array, ""]
    """Index into `statuses` and `status_names`."""
    stats: dict[str, Array]
    """Counts such as num_steps."""

    curves: ClassVar[tuple[str, ...]] = ("layers", "theta", "loss", "gap")
    """The fields with a value at each point that rest when the run stops."""
    statuses: ClassVar[tuple[Status, ...]]
    """Every way in which such a run can end, by its code."""

    @classmethod
    def code_of(cls, status: Status) -> int:
        """The integer in `status` that stands for a status.

        >>> ddln.Trajectory.code_of(ddln.solvers.status.Status.DIVERGED)
        2
        """
        return cls.statuses.index(status)

    @property
    def function(self) -> Function | None:
        """G of another parametrisation θ_k = G(w_k), with w in `layers`; `None` for layers."""
        return None

    @property
    def status_names(self) -> tuple[str, ...]:
        """The word for each status code."""
        return tuple(status.value for status in self.statuses)

    @property
    def ok(self) -> Bool[Array, "..."]:
        """Whether the run reached the last of its points, or its target gap."""
        finished = [code for code, status in enumerate(self.statuses) if status.is_finished]
        return jnp.isin(self.status, jnp.asarray(finished))

    def _repr_html_(self) -> str | None:
        return display.html(self)

    def __repr__(self) -> str:
        name = type(self).__name__
        if not is_concrete(self.status) or self.status.ndim:
            return f"{name}(theta={self.theta.shape})"
        return (
            f"{name}({self.status_names[int(self.status)]}, {self.times.size} points up to "
            f"{float(self.times[-1]):g}, depth {self.layers.shape[1]}, dim {self.layers.shape[2]}, "
            f"gap {float(self.gap[0]):.3g} → {float(self.gap[-1]):.3g}, "
            f"{int(self.stats['num_steps'])} steps)"
        )


RunT = TypeVar("RunT", bound=Run)


def stop_at(run: RunT, is_end: Bool[Array, " points"]) -> RunT:
    """The run frozen at the first point where `is_end` is true, if any, and marked as stopped.

    Times and steps go on. A run that did not cover all of its points is not changed.

    Args:
        run: the run.
        is_end: whether the run ends at each point.
    """
    count = run.theta.shape[0]
    ends = jnp.any(is_end) & (run.status == run.code_of(Status.OK))
    last = jnp.where(ends, jnp.argmax(is_end), count - 1)
    rows = jnp.minimum(jnp.arange(count), last)

    def hold(value: Any) -> Any:
        return jax.tree.map(lambda array: array[rows], value)

    held = {name: hold(getattr(run, name)) for name in run.curves}
    status = jnp.where(ends, run.code_of(Status.STOPPED), run.status)
    return dataclasses.replace(run, **held, status=status.astype(run.status.dtype))


def raise_on_failure(run: RunT) -> RunT:
    """Return a run that finished; raise an error for any other.

    Raises:
        RuntimeError: the run failed. Under `jax.jit` JAX raises it when the program runs.
    """
    if not is_concrete(run.status):
        message = "The run ended early: pass `throw=False` to get it with its `status`."
        return eqx.error_if(run, ~run.ok, message)
    status = run.statuses[int(run.status)]
    if not status.is_finished:
        raise RuntimeError(
            f"The run ended early ({status.value}) after {int(run.stats['num_steps'])} steps: "
            f"{status.meaning}. To mend it, {status.advice}; or pass `throw=False` to get the run."
        )
    return run
