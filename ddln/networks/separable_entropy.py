"""The entropy Q of a flow that acts on each coordinate by itself, whatever its parametrisation.

Let θ_k = G(w_k) with parameters w_k ∈ R^m. Gradient flow on w moves each w_k along one curve,

    dw/ds = ∇G(w),        dθ/ds = |∇G(w)|² = M > 0,        s = −∫ ∂ℒ/∂θ_k dt,

so that it is mirror flow on θ with the entropy Q(θ) = Σ_k q_k(θ_k) of

    ∇Q(θ) = ξ = s,        ∇²Q(θ) = 1/M,        Q*(ξ) = ∫₀^ξ θ(s) ds,        Q(θ) = θ ξ − Q*(ξ).

`SeparableEntropy` holds what all such entropies share. `Entropy` is that of products of layers,
`Parametrisation` that of any analytic G.
"""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import ArrayLike, as_vector, refuse


class DualPoint(NamedTuple):
    """Values at a dual point ξ, per coordinate; for ξ outside the range of ∇Q, those at its end."""

    theta: Float[Array, " dim"]
    """θ with ∇Q(θ) = ξ."""
    mobility: Float[Array, " dim"]
    """M = dθ/dξ."""
    conjugate: Float[Array, " dim"]
    """q_k*(ξ_k)."""
    rate: Float[Array, " dim"]
    """About |d log M/dξ|/2: a step of ξ by much less than 1/rate changes M little."""
    in_range: Bool[Array, " dim"]
    """Whether ξ is in the range of ∇Q."""


