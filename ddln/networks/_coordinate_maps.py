"""Maps from θ to v and from v to ξ, and the Bregman divergence, one coordinate at a time.

All run by way of the reparametrised coordinate v of `Reduction`, from

    θ(v) = w·g·R,        ξ(v) = ∫_{v(0)}^{v} dτ / R(τ),        dξ/dv = 1/R,        dθ/dv = M/R.

The derivatives are these formulas, never those of a quadrature or of an iteration. The map from ξ
to v is in `_inverse_mirror_map`.
"""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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

# From v to ξ.


@eqx.filter_custom_jvp
@eqx.filter_jit
def dual_change(step: Vector, base: Vector, reduction: Reduction) -> Vector:
    """ξ(base + step) − ξ(base) = ∫ dτ / R(τ), to relative accuracy however short the step."""
    return in_blocks(_dual_change, step, base, reduction)


def _dual_change(step: Vector, base: Vector, reduction: Reduction) -> Vector:
    # Across the peak of 1/R at v = 0 each side is integrated outwards, so that no large integrals
    # are subtracted.
    v = base + step
    crosses = reduction.is_open & (v * base < 0)
    x, x_base = _quadrature.outward(v, reduction), _quadrature.outward(base, reduction)
    low = jnp.where(crosses, 0.0, jnp.minimum(x, x_base))
    beyond = _quadrature.integral(low, jnp.where(crosses, x, jnp.abs(step)), reduction)
    # Whatever the step: for many steps from one base it is computed once.
    to_base = _quadrature.integral(
        jnp.zeros_like(base), jnp.where(reduction.is_open, x_base, 0.0), reduction
    )
    return jnp.sign(step) * (beyond + jnp.where(crosses, to_base, 0.0))


@dual_change.def_jvp
def _dual_change_jvp(
    primals: tuple[Vector, Vector, Reduction],
    tangents: tuple[Tangent, Tangent, Any],
) -> tuple[Vector, Vector]:
    (step, base, reduction), (step_dot, base_dot, reduction_dot) = primals, tangents
    refuse_layer_derivative(reduction_dot)
    step_dot, base_dot = or_zero(step_dot, step), or_zero(base_dot, base)
    at_end = (step_dot + base_dot) / reduction.remaining_product(base + step)
    at_base = base_dot / reduction.remaining_product(base)
    return dual_change(step, base, reduction), at_end - at_base


def dual_range(reduction: Reduction) -> tuple[Vector, Vector]:
    """Both ends of the range of ∇Q; infinite where ∇Q is unbounded, 0 and 0 where frozen."""
    return _dual_end(reduction, -1.0), _dual_end(reduction, 1.0)


def _dual_end(reduction: Reduction, direction: float) -> Vector:
    """ξ(± ∞), the end of the range in one direction."""
    start, is_open = reduction.start, reduction.is_open
    half_line_sign, imbalances = reduction.half_line_sign, reduction.other_imbalances
    # Once w² exceeds every λ, 1/R falls at least as fast as one of its factors.
    largest = jnp.log(jnp.max(imbalances, axis=0, initial=1.0)) / 2
    least = jnp.log(jnp.where(is_open, reduction.sqrt_min_imbalance, 1.0))
    decades = -1.5 * jnp.log(jnp.finfo(start.dtype).eps)
    distance = decades + jnp.maximum(largest - least, 0.0) + jnp.abs(start)
    end = jnp.where(is_open, direction * distance, half_line_sign * distance)
    is_bounded = (is_open | (half_line_sign == direction)) & (imbalances.shape[0] > 0)
    whole = dual_change(jnp.where(is_bounded, end - start, 0.0), start, reduction)
    unbounded = jnp.where(reduction.is_frozen, 0.0, direction * jnp.inf)
    return jnp.where(is_bounded, whole, unbounded)


# From θ to v.


@eqx.filter_custom_jvp
@eqx.filter_jit
def coordinate_of_theta(theta: Vector, reduction: Reduction) -> Vector:
    """v with θ(v) = θ.

    log|θ| is a convex function of log|w| with slopes between 1 and depth. Replacing each
    √(w² + λ_j) by max(w, √λ_j) bounds it from below by a maximum of straight lines. Newton's method
    starts at the w₀ where that bound reaches log|θ|, to the right of the solution, and descends.
    A single layer is θ itself.
    """
    if reduction.depth == 1:
        return theta
    return in_blocks(_coordinate_of_theta, theta, reduction)


