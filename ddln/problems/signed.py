"""Signed problems: ℒ(θ₊ − θ₋) as a loss of (θ₊, θ₋), so that predictors may be negative."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln.problems.base import AnyArray, Problem


class Signed(Problem):
    """ℒ(θ₊ − θ₋) as a loss on θ = (θ₊, θ₋) in R^{2d}: features [X, −X] in a linear model.

    A network of width 2d on it is the signed model ∏u − ∏v; the first d columns of the layers are u
    and the last d are v. If all layers start equal it is u^L − v^L, at depth 2 u⊙u − v⊙v.
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
    def minimum(self) -> Float[AnyArray, "*batch"]:
        return self.unsigned.minimum

    @property
    def minimiser(self) -> Float[Array, "*batch dim"]:
        positive = jnp.maximum(self.unsigned.minimiser, 0.0)
        return jnp.concatenate([positive, positive - self.unsigned.minimiser], axis=-1)

    @property
    def attained(self) -> Bool[Array, "*batch"]:
        return self.unsigned.attained

    @property
    def pl_constant(self) -> Float[AnyArray, "*batch"] | None:
        mu = self.unsigned.pl_constant
        return None if mu is None else 2 * mu

    @property
    def smoothness(self) -> Float[AnyArray, "*batch"] | None:
        beta = self.unsigned.smoothness
        return None if beta is None else 2 * beta

    @property
    def convex(self) -> bool:
        return self.unsigned.convex

    @property
    def differentiable(self) -> bool:
        return self.unsigned.differentiable

    def coordinate_arrays(self) -> tuple[Any, ...]:
        return self.unsigned.coordinate_arrays()

    def predictor(self, theta: Float[AnyArray, "*times dim"]) -> Float[AnyArray, "*times features"]:
        positive, negative = jnp.split(theta, 2, axis=-1)
        return positive - negative

    def loss(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        return self.unsigned.loss(self.predictor(theta))

    def gradient(self, theta: Float[AnyArray, " dim"]) -> Float[Array, " dim"]:
        gradient = self.unsigned.gradient(self.predictor(theta))
        return jnp.concatenate([gradient, -gradient])

    def gradients(self, thetas: Float[AnyArray, "dim batch"]) -> Float[Array, "dim batch"]:
        positive, negative = jnp.split(thetas, 2)
        gradients = self.unsigned.gradients(positive - negative)
        return jnp.concatenate([gradients, -gradients])

    def gap(self, theta: Float[AnyArray, " dim"]) -> Float[Array, ""]:
        return self.unsigned.gap(self.predictor(theta))

    def hessian(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "dim dim"]:
        hessian = self.unsigned.hessian(self.predictor(theta))
        return jnp.block([[hessian, -hessian], [-hessian, hessian]])

    def hessian_root(self, theta: Float[AnyArray, " dim"]) -> Float[Array, "rows dim"] | None:
        root = self.unsigned.hessian_root(self.predictor(theta))
        return None if root is None else jnp.concatenate([root, -root], axis=1)

    def minimisers(self) -> tuple[Float[Array, "rows dim"], Float[Array, " rows"]] | None:
        affine = self.unsigned.minimisers()
        if affine is None:
            return None
        matrix, values = affine
        return jnp.concatenate([matrix, -matrix], axis=1), values

    def estimate(
        self,
        theta: Float[AnyArray, " dim"],
        rows: Int[AnyArray, " batch"] | None = None,
        noise: Float[AnyArray, " batch"] | None = None,
    ) -> Float[Array, ""]:
        return self.unsigned.estimate(self.predictor(theta), rows, noise)


def signed(problem: Problem) -> Signed:
    """The loss of the signed model θ₊ − θ₋ = ∏_j u^j − ∏_j v^j, as a problem of twice the width.

    It takes layers of shape (depth, 2 · dim), as `ddln.init.signed` makes them. Flows, entropies,
    certificates and limits apply as to any other problem. `problem.predictor(theta)` is θ₊ − θ₋.

    Training u^L − v^L directly, with a single u and a single v, follows the same curve `depth`
    times as fast: (u^L)' = L u^{L−1} u', and each of L equal layers moves by its own share.

    Args:
        problem: the loss of the linear predictor, in R^dim.

    Raises:
        ValueError: a problem that is already signed.

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
