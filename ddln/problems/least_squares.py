"""Least squares: the loss c ‖Xθ − y‖² with its minimum, least-norm minimiser, μ and β."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import ArrayLike, refuse
from ddln.problems.base import AnyArray, LinearRisk, Normalisation, as_data, as_weights


class Solution(NamedTuple):
    """The solution of a least-squares problem and its constants."""

    minimum: Float[Array, ""]
    """ℒ*."""
    minimiser: Float[Array, " dim"]
    """θ* = X⁺y, the minimiser of least Euclidean norm."""
    fitted: Float[Array, " samples"]
    """ŷ = Xθ*."""
    core: Float[Array, "core dim"]
    """X, or R of X = QR if n > d: ‖Xθ − ŷ‖ = ‖core θ − core_fitted‖, with at most d rows."""
    core_fitted: Float[Array, " core"]
    """ŷ, or Qᵀŷ if n > d."""
    pl_constant: Float[Array, ""]
    smoothness: Float[Array, ""]

    @jax.jit
    def is_finite(self) -> Bool[Array, ""]:
        """Whether ℒ* and θ* are finite; they are NaN if a factorisation failed."""
        return jnp.isfinite(self.minimum) & jnp.all(jnp.isfinite(self.minimiser))


class LeastSquares(LinearRisk):
    """ℒ(θ) = c ‖Xθ − y‖², with y split at its projection ŷ on the range of X.

    The part of y outside the range contributes the constant ℒ*. The gap is c‖Xθ − ŷ‖², so its error
    is the square of the rounding in Xθ, whatever the size of ℒ*.
    """

    features: Float[Array, "samples dim"]
    targets: Float[Array, " samples"]
    fitted: Float[Array, " samples"]
    """ŷ = Xθ*."""
    core: Float[Array, "core dim"]
    """X, or R of X = QR if n > d: ‖Xθ − ŷ‖ = ‖core θ − core_fitted‖, with at most d rows."""
    core_fitted: Float[Array, " core"]
    """ŷ, or Qᵀŷ if n > d."""
    factor: float = eqx.field(static=True)
    """c."""
    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    attained: Bool[Array, ""]
    pl_constant: Float[Array, ""] | None
    smoothness: Float[Array, ""] | None
    convex: bool = eqx.field(static=True)

    def __init__(
        self,
        features: Float[Array, "samples dim"],
        targets: Float[Array, " samples"],
        factor: float,
        solution: Solution | None = None,
    ):
        solution = _solve(features, targets, factor) if solution is None else solution
        failed = ~solution.is_finite()
        message = (
            "`features` and `targets` must have a least-squares solution that is finite in "
            f"{features.dtype}, got ℒ* = {solution.minimum}."
        )
        self.features, self.targets, self.factor, self.convex = features, targets, factor, True
        self.attained = jnp.asarray(True)
        self.minimum = refuse(failed, message, solution.minimum)
        self.minimiser = refuse(failed, message, solution.minimiser)
        self.fitted = solution.fitted
        self.core, self.core_fitted = solution.core, solution.core_fitted
        self.pl_constant, self.smoothness = solution.pl_constant, solution.smoothness

    @property
    def weights(self) -> None:
        """None: weights are in the rows of X and y, as factors √w."""
        return None

    def coordinate_arrays(self) -> tuple[Any, ...]:
        return self.features, self.core, self.minimiser

    def pointwise(
        self, prediction: Float[AnyArray, " samples"], target: Float[AnyArray, " samples"]
    ) -> Float[AnyArray, " samples"]:
        return (prediction - target) ** 2

    def loss(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        return self.minimum + self.gap(theta)

    def gap(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        # `inner(theta, core)` keeps the batch axis of a vmap as rows of the product, here and
        # below; `theta @ core.T` would copy the transpose.
        return self.factor * jnp.sum((jnp.inner(theta, self.core) - self.core_fitted) ** 2)

    def gradient(self, theta: Float[AnyArray, " dim"]) -> Float[Array, " dim"]:
        return 2 * self.factor * ((jnp.inner(theta, self.core) - self.core_fitted) @ self.core)

    def gradients(self, thetas: Float[AnyArray, "dim batch"]) -> Float[Array, "dim batch"]:
        return 2 * self.factor * (self.core.T @ (self.core @ thetas - self.core_fitted[:, None]))

    def hessian(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "dim dim"]:
        return 2 * self.factor * (self.core.T @ self.core)

    def hessian_root(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "rows dim"]:
        return jnp.sqrt(2 * self.factor) * self.core

    def minimisers(self) -> tuple[Float[Array, "samples dim"], Float[Array, " samples"]]:
        return self.features, self.fitted


@jax.jit
def _solve(
    features: Float[Array, "samples dim"],
    targets: Float[Array, " samples"],
    factor: float | Float[Array, ""],
) -> Solution:
    """The solution by a QR factorisation of X or Xᵀ, then the SVD of its triangular factor."""
    samples, dim = features.shape
    is_tall = samples > dim
    # The barrier finishes Q before the SVD starts: in a vmap, concurrent LAPACK calls wait for each
    # other's threads.
    q, r = jax.lax.optimization_barrier(tuple(jnp.linalg.qr(features if is_tall else features.T)))
    left, singular, right = jnp.linalg.svd(r if is_tall else r.T, full_matrices=False)
    in_core = q.T @ targets if is_tall else targets
    spectrum = solve_spectrum((samples, dim), singular, left.T @ in_core, factor)
    core, core_fitted = r if is_tall else features, left @ spectrum.projected
    fitted = q @ core_fitted if is_tall else core_fitted
    minimiser = right.T @ spectrum.solution
    return Solution(
        minimum=factor * jnp.sum((targets - fitted) ** 2),
        minimiser=minimiser if is_tall else q @ minimiser,
        fitted=fitted,
        core=core,
        core_fitted=core_fitted,
        pl_constant=spectrum.pl_constant,
        smoothness=spectrum.smoothness,
    )


class Spectrum(NamedTuple):
    """The solution in singular coordinates, for X = V S Wᵀ."""

    projected: Float[Array, " rank"]
    """Vᵀŷ: the components of Vᵀy with a nonzero singular value, 0 elsewhere."""
    solution: Float[Array, " rank"]
    """Wᵀθ* = S⁺Vᵀy."""
    pl_constant: Float[Array, ""]
    smoothness: Float[Array, ""]


def solve_spectrum(
    shape: tuple[int, int],
    singular: Float[Array, " rank"],
    components: Float[Array, " rank"],
    factor: float | Float[Array, ""],
) -> Spectrum:
    """Solve least squares in singular coordinates; singular values within rounding of 0 are 0.

    Args:
        shape: the shape of X.
        singular: S, descending.
        components: Vᵀy.
        factor: c.
    """
    is_nonzero = singular > jnp.finfo(singular.dtype).eps * max(shape) * singular[0]
    smallest = jnp.min(jnp.where(is_nonzero, singular, jnp.inf))
    projected = jnp.where(is_nonzero, components, 0.0)
    return Spectrum(
        projected=projected,
        solution=projected / jnp.where(is_nonzero, singular, 1.0),
        pl_constant=2 * factor * jnp.where(is_nonzero[0], smallest, 0.0) ** 2,
        smoothness=2 * factor * singular[0] ** 2,
    )


def least_squares(
    features: ArrayLike,
    targets: ArrayLike,
    *,
    normalisation: Normalisation | str = "sum",
    weights: ArrayLike | None = None,
) -> LeastSquares:
    """ℒ(θ) = c ‖Xθ − y‖² with c = 1, ½, 1/n or 1/(2n).

    Args:
        features: X, shape (samples, dim).
        targets: y, shape (samples,).
        normalisation: "sum" (c = 1, the paper's convention: ∇ℒ = 2Xᵀ(Xθ − y)), "half" (½),
            "mean" (1/n) or "half_mean" (1/(2n)).
        weights: w > 0 of the samples, shape (samples,): ℒ(θ) = c Σ_i w_i (x_iᵀθ − y_i)². The rows
            of X and y of the problem are multiplied by √w.

    Returns:
        The problem, with ℒ* and the minimiser of least norm from the pseudo-inverse,
        μ = 2c σ²_min⁺(X) (the smallest nonzero singular value) and β = 2c σ²_max(X).

    Raises:
        ValueError: shapes that do not match, values that are not finite, an unknown normalisation,
            or an ℒ* or minimiser that overflows (NaN if traced).

    Source: the loss of Figures 3 and 4, arXiv 2412.16765; constants as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0, 0.0], [0.0, 2.0]], [1.0, 2.0])
    >>> float(problem.loss(jnp.zeros(2))), problem.minimiser.tolist()
    (5.0, [1.0, 1.0])
    >>> float(problem.pl_constant), float(problem.smoothness)
    (2.0, 8.0)
    """
    features, targets, factor = as_data(features, targets, normalisation)
    weights = as_weights("weights", weights, targets)
    if weights is not None:
        root = jnp.sqrt(weights)
        features, targets = root[:, None] * features, root * targets
    return LeastSquares(features, targets, factor)
