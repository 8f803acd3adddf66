"""Mirror descent, whose limit for small steps is the mirror flow of Theorem 1.

    ∇Q(θ_{k+1}) = ∇Q(θ_k) − γ ∇ℒ(θ_k)

Gradient descent on the layers is another discretisation of the same flow. k steps of size γ reach
flow time kγ.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ddln._internal.validation import Number, as_floats, refuse
from ddln.networks.product_geometry import Factored


@runtime_checkable
class MirrorMap(Protocol):
    """∇Q and its inverse, from parameters θ to parameters ξ of the same shape."""

    def mirror_map(self, theta: Any, /) -> Any:
        """∇Q(θ)."""
        ...

    def inverse(self, xi: Any, /) -> Any:
        """θ with ∇Q(θ) = ξ."""
        ...


class MirrorDescentState(NamedTuple):
    """The number of steps taken, and their dose Ω = Σ γ ω of weight decay."""

    step: Int[Array, ""]
    dose: Float[Array, ""]


def mirror_descent(
    entropy: MirrorMap | Any, learning_rate: Number | optax.Schedule
) -> optax.GradientTransformation:
    """Mirror descent ∇Q(θ_{k+1}) = ∇Q(θ_k) − γ g, as an optax transformation on θ.

    θ_k are the parameters that optax passes to it, so projections and transformations chained after
    it take effect; g is the output of the transformations chained before it. With the entropy of a
    network it discretises `ddln.mirror_flow`. With ∇Q = id it is gradient descent, with ∇Q = log
    the exponentiated gradient method.

    From depth 3 on the range of ∇Q is bounded. A step that leaves it has no θ: it raises a
    `ValueError`, and under a transformation it gives NaN in the coordinate that left the range.
    `Entropy.in_range` tests for this in advance, `optax.apply_if_finite` skips such steps, and
    shorter steps avoid them.

    Under the weight decay of `ddln.factored(decay=…)` each step is taken in the geometry of the
    layers that the earlier ones have left, and then shrinks θ.

    Args:
        entropy: a `ddln.Entropy` or `ddln.factored(…)`, or any object with `mirror_map` and
            `inverse`.
        learning_rate: γ > 0 in flow time, which can be traced, or an optax schedule.

    Returns:
        The transformation. Its `update` needs `params`; its state has the number of steps, `step`,
        and the dose of decay, `dose`.

    Raises:
        ValueError: no such maps, γ ≤ 0 (traced: NaN), no `params`, θ outside the domain of Q, or a
            step outside the range of ∇Q (traced: NaN).

    Source: Nemirovski & Yudin 1983; the limit for small steps is Theorem 1, arXiv 2412.16765.

    >>> import optax
    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> rule = ddln.mirror_descent(ddln.Entropy([[0.0], [1.0]]), learning_rate=0.05)
    >>> theta = jnp.zeros(1)
    >>> state = rule.init(theta)
    >>> for _ in range(100):
    ...     updates, state = rule.update(problem.gradient(theta), state, theta)
    ...     theta = optax.apply_updates(theta, updates)
    >>> round(float(theta[0]), 8)
    2.0
    """
    for name in ("mirror_map", "inverse"):
        if not callable(getattr(entropy, name, None)):
            raise ValueError(
                f"`entropy` must have the maps `mirror_map` and `inverse`, got {entropy!r}."
            )
    if not callable(learning_rate):
        rate = as_floats("learning_rate", learning_rate, 0)
        rate = refuse(rate <= 0, f"`learning_rate` must be > 0, got {rate}.", rate)
        learning_rate = optax.constant_schedule(rate)
    return optax.GradientTransformation(_start, partial(_update, entropy, learning_rate))


def _start(params: Any) -> MirrorDescentState:
    return MirrorDescentState(jnp.zeros((), jnp.int32), jnp.zeros(()))


def _update(
    entropy: MirrorMap,
    learning_rate: optax.Schedule,
    updates: Any,
    state: Any,
    params: Any = None,
) -> tuple[Any, MirrorDescentState]:
    """The change of θ by a step, with the decay of a product of layers."""
    if params is None:
        raise ValueError("`params` must be the current θ, got None.")
    step, dose = state
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix types
        rate = jnp.asarray(learning_rate(step), dose.dtype)
    move = jax.tree.map(
        lambda theta, gradient: -rate.astype(theta.dtype) * gradient.astype(theta.dtype),
        params,
        updates,
    )
    if isinstance(entropy, Factored):
        with jax.numpy_dtype_promotion("standard"):
            passed = rate * entropy.decay_at(step).astype(dose.dtype)
        moved = entropy.decayed(dose).moved(params, move)
        theta, dose = entropy.shrunk(moved, passed), dose + passed
    else:
        theta = entropy.inverse(jax.tree.map(jnp.add, entropy.mirror_map(params), move))
    changes = jax.tree.map(jnp.subtract, theta, params)
    return changes, MirrorDescentState(jnp.asarray(optax.safe_increment(step)), dose)
