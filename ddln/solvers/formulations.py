"""The same flow in four pictures: what its state is, how it moves, what is seen of it.

    layers      u̇^j = −∇ℒ(θ) ⊙ ⊙_{i≠j} uⁱ        the definition; L·d numbers
    smallest    ẇ = −P(w) ⊙ ∇ℒ(θ)                 of all layers the smallest; d numbers
    reduced     v̇ = −R(v) ⊙ ∇ℒ(θ(v))              w = sinh-like in v, for decades of w
    mirror      ξ̇ = −∇ℒ(∇Q*(ξ))                   Theorem 1, arXiv 2412.16765

with P = ∏_j √(w² + λ_j), θ = w ⊙ P, and R without the first of these roots. All but the first keep
the imbalance by construction. What the second and third compute is elementwise, so that their
arrays may have a last axis of lanes.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._internal.validation import largest
from ddln.networks._inverse_mirror_map import coordinate_of_dual
from ddln.networks.layers import effective_parameter, layer_gradient
from ddln.networks.reparametrisation import Reduction
from ddln.problems.base import Problem


class Smallest(eqx.Module):
    """State w. Without exponentials, but a w that grows by decades takes many steps."""

    name = "reduced"
    reduction: Reduction

    def initial(self):
        return self.reduction.smallest(self.reduction.start)

    def smallest(self, w):
        return w

    def tolerance(self, atol):
        """The tolerance on w that one on v implies: dw/dv is at least √λ_min."""
        root = self.reduction.sqrt_min_imbalance
        return jnp.broadcast_to(atol, root.shape) * root

    def rate(self, w, gradient):
        return jnp.where(
            self.reduction.is_frozen, 0.0, -self.reduction.at_smallest(w).other_product * gradient
        )

    def theta(self, w):
        return self.reduction.at_smallest(w).theta

    def layers(self, w):
        return self.reduction.at_smallest(w).layers

    def jacobian(self, w, gradient, hessian):
        """∂ẇ_i/∂w_j = −P_i ∂²ℒ/∂θ_i∂θ_j dθ_j/dw_j − δ_ij dP_i/dw_i ∂ℒ/∂θ_i; (dim, dim, *lanes)."""
        point = self.reduction.at_smallest(w)
        full = -point.other_product[:, None] * hessian * point.dtheta_dw[None]
        return full - _diagonal(point.dP_dw * gradient)


class Reduced(eqx.Module):
    """State v."""

    name = "reduced"
    reduction: Reduction

    def initial(self):
        return self.reduction.start

    def rate(self, v, gradient):
        return jnp.where(
            self.reduction.is_frozen, 0.0, -self.reduction.remaining_product(v) * gradient
        )

    def theta(self, v):
        return self.reduction.theta(v)

    def layers(self, v):
        return self.reduction.layers(v)

    def smallest(self, v):
        return self.reduction.smallest(v)

    def tolerance(self, atol):
        """Of v, for one of v."""
        return jnp.broadcast_to(atol, self.reduction.start.shape)

    def jacobian(self, v, gradient, hessian):
        """∂v̇_i/∂v_j = −R_i ∂²ℒ/∂θ_i∂θ_j dθ_j/dv_j − δ_ij dR_i/dv_i ∂ℒ/∂θ_i; (dim, dim, *lanes)."""
        point, is_frozen = self.reduction.at(v), self.reduction.is_frozen
        speed = jnp.where(is_frozen, 0.0, point.remaining_product)
        diagonal = jnp.where(is_frozen, 0.0, point.dR_dv * gradient)
        return -speed[:, None] * hessian * point.dtheta_dv[None] - _diagonal(diagonal)


def _diagonal(entries):
    """The matrices with these (dim, *lanes) on their diagonals, (dim, dim, *lanes)."""
    dim = len(entries)
    identity = jnp.eye(dim, dtype=entries.dtype)
    return identity.reshape(dim, dim, *[1] * (entries.ndim - 1)) * entries[None]


class Mirror(eqx.Module):
    """State ξ = ∇Q(θ)."""

    name = "mirror"
    reduction: Reduction

    def initial(self):
        return jnp.zeros_like(self.reduction.start)

    def rate(self, xi, gradient):
        return -gradient

    def _position(self, xi):
        return coordinate_of_dual(xi, self.reduction)[0]

    def theta(self, xi):
        return self.reduction.theta(self._position(xi))

    def layers(self, xi):
        return self.reduction.layers(self._position(xi))


class Layers(eqx.Module):
    """State u."""

    name = "layers"
    start: Float[Array, "depth dim"]

    def initial(self):
        return self.start

    def rate(self, layers, gradient):
        return -layer_gradient(layers, gradient)

    def theta(self, layers):
        return effective_parameter(layers)

    def layers(self, layers):
        return layers


def field(t, state, args):
    """The right-hand side, in diffrax's form."""
    problem, picture = args
    return picture.rate(state, problem.gradient(picture.theta(state)))


def observe(t, state, args):
    """Layers, θ, dθ/dt, loss and gap at a state."""
    problem, picture = args
    theta, velocity = jax.jvp(picture.theta, (state,), (field(t, state, args),))
    return picture.layers(state), theta, velocity, problem.loss(theta), problem.gap(theta)


def smallest_step(horizon: Float[Array, "*lanes"]) -> Float[Array, "*lanes"]:
    """A step below which time does not move on."""
    return 4 * jnp.finfo(horizon.dtype).eps * horizon


def first_step(problem: Problem, picture: Any, horizon: Float[Array, ""]) -> Float[Array, ""]:
    """A hundredth of the time scale on which the state moves, or on which its speed changes."""
    state = picture.initial()
    rate, change = jax.jvp(
        lambda state: field(0.0, state, (problem, picture)),
        (state,),
        (field(0.0, state, (problem, picture)),),
    )
    speed = largest(jnp.abs(rate))
    stiffness = largest(jnp.abs(change)) / jnp.where(speed > 0, speed, 1.0)
    fastest = jnp.maximum(speed, stiffness)
    return jnp.clip(0.01 / jnp.where(fastest > 0, fastest, 1.0), smallest_step(horizon), horizon)
