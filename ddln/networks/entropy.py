"""The entropy Q: gradient flow on the layers is its mirror flow, at any depth and initialisation.

With the reparametrised coordinate v of `Reduction` (dw/dv = g, θ = w·g·R), anchored at the initial
layers,

    ∇Q(θ) = ξ = ∫_{v(0)}^{v} dτ / R(τ),        Q(θ) = θ·ξ − (w² − w(0)²)/2,
    ∇²Q(θ) = 1/M,                              Q*(ξ) = (w² − w(0)²)/2,

so ∇Q(θ(0)) = 0 and Q(θ(0)) = 0, and along the flow d/dt ∇Q(θ) = −∇ℒ(θ). At depth 2, where R = 1, Q
is the hyperbolic entropy, or x log x on a half-line. From depth 3 on the integral converges as w
grows, and the range of ∇Q is bounded there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal import display
from ddln._internal.validation import ArrayLike, Number, as_floats, as_layers, as_vector, refuse
from ddln.networks import _coordinate_maps, _inverse_mirror_map
from ddln.networks.layers import product_and_error
from ddln.networks.reparametrisation import Reduction


class Entropy(eqx.Module):
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

    def value(self, theta: ArrayLike) -> Float[Array, ""]:
        """Q(θ), summed over the coordinates; Q(θ(0)) = 0.

        Args:
            theta: shape (dim,).

        Raises:
            ValueError: θ is outside Q's domain (under a transformation: NaN).

        >>> float(ddln.Entropy([[0.5, -0.3], [2.0, 1.0]]).value([1.0, -0.3]))
        0.0
        """
        return jnp.sum(self._values(self._checked(theta)))

    def mirror_map(self, theta: ArrayLike) -> Float[Array, " dim"]:
        """∇Q(θ), shape (dim,). Raises as `value` does, and at the end 0 of a half-line.

        >>> float(ddln.Entropy([[0.5], [2.0]]).mirror_map([1.0])[0])
        0.0
        """
        return self._duals(self._checked(theta, interior=True))

    def inverse(self, xi: ArrayLike) -> Float[Array, " dim"]:
        """θ with ∇Q(θ) = ξ, that is ∇Q*(ξ), shape (dim,).

        Raises:
            ValueError: ξ is outside the range of ∇Q (under a transformation: NaN).

        >>> entropy = ddln.Entropy([[0.0], [2.0], [1.0]])
        >>> bool(jnp.allclose(entropy.inverse(entropy.mirror_map([0.7])), 0.7))
        True
        """
        v, _ = self._coordinate_and_step_of_dual(xi)
        return self._theta(v)

    def range(self) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """The ends (low, high) of the open interval over which each ∇Q(θ)_k ranges, shape (dim,).

        Infinite at depth 2 and towards the end 0 of a half-line; bounded otherwise.

        >>> low, high = ddln.Entropy([[0.0], [2.0], [2.0]]).range()  # arctan(w/2)/2
        >>> round(float(high[0]), 6), round(float(low[0]), 6)
        (0.785398, -0.785398)
        """
        return _range(self.reduction)

    def in_range(self, xi: ArrayLike) -> Bool[Array, " dim"]:
        """Whether each ξ_k is in the range of ∇Q, shape (dim,): the status of `inverse` in a batch.

        >>> ddln.Entropy([[0.0], [2.0], [2.0]]).in_range([0.8]).tolist()
        [False]
        """
        xi = as_vector("xi", xi, self.reduction.start.size)
        return _inverse_mirror_map.coordinate_of_dual(xi, self.reduction)[1]

    def conjugate(self, xi: ArrayLike) -> Float[Array, ""]:
        """Q*(ξ), summed over the coordinates. Raises as `inverse` does.

        >>> float(ddln.Entropy([[0.0], [2.0], [1.0]]).conjugate([0.0]))
        0.0
        """
        v, step = self._coordinate_and_step_of_dual(xi)
        return jnp.sum(_coordinate_maps.conjugate(v, step, self.reduction))

    def hessian(self, theta: ArrayLike) -> Float[Array, " dim"]:
        """The diagonal of ∇²Q(θ), which is 1/M, shape (dim,).

        Infinite where frozen, and at the end θ_k = 0 of a half-line.

        >>> float(ddln.Entropy([[0.0], [2.0], [1.0]]).hessian([0.0])[0])
        0.25
        """
        return self._curvatures(self._checked(theta))

    def divergence(self, theta: ArrayLike, other: ArrayLike) -> Float[Array, ""]:
        """D_Q(θ, θ') = Q(θ) − Q(θ') − ⟨∇Q(θ'), θ − θ'⟩ ≥ 0. Raises as `value` and `mirror_map` do.

        >>> entropy = ddln.Entropy([[0.0], [2.0], [1.0]])
        >>> float(entropy.divergence([0.7], [0.7]))
        0.0
        """
        theta, other = self._checked(theta), self._checked(other, interior=True)
        base = _coordinate_maps.coordinate_of_theta(other, self.reduction)
        return jnp.sum(self._divergences(theta, theta - other, base))

    def _repr_html_(self) -> str | None:
        return display.html(self)

    def _checked(self, theta: ArrayLike, *, interior: bool = False) -> Float[Array, " dim"]:
        """θ as an array; an error outside Q's domain, or outside its interior."""
        theta = as_vector("theta", theta, self.reduction.start.size)
        return refuse(
            self._is_outside(theta, interior),
            "`theta` must keep the sign of the initial θ_k where the smallest layer is tied "
            "(and be 0 where it is tied and zero): Q is not defined elsewhere.",
            theta,
        )

    # Each of the functions below is one compiled program, whoever calls them.

    @eqx.filter_jit
    def _is_outside(self, theta: Float[Array, " dim"], interior: bool) -> Bool[Array, " dim"]:
        """Where θ is outside Q's domain, or outside its interior."""
        has_other_sign = theta * self.reduction.half_line_sign < 0
        at_end = self._at_end(theta) & ~self.reduction.is_frozen
        return has_other_sign | (at_end & interior) | (self.reduction.is_frozen & (theta != 0))

    @eqx.filter_jit
    def _theta(self, v: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.reduction.theta(v)

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
        return self._divergences(theta, self._since_start(theta), self.reduction.start)

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

    def _coordinate_and_step_of_dual(
        self, xi: ArrayLike
    ) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """v(ξ) and v(ξ) − v(0); an error outside the range of ∇Q."""
        xi = as_vector("xi", xi, self.reduction.start.size)
        v, step, in_range = _inverse_mirror_map.coordinate_and_step_of_dual(xi, self.reduction)
        message = (
            "`xi` must lie in the range of ∇Q, which is bounded from depth 3 on: "
            "some coordinate has no θ with ∇Q(θ) = ξ."
        )
        return refuse(~in_range, message, v), step


_range = eqx.filter_jit(_coordinate_maps.dual_range)


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
