"""The step-size controller of the batched integrator.

A step is accepted if its error norm is at most 1. The controller is the elementary one of Hairer,
Nørsett and Wanner, *Solving Ordinary Differential Equations I* (1993), section II.4, with the
safety factor 0.9.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def error_norm(
    before: Float[Array, "dim batch"],
    after: Float[Array, "dim batch"],
    error: Float[Array, "dim batch"],
    *,
    rtol: Float[Array, " batch"],
    atol: Float[Array, "dim batch"],
) -> Float[Array, " batch"]:
    """Root mean square of error / (atol + rtol · max(|before|, |after|)) over the coordinates."""
    magnitude = jnp.maximum(jnp.abs(before), jnp.abs(after))
    scale = atol + rtol[None] * magnitude
    return jnp.sqrt(jnp.mean((error / scale) ** 2, axis=0))


def step_factor(
    error: Float[Array, " batch"], accepted: Bool[Array, " batch"]
) -> Float[Array, " batch"]:
    """The next step size over the last one, for a local error of order 5 in the step size."""
    growth = jnp.where(error < 1e8, 0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.0)
    return jnp.clip(growth, 0.2, jnp.where(accepted, 6.0, 0.9))
