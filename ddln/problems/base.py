"""`Problem`: a loss ℒ(θ) with its minimum and constants; `EmpiricalRisk`: a sum over samples."""

from abc import abstractmethod
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddln._internal import display
from ddln._internal.validation import ArrayLike, as_floats, is_concrete, refuse

Normalisation = Literal["sum", "half", "mean", "half_mean"]
AnyArray = Array | np.ndarray
"""An array of JAX or NumPy."""
Samples = Float[AnyArray, " samples"]
"""One number for each sample."""


class Problem(eqx.Module):
    """A loss ℒ on θ in R^dim with its minimum and its constants.

    An unknown constant is `None`; certificates that need it do not apply.
    """

    dim: eqx.AbstractVar[int]
    minimum: eqx.AbstractVar[Float[Array, ""]]
    """ℒ*."""
    minimiser: eqx.AbstractVar[Float[Array, " dim"]]
    """A minimiser of ℒ, for least squares the one of least Euclidean norm; NaN if none exists."""
    attained: eqx.AbstractVar[Bool[Array, ""]]
    """Whether ℒ* is a minimum rather than only an infimum."""
    pl_constant: eqx.AbstractVar[Float[Array, ""] | None]
    """μ of the Polyak–Łojasiewicz condition ½‖∇ℒ‖² ≥ μ (ℒ − ℒ*)."""
    smoothness: eqx.AbstractVar[Float[Array, ""] | None]
    """β such that ∇ℒ is β-Lipschitz."""
    convex: eqx.AbstractVar[bool]

    @property
    def differentiable(self) -> bool:
        """Whether ∇ℒ exists everywhere. If not, flows refuse the problem."""
        return True

    samples: eqx.AbstractVar[int]
    """The number n of samples if ℒ is a sum over samples, else 0."""

    def _repr_html_(self) -> str | None:
        return display.html(self)

    @abstractmethod
    def loss(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        """ℒ(θ)."""

    def gradient(self, theta: Float[AnyArray, " dim"]) -> Float[Array, " dim"]:
        """∇ℒ(θ)."""
        return jax.grad(self.loss)(theta)

    def gradients(self, thetas: Float[AnyArray, "dim batch"]) -> Float[Array, "dim batch"]:
        """∇ℒ(θ) of every column θ."""
        return jax.vmap(self.gradient, -1, -1)(thetas)

    def gap(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        """ℒ(θ) − ℒ*."""
        return self.loss(theta) - self.minimum

    def hessian(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "dim dim"]:
        """∇²ℒ(θ)."""
        return jax.hessian(self.loss)(theta)

    def hessian_root(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "rows dim"] | None:
        """B with ∇²ℒ(θ) = BᵀB, if the problem has one with few rows; else None."""
        return None

    def predictor(self, theta: Float[AnyArray, "*times dim"]) -> Float[AnyArray, "*times features"]:
        """The linear predictor of θ: θ itself, or θ₊ − θ₋ for a signed problem."""
        return theta

    def minimisers(self) -> tuple[Float[Array, "rows dim"], Float[Array, " rows"]] | None:
        """(A, b) such that {θ : Aθ = b} is the set of minimisers; None if it is not affine."""
        return None

    def coordinate_arrays(self) -> tuple[Any, ...]:
        """The arrays, all of them fields, whose last axis runs over the coordinates.

        On a mesh of devices this axis is sharded; see `ddln.problems.sharding`.
        """
        return (self.minimiser,)

    def estimate(
        self,
        theta: Float[AnyArray, " dim"],
        rows: Int[AnyArray, " batch"] | None = None,
        noise: Float[AnyArray, " batch"] | None = None,
    ) -> Float[Array, ""]:
        """The unbiased estimate of ℒ from some of its samples: n/|rows| times their sum.

        Args:
            theta: shape (dim,).
            rows: indices of the samples, shape (batch,); None for all.
            noise: label noise, added to the targets of the samples, shape (batch,).
        """
        raise ValueError("`problem` must be a sum over samples to be estimated from some of them.")


class EmpiricalRisk(Problem):
    """ℒ(θ) = c Σ_i w_i φ(z_i, y_i), with predictions z_i that are linear in θ."""

    features: eqx.AbstractVar[Float[Array, "samples features"]]
    """X, with the rows x_i."""
    targets: eqx.AbstractVar[Float[Array, " samples"]]
    """y."""
    factor: eqx.AbstractVar[float]
    """c."""
    weights: eqx.AbstractVar[Float[Array, " samples"] | None]
    """w; None if all are 1."""

    @property
    def samples(self) -> int:
        return self.features.shape[0]

    @abstractmethod
    def predict(
        self, features: Float[AnyArray, "batch features"], theta: Float[AnyArray, " dim"]
    ) -> Float[AnyArray, "batch *outputs"]:
        """z_i of each row x_i."""

    @abstractmethod
    def pointwise(
        self, prediction: Float[AnyArray, "batch *outputs"], target: Float[AnyArray, " batch"]
    ) -> Float[AnyArray, " batch"]:
        """φ(z, y) of each sample."""

    def loss(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        values = self.pointwise(self.predict(self.features, theta), self.targets)
        return self.factor * jnp.sum(self._weighted(values))

    def _weighted(
        self, values: Float[AnyArray, " batch"], rows: Int[AnyArray, " batch"] | None = None
    ) -> Float[AnyArray, " batch"]:
        """The values of all samples, or of those in some rows, times their weights."""
        if self.weights is None:
            return values
        return values * (self.weights if rows is None else self.weights[rows])

    def held_out_loss(
        self,
        theta: Float[AnyArray, " dim"],
        features: Float[AnyArray, "others features"],
        targets: Float[AnyArray, " others"],
        weights: Float[AnyArray, " others"] | None = None,
    ) -> Float[Array, ""]:
        """The loss on other samples, times the ratio of the numbers of samples: c n/m Σ_i w_i φ."""
        values = self.pointwise(self.predict(features, theta), targets)
        values = values if weights is None else values * weights
        return self.factor * self.samples * jnp.mean(values)

    def coordinate_arrays(self) -> tuple[Any, ...]:
        return self.features, self.minimiser

    def batch(
        self, rows: Int[AnyArray, "*batch"] | None
    ) -> tuple[Float[Array, "*batch features"], Float[Array, "*batch"]]:
        """x_i and y_i of the given rows; of all samples if `rows` is None."""
        if rows is None:
            return self.features, self.targets
        return self.features[rows], self.targets[rows]

    def estimate(
        self,
        theta: Float[AnyArray, " dim"],
        rows: Int[AnyArray, " batch"] | None = None,
        noise: Float[AnyArray, " batch"] | None = None,
    ) -> Float[Array, ""]:
        features, targets = self.batch(rows)
        targets = targets if noise is None else targets + noise
        values = self.pointwise(self.predict(features, theta), targets)
        return self.factor * self.samples / targets.size * jnp.sum(self._weighted(values, rows))


class LinearRisk(EmpiricalRisk):
    """ℒ(θ) = c Σ_i w_i φ(x_iᵀθ, y_i)."""

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    def predict(
        self, features: Float[AnyArray, "batch dim"], theta: Float[AnyArray, " dim"]
    ) -> Float[AnyArray, " batch"]:
        return features @ theta


def affine_set(
    exists: Bool[Array, ""], matrix: Float[Array, "rows dim"], values: Float[Array, " rows"]
) -> tuple[Float[Array, "rows dim"], Float[Array, " rows"]] | None:
    """(A, b) of the minimisers Aθ = b if they exist; otherwise None, or b = NaN if traced."""
    if is_concrete(exists):
        return (matrix, values) if bool(exists) else None
    return matrix, jnp.where(exists, values, jnp.nan)


def as_data(
    features: ArrayLike,
    targets: ArrayLike,
    normalisation: Normalisation | str,
    name: str = "targets",
) -> tuple[Float[Array, "samples dim"], Float[Array, " samples"], float]:
    """Validated X and y, called `name`, of a common dtype, and the factor c of a normalisation.

    >>> as_data([[1.0], [2.0]], [1.0, 2.0], "mean")[2]
    0.5
    """
    features, targets = as_floats("features", features, 2), as_floats(name, targets, 1)
    samples, dim = features.shape
    if samples < 1 or dim < 1:
        raise ValueError(f"`features` must have samples ≥ 1 and dim ≥ 1, got {features.shape}.")
    if targets.shape != (samples,):
        raise ValueError(f"`{name}` must have shape ({samples},), got {targets.shape}.")
    factors = {"sum": 1.0, "half": 0.5, "mean": 1 / samples, "half_mean": 0.5 / samples}
    if normalisation not in factors:
        names = ", ".join(map(repr, get_args(Normalisation)))
        raise ValueError(f"`normalisation` must be one of {names}, got {normalisation!r}.")
    dtype = jnp.promote_types(features.dtype, targets.dtype)
    return features.astype(dtype), targets.astype(dtype), factors[normalisation]


def as_weights(
    name: str, weights: ArrayLike | None, targets: Float[Array, " samples"]
) -> Float[Array, " samples"] | None:
    """Validated positive numbers, one for each target; None if none are given.

    >>> as_weights("weights", [1, 2], jnp.zeros(2)).tolist()
    [1.0, 2.0]
    """
    if weights is None:
        return None
    weights = as_floats(name, weights, 1).astype(targets.dtype)
    if weights.shape != targets.shape:
        raise ValueError(f"`{name}` must have shape {targets.shape}, got {weights.shape}.")
    return refuse(weights <= 0, f"`{name}` must be > 0.", weights)


def refuse_kinks(problem: Problem) -> None:
    """Refuse a loss that is not differentiable, for what follows its gradient.

    Raises:
        ValueError: the loss has kinks.
    """
    if not problem.differentiable:
        name = type(problem).__name__
        raise ValueError(f"`problem` must be differentiable for a flow, got {name}: use `descend`.")


def as_labels(targets: Float[Array, " samples"]) -> Float[Array, " samples"]:
    """Validated labels −1 and 1."""
    return refuse_targets(jnp.abs(targets) != 1, "must be −1 or 1", targets)


def refuse_targets(
    wrong: Bool[Array, " samples"],
    rule: str,
    targets: Float[Array, " samples"],
    name: str = "targets",
) -> Float[Array, " samples"]:
    """The targets, called `name`, unless one of them is wrong; see `refuse`."""
    message = ""
    if is_concrete(wrong) and np.asarray(wrong).any():
        row = int(np.argmax(np.asarray(wrong)))
        value = np.asarray(targets)[row]
        message = f"`{name}` {rule}, got {value:g} at row {row} (rows count from 0)."
    return refuse(wrong, message, targets)
