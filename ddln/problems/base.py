"""Losses as functions of the effective parameter θ, with what the theorems need to know of them."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln._internal import display
from ddln._internal.validation import ArrayLike, as_floats

Normalisation = Literal["sum", "half", "mean", "half_mean"]


class Problem(eqx.Module):
    """A loss ℒ on θ in R^dim with its minimum and its constants.

    A constant that is not known is `None`: certificates that need it then say so.
    """

    dim: eqx.AbstractVar[int]
    minimum: eqx.AbstractVar[Float[Array, ""]]
    """ℒ*."""
    minimiser: eqx.AbstractVar[Float[Array, " dim"]]
    """One minimiser of ℒ, the one of least Euclidean norm for least squares; NaN without one."""
    attained: eqx.AbstractVar[Bool[Array, ""]]
    """Whether ℒ* is a minimum, or only an infimum."""
    pl_constant: eqx.AbstractVar[Float[Array, ""] | None]
    """μ of the Polyak–Łojasiewicz condition ½‖∇ℒ‖² ≥ μ (ℒ − ℒ*)."""
    smoothness: eqx.AbstractVar[Float[Array, ""] | None]
    """β such that ∇ℒ is β-Lipschitz."""
    convex: eqx.AbstractVar[bool]

    samples: eqx.AbstractVar[int]
    """n where ℒ is a sum over n samples, else 0."""

    def _repr_html_(self) -> str:
        return display.html(self)

    @abstractmethod
    def loss(self, theta: Float[Array, " dim"]) -> Float[Array, ""]:
        """ℒ(θ)."""

    def gradient(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """∇ℒ(θ)."""
        return jax.grad(self.loss)(theta)

    def gradients(self, thetas: Float[Array, "dim lanes"]) -> Float[Array, "dim lanes"]:
        """∇ℒ(θ) of every column θ."""
        return jax.vmap(self.gradient, -1, -1)(thetas)

    def gap(self, theta: Float[Array, " dim"]) -> Float[Array, ""]:
        """ℒ(θ) − ℒ*."""
        return self.loss(theta) - self.minimum

    def hessian(self, theta: Float[Array, " dim"]) -> Float[Array, "dim dim"]:
        """∇²ℒ(θ)."""
        return jax.hessian(self.loss)(theta)

    def hessian_root(self, theta: Float[Array, " dim"]) -> Float[Array, "rows dim"] | None:
        """B with ∇²ℒ(θ) = BᵀB where that is known to have few rows; else None."""
        return None

    def predictor(self, theta: Float[Array, "*times dim"]) -> Float[Array, "*times features"]:
        """The linear predictor that θ stands for: θ itself, or θ₊ − θ₋ in a signed problem."""
        return theta

    def minimisers(self) -> tuple[Float[Array, "rows dim"], Float[Array, " rows"]] | None:
        """(A, b) where {θ : Aθ = b} are the minimisers; None where they are no such set."""
        return None

    def estimate(
        self,
        theta: Float[Array, " dim"],
        rows: Int[Array, " batch"] | None = None,
        noise: Float[Array, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """ℒ estimated from some of its samples: n/|rows| times their part of it.

        Args:
            theta: shape (dim,).
            rows: which samples, shape (batch,); None for all.
            noise: added to their targets, shape (batch,).
        """
        raise ValueError("`problem` must be a sum over samples to be estimated from some of them.")


class LinearRisk(Problem):
    """ℒ(θ) = c Σ_i φ(x_iᵀθ, y_i)."""

    features: eqx.AbstractVar[Float[Array, "samples dim"]]
    """X, with the rows x_i."""
    targets: eqx.AbstractVar[Float[Array, " samples"]]
    """y."""
    factor: eqx.AbstractVar[float]
    """c."""

    @abstractmethod
    def pointwise(
        self, prediction: Float[Array, " samples"], target: Float[Array, " samples"]
    ) -> Float[Array, " samples"]:
        """φ(z, y), elementwise."""

    def loss(self, theta):
        return self.factor * jnp.sum(self.pointwise(self.features @ theta, self.targets))

    def batch(
        self, rows: Int[Array, " batch"] | None
    ) -> tuple[Float[Array, "batch dim"], Float[Array, " batch"]]:
        """x_i and y_i of some samples, or of all where `rows` is None."""
        chosen = slice(None) if rows is None else rows
        return self.features[chosen], self.targets[chosen]

    def estimate(self, theta, rows=None, noise=None):
        features, targets = self.batch(rows)
        targets = targets if noise is None else targets + noise
        weight = self.factor * self.samples / targets.size
        return weight * jnp.sum(self.pointwise(features @ theta, targets))


class LeastSquares(LinearRisk):
    """ℒ(θ) = c ‖Xθ − y‖², the residual split at the projection ŷ of y on the range of X.

    The part of the residual outside the range is ℒ* and never changes, so the gap c‖Xθ − ŷ‖² is
    known down to the rounding of Xθ squared, not to that of ℒ*.
    """

    features: Float[Array, "samples dim"]
    targets: Float[Array, " samples"]
    fitted: Float[Array, " samples"]
    """ŷ = Xθ*."""
    core: Float[Array, "core dim"]
    """X, or R of X = QR where n > d: ‖Xθ − ŷ‖ = ‖core θ − core_fitted‖, in fewer rows."""
    core_fitted: Float[Array, " core"]
    """ŷ, or Qᵀŷ."""
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
        solve: Callable[..., dict[str, Array]] | None = None,
    ):
        self.features, self.targets, self.factor, self.convex = features, targets, factor, True
        self.attained = jnp.asarray(True)
        for name, value in (solve or _solve)(features, targets, factor).items():
            setattr(self, name, value)

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    @property
    def samples(self) -> int:
        return self.features.shape[0]

    def pointwise(self, prediction, target):
        return (prediction - target) ** 2

    def loss(self, theta):
        return self.minimum + self.gap(theta)

    def gap(self, theta):
        # In this order, here and below, lanes of a vmap stay rows of the products; as an inner
        # product, since `core.T` would be a copy.
        return self.factor * jnp.sum((jnp.inner(theta, self.core) - self.core_fitted) ** 2)

    def gradient(self, theta):
        return 2 * self.factor * ((jnp.inner(theta, self.core) - self.core_fitted) @ self.core)

    def gradients(self, thetas):
        return 2 * self.factor * (self.core.T @ (self.core @ thetas - self.core_fitted[:, None]))

    def hessian(self, theta):
        return 2 * self.factor * (self.core.T @ self.core)

    def hessian_root(self, theta):
        return jnp.sqrt(2 * self.factor) * self.core

    def minimisers(self):
        return self.features, self.fitted


@jax.jit
def _solve(features, targets, factor) -> dict[str, Array]:
    samples, dim = features.shape
    is_tall = samples > dim
    # Of X or, where it is wide, of its transpose. Batched, LAPACK calls that run side by side wait
    # for each other's threads: first Q, then the singular values.
    turn, small = jax.lax.optimization_barrier(
        tuple(jnp.linalg.qr(features if is_tall else features.T))
    )
    left, singular, right = jnp.linalg.svd(small if is_tall else small.T, full_matrices=False)
    in_core = turn.T @ targets if is_tall else targets
    found, weights = spectrum((samples, dim), singular, left.T @ in_core, factor)
    core, core_fitted = small if is_tall else features, left @ weights
    fitted = turn @ core_fitted if is_tall else core_fitted
    minimiser = right.T @ (weights / found.pop("scale"))
    minimiser = minimiser if is_tall else turn @ minimiser
    return found | {
        "fitted": fitted,
        "core": core,
        "core_fitted": core_fitted,
        "minimum": factor * jnp.sum((targets - fitted) ** 2),
        "minimiser": minimiser,
    }


def spectrum(
    shape: tuple[int, int],
    singular: Float[Array, " rank"],
    along: Float[Array, " rank"],
    factor: Any,
) -> tuple[dict[str, Array], Float[Array, " rank"]]:
    """What follows from X = V S Wᵀ: μ and β; and Vᵀy as given, 0 where S is, up to rounding.

    Args:
        shape: of X.
        singular: S, descending.
        along: Vᵀy.
        factor: c.

    Returns:
        `pl_constant`, `smoothness` and `scale`, which is S, 1 where that is 0; and Vᵀŷ.
    """
    in_range = singular > jnp.finfo(singular.dtype).eps * max(shape) * singular[0]
    smallest = jnp.min(jnp.where(in_range, singular, jnp.inf))
    constants = {
        "pl_constant": 2 * factor * jnp.where(in_range[0], smallest, 0.0) ** 2,
        "smoothness": 2 * factor * singular[0] ** 2,
        "scale": jnp.where(in_range, singular, 1.0),
    }
    return constants, jnp.where(in_range, along, 0.0)


def as_data(
    features: ArrayLike, targets: ArrayLike, normalisation: Normalisation | str
) -> tuple[Float[Array, "samples dim"], Float[Array, " samples"], float]:
    """X and y of one dtype, checked, and the factor c of a normalisation.

    >>> as_data([[1.0], [2.0]], [1.0, 2.0], "mean")[2]
    0.5
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
    return features.astype(dtype), targets.astype(dtype), factors[normalisation]


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
    return LeastSquares(*as_data(features, targets, normalisation))


