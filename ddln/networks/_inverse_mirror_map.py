"""The inverse mirror map: v from ξ, and whether ξ is in the range of ∇Q.

From v(0) the search follows the ray towards ξ over pieces of quadrature, until it reaches the piece
in which the integral of 1/R comes to |ξ|. Newton's method then solves for v in that piece.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddln.networks import _quadrature
from ddln.networks._elementwise import (
    NewtonState,
    Tangent,
    in_blocks,
    newton,
    or_zero,
    refuse_layer_derivative,
)
from ddln.networks._quadrature import Mask, Vector
from ddln.networks.reparametrisation import Reduction


def coordinate_of_dual(xi: Vector, reduction: Reduction) -> tuple[Vector, Mask]:
    """v with ξ(v) = ξ, and whether ξ is in the range of ∇Q.

    Outside the range, v is where ∇Q reaches the end of it to rounding.
    """
    v, _, in_range = coordinate_and_step_of_dual(xi, reduction)
    return v, in_range


@eqx.filter_custom_jvp
@eqx.filter_jit
def coordinate_and_step_of_dual(xi: Vector, reduction: Reduction) -> tuple[Vector, Vector, Mask]:
    """v with ξ(v) = ξ, v − v(0) to relative accuracy, and whether ξ is in the range of ∇Q."""
    return in_blocks(_solve_dual, xi, reduction)


@coordinate_and_step_of_dual.def_jvp
def _coordinate_and_step_of_dual_jvp(
    primals: tuple[Vector, Reduction], tangents: tuple[Tangent, Any]
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, None]]:
    (xi, reduction), (xi_dot, reduction_dot) = primals, tangents
    refuse_layer_derivative(reduction_dot)
    v, step, in_range = coordinate_and_step_of_dual(xi, reduction)
    v_dot = or_zero(xi_dot, xi) * reduction.remaining_product(v)
    return (v, step, in_range), (v_dot, v_dot, None)


class _Ray(eqx.Module):
    """The ray from v(0) in direction +1 or −1."""

    direction: Vector
    reduction: Reduction

    def is_outward(self, v: Vector) -> Mask:
        """Whether |w| grows along the ray from v on."""
        on_half_line = self.reduction.half_line_sign == self.direction
        return jnp.where(self.reduction.is_open, v * self.direction >= 0, on_half_line)

    def piece_length(self, v: Vector) -> Vector:
        """Length of the piece of quadrature that starts at v; it ends at the peak of 1/R."""
        length = _quadrature.piece_length(_quadrature.outward(v, self.reduction), self.reduction)
        approaches_peak = ~self.is_outward(v) & self.reduction.is_open
        return jnp.minimum(length, jnp.where(approaches_peak, jnp.abs(v), jnp.inf))

    def density(self, v: Vector) -> Vector:
        """1/R at v."""
        return _quadrature.density(_quadrature.outward(v, self.reduction), self.reduction)

    def integral(self, v: Vector, distance: Vector) -> Vector:
        """∫ dτ / R over this much of the piece that starts at v."""
        sense = jnp.where(self.is_outward(v), 1.0, -1.0)
        low = _quadrature.outward(v, self.reduction)
        return sense * _quadrature.piece_integral(low, sense * distance, self.reduction)


class _RaySearch(NamedTuple):
    """Where the search along a ray has come to."""

    v: Vector
    distance: Vector
    """From v(0) to v."""
    missing: Vector
    """|ξ| less the integral of 1/R so far."""
    is_active: Mask
    in_range: Mask


def _solve_dual(xi: Vector, reduction: Reduction) -> tuple[Vector, Vector, Mask]:
    """Find the piece of quadrature in which the integral of 1/R reaches ξ, then v in the piece."""
    start, is_frozen, count = reduction.start, reduction.is_frozen, len(reduction.other_imbalances)
    everywhere = jnp.full(xi.shape, True)
    if count == 0:
        step = jnp.where(is_frozen, 0.0, xi)
        return start + step, step, everywhere
    ray = _Ray(jnp.where(xi < 0, -1.0, 1.0).astype(xi.dtype), reduction)
    search = jax.lax.while_loop(
        lambda search: jnp.any(search.is_active),
        partial(_next_piece, ray=ray),
        _RaySearch(start, jnp.zeros_like(start), jnp.abs(xi), ~is_frozen, everywhere),
    )
    distance, is_solved = _solve_in_piece(search, ray)
    # R grows at least like e^{count·x}: so far out ∇Q is at the end of its range to rounding.
    distance = jnp.where(search.in_range, distance, -jnp.log(jnp.finfo(xi.dtype).eps) / count)
    is_known = is_solved & ~jnp.isnan(xi)
    distance = jnp.where(is_frozen, 0.0, jnp.where(is_known, distance, jnp.nan))
    step = ray.direction * (search.distance + distance)
    return search.v + ray.direction * distance, step, search.in_range & is_known


def _next_piece(search: _RaySearch, *, ray: _Ray) -> _RaySearch:
    """Advance past the piece of quadrature at v if its integral is less than what is missing."""
    v, length = search.v, ray.piece_length(search.v)
    part = ray.integral(v, length)
    # 1/R is log-concave: beyond v its integral is at most (1/R)/κ.
    rate = _quadrature.decay(_quadrature.outward(v, ray.reduction), ray.reduction)
    is_unreachable = ray.is_outward(v) & (search.missing * rate > ray.density(v))
    passes = search.is_active & ~is_unreachable & (part < search.missing)
    return _RaySearch(
        v=jnp.where(passes, v + ray.direction * length, v),
        distance=jnp.where(passes, search.distance + length, search.distance),
        missing=jnp.where(passes, search.missing - part, search.missing),
        is_active=passes,
        in_range=search.in_range & ~(search.is_active & is_unreachable),
    )


def _solve_in_piece(search: _RaySearch, ray: _Ray) -> tuple[Vector, Mask]:
    """Distance from v over which the integral of 1/R is what is missing, and whether it was found.

    The integral is a concave function of the distance where the ray leads outwards, and a convex
    one where it leads inwards. So the tangent at v ends short of the solution, or beyond it, and
    Newton's method from there is monotone until rounding reverses it. Both keep the relative
    accuracy of what is missing.
    """
    tangent = search.missing / ray.density(search.v)
    state = newton(
        partial(_piece_step, search=search, ray=ray),
        jnp.minimum(ray.piece_length(search.v), tangent),
        search.in_range & ~ray.reduction.is_frozen,
    )
    return state.x, ~state.is_active


def _piece_step(state: NewtonState, *, search: _RaySearch, ray: _Ray) -> NewtonState:
    """A Newton step for ∫ dτ / R = what is missing, the integral from v over the distance."""
    distance, is_active, count = state
    precision = 4 * jnp.finfo(distance.dtype).eps
    sense = jnp.where(ray.is_outward(search.v), 1.0, -1.0)
    residual = search.missing - ray.integral(search.v, distance)
    change = residual / ray.density(search.v + ray.direction * distance)
    is_active = is_active & (sense * change > precision * distance)
    return NewtonState(distance + jnp.where(is_active, change, 0.0), is_active, count + 1)
