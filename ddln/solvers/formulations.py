"""Four formulations of gradient flow, each a differential equation in a different state variable.

    layers      u̇^j = −∇ℒ(θ) ⊙ ⊙_{i≠j} uⁱ        the definition; L·d numbers
    smallest    ẇ = −P(w) ⊙ ∇ℒ(θ)                 the smallest layer; d numbers
    reduced     v̇ = −R(v) ⊙ ∇ℒ(θ(v))              w = sinh-like in v, for decades of w
    mirror      ξ̇ = −∇ℒ(∇Q*(ξ))                   Theorem 1, arXiv 2412.16765

with P = ∏_j √(w² + λ_j), θ = w ⊙ P, and R = P/√(w² + λ_min). All but the first conserve
the imbalance exactly. `Smallest` and `Reduced` work elementwise, so their arrays can have a last
axis for a batch of networks. The first and the last also hold of other parametrisations
θ_k = G(w_k), with w for u.

Under weight decay ω(t) with dose Ω = ∫ω, the same holds at each time of the network with the
layers e^{−Ω} u(0): its λ, R and Q take the places of those of u(0). Each equation gains a term,

    layers  −ω u        smallest  −ω w        reduced  −ω s        mirror  (L − 2) ω ξ

with s = ±1 on the half-lines of that sign and 0 on the line, where decay leaves v alone; at depth
1, s = v.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._internal.validation import Number, largest
from ddln.networks.entropy import Entropy
from ddln.networks.layers import Function, layer_gradient, theta_of
from ddln.networks.reparametrisation import Reduction
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.problems.base import Problem
from ddln.solvers.weight_decay import WeightDecay

FormulationT = TypeVar("FormulationT", bound="Formulation")


class Formulation(eqx.Module):
    """An initial value problem ẏ = rate(y, ∇ℒ(θ(y))) equivalent to gradient flow on the layers."""

    name: ClassVar[str]
    """As in `Trajectory.coordinates`."""
    decay: WeightDecay | None = dataclasses.field(default=None, kw_only=True)

    def at(self: FormulationT, time: Number) -> FormulationT:
        """The formulation without decay, of the layers that decay alone would leave at a time."""
        if self.decay is None:
            return self
        return dataclasses.replace(self, decay=None, **self._shrunk(self.decay.dose(time)))

    def _shrunk(self, dose: Float[Array, "*batch"]) -> dict[str, Any]:
        """The fields that differ for layers smaller by e^{−Ω}."""
        return {}

    @abc.abstractmethod
    def initial(self) -> Float[Array, "*state"]:
        """y at time 0."""

    @abc.abstractmethod
    def rate(
        self, y: Float[Array, "*state"], gradient: Float[Array, "dim *batch"]
    ) -> Float[Array, "*state"]:
        """dy/dt without decay, given ∇ℒ(θ)."""

    @abc.abstractmethod
    def shrinkage(self, y: Float[Array, "*state"]) -> Float[Array, "*state"]:
        """The part of dy/dt that is due to decay, per unit of ω."""

    @abc.abstractmethod
    def theta(self, y: Float[Array, "*state"]) -> Float[Array, "dim *batch"]:
        """θ of a state."""

    @abc.abstractmethod
    def layers(self, y: Float[Array, "*state"]) -> Float[Array, "depth dim"]:
        """Layers of a state."""


class _OfReduction(Formulation):
    """A formulation by way of the reduced network."""

    reduction: Reduction

    def _shrunk(self, dose: Float[Array, "*batch"]) -> dict[str, Any]:
        return {"reduction": self.reduction.shrunk(dose)}


class Smallest(_OfReduction):
    """State w. Evaluates no exponentials, but takes many steps while w grows by decades."""

    name = "reduced"

    def initial(self) -> Float[Array, "dim *batch"]:
        return self.reduction.smallest(self.reduction.start)

    def smallest(self, w: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """w of a state."""
        return w

    def tolerance(self, atol: Float[Array, "*batch"]) -> Float[Array, "dim *batch"]:
        """The tolerance on w for a tolerance on v: dw/dv is at least √λ_min."""
        root = self.reduction.sqrt_min_imbalance
        return jnp.broadcast_to(atol, root.shape) * root

    def rate(
        self, w: Float[Array, "dim *batch"], gradient: Float[Array, "dim *batch"]
    ) -> Float[Array, "dim *batch"]:
        product = self.reduction.at_smallest(w).other_product
        return jnp.where(self.reduction.is_frozen, 0.0, -product * gradient)

    def shrinkage(self, w: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        return -w

    def theta(self, w: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        return self.reduction.at_smallest(w).theta

    def layers(self, w: Float[Array, " dim"]) -> Float[Array, "depth dim"]:
        return self.reduction.at_smallest(w).layers

    def jacobian(
        self,
        w: Float[Array, "dim *batch"],
        gradient: Float[Array, "dim *batch"],
        hessian: Float[Array, "dim dim *batch"],
    ) -> Float[Array, "dim dim *batch"]:
        """∂ẇ_i/∂w_j = −P_i ∂²ℒ/∂θ_i∂θ_j dθ_j/dw_j − δ_ij dP_i/dw_i ∂ℒ/∂θ_i."""
        point = self.reduction.at_smallest(w)
        full = -point.other_product[:, None] * hessian * point.dtheta_dw[None]
        return full - diagonal(point.dP_dw * gradient)


class Reduced(_OfReduction):
    """State v, the reduced coordinate of `ddln.Reduction`."""

    name = "reduced"

    def initial(self) -> Float[Array, "dim *batch"]:
        return self.reduction.start

    def rate(
        self, v: Float[Array, "dim *batch"], gradient: Float[Array, "dim *batch"]
    ) -> Float[Array, "dim *batch"]:
        product = self.reduction.remaining_product(v)
        return jnp.where(self.reduction.is_frozen, 0.0, -product * gradient)

    def shrinkage(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        return self.reduction.shrinkage(v)

    def theta(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        return self.reduction.theta(v)

    def layers(self, v: Float[Array, " dim"]) -> Float[Array, "depth dim"]:
        return self.reduction.layers(v)

    def smallest(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """w of a state."""
        return self.reduction.smallest(v)

    def tolerance(self, atol: Float[Array, "*batch"]) -> Float[Array, "dim *batch"]:
        """The tolerance on v, broadcast to the state's shape."""
        return jnp.broadcast_to(atol, self.reduction.start.shape)

    def jacobian(
        self,
        v: Float[Array, "dim *batch"],
        gradient: Float[Array, "dim *batch"],
        hessian: Float[Array, "dim dim *batch"],
    ) -> Float[Array, "dim dim *batch"]:
        """∂v̇_i/∂v_j = −R_i ∂²ℒ/∂θ_i∂θ_j dθ_j/dv_j − δ_ij dR_i/dv_i ∂ℒ/∂θ_i."""
        point, is_frozen = self.reduction.at(v), self.reduction.is_frozen
        product = jnp.where(is_frozen, 0.0, point.remaining_product)
        of_product = jnp.where(is_frozen, 0.0, point.dR_dv * gradient)
        return -product[:, None] * hessian * point.dtheta_dv[None] - diagonal(of_product)