@coordinate_of_theta.def_jvp
def _coordinate_of_theta_jvp(
    primals: tuple[Vector, Reduction], tangents: tuple[Tangent, Any]
) -> tuple[Vector, Vector]:
    (theta, reduction), (theta_dot, reduction_dot) = primals, tangents
    refuse_layer_derivative(reduction_dot)
    v = coordinate_of_theta(theta, reduction)
    return v, or_zero(theta_dot, theta) / reduction.dtheta_dv(v)


def _coordinate_of_theta(theta: Vector, reduction: Reduction) -> Vector:
    is_zero = (theta == 0) | reduction.is_frozen
    magnitude = jnp.where(is_zero, 1.0, jnp.abs(theta))
    smallest_square = reduction.sqrt_min_imbalance[None] ** 2
    imbalances = jnp.concatenate([smallest_square, reduction.other_imbalances])
    first = jnp.where(is_zero, 1.0, jnp.exp(_log_start(jnp.log(magnitude), imbalances)))
    roots = jnp.concatenate(
        [reduction.sqrt_min_imbalance[None], jnp.sqrt(reduction.other_imbalances)]
    )
    log_ratio = newton(
        partial(
            _log_step,
            squares=jnp.minimum(first[None] / roots, 1.0) ** 2,
            imbalances=jnp.minimum(roots / first[None], 1.0) ** 2,
        ),
        jnp.zeros_like(first),
        ~is_zero,
    ).x
    # log w has |log w| roundings: one last step in w itself.
    w = first * jnp.exp(log_ratio)
    squares = w[None] ** 2 + imbalances
    excess = w * jnp.prod(jnp.sqrt(squares), axis=0) / magnitude - 1
    w = w * (1 - excess / (1 + jnp.sum(w[None] ** 2 / squares, axis=0)))
    v = reduction.coordinate(jnp.where(is_zero, 0.0, jnp.sign(theta) * w))
    return jnp.where(jnp.isnan(theta), jnp.nan, v)


def _log_start(log_theta: Vector, imbalances: Float[Array, "others dim"]) -> Vector:
    """log w at which the maximum of straight lines reaches log|θ|."""
    halves = jnp.log(imbalances) / 2
    offsets = jnp.concatenate(
        [jnp.cumsum(halves[::-1], axis=0)[::-1], jnp.zeros_like(log_theta)[None]]
    )
    slopes = jnp.arange(1, len(offsets) + 1, dtype=log_theta.dtype)[:, None]
    return jnp.min((log_theta[None] - offsets) / slopes, axis=0)


def _log_step(
    state: NewtonState,
    *,
    squares: Float[Array, "others dim"],
    imbalances: Float[Array, "others dim"],
) -> NewtonState:
    """A Newton step for log θ(w) = log|θ|, in x = log(w/w₀).

    Since θ = w₀ Π_j m_j with m_j = max(w₀, √λ_j), the excess is that of e^x Π_j √(w² + λ_j) / m_j
    over 1, where every partial product is at most 2^{(L−1)/2}.

    Args:
        squares, imbalances: w₀²/m_j² and λ_j/m_j².
    """
    x, is_active, count = state
    ratio = jnp.exp(2 * x)
    of_w = ratio[None] * squares
    factors = of_w + imbalances
    excess = jnp.log(math.prod(factors, start=ratio)) / 2
    change = excess / (1 + sum(of_w / factors, start=jnp.zeros_like(x)))
    # The next step would be the square of this one.
    is_large = jnp.abs(change) > jnp.sqrt(jnp.finfo(x.dtype).eps)
    return NewtonState(x - change, is_active & is_large, count + 1)


def step_to_theta(
    theta: Vector,
    change: Vector,
    base: Vector,
    reduction: Reduction,
) -> Vector:
    """v(θ) − base, to the relative accuracy of change = θ − θ(base)."""
    difference = coordinate_of_theta(theta, reduction) - base
    solved = _solve_step(*jax.lax.stop_gradient((difference, theta, change, base, reduction)))
    # The value is the solution's, the derivatives are those of the difference.
    return solved + (difference - jax.lax.stop_gradient(difference))


