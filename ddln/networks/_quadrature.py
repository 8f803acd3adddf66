"""The integral of 1/R, which is the mirror map as a function of the reparametrised coordinate v.

Integrals run over the *outward* coordinate x, in which |w| grows: x = |v| on the line, where 1/R is
even in v, and x = ± v on a half-line. Their value over [low, low + length] is

    length                      at depth 2,
    Carlson's R_F               at depths 3 and 4,
    Gauss–Legendre on pieces    from depth 5 on.

1/R is analytic in the strip |Im τ| < π/2 and decays at the rate κ = R'/R. So 16 nodes integrate it
to rounding on a piece no longer than 2 over which it falls by less than about e⁵. Nothing here is
ever differentiated: the derivatives are known, 1/R and 1/M.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.validation import Number
from ddln.networks.reparametrisation import Reduction

Vector = Float[Array, " dim"]
Mask = Bool[Array, " dim"]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_LONGEST, _FALL = 2.0, 4.0
_MAX_DUPLICATIONS = 60


def outward(v: Vector, reduction: Reduction) -> Vector:
    """x(v) = |v| on the line, ± v on a half-line."""
    return jnp.where(reduction.is_open, jnp.abs(v), reduction.half_line_sign * v)


def from_outward(x: Vector, reduction: Reduction) -> Vector:
    """A v with outward coordinate x; on the line the positive one."""
    return jnp.where(reduction.is_open, x, reduction.half_line_sign * x)


def density(x: Vector, reduction: Reduction) -> Vector:
    """1/R at outward coordinate x."""
    growth = jnp.exp(x)
    # Near x = 0 this w has an error of a rounding of √λ_min, which is nothing beside λ_j ≥ λ_min.
    on_line = reduction.sqrt_min_imbalance * (growth - 1 / growth) / 2
    w = jnp.where(reduction.is_open, on_line, growth)
    return 1 / jnp.prod(jnp.sqrt(w[None] ** 2 + reduction.other_imbalances), axis=0)


def decay(x: Vector, reduction: Reduction) -> Vector:
    """κ = R'/R = Σ_j |w| g/(w² + λ_j) ≥ 0 at outward coordinate x, where it increases."""
    point = reduction.at(from_outward(x, reduction))
    squares = point.remaining_squares
    slopes = jnp.abs(point.smallest * point.second)[None] / jnp.where(squares > 0, squares, 1.0)
    return jnp.sum(slopes, axis=0)


def piece_length(x: Vector, reduction: Reduction) -> Vector:
    """Length of the piece of quadrature that starts at outward coordinate x."""
    spread, rate = reduction.other_imbalances.shape[0] ** 0.5, decay(x, reduction)
    length = jnp.minimum(_LONGEST, _FALL / (rate + spread))
    # Far down a half-line κ grows at most like e^{2x}: R is constant while κ is below rounding.
    digits = jnp.finfo(x.dtype)
    constant = jnp.log(digits.eps / jnp.maximum(rate, digits.tiny)) / 2
    return jnp.where(reduction.is_open, length, jnp.maximum(length, constant))


def gauss_legendre(integrand: Callable[[Vector], Vector], length: Vector) -> Vector:
    """∫₀^length of the integrand, with 16 nodes."""
    nodes = jnp.asarray(_NODES, length.dtype)[:, None]
    weights = jnp.asarray(_WEIGHTS, length.dtype)[:, None]
    half = length / 2
    return half * jnp.sum(weights * jax.vmap(integrand)(half[None] * (1 + nodes)), axis=0)


def piece_integral(x: Vector, length: Vector, reduction: Reduction) -> Vector:
    """∫ dx / R over one piece that starts at outward coordinate x, inwards if length < 0."""
    return gauss_legendre(lambda distance: density(x + distance, reduction), length)


def integral(low: Vector, length: Vector, reduction: Reduction) -> Vector:
    """∫ dx / R over [low, low + length], length ≥ 0."""
    depth = reduction.other_imbalances.shape[0] + 2
    if depth == 2:
        return length
    return (_elliptic if depth <= 4 else _piecewise)(low, length, reduction)


class _PartialIntegral(NamedTuple):
    """The integral up to x."""

    x: Vector
    length: Vector
    """What remains of the interval."""
    total: Vector
    is_active: Mask


def _piecewise(low: Vector, length: Vector, reduction: Reduction) -> Vector:
    """∫ dx / R over [low, low + length], until further pieces no longer count."""
    return jax.lax.while_loop(
        lambda state: jnp.any(state.is_active),
        partial(_add_piece, reduction=reduction),
        _PartialIntegral(low, length, jnp.zeros_like(low), length > 0),
    ).total


def _add_piece(state: _PartialIntegral, *, reduction: Reduction) -> _PartialIntegral:
    """Add one piece; stop where it is below rounding or the interval ends."""
    precision = jnp.finfo(state.x.dtype).eps / 8
    piece = jnp.minimum(state.length, piece_length(state.x, reduction))
    part = jnp.where(state.is_active, piece_integral(state.x, piece, reduction), 0.0)
    length, total = state.length - piece, state.total + part
    is_active = state.is_active & (length > 0) & (part > precision * total)
    return _PartialIntegral(state.x + piece, length, total, is_active)


def _elliptic(low: Vector, length: Vector, reduction: Reduction) -> Vector:
    """∫ dx / R over [low, low + length] at depths 3 and 4, from the ratios of layers at both ends.

    With t = w² it is ½ ∫ dt / √(t (t + λ₁) (t + λ₂) (t + λ₃)); depth 3 has no last factor.

    Source: DLMF 19.29.4.
    """
    ends = from_outward(low, reduction), from_outward(low + length, reduction)
    near, far = (
        (jnp.abs(point.smallest), point.second, *jnp.sqrt(point.remaining_squares))
        for point in map(reduction.at, ends)
    )
    p, q, r, *s = (a / jnp.where(b > 0, b, 1.0) for a, b in zip(near, far, strict=True))
    s = s[0] if s else jnp.ones_like(p)
    is_positive = length > 0
    growth = jnp.abs(reduction.smallest_change(ends[0], from_outward(length, reduction)))
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