def diagonal(entries: Float[Array, "dim *batch"]) -> Float[Array, "dim dim *batch"]:
    """Diagonal matrices with the given entries."""
    dim = len(entries)
    identity = jnp.eye(dim, dtype=entries.dtype)
    return identity.reshape(dim, dim, *[1] * (entries.ndim - 1)) * entries[None]


class Mirror(Formulation):
    """State ξ = ∇Q(θ)."""

    name = "mirror"
    entropy: SeparableEntropy

    def _shrunk(self, dose: Float[Array, "*batch"]) -> dict[str, Any]:
        if not isinstance(self.entropy, Entropy):
            raise ValueError("`weight_decay` must be None for an entropy that is not of layers.")
        return {"entropy": self.entropy.decayed(dose)}

    def initial(self) -> Float[Array, " dim"]:
        return jnp.zeros(self.entropy.dim, self.entropy.dtype)

    def rate(
        self, xi: Float[Array, " dim"], gradient: Float[Array, " dim"]
    ) -> Float[Array, " dim"]:
        return -gradient

    def shrinkage(self, xi: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return (len(self.layers(xi)) - 2) * xi

    def theta(self, xi: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.entropy.at_dual(xi).theta

    def layers(self, xi: Float[Array, " dim"]) -> Float[Array, "depth dim"]:
        return self.entropy.parameters(xi)


class Layers(Formulation):
    """State u, the layers themselves; or w, the parameters of another parametrisation."""

    name = "layers"
    start: Float[Array, "depth dim"]
    function: Function | None = eqx.field(static=True, default=None)
    """G; `None` for layers."""

    def initial(self) -> Float[Array, "depth dim"]:
        return self.start

    def rate(
        self, layers: Float[Array, "depth dim"], gradient: Float[Array, " dim"]
    ) -> Float[Array, "depth dim"]:
        return -layer_gradient(layers, gradient, self.function)

    def shrinkage(self, layers: Float[Array, "depth dim"]) -> Float[Array, "depth dim"]:
        return -layers

    def theta(self, layers: Float[Array, "depth dim"]) -> Float[Array, " dim"]:
        return theta_of(layers, self.function)

    def layers(self, layers: Float[Array, "depth dim"]) -> Float[Array, "depth dim"]:
        return layers


class Observation(NamedTuple):
    """Everything that a flow saves of one state."""

    layers: Float[Array, "depth dim"]
    theta: Float[Array, " dim"]
    velocity: Float[Array, " dim"]
    """dθ/dt."""
    loss: Float[Array, ""]
    gap: Float[Array, ""]


def vector_field(
    t: Number,
    state: Float[Array, "*state"],
    args: tuple[Problem, Formulation],
) -> Float[Array, "*state"]:
    """Right-hand side of the differential equation, with the signature that diffrax expects."""
    problem, formulation = args
    now = formulation.at(t)
    rate = now.rate(state, problem.gradient(now.theta(state)))
    return with_decay(rate, now.shrinkage(state), formulation.decay, t)


def with_decay(
    rate: Float[Array, "*state"],
    shrinkage: Float[Array, "*state"],
    decay: WeightDecay | None,
    time: Number,
) -> Float[Array, "*state"]:
    """A rate of change, and what decay adds to it: ω(t) times the shrinkage."""
    if decay is None:
        return rate
    omega = decay.rate(time)
    return rate + omega.reshape(*[1] * (rate.ndim - omega.ndim), *omega.shape) * shrinkage


def observe(
    t: Number,
    state: Float[Array, "*state"],
    args: tuple[Problem, Formulation],
) -> Observation:
    """Compute what is saved of a state, with the signature that diffrax expects."""
    problem, formulation = args
    now = formulation.at(t)
    rate = vector_field(t, state, (problem, now))
    theta, velocity = jax.jvp(now.theta, (state,), (rate,))
    layers = now.layers(state)
    return Observation(
        layers=layers,
        theta=theta,
        # Decay alone shrinks θ, a product of layers, at the rate L ω.
        velocity=with_decay(velocity, -len(layers) * theta, formulation.decay, t),
        loss=problem.loss(theta),
        gap=problem.gap(theta),
    )


def smallest_step(horizon: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The shortest step that still changes the time, up to the horizon."""
    return 4 * jnp.finfo(horizon.dtype).eps * horizon


def first_step(
    problem: Problem, formulation: Formulation, horizon: Float[Array, ""]
) -> Float[Array, ""]:
    """A hundredth of the time scale on which the state or its velocity changes at the start."""

    def velocity(state: Float[Array, "*state"]) -> Float[Array, "*state"]:
        return vector_field(0.0, state, (problem, formulation))

    state = formulation.initial()
    rate, change = jax.jvp(velocity, (state,), (velocity(state),))
    speed = largest(jnp.abs(rate))
    stiffness = largest(jnp.abs(change)) / jnp.where(speed > 0, speed, 1.0)
    fastest = jnp.maximum(speed, stiffness)
    return jnp.clip(0.01 / jnp.where(fastest > 0, fastest, 1.0), smallest_step(horizon), horizon)