class Signed(Problem):
    """ℒ(θ₊ − θ₋) as a loss on θ = (θ₊, θ₋) in R^{2d}: features [X, −X] in a linear model.

    A network of 2d coordinates on it is the signed model ∏u − ∏v, with u the first d columns of the
    layers and v the last: u^L − v^L where all layers start equal, u⊙u − v⊙v at depth 2.
    """

    unsigned: Problem

    def __init__(self, unsigned: Problem):
        self.unsigned = unsigned

    @property
    def dim(self) -> int:
        return 2 * self.unsigned.dim

    @property
    def samples(self) -> int:
        return self.unsigned.samples

    @property
    def minimum(self):
        return self.unsigned.minimum

    @property
    def minimiser(self):
        positive = jnp.maximum(self.unsigned.minimiser, 0.0)
        return jnp.concatenate([positive, positive - self.unsigned.minimiser], axis=-1)

    @property
    def attained(self):
        return self.unsigned.attained

    @property
    def pl_constant(self):
        mu = self.unsigned.pl_constant
        return None if mu is None else 2 * mu

    @property
    def smoothness(self):
        beta = self.unsigned.smoothness
        return None if beta is None else 2 * beta

    @property
    def convex(self) -> bool:
        return self.unsigned.convex

    def predictor(self, theta):
        positive, negative = jnp.split(theta, 2, axis=-1)
        return positive - negative

    def loss(self, theta):
        return self.unsigned.loss(self.predictor(theta))

    def gradient(self, theta):
        gradient = self.unsigned.gradient(self.predictor(theta))
        return jnp.concatenate([gradient, -gradient])

    def gradients(self, thetas):
        positive, negative = jnp.split(thetas, 2)
        gradients = self.unsigned.gradients(positive - negative)
        return jnp.concatenate([gradients, -gradients])

    def gap(self, theta):
        return self.unsigned.gap(self.predictor(theta))

    def hessian(self, theta):
        hessian = self.unsigned.hessian(self.predictor(theta))
        return jnp.block([[hessian, -hessian], [-hessian, hessian]])

    def hessian_root(self, theta):
        root = self.unsigned.hessian_root(self.predictor(theta))
        return None if root is None else jnp.concatenate([root, -root], axis=1)

    def minimisers(self):
        affine = self.unsigned.minimisers()
        if affine is None:
            return None
        matrix, values = affine
        return jnp.concatenate([matrix, -matrix], axis=1), values

    def estimate(self, theta, rows=None, noise=None):
        return self.unsigned.estimate(self.predictor(theta), rows, noise)


def signed(problem: Problem) -> Signed:
    """The loss of the signed model θ₊ − θ₋ = ∏_j u^j − ∏_j v^j, as a problem of twice the width.

    Layers of shape (depth, 2 · dim), from `ddln.init.signed`, fit it; flows, entropies,
    certificates and limits work on it as on any other. `problem.predictor(theta)` is θ₊ − θ₋.

    Where u^L − v^L is trained as such, with one u and one v, it follows the same curve depth times
    as fast: (u^L)' = L u^{L−1} u', and every one of L equal layers has its own share.

    Args:
        problem: the loss of the linear predictor, in R^dim.

    Source: Woodworth et al. 2020 (depth 2 and above); as derived in docs/theory.md.

    >>> problem = ddln.signed(ddln.least_squares([[1.0]], [-2.0]))
    >>> layers = ddln.init.signed(ddln.init.constant(2, 1, 0.1))
    >>> run = ddln.gradient_flow(problem, layers, [0.0, 20.0])
    >>> round(float(problem.predictor(run.theta)[-1, 0]), 6)
    -2.0
    """
    if isinstance(problem, Signed):
        raise ValueError("`problem` must not be signed already.")
    return Signed(problem)