def _solve_step(
    difference: Vector,
    theta: Vector,
    change: Vector,
    base: Vector,
    reduction: Reduction,
) -> Vector:
    def newton_step(_: Int[Array, ""], step: Vector) -> Vector:
        excess = reduction.theta_change(base, step) - change
        return step - excess / reduction.dtheta_dv(base + step)

    # From an error of a rounding in v to its square, then to its fourth power.
    step = jax.lax.fori_loop(0, 2, newton_step, difference)
    step = jnp.where(_is_close(theta, change), step, difference)
    return jnp.where(change == 0, 0.0, step)


def _is_close(theta: Vector, change: Vector) -> Mask:
    """Whether θ and θ − change are within a factor of 8 of each other.

    If not, differences of functions that increase with θ lose no digits. If so, R changes by less
    than the factor: one piece of quadrature reaches from one to the other.
    """
    return 8 * jnp.abs(change) <= 7 * jnp.maximum(jnp.abs(theta), jnp.abs(theta - change))


# Bregman divergence and conjugate.


@eqx.filter_custom_jvp
@eqx.filter_jit
def divergence(
    theta: Vector,
    change: Vector,
    step: Vector,
    base: Vector,
    reduction: Reduction,
) -> Vector:
    """D_Q(θ, θ') of each coordinate, with change = θ − θ' and step = v − v' from base = v'.

    It is ∫_{v'}^{v} (θ − θ(τ)) / R(τ) dτ, where like terms are not subtracted. Where θ and θ' are
    far apart, this is evaluated as θ (ξ − ξ') − ½ (w² − w'²).
    """
    return in_blocks(_divergence, theta, change, step, base, reduction)


def _divergence(
    theta: Vector,
    change: Vector,
    step: Vector,
    base: Vector,
    reduction: Reduction,
) -> Vector:
    v = base + step

    def integrand(distance: Vector) -> Vector:
        change = reduction.theta_change(v, -distance)
        return -change / reduction.remaining_product(v - distance)

    near = _quadrature.gauss_legendre(integrand, step)
    half_square_change = _half_square_change(step, base, reduction)
    far = theta * _dual_change(step, base, reduction) - half_square_change
    return jnp.where(_is_close(theta, change), near, far)


@divergence.def_jvp
def _divergence_jvp(
    primals: tuple[Vector, Vector, Vector, Vector, Reduction],
    tangents: tuple[Tangent, Tangent, Tangent, Tangent, Any],
) -> tuple[Vector, Vector]:
    """(ξ − ξ') dθ − (θ − θ') dξ'."""
    theta, change, step, base, reduction = primals
    theta_dot, _, _, base_dot, reduction_dot = tangents
    refuse_layer_derivative(reduction_dot)
    dual_dot = or_zero(base_dot, base) / reduction.remaining_product(base)
    tangent = dual_change(step, base, reduction) * or_zero(theta_dot, theta) - change * dual_dot
    return divergence(theta, change, step, base, reduction), tangent


def _half_square_change(step: Vector, base: Vector, reduction: Reduction) -> Vector:
    """½ (w(base + step)² − w(base)²)."""
    w, change = reduction.smallest(base), reduction.smallest_change(base, step)
    return change * (2 * w + change) / 2


@eqx.filter_custom_jvp
@eqx.filter_jit
def conjugate(v: Vector, step: Vector, reduction: Reduction) -> Vector:
    """Q*(ξ) = ½ (w² − w(0)²) of each coordinate, with step = v − v(0)."""
    return _half_square_change(step, reduction.start, reduction)


@conjugate.def_jvp
def _conjugate_jvp(
    primals: tuple[Vector, Vector, Reduction],
    tangents: tuple[Tangent, Tangent, Any],
) -> tuple[Vector, Vector]:
    """w g dv: from w itself, since a small w is lost beside w(0) in w(0) plus its change."""
    (v, step, reduction), (v_dot, _, reduction_dot) = primals, tangents
    refuse_layer_derivative(reduction_dot)
    point = reduction.at(v)
    return conjugate(v, step, reduction), point.smallest * point.second * or_zero(v_dot, v)
