"""The entropy Q: gradient flow on the layers is its mirror flow, at any depth and initialisation.

With the reparametrised coordinate v of `Reduction` (dw/dv = g, θ = w·g·R), anchored at the initial
layers,

    ∇Q(θ) = ξ = ∫_{v(0)}^{v} dτ / R(τ),        Q(θ) = θ·ξ − (w² − w(0)²)/2,
    ∇²Q(θ) = 1/M,                              Q*(ξ) = (w² − w(0)²)/2,

so ∇Q(θ(0)) = 0 and Q(θ(0)) = 0, and along the flow d/dt ∇Q(θ) = −∇ℒ(θ). At depth 2, where R = 1, Q
is the hyperbolic entropy, or x log x on a half-line. From depth 3 on the integral converges as w
grows, and the range of ∇Q is bounded there.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal import display
from ddln._internal.validation import ArrayLike, Number, as_floats, as_layers
from ddln.networks import _coordinate_maps, _inverse_mirror_map
from ddln.networks.layers import (
    effective_parameter,
    mobility,
    mobility_and_slope,
    product_and_error,
)
from ddln.networks.reparametrisation import Reduction
from ddln.networks.separable_entropy import DualPoint, SeparableEntropy


class Entropy(SeparableEntropy):
    """Q of a network, as a function of θ, anchored at the network's initialisation.

    Each coordinate of θ ranges over the line, or over a closed half-line at whose end 0 Q is finite
    and ∇Q infinite. A frozen coordinate has no entropy: Q is defined only at θ_k = 0, where it adds
    0.

    Args:
        layers: the initial layers, shape (depth, dim).

    Source: Theorem 1, arXiv 2412.16765; the formulas as derived in docs/theory.md.

    >>> entropy = ddln.Entropy([[0.0], [2.0]])  # Q'' = 1/√(4θ² + λ²), λ = 4
    >>> float(entropy.hessian([0.0])[0])
    0.25
    >>> round(float(entropy.mirror_map([1.5])[0]), 6)  # ½ asinh(2θ/λ)
    0.346574
    """

    reduction: Reduction
    start: tuple[Float[Array, " dim"], Float[Array, " dim"]]
    """θ(0) rounded, and its rounding error."""

    domain: ClassVar = (
        "keep the sign of the initial θ_k where the smallest layer is tied "
        "(and be 0 where it is tied and zero)"
    )
    dual_domain: ClassVar = "which is bounded from depth 3 on"

    def __init__(self, layers: ArrayLike):
        layers = as_layers(layers)
        self.reduction = Reduction(layers)
        self.start = product_and_error(jax.lax.stop_gradient(layers))

    def decayed(self, dose: Number) -> "Entropy":
        """The entropy of the layers e^{−Ω} u(0), those that a dose Ω of weight decay alone leaves.

        Under weight decay with dose Ω(t) = ∫₀ᵗ ω it is the entropy Q_t of the time t:
        dθ/dt = −∇²Q_t(θ)⁻¹ ∇ℒ(θ) − L ω θ, and ∇Q_t(θ) = e^{(L−2)Ω} ∇Q(e^{LΩ} θ).

        Args:
            dose: Ω, shape ().

        Source: as derived in docs/theory.md; at depth 2, Jacobs & Burkholz 2024.

        >>> entropy = ddln.Entropy([[0.5], [1.0], [-2.0]])
        >>> later = entropy.decayed(0.3)
        >>> scaled = jnp.exp(0.3) * entropy.mirror_map([jnp.exp(0.9) * 0.2])
        >>> bool(jnp.allclose(later.mirror_map([0.2]), scaled, rtol=1e-12))
        True
        """
        dose = as_floats("dose", dose, 0).astype(self.reduction.start.dtype)
        product, error = self.start
        factor = jnp.broadcast_to(jnp.exp(-dose), (self.reduction.depth, product.size))
        rounded, rest = product_and_error(jnp.concatenate([product[None], factor]))
        start = rounded, rest + error * factor[0] ** self.reduction.depth
        parts = self.reduction.shrunk(dose), start
        return eqx.tree_at(lambda entropy: (entropy.reduction, entropy.start), self, parts)

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return self.reduction.start.size

    @property
    def dtype(self) -> jnp.dtype:
        """Of θ."""
        return self.reduction.start.dtype

    @property
    def is_mobile(self) -> Bool[Array, " dim"]:
        """Where θ_k is not frozen."""
        return ~self.reduction.is_frozen

    def range(self) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """The ends (low, high) of the open interval over which each ∇Q(θ)_k ranges, shape (dim,).

        Infinite at depth 2 and towards the end 0 of a half-line; bounded otherwise.

        >>> low, high = ddln.Entropy([[0.0], [2.0], [2.0]]).range()  # arctan(w/2)/2
        >>> round(float(high[0]), 6), round(float(low[0]), 6)
        (0.785398, -0.785398)
        """
        return _range(self.reduction)

    def _repr_html_(self) -> str | None:
        return display.html(self)

    # Each of the functions below is one compiled program, whoever calls them.

    @eqx.filter_jit
    def _is_outside(self, theta: Float[Array, " dim"], interior: bool) -> Bool[Array, " dim"]:
        """Where θ is outside Q's domain, or outside its interior."""
        has_other_sign = theta * self.reduction.half_line_sign < 0
        at_end = self._at_end(theta) & ~self.reduction.is_frozen
        return has_other_sign | (at_end & interior) | (self.reduction.is_frozen & (theta != 0))

    @eqx.filter_jit
    def at_dual(self, xi: Float[Array, " dim"]) -> DualPoint:
        v, step, in_range = _inverse_mirror_map.coordinate_and_step_of_dual(xi, self.reduction)
        point = self.reduction.at(v)
        return DualPoint(
            theta=point.theta,
            mobility=point.mobility,
            conjugate=_coordinate_maps.conjugate(v, step, self.reduction),
            rate=point.remaining_product,
            in_range=in_range,
        )

    @eqx.filter_jit
    def parameters(self, xi: Float[Array, " dim"]) -> Float[Array, "depth dim"]:
        return self.reduction.layers(_inverse_mirror_map.coordinate_of_dual(xi, self.reduction)[0])

    def theta(self, w: Float[Array, "depth dim"]) -> Float[Array, " dim"]:
        return effective_parameter(w)

    def mobility(self, w: Float[Array, "depth dim"]) -> Float[Array, " dim"]:
        return mobility(w)

    def mobility_and_slope(
        self, w: Float[Array, "depth dim"]
    ) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        # Along the flow the squares of all layers grow at the same rate, 2θ dξ/dt.
        metric, growth = mobility_and_slope(w**2)
        return metric, 2 * growth * effective_parameter(w)

    def has_hessian(self, theta: Float[Array, " dim"]) -> Bool[Array, " dim"]:
        # Not where frozen, nor where a half-line has been followed down to 0: ∇²Q overflows.
        above_zero = ~(jnp.abs(theta) <= jnp.finfo(theta.dtype).tiny ** 0.25)
        return self.is_mobile & (self.reduction.is_open | above_zero)

    def _at_end(self, theta: Float[Array, " dim"]) -> Bool[Array, " dim"]:
        """Where M = 0: at the end of a half-line, where v is infinite, or frozen."""
        return ~self.reduction.is_open & (theta == 0)

    def _since_start(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """θ − θ(0)."""
        rounded, error = self.start
        # Without the barrier XLA folds both constants into one, and the error is lost.
        return jax.lax.optimization_barrier(theta - rounded) - error

    # For each coordinate of a θ in Q's domain:

    @eqx.filter_jit
    def _values(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self._divergences_from(theta, self._since_start(theta), self.reduction.start)

    @eqx.filter_jit
    def _duals(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        change, base = self._since_start(theta), self.reduction.start
        step = _coordinate_maps.step_to_theta(theta, change, base, self.reduction)
        return _coordinate_maps.dual_change(step, base, self.reduction)

    @eqx.filter_jit
    def _curvatures(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        at_end = self._at_end(theta)
        interior = jnp.where(at_end, self.start[0], theta)
        v = _coordinate_maps.coordinate_of_theta(interior, self.reduction)
        return 1 / jnp.where(at_end, 0.0, self.reduction.mobility(v))

    @eqx.filter_jit
    def _divergences(
        self, theta: Float[Array, " dim"], other: Float[Array, " dim"]
    ) -> Float[Array, " dim"]:
        base = _coordinate_maps.coordinate_of_theta(other, self.reduction)
        return self._divergences_from(theta, theta - other, base)

    def _divergences_from(
        self,
        theta: Float[Array, " dim"],
        change: Float[Array, " dim"],
        base: Float[Array, " dim"],
    ) -> Float[Array, " dim"]:
        # At the end of a half-line θ (ξ − ξ') vanishes although ξ is infinite: ½ w'² remains.
        at_end = self._at_end(theta)
        theta, change = jnp.where(at_end, self.start[0], theta), jnp.where(at_end, 0.0, change)
        step = _coordinate_maps.step_to_theta(theta, change, base, self.reduction)
        interior = _coordinate_maps.divergence(theta, change, step, base, self.reduction)
        return jnp.where(at_end, self.reduction.smallest(base) ** 2 / 2, interior)


_range = eqx.filter_jit(_coordinate_maps.dual_range)


def as_entropy(layers: ArrayLike | SeparableEntropy, dim: int) -> SeparableEntropy:
    """The entropy of layers of shape (depth, dim), or the entropy of `dim` coordinates given.

    >>> as_entropy(ddln.Entropy([[0.0], [1.0]]), 2)
    Traceback (most recent call last):
    ...
    ValueError: `layers` must have 2 coordinates, got an entropy of 1.
    """
    if not isinstance(layers, SeparableEntropy):
        return Entropy(as_layers(layers, dim))
    if layers.dim != dim:
        raise ValueError(f"`layers` must have {dim} coordinates, got an entropy of {layers.dim}.")
    return layers


@jax.jit
def coordinatewise(
    layers: Float[Array, "depth dim"], theta: Float[Array, "dim points"]
) -> tuple[Float[Array, "dim points"], Float[Array, "dim points"], Float[Array, "dim points"]]:
    """q_k and its first two derivatives at many θ_k, where Q(θ) = Σ_k q_k(θ_k), for plots.

    Args:
        layers: the initial layers, shape (depth, dim).
        theta: the values of each θ_k, increasing, shape (dim, points).

    Returns:
        q_k, q_k' and q_k'', shape (dim, points) each; NaN where q_k is not defined.

    >>> q, slope, curvature = coordinatewise(jnp.array([[0.0], [2.0]]), jnp.array([[0.0, 1.5]]))
    >>> round(float(slope[0, 1]), 6), float(curvature[0, 0])  # ½ asinh(2θ/λ), λ = 4
    (0.346574, 0.25)
    """
    (depth, dim), points = layers.shape, theta.shape[1]
    entropy = Entropy(jnp.broadcast_to(layers[..., None], (depth, dim, points)).reshape(depth, -1))
    theta = entropy._checked(theta.ravel())
    interior = jnp.where(entropy._at_end(theta), jnp.nan, theta)
    curves = entropy._values(theta), entropy._duals(interior), entropy._curvatures(theta)
    value, slope, curvature = (curve.reshape(dim, points) for curve in curves)
    return value, slope, curvature
