"""Multinomial logistic loss: the likelihood of classes 0, …, K − 1, by softmax.

With z = XW the loss of sample i is log Σ_k exp(z_ik − z_iy), y its class. The margin z_iy − z_ik of
a pair (i, k ≠ y) *escapes* if some direction increases it forever and decreases no margin. Without
the pairs that escape the loss has a minimum ℒ*, at probabilities p*, which are 0 where a pair
escapes. There Σ_i w_i x_i ⊗ (p*_i − e_y) = 0, so the gap is a sum of terms ≥ 0 without
cancellation:

    ℒ(θ) − ℒ* = c Σ_i w_i KL(p*_i ‖ p_i) = c Σ_ik w_i [p_ik − p*_ik − p*_ik log(p_ik/p*_ik)].
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp, softmax, softplus
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.validation import ArrayLike, is_concrete
from ddln.problems._infimum import on_host, spectral_norm
from ddln.problems._multinomial_infimum import infimum
from ddln.problems._remainders import exponential_remainder
from ddln.problems.base import (
    AnyArray,
    EmpiricalRisk,
    Normalisation,
    affine_set,
    as_data,
    as_weights,
    refuse_targets,
)

PerClass = Float[Array, "samples classes"]
"""A number for each sample and class."""


class Multinomial(EmpiricalRisk):
    """ℒ(θ) = c Σ_i w_i log Σ_k exp(z_ik − z_iy) with z = XW and θ = (W_11, W_12, …).

    No PL constant holds on all of R^dim.
    """

    features: Float[Array, "samples features"]
    targets: Float[Array, " samples"]
    """y, the class of each sample."""
    factor: float = eqx.field(static=True)
    weights: Float[Array, " samples"] | None
    classes: int = eqx.field(static=True)
    """K."""
    minimum: Float[Array, ""]
    minimiser: Float[Array, " dim"]
    fitted: PerClass
    """z*_ik − z*_iy at the infimum; 0 where a pair escapes."""
    escapes: Bool[Array, "samples classes"]
    """The classes whose probability tends to 0 along a minimising sequence."""
    smoothness: Float[Array, ""]

    def __init__(
        self,
        features: Float[Array, "samples features"],
        labels: Float[Array, " samples"],
        factor: float,
        classes: int,
        weights: Float[Array, " samples"] | None,
    ):
        (samples, columns), ones = features.shape, jnp.ones_like(labels)
        solve = partial(infimum, classes, factor, float(jnp.finfo(features.dtype).eps))
        shapes = [(samples, classes), (samples, classes), (), (columns * classes,)]
        found = on_host(solve, shapes, features, labels, ones if weights is None else weights)
        self.fitted, escapes, self.minimum, self.minimiser = found
        self.escapes = escapes > 0
        scaled = features if weights is None else jnp.sqrt(weights)[:, None] * features
        self.smoothness = factor * spectral_norm(scaled) ** 2 / 2
        self.features, self.targets, self.weights = features, labels, weights
        self.factor, self.classes = factor, classes

    @property
    def dim(self) -> int:
        return self.features.shape[1] * self.classes

    @property
    def attained(self) -> Bool[Array, "*batch"]:
        return ~jnp.isnan(self.minimiser[..., 0])

    @property
    def pl_constant(self) -> None:
        return None

    @property
    def convex(self) -> bool:
        return True

    def predict(
        self, features: Float[AnyArray, "batch features"], theta: Float[AnyArray, " dim"]
    ) -> Float[AnyArray, "batch classes"]:
        """Z = XW; its softmax over the classes are the probabilities."""
        return features @ theta.reshape(-1, self.classes)

    def pointwise(
        self, prediction: Float[AnyArray, "batch classes"], target: Float[AnyArray, " batch"]
    ) -> Float[AnyArray, " batch"]:
        others = ~self._is_own(target)
        return softplus(logsumexp(self._relative(prediction, target), axis=1, where=others))

    def _is_own(self, target: Float[AnyArray, " batch"]) -> Bool[Array, "batch classes"]:
        """Whether a class is that of the sample."""
        return target[:, None] == jnp.arange(self.classes, dtype=target.dtype)[None]

    def _relative(
        self, prediction: Float[AnyArray, "batch classes"], target: Float[AnyArray, " batch"]
    ) -> Float[AnyArray, "batch classes"]:
        """z_k − z_y."""
        own = jnp.where(self._is_own(target), prediction, 0.0)
        return prediction - jnp.sum(own, axis=1, keepdims=True)

    @property
    def _scales(self) -> Float[Array, "samples 1"]:
        """c w_i."""
        return jnp.asarray(self._weighted(jnp.full_like(self.targets, self.factor)))[:, None]

    def _probabilities(self, theta: Float[AnyArray, " dim"]) -> tuple[PerClass, PerClass, PerClass]:
        """p, log p* and log(p/p*), the latter two for classes that do not escape.

        With s_k = z_k − z_y and δ = s − s*, log(p/p*) is δ − log T, where T = Σ exp(s)/Σ exp(s*).
        Near the infimum, T − 1 is a sum of small terms: p* (exp(δ) − 1), or exp(s)/Σ exp(s*) of a
        class that escapes.
        """
        kept = ~self.escapes
        relative = self._relative(self.predict(self.features, theta), self.targets)
        total = logsumexp(self.fitted, axis=1, where=kept, keepdims=True)
        base, change = self.fitted - total, jnp.where(kept, relative - self.fitted, 0.0)
        small = jnp.exp(base) * jnp.expm1(jnp.clip(change, -1.0, 1.0))
        small = jnp.where(kept, small, jnp.exp(jnp.minimum(relative - total, 0.0)))
        is_near = jnp.where(kept, jnp.abs(change) < 1, relative < total)
        log_sum = jnp.where(
            jnp.all(is_near, axis=1, keepdims=True),
            jnp.log1p(jnp.sum(small, axis=1, keepdims=True)),
            logsumexp(relative, axis=1, keepdims=True) - total,
        )
        return jnp.exp(relative - total - log_sum), base, change - log_sum

    def gap(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        p, base, ratio = self._probabilities(theta)
        terms = jnp.where(self.escapes, p, exponential_remainder(ratio, base))
        return jnp.sum(self._scales * terms)

    def gradient(self, theta: Float[AnyArray, " dim"]) -> Float[Array, " dim"]:
        p, base, ratio = self._probabilities(theta)
        near = jnp.exp(base) * jnp.expm1(jnp.clip(ratio, -1.0, 1.0))
        change = jnp.where(jnp.abs(ratio) < 1, near, p - jnp.exp(base))
        change = jnp.where(self.escapes, p, change)
        return (self.features.T @ (self._scales * change)).ravel()

    def _covariances(
        self, theta: Float[AnyArray, " dim"]
    ) -> tuple[PerClass, Float[Array, "samples classes classes"]]:
        """p and I − 1pᵀ; diag(p) (I − 1pᵀ) is the Hessian of logsumexp."""
        p = softmax(self.predict(self.features, theta), axis=1)
        identity = jnp.eye(self.classes, dtype=p.dtype)[None]
        others = (1 - identity) * p[:, None, :]
        # 1 − p_k as the sum of the others has full relative accuracy.
        return p, identity * jnp.sum(others, axis=2, keepdims=True) - others

    def hessian(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "dim dim"]:
        p, centring = self._covariances(theta)
        rows, blocks = jnp.sqrt(self._scales) * self.features, p[:, :, None] * centring
        return jnp.einsum("ij,ikl,im->jkml", rows, blocks, rows).reshape(self.dim, self.dim)

    def hessian_root(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "rows dim"]:
        p, centring = self._covariances(theta)
        rows, blocks = jnp.sqrt(self._scales) * self.features, jnp.sqrt(p)[:, :, None] * centring
        return jnp.einsum("ij,ikl->ikjl", rows, blocks).reshape(-1, self.dim)

    def minimisers(self) -> tuple[Float[Array, "rows dim"], Float[Array, " rows"]] | None:
        """(A, b): rows x_i ⊗ (e_k − e_0), the differences of classes k ≥ 1 and class 0."""
        differences = jnp.eye(self.classes, dtype=self.features.dtype)[1:].at[:, 0].set(-1.0)
        matrix = jnp.einsum("ij,kl->ikjl", self.features, differences).reshape(-1, self.dim)
        values = (self.fitted[:, 1:] - self.fitted[:, :1]).ravel()
        return affine_set(self.attained, matrix, values)

    def estimate(
        self,
        theta: Float[AnyArray, " dim"],
        rows: Int[AnyArray, " batch"] | None = None,
        noise: Float[AnyArray, " batch"] | None = None,
    ) -> Float[Array, ""]:
        if noise is not None:
            raise ValueError("`label_noise` must be None: the labels of `multinomial` are classes.")
        return super().estimate(theta, rows)

    def held_out_loss(
        self,
        theta: Float[AnyArray, " dim"],
        features: Float[AnyArray, "others features"],
        targets: Float[AnyArray, " others"],
        weights: Float[AnyArray, " others"] | None = None,
    ) -> Float[Array, ""]:
        targets = _as_classes(jnp.asarray(targets), self.classes, "targets")
        return super().held_out_loss(theta, features, targets, weights)


def multinomial(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int | None = None,
    normalisation: Normalisation | str = "sum",
    weights: ArrayLike | None = None,
) -> Multinomial:
    """ℒ(θ) = c Σ_i [log Σ_k exp(z_ik) − z_{i,y_i}] with z = XW, for labels y_i = 0, …, K − 1.

    W has a row for each feature and a column for each class, and θ is W row by row:
    W = θ.reshape(-1, K). The loss is the same for W and for W with one vector added to all columns.

    Args:
        features: X, shape (samples, features).
        labels: y, whole numbers from 0, shape (samples,).
        classes: K ≥ 2; by default the number of classes among the labels. Must be given inside
            `jit` and the like.
        normalisation: "sum" (c = 1), "half" (½), "mean" (1/n) or "half_mean" (1/(2n)).
        weights: w > 0, shape (samples,): factors of the terms of the samples.

    Returns:
        The problem, with dim = features · K: convex, β = c σ²_max(√w X)/2, no PL constant. The host
        computes ℒ* and the minimiser of least norm (NaN if none exists), for traced data in a
        callback, in memory for n K² · features numbers; they have no derivative with respect to the
        data. Label noise is refused.

    Raises:
        ValueError: shapes that do not match, a label that is not a class, a class without a sample
            unless `classes` is given, fewer than two classes, or features whose rounding leaves
            open which classes are separated (NaN if traced).

    Source: β as in Böhning 1992; escaping pairs as in Albert and Anderson 1984.

    >>> problem = ddln.multinomial([[1.0], [1.0], [1.0], [1.0]], [0, 1, 2, 2])
    >>> problem.minimiser.round(9).tolist()  # (−1, −1, 2) log(2)/3
    [-0.23104906, -0.23104906, 0.46209812]
    >>> round(float(problem.minimum), 9), bool(problem.attained)  # 6 log 2
    (4.158883083, True)
    """
    features, labels, factor = as_data(features, labels, normalisation, "labels")
    if classes is not None and classes < 2:
        raise ValueError(f"`classes` must be ≥ 2, got {classes}.")
    labels = _as_classes(labels, classes, "labels")
    classes = _count(labels) if classes is None else classes
    weights = as_weights("weights", weights, labels)
    return Multinomial(features, labels, factor, classes, weights)


def _as_classes(
    labels: Float[Array, " samples"], classes: int | None, name: str
) -> Float[Array, " samples"]:
    """Validated labels, below `classes` if it is given."""
    wrong = (labels < 0) | (labels != jnp.floor(labels))
    if classes is None:
        return refuse_targets(wrong, "must be whole numbers ≥ 0", labels, name)
    rule = f"must be whole numbers from 0 to {classes - 1}"
    return refuse_targets(wrong | (labels >= classes), rule, labels, name)


def _count(labels: Float[Array, " samples"]) -> int:
    """K, if every class from 0 to K − 1 has a sample."""
    if not is_concrete(labels):
        raise ValueError("`classes` must be given inside `jit`, `vmap` and the like.")
    present = np.unique(np.asarray(labels))
    if present[-1] >= present.size:
        absent = int(np.argmax(present != np.arange(present.size)))
        raise ValueError(
            f"`labels` must have a sample of every class from 0 to {present[-1]:g}, unless "
            f"`classes` is given, but none has class {absent}."
        )
    if present.size < 2:
        raise ValueError(f"`labels` must have at least two classes, got {present.size}.")
    return present.size
