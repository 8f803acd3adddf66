"""The integral of 1/R, which is the mirror map as a function of the reparametrised coordinate v.

Integrals run over the *outward* coordinate x, in which |w| grows: x = |v| on the line, where 1/R is
even in v, and x = ± v on a half-line. Their value over [low, low + length] is

    length                      at depth 2,
    Carlson's R_F               at depths 3 and 4 (`_closed_forms`),
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
from jaxtyping import Array, Bool, Float

from ddln.networks._closed_forms import elliptic
from ddln.networks.reparametrisation import Reduction

Vector = Float[Array, " dim"]
Mask = Bool[Array, " dim"]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_LONGEST, _FALL = 2.0, 4.0


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
    return 1 / reduction.at_smallest(w).remaining_product


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
    weights = jnp.asarray(_WEIGHTS, length.dtype)
    half = length / 2
    values = jax.vmap(integrand)(half[None] * (1 + nodes))
    # A product with the weights keeps the values out of the sum, where they are not vectorised.
    return half * jnp.matmul(weights, values, precision="highest")


def piece_integral(x: Vector, length: Vector, reduction: Reduction) -> Vector:
    """∫ dx / R over one piece that starts at outward coordinate x, inwards if length < 0."""
    return gauss_legendre(lambda distance: density(x + distance, reduction), length)


def integral(low: Vector, length: Vector, reduction: Reduction) -> Vector:
    """∫ dx / R over [low, low + length], length ≥ 0."""
    depth = reduction.other_imbalances.shape[0] + 2
    if depth == 2:
        return length
    if depth <= 4:
        return elliptic(from_outward(low, reduction), from_outward(length, reduction), reduction)
    return _piecewise(low, length, reduction)


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
