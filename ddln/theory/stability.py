"""Linear stability of gradient descent: sharpness and the largest stable step."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.random import key_from_seed
from ddln._internal.validation import ArrayLike, as_layers
from ddln.networks.layers import Function, layer_gradient, theta_of
from ddln.problems.base import Problem

_LARGEST_DENSE = 64
"""With at most this many weights the Hessian is formed; LOBPCG needs more than 5."""
_MOST_STEPS = 10_000


@eqx.filter_jit
def sharpness(
    problem: Problem, layers: ArrayLike, function: Function | None = None
) -> Float[Array, ""]:
    """Largest eigenvalue of the Hessian of ℒ(u¹ ⊙ … ⊙ u^L) with respect to the layers.

    At a minimiser it is the largest eigenvalue of M^{1/2} ∇²ℒ M^{1/2}. With more than 64 weights
    the Hessian is not formed: LOBPCG, from a fixed random start, needs Hessian-vector products
    only. The result is then the Rayleigh quotient of the eigenvector, which can be differentiated
    once.

    Args:
        problem: the loss.
        layers: shape (depth, dim).
        function: G, if `layers` are the parameters w of another parametrisation θ_k = G(w_k).

    Returns:
        shape (), accurate to 20 · depth · dim machine epsilons of the largest |eigenvalue|; NaN
        without convergence. Scaling the layers by a multiplies the sharpness at a minimiser by
        a^{2(depth−1)} if the loss as a function of θ stays the same.

    Source: as derived in docs/theory.md from Proposition 1, arXiv 2412.16765; Knyazev 2001.

    >>> problem = ddln.least_squares([[1.0]], [6.0], normalisation="half")
    >>> round(float(ddln.theory.sharpness(problem, [[2.0], [3.0]])), 12)  # M = 2² + 3²
    13.0
    """
    layers = as_layers(layers, problem.dim)

    def gradient(problem: Problem, layers: Float[Array, "depth dim"]) -> Float[Array, "depth dim"]:
        gradient = problem.gradient(theta_of(layers, function))
        return layer_gradient(layers, gradient, function)

    if layers.size <= _LARGEST_DENSE:
        hessian = jax.jacfwd(gradient, 1)(problem, layers)
        return jnp.linalg.eigvalsh(hessian.reshape(layers.size, layers.size))[-1]

    def times(
        vector: Float[Array, " weights"],
        problem: Problem = problem,
        layers: Float[Array, "depth dim"] = layers,
    ) -> Float[Array, " weights"]:
        direction = vector.reshape(layers.shape)
        return jax.jvp(partial(gradient, problem), (layers,), (direction,))[1].reshape(vector.shape)

    top, converged = _top_eigenvector(
        partial(times, **jax.lax.stop_gradient({"problem": problem, "layers": layers})),
        jax.random.normal(key_from_seed(0), (layers.size,), layers.dtype),
    )
    return jnp.where(converged, top @ times(top), jnp.nan)


def _top_eigenvector(
    times: Callable[[Float[Array, " size"]], Float[Array, " size"]], start: Float[Array, " size"]
) -> tuple[Float[Array, " size"], Bool[Array, ""]]:
    """The eigenvector of a symmetric matrix's largest eigenvalue, and whether LOBPCG converged.

    Args:
        times: the product of the matrix and a vector.
        start: the initial guess, shape (size,).
    """
    from jax.experimental.sparse.linalg import lobpcg_standard  # takes half a second to import

    start = start / jnp.linalg.norm(start)
    # LOBPCG's tolerance is relative to the eigenvalue: a shift keeps it positive where ℒ is flat.
    shift = 2 * jnp.linalg.norm(times(start))
    shift = jnp.where(shift > 0, shift, 1.0)
    _, vectors, steps = lobpcg_standard(
        jax.vmap(lambda vector: times(vector) + shift * vector, 1, 1), start[:, None], _MOST_STEPS
    )
    return vectors[:, 0], steps < _MOST_STEPS


def largest_stable_step(problem: Problem, layers: ArrayLike) -> Float[Array, ""]:
    """2 / sharpness, the step above which gradient descent on the layers leaves this minimiser.

    Args:
        problem: the loss.
        layers: a minimiser, shape (depth, dim).

    Returns:
        shape (); infinite if the sharpness is not positive.

    Source: as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [6.0], normalisation="half")
    >>> round(13 * float(ddln.theory.largest_stable_step(problem, [[2.0], [3.0]])), 12)
    2.0
    """
    curvature = sharpness(problem, layers)
    return jnp.where(curvature > 0, 2 / jnp.where(curvature > 0, curvature, 1.0), jnp.inf)
