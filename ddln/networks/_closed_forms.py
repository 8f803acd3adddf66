"""The mirror map in closed form at depths 3 and 4: Carlson's elliptic integral R_F."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.validation import Number
from ddln.networks.reparametrisation import Reduction

Vector = Float[Array, " dim"]
_MAX_DUPLICATIONS = 60


def elliptic(start: Vector, step: Vector, reduction: Reduction) -> Vector:
    """|∫ dv / R| over [start, start + step], outwards, from the ratios of layers at both ends.

    With t = w² it is ½ ∫ dt / √(t (t + λ₁) (t + λ₂) (t + λ₃)); depth 3 has no last factor.

    Source: DLMF 19.29.4.
    """
    near, far = (
        (jnp.abs(point.smallest), point.second, *jnp.sqrt(point.remaining_squares))
        for point in map(reduction.at, (start, start + step))
    )
    p, q, r, *s = (a / jnp.where(b > 0, b, 1.0) for a, b in zip(near, far, strict=True))
    s = s[0] if s else jnp.ones_like(p)
    is_positive = jnp.abs(step) > 0
    growth = jnp.abs(reduction.smallest_change(start, step))
    fraction = growth / far[1] * ((far[0] + near[0]) / jnp.where(is_positive, far[0], 1.0))
    scale = jnp.prod(jnp.stack(far[2:]), axis=0)
    roots = r * s + p * q, q * s + p * r, p * s + q * r
    whole = _carlson_rf(*(jnp.where(is_positive, root, 1.0) for root in roots))
    return jnp.where(is_positive, jnp.where(is_positive, fraction, 0.0) / scale * whole, 0.0)


class _Roots(NamedTuple):
    """Square roots of the arguments of R_F, and the number of duplications."""

    a: Vector
    b: Vector
    c: Vector
    count: Int[Array, ""]


def _carlson_rf(a: Vector, b: Vector, c: Vector) -> Vector:
    """R_F(a², b², c²) = ½ ∫₀^∞ dt / √((t+a²)(t+b²)(t+c²)) by duplication; at most one may be 0.

    It takes the roots, since the squares of small ones underflow.

    Source: Carlson, Numerical computation of real or complex elliptic integrals (1995).
    """
    # The truncated series has an error of the sixth power of the differences.
    tolerance = (3 * jnp.finfo(a.dtype).eps) ** (1 / 6) / 2
    roots = jax.lax.while_loop(
        partial(_is_unequal, tolerance=tolerance),
        _duplicate,
        _duplicate(_Roots(a, b, c, jnp.zeros((), jnp.int32))),
    )
    x, y, z = _relative_differences(roots)
    second, third = x * y - z * z, x * y * z
    series = 1 - second / 10 + third / 14 + second**2 / 24 - 3 * second * third / 44
    return series / jnp.sqrt(jnp.mean(jnp.stack(roots[:3]) ** 2, axis=0))


def _duplicate(roots: _Roots) -> _Roots:
    """Roots of (a² + m, b² + m, c² + m)/4, with m = ab + ac + bc: R_F of them is the same."""
    a, b, c, count = roots
    mixed = a * (b + c) + b * c
    a, b, c = (jnp.sqrt(root**2 + mixed) / 2 for root in (a, b, c))
    return _Roots(a, b, c, count + 1)


def _relative_differences(roots: _Roots) -> Float[Array, "3 dim"]:
    """1 − a²/mean, 1 − b²/mean, 1 − c²/mean."""
    squares = jnp.stack(roots[:3]) ** 2
    return 1 - squares / jnp.mean(squares, axis=0)[None]


def _is_unequal(roots: _Roots, *, tolerance: Number) -> Bool[Array, ""]:
    is_large = jnp.abs(_relative_differences(roots)) > tolerance
    return jnp.any(is_large) & (roots.count < _MAX_DUPLICATIONS)
