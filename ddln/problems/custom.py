"""Losses that users define as Python functions of θ."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import (
    ArrayLike,
    Number,
    as_floats,
    as_positive,
    as_vector,
    refuse,
)
from ddln.problems import _levenberg
from ddln.problems.base import AnyArray, Problem


class FunctionLoss(Problem):
    """A loss given as a function of θ. Its gap is a difference, known to the rounding of ℒ."""

    function: Callable
    dim: int = eqx.field(static=True)
    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    attained: Bool[Array, ""]
    pl_constant: Float[Array, ""] | None
    smoothness: Float[Array, ""] | None
    convex: bool = eqx.field(static=True)
    samples: int = eqx.field(static=True, default=0)

    def loss(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        return self.function(theta)


def from_function(
    loss: Callable[[Any], Any],
    dim: int,
    *,
    minimum: Number | None = None,
    minimiser: ArrayLike | None = None,
    pl_constant: Number | None = None,
    smoothness: Number | None = None,
    convex: bool = False,
    start: ArrayLike | None = None,
) -> FunctionLoss:
    """Any loss ℒ(θ) that JAX can differentiate twice, with the constants the user knows.

    Nothing is assumed: certificates that need an unknown constant do not apply. For a convex loss,
    damped Newton steps find ℒ* if neither `minimum` nor `minimiser` is given.

    Args:
        loss: ℒ, from shape (dim,) to shape ().
        dim: the size of θ.
        minimum: ℒ*. Given alone, it does not count as attained.
        minimiser: one minimiser, shape (dim,); ℒ* is then the loss there.
        pl_constant: μ > 0 of ½‖∇ℒ‖² ≥ μ(ℒ − ℒ*).
        smoothness: β ≥ μ such that ∇ℒ is β-Lipschitz.
        convex: whether ℒ is convex.
        start: the initial point of the search for ℒ*, shape (dim,); 0 by default.

    Raises:
        ValueError: a loss that is not a real number; a `minimiser` where the loss is not finite,
            is not `minimum` or is lower nearby; a loss that is not convex without ℒ*; a convex loss
            without a verified minimiser, as if ℒ* is not attained; a constant that is not positive,
            or μ > β (NaN if traced).

    >>> problem = ddln.from_function(lambda theta: jnp.sum(jnp.cosh(theta - 1)), 2, convex=True)
    >>> float(problem.minimum), jnp.round(problem.minimiser, 12).tolist()
    (2.0, [1.0, 1.0])
    """
    origin = _as_start(start, dim)
    function = _as_pytree(loss, origin)
    given = None if minimum is None else as_floats("minimum", minimum, 0)
    if minimiser is not None:
        theta = as_vector("minimiser", minimiser, dim)
        least = _verified_minimum(function, theta, origin, given)
    elif given is not None:
        theta, least = jnp.full(dim, jnp.nan), given
    elif convex:
        theta = _find_minimiser(function, origin)
        least = function(theta)
    else:
        raise ValueError("`minimum` or `minimiser` must be given for a loss that is not convex.")
    mu, beta = _as_constants(pl_constant, smoothness)
    return FunctionLoss(
        function=function,
        dim=dim,
        minimum=least,
        minimiser=theta,
        attained=jnp.asarray(minimiser is not None or given is None),
        pl_constant=mu,
        smoothness=beta,
        convex=convex,
    )


def _as_start(start: ArrayLike | None, dim: int) -> Float[Array, " dim"]:
    if dim < 1:
        raise ValueError(f"`dim` must be ≥ 1, got {dim}.")
    return jnp.zeros(dim) if start is None else as_vector("start", start, dim)


def _as_pytree(loss: Any, theta: Float[Array, " dim"]) -> Any:
    """The loss as a pytree: a plain function is static, a module keeps its arrays."""
    value = jax.eval_shape(loss, theta)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`loss` must return a real number, shape (), got {value}.")
    return loss if isinstance(loss, eqx.Module) else jax.tree_util.Partial(loss)


def _find_minimiser(function: Callable, start: Float[Array, " dim"]) -> Float[Array, " dim"]:
    found = _levenberg.minimise(function, start)
    fault, gap = _levenberg.find_fault(function, start, found)
    return refuse(fault > 0, _levenberg.describe(found, fault, gap), found.theta)


def _verified_minimum(
    function: Callable,
    minimiser: Float[Array, " dim"],
    start: Float[Array, " dim"],
    minimum: Float[Array, ""] | None,
) -> Float[Array, ""]:
    """ℒ* = ℒ(minimiser), refused if not finite, not the given `minimum`, or lower nearby."""
    value, nearby, scale = _probe(function, minimiser, start)
    tolerance = _levenberg.gap_tolerance(value.dtype) * scale
    value = refuse(
        ~jnp.isfinite(value), f"`loss` must be finite at `minimiser`, got {value}.", value
    )
    if minimum is not None:
        message = f"`minimum` must be the loss at `minimiser`, {value}, got {minimum}."
        value = refuse(jnp.abs(minimum - value) > tolerance, message, minimum)
    message = f"`minimiser` must minimise the loss, {value} there, but nearby it is {nearby}."
    return refuse(nearby < value - tolerance, message, value)


@eqx.filter_jit
def _probe(
    function: Callable, theta: Float[Array, " dim"], start: Float[Array, " dim"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """ℒ(θ), the least value on a line search along −∇ℒ, and the scale of ℒ."""
    value, gradient = jax.value_and_grad(function)(theta)
    size = jnp.linalg.norm(theta) + jnp.linalg.norm(theta - start)
    size = jnp.where(size > 0, size, 1.0)
    norm = jnp.linalg.norm(gradient)
    direction = gradient / jnp.where(norm > 0, norm, 1.0)
    lengths = size * 4.0 ** -jnp.arange(20, dtype=size.dtype)
    values = jax.lax.map(lambda length: function(theta - length * direction), lengths)
    reference = function(jnp.where(jnp.all(start == theta), start + 1, start))
    scale = jnp.abs(value) + jnp.nan_to_num(jnp.abs(reference - value), posinf=0.0)
    return value, jnp.nanmin(values), scale


def _as_constants(
    pl_constant: Number | None, smoothness: Number | None
) -> tuple[Float[Array, ""] | None, Float[Array, ""] | None]:
    """μ and β, with 0 < μ ≤ β."""
    mu = None if pl_constant is None else as_positive("pl_constant", pl_constant)
    beta = None if smoothness is None else as_positive("smoothness", smoothness)
    if mu is None or beta is None:
        return mu, beta
    # ‖∇ℒ‖² lies between 2μ and 2β times the gap.
    message = f"`pl_constant` must be ≤ `smoothness`, {beta}, got {mu}."
    return refuse(mu > beta, message, mu), beta
