"""A loss of the user's own, as a function of θ."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import ArrayLike, Number, as_floats, as_positive, as_vector, refuse
from ddln.problems.base import Problem


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

    def loss(self, theta):
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
    """Any loss ℒ(θ) that JAX can differentiate twice, with what is known of it.

    Nothing is assumed: a constant that is not given is not known, and certificates that need it do
    not apply. Of a convex loss ℒ* is found by BFGS, then Newton steps.

    Args:
        loss: ℒ, from shape (dim,) to shape ().
        dim: the size of θ.
        minimum: ℒ*. Given alone, it is not taken to be attained.
        minimiser: one minimiser, shape (dim,); then ℒ* is the loss there.
        pl_constant: μ > 0 of ½‖∇ℒ‖² ≥ μ(ℒ − ℒ*).
        smoothness: β ≥ μ such that ∇ℒ is β-Lipschitz.
        convex: whether ℒ is convex.
        start: where the search for ℒ* starts, shape (dim,); 0 by default.

    Raises:
        ValueError: a loss that is no number; no ℒ* for a loss that is not convex; no minimum found,
            as where ℒ* is not attained; a constant that is not positive, or μ > β (traced: NaN).

    >>> problem = ddln.from_function(lambda theta: jnp.sum(jnp.cosh(theta - 1)), 2, convex=True)
    >>> float(problem.minimum), jnp.round(problem.minimiser, 12).tolist()
    (2.0, [1.0, 1.0])
    """
    if dim < 1:
        raise ValueError(f"`dim` must be ≥ 1, got {dim}.")
    origin = jnp.zeros(dim) if start is None else as_vector("start", start, dim)
    value = jax.eval_shape(loss, origin)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"`loss` must return a real number, shape (), got {value}.")
    function = _as_pytree(loss)
    attained = True
    if minimiser is not None:
        place = as_vector("minimiser", minimiser, dim)
        least = function(place)
        if minimum is not None:
            minimum = as_floats("minimum", minimum, 0)
            off = jnp.abs(minimum - least) > 1e-6 * (1 + jnp.abs(least))
            message = f"`minimum` must be the loss at `minimiser`, {least}, got {minimum}."
            least = refuse(off, message, minimum)
    elif minimum is not None:
        place, least, attained = jnp.full(dim, jnp.nan), as_floats("minimum", minimum, 0), False
    elif convex:
        place, settled = _minimise(function, origin)
        place = refuse(~settled, "`loss` must attain a minimum, or `minimum` be given.", place)
        least = function(place)
    else:
        raise ValueError("`minimum` or `minimiser` must be given for a loss that is not convex.")
    mu, beta = (
        None if constant is None else as_positive(name, constant)
        for name, constant in (("pl_constant", pl_constant), ("smoothness", smoothness))
    )
    if mu is not None and beta is not None:
        # Twice each constant bounds ‖∇ℒ‖² over the gap, from below and from above.
        message = f"`pl_constant` must be ≤ `smoothness`, {beta}, got {mu}."
        mu = refuse(mu > beta, message, mu)
    return FunctionLoss(
        function=function,
        dim=dim,
        minimum=least,
        minimiser=place,
        attained=jnp.asarray(attained),
        pl_constant=mu,
        smoothness=beta,
        convex=convex,
    )


def _as_pytree(loss: Any) -> Any:
    """A plain function as a static part of the problem; a module with its arrays."""
    return loss if isinstance(loss, eqx.Module) else jax.tree_util.Partial(loss)


@eqx.filter_jit
def _minimise(function, start):
    """A point, and whether Newton's step there is negligible: not so on the way to infinity."""
    precision = float(jnp.finfo(start.dtype).eps)
    found = optimistix.minimise(
        lambda theta, _: function(theta),
        optimistix.BFGS(rtol=precision**0.5, atol=precision**0.5),
        start,
        throw=False,
        max_steps=1000,
    )

    def newton(_, theta_and_step):
        theta, _ = theta_and_step
        rates, modes = jnp.linalg.eigh(jax.hessian(function)(theta))
        flat = rates <= 1e3 * start.size * precision * jnp.max(jnp.abs(rates))
        slopes = modes.T @ jax.grad(function)(theta)
        along = jnp.where(flat, 0.0, slopes / jnp.where(flat, 1.0, rates))
        step, value = -modes @ along, function(theta)
        # Of a fall within its rounding the value is no judge.
        is_lost = slopes @ along <= 16 * precision * jnp.abs(value)
        better = is_lost | (function(theta + step) <= value)
        return jnp.where(better, theta + step, theta), step

    theta, step = jax.lax.fori_loop(0, 8, newton, (found.value, jnp.full_like(start, jnp.inf)))
    return theta, jnp.max(jnp.abs(step)) <= precision**0.4 * (1 + jnp.max(jnp.abs(theta)))
