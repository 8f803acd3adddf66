"""Losses as functions of the effective parameter θ, with what the theorems need to know of them."""

from abc import abstractmethod
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._checks import ArrayLike, as_floats

Normalisation = Literal["sum", "half", "mean", "half_mean"]


class Problem(eqx.Module):
    """A loss ℒ on θ in R^dim with its minimum and its constants.

    A constant that is not known is `None`: certificates that need it then say so.
    """

    dim: eqx.AbstractVar[int]
    minimum: eqx.AbstractVar[Float[Array, ""]]
    """ℒ*."""
    minimiser: eqx.AbstractVar[Float[Array, " dim"]]
    """One minimiser of ℒ; for least squares the one of least Euclidean norm."""
    pl_constant: eqx.AbstractVar[Float[Array, ""] | None]
    """μ of the Polyak–Łojasiewicz condition ½‖∇ℒ‖² ≥ μ (ℒ − ℒ*)."""
    smoothness: eqx.AbstractVar[Float[Array, ""] | None]
    """β such that ∇ℒ is β-Lipschitz."""
    convex: eqx.AbstractVar[bool]

    @abstractmethod
    def loss(self, theta: Float[Array, " dim"]) -> Float[Array, ""]:
        """ℒ(θ)."""

    def gradient(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """∇ℒ(θ)."""
        return jax.grad(self.loss)(theta)

    def gap(self, theta: Float[Array, " dim"]) -> Float[Array, ""]:
        """ℒ(θ) − ℒ*."""
        return self.loss(theta) - self.minimum

    def hessian(self, theta: Float[Array, " dim"]) -> Float[Array, "dim dim"]:
        """∇²ℒ(θ)."""
        return jax.hessian(self.loss)(theta)


class LeastSquares(Problem):
    """ℒ(θ) = c ‖Xθ − y‖², the residual split at the projection ŷ of y on the range of X.

    The part of the residual outside the range is ℒ* and never changes, so the gap c‖Xθ − ŷ‖² is
    known down to the rounding of Xθ squared, not to that of ℒ*.
    """

    features: Float[Array, "samples dim"]
    targets: Float[Array, " samples"]
    fitted: Float[Array, " samples"]
    """ŷ = Xθ*."""
    factor: float = eqx.field(static=True)
    """c."""
    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    pl_constant: Float[Array, ""] | None
    smoothness: Float[Array, ""] | None
    convex: bool = eqx.field(static=True, default=True)

    def __init__(
        self,
        features: Float[Array, "samples dim"],
        targets: Float[Array, " samples"],
        factor: float,
    ):
        self.features, self.targets, self.factor, self.convex = features, targets, factor, True
        for name, value in _solve(features, targets, factor).items():
            setattr(self, name, value)

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    def loss(self, theta):
        return self.minimum + self.gap(theta)

    def gap(self, theta):
        return self.factor * jnp.sum((self.features @ theta - self.fitted) ** 2)

    def gradient(self, theta):
        return 2 * self.factor * (self.features.T @ (self.features @ theta - self.fitted))

    def hessian(self, theta):
        return 2 * self.factor * (self.features.T @ self.features)


@jax.jit
def _solve(features, targets, factor) -> dict[str, Array]:
    left, singular, right = jnp.linalg.svd(features, full_matrices=False)
    precision = jnp.finfo(features.dtype).eps * max(features.shape)
    in_range = singular > precision * singular[0]
    weights = jnp.where(in_range, left.T @ targets, 0.0)
    fitted = left @ weights
    smallest = jnp.min(jnp.where(in_range, singular, jnp.inf))
    return {
        "fitted": fitted,
        "minimum": factor * jnp.sum((targets - fitted) ** 2),
        "minimiser": right.T @ (weights / jnp.where(in_range, singular, 1.0)),
        "pl_constant": 2 * factor * jnp.where(in_range[0], smallest, 0.0) ** 2,
        "smoothness": 2 * factor * singular[0] ** 2,
    }


def least_squares(
    features: ArrayLike, targets: ArrayLike, *, normalisation: Normalisation | str = "sum"
) -> LeastSquares:
    """ℒ(θ) = c ‖Xθ − y‖² with c = 1, ½, 1/n or 1/(2n).

    Args:
        features: X, shape (samples, dim).
        targets: y, shape (samples,).
        normalisation: "sum" (c = 1, the paper's convention: ∇ℒ = 2Xᵀ(Xθ − y)), "half" (½),
            "mean" (1/n) or "half_mean" (1/(2n)).

    Returns:
        The problem, with ℒ* and the minimiser of least norm from the pseudo-inverse,
        μ = 2c σ²_min⁺(X) (the smallest nonzero singular value) and β = 2c σ²_max(X).

    Raises:
        ValueError: shapes that do not fit, values that are not finite, an unknown normalisation.

    Source: the loss of Figures 3 and 4, arXiv 2412.16765; constants as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0, 0.0], [0.0, 2.0]], [1.0, 2.0])
    >>> float(problem.loss(jnp.zeros(2))), problem.minimiser.tolist()
    (5.0, [1.0, 1.0])
    >>> float(problem.pl_constant), float(problem.smoothness)
    (2.0, 8.0)
    """
    features, targets = as_floats("features", features, 2), as_floats("targets", targets, 1)
    samples, dim = features.shape
    if samples < 1 or dim < 1:
        raise ValueError(f"`features` must have samples ≥ 1 and dim ≥ 1, got {features.shape}.")
    if targets.shape != (samples,):
        raise ValueError(f"`targets` must have shape ({samples},), got {targets.shape}.")
    factors = {"sum": 1.0, "half": 0.5, "mean": 1 / samples, "half_mean": 0.5 / samples}
    if normalisation not in factors:
        names = ", ".join(map(repr, get_args(Normalisation)))
        raise ValueError(f"`normalisation` must be one of {names}, got {normalisation!r}.")
    dtype = jnp.promote_types(features.dtype, targets.dtype)
    return LeastSquares(features.astype(dtype), targets.astype(dtype), factors[normalisation])
