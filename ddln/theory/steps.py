"""What gradient descent can do of the flow: its largest stable step."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._checks import ArrayLike, as_layers
from ddln.network import effective_parameter
from ddln.problem import Problem


@eqx.filter_jit
def sharpness(problem: Problem, layers: ArrayLike) -> Float[Array, ""]:
    """Largest eigenvalue of the Hessian of ℒ(u¹ ⊙ … ⊙ u^L) with respect to the layers.

    At a minimiser it is the largest eigenvalue of M^{1/2} ∇²ℒ M^{1/2}. The Hessian is formed:
    (depth · dim)² numbers.

    Args:
        problem: the loss.
        layers: shape (depth, dim).

    Returns:
        shape (); scaling the layers by a multiplies that of a minimiser by a^{2(depth−1)} at a
        given loss.

    Source: as derived in docs/theory.md from Proposition 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [6.0], normalisation="half")
    >>> round(float(ddln.theory.sharpness(problem, [[2.0], [3.0]])), 12)  # M = 2² + 3²
    13.0
    """
    layers = as_layers(layers, problem.dim)
    size = layers.size
    hessian = jax.hessian(lambda layers: problem.loss(effective_parameter(layers)))(layers)
    return jnp.linalg.eigvalsh(hessian.reshape(size, size))[-1]


def largest_stable_step(problem: Problem, layers: ArrayLike) -> Float[Array, ""]:
    """2 / sharpness: with a larger step gradient descent on the layers leaves this minimiser.

    Infinite where no direction curves upwards.

    Source: as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [6.0], normalisation="half")
    >>> round(13 * float(ddln.theory.largest_stable_step(problem, [[2.0], [3.0]])), 12)
    2.0
    """
    curvature = sharpness(problem, layers)
    return jnp.where(curvature > 0, 2 / jnp.where(curvature > 0, curvature, 1.0), jnp.inf)
