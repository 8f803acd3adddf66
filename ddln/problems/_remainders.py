"""Remainders φ(z) − φ(z*) − φ'(z*)(z − z*) of a convex function, free of cancellation."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ddln.problems.base import AnyArray

Values = Float[AnyArray, "*shape"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
# On [0, 1]. Python's numbers, since NumPy's would promote single precision.
_QUADRATURE = tuple(zip(((_NODES + 1) / 2).tolist(), (_WEIGHTS / 2).tolist(), strict=True))


def remainder(
    curvature: Callable[[Values], Values], far: Values, z: Values, base: Values
) -> Values:
    """∫ (z − s) φ''(s) ds from `base` to z: by quadrature if |z − base| < 1, else `far`."""
    step = z - base
    near = jnp.clip(step, -1.0, 1.0)
    terms = (w * (1 - s) * curvature(base + s * near) for s, w in _QUADRATURE)
    return jnp.where(jnp.abs(step) < 1, near**2 * sum(terms), far)


def exponential_remainder(step: Values, base: Values) -> Values:
    """e^base (e^step − 1 − step), the remainder of exp from `base` to base + step."""
    far = jnp.exp(base + step) - jnp.exp(base) * (1 + step)
    return remainder(lambda change: jnp.exp(base + change), far, step, jnp.zeros_like(step))