class SeparableEntropy(eqx.Module):
    """Q(θ) = Σ_k q_k(θ_k), anchored at a start: ∇Q(θ(0)) = 0 and Q(θ(0)) = 0.

    Source: as derived in docs/theory.md.
    """

    domain: ClassVar[str]
    """What θ must satisfy for Q to be defined, in the words of an error."""
    dual_domain: ClassVar[str]
    """What ξ must satisfy to have a θ, in the words of an error."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """The number of coordinates."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """Of θ."""

    @property
    def is_mobile(self) -> Bool[Array, " dim"]:
        """Where θ_k can move at all."""
        return jnp.ones(self.dim, bool)

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
        """∇Q(θ), shape (dim,). Raises as `value` does, and where θ_k is at the end of its domain.

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
        point = self._at_checked_dual(xi)
        return self._in_range_only(point, point.theta)

    def conjugate(self, xi: ArrayLike) -> Float[Array, ""]:
        """Q*(ξ), summed over the coordinates. Raises as `inverse` does.

        >>> float(ddln.Entropy([[0.0], [2.0], [1.0]]).conjugate([0.0]))
        0.0
        """
        point = self._at_checked_dual(xi)
        return jnp.sum(self._in_range_only(point, point.conjugate))

    def in_range(self, xi: ArrayLike) -> Bool[Array, " dim"]:
        """Whether each ξ_k is in the range of ∇Q, shape (dim,): the status of `inverse` in a batch.

        >>> ddln.Entropy([[0.0], [2.0], [2.0]]).in_range([0.8]).tolist()
        [False]
        """
        return self._at_checked_dual(xi).in_range

    def hessian(self, theta: ArrayLike) -> Float[Array, " dim"]:
        """The diagonal of ∇²Q(θ), which is 1/M, shape (dim,).

        Infinite where frozen, and where θ_k is at the end of its domain.

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
        return jnp.sum(self._divergences(self._checked(theta), self._checked(other, interior=True)))

    @abc.abstractmethod
    def range(self) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """The ends (low, high) of the open interval over which each ∇Q(θ)_k ranges, shape (dim,).

        >>> low, high = ddln.Entropy([[0.0], [2.0], [2.0]]).range()  # arctan(w/2)/2
        >>> round(float(high[0]), 6), round(float(low[0]), 6)
        (0.785398, -0.785398)
        """

    @abc.abstractmethod
    def at_dual(self, xi: Float[Array, " dim"]) -> DualPoint:
        """θ, M and Q* at ξ, and whether ξ is in the range of ∇Q; raises no error.

        >>> point = ddln.Entropy([[0.0], [2.0]]).at_dual(jnp.zeros(1))
        >>> float(point.theta[0]), float(point.mobility[0]), bool(point.in_range[0])
        (0.0, 4.0, True)
        """

    @abc.abstractmethod
    def parameters(self, xi: Float[Array, " dim"]) -> Float[Array, "parameters dim"]:
        """The parameters w at ξ, such as the layers of a network; raises no error.

        >>> ddln.Entropy([[0.0], [2.0]]).parameters(jnp.zeros(1)).tolist()
        [[0.0], [2.0]]
        """

    @abc.abstractmethod
    def theta(self, w: Float[Array, "parameters dim"]) -> Float[Array, " dim"]:
        """θ = G(w) of any parameters w.

        >>> ddln.Entropy([[0.0], [2.0]]).theta(jnp.array([[3.0], [2.0]])).tolist()
        [6.0]
        """

    @abc.abstractmethod
    def mobility(self, w: Float[Array, "parameters dim"]) -> Float[Array, " dim"]:
        """M = |∇G(w)|² of any parameters w.

        >>> ddln.Entropy([[0.0], [2.0]]).mobility(jnp.array([[3.0], [2.0]])).tolist()
        [13.0]
        """

    @abc.abstractmethod
    def mobility_and_slope(
        self, w: Float[Array, "parameters dim"]
    ) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """M, and dM/dξ along the curve through any parameters w.

        >>> layers = jnp.array([[3.0], [2.0]])
        >>> mobility, slope = ddln.Entropy([[0.0], [2.0]]).mobility_and_slope(layers)
        >>> mobility.tolist(), slope.tolist()  # w₀² + w₁², 4 w₀ w₁
        ([13.0], [24.0])
        """

    @abc.abstractmethod
    def has_hessian(self, theta: Float[Array, " dim"]) -> Bool[Array, " dim"]:
        """Where ∇²Q is finite and, with its derivatives, representable.

        >>> ddln.Entropy([[0.0], [2.0]]).has_hessian(jnp.zeros(1)).tolist()
        [True]
        """

    @abc.abstractmethod
    def _is_outside(self, theta: Float[Array, " dim"], interior: bool) -> Bool[Array, " dim"]:
        """Where θ is outside Q's domain, or outside its interior."""

    # For each coordinate of a θ in Q's domain:

    @abc.abstractmethod
    def _values(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """q_k(θ_k)."""

    @abc.abstractmethod
    def _duals(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """q_k'(θ_k)."""

    @abc.abstractmethod
    def _curvatures(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """q_k''(θ_k)."""

    @abc.abstractmethod
    def _divergences(
        self, theta: Float[Array, " dim"], other: Float[Array, " dim"]
    ) -> Float[Array, " dim"]:
        """q_k(θ_k) − q_k(θ'_k) − q_k'(θ'_k) (θ_k − θ'_k)."""

    def _checked(self, theta: ArrayLike, *, interior: bool = False) -> Float[Array, " dim"]:
        """θ as an array; an error outside Q's domain, or outside its interior."""
        theta = as_vector("theta", theta, self.dim)
        message = f"`theta` must {self.domain}: Q is not defined elsewhere."
        return refuse(self._is_outside(theta, interior), message, theta)

    def _at_checked_dual(self, xi: ArrayLike) -> DualPoint:
        return self.at_dual(as_vector("xi", xi, self.dim))

    def _in_range_only(
        self, point: DualPoint, values: Float[Array, " dim"]
    ) -> Float[Array, " dim"]:
        """The values; an error outside the range of ∇Q."""
        message = (
            f"`xi` must lie in the range of ∇Q, {self.dual_domain}: some coordinate has no θ with "
            "∇Q(θ) = ξ."
        )
        return refuse(~point.in_range, message, values)
