"""Mirror descent, whose limit for small steps is the mirror flow of Theorem 1.

    ∇Q(θ_{k+1}) = ∇Q(θ_k) − γ ∇ℒ(θ_k)

Gradient descent on the layers is another discretisation of the same flow. k steps of size γ reach
flow time kγ.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import optax

from ddln._internal.validation import Number, as_floats, refuse


@runtime_checkable
class MirrorMap(Protocol):
    """∇Q and its inverse, from parameters θ to parameters ξ of the same shape."""

    def mirror_map(self, theta: Any, /) -> Any:
        """∇Q(θ)."""
        ...

    def inverse(self, xi: Any, /) -> Any:
        """θ with ∇Q(θ) = ξ."""
        ...


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

    Args:
        entropy: a `ddln.Entropy`, or any object with `mirror_map` and `inverse`.
        learning_rate: γ > 0 in flow time, which can be traced, or an optax schedule.

    Returns:
        The transformation. Its `update` needs `params`, and its state is that of optax's schedule.

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
        learning_rate = refuse(rate <= 0, f"`learning_rate` must be > 0, got {rate}.", rate)
    return _through(entropy, optax.scale_by_learning_rate(learning_rate))


def _through(
    entropy: MirrorMap, scaling: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Scale a gradient to an update of ∇Q(θ), and turn it into an update of θ."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("`params` must be the current θ, got None.")
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix types
            updates, state = scaling.update(updates, state, params)
        xi = jax.tree.map(
            lambda xi, change: xi + change.astype(xi.dtype), entropy.mirror_map(params), updates
        )
        return jax.tree.map(lambda new, old: new - old, entropy.inverse(xi), params), state

    return optax.GradientTransformation(scaling.init, update)
