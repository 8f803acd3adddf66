"""Any coordinatewise parametrisation θ_k = G(w_k), and the entropy of its gradient flow.

The entropy comes from the curve dw/ds = ∇G(w) through the start (`separable_entropy`), which is
tabulated once, when the object is made (`_gradient_curve`). Derivatives are the known ones,

    dw/dξ = ∇G(w),        dξ/dθ = 1/M,        dQ*/dξ = θ,        dQ/dθ = ξ,

never those of the table.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddln._internal.validation import ArrayLike, as_floats, is_concrete, refuse
from ddln.networks import _gradient_curve
from ddln.networks._elementwise import Tangent, or_zero
from ddln.networks._gradient_curve import GradientCurve
from ddln.networks._quadrature import Vector
from ddln.networks.layers import Function, theta_of
from ddln.networks.separable_entropy import DualPoint, SeparableEntropy


class Parametrisation(SeparableEntropy):
    """θ_k = G(w_k) for any analytic G: R^m → R, and the entropy of gradient flow on w.

    It takes the place of the layers in `ddln.gradient_flow`, `ddln.mirror_flow`, `ddln.descend`,
    `ddln.limit_point` and `theory.divergence_bound`, and that of the entropy in
    `ddln.mirror_descent`; `ddln.certify` checks the runs.

    θ, ∇Q, its inverse and Q* are exact to 1e-12, relative to the condition number; so is Q, and
    D_Q(θ, θ') to 1e-12 of Q(θ) + Q(θ'). The table holds 64 pieces of the curve in either direction,
    over each of which G changes by a factor of at most about e². A ξ beyond them is not in range.
    Where the pieces have shrunk to the end of the range of ∇Q, `range` gives that end; it is
    infinite otherwise. The table takes 50 kB for each coordinate at m = 2.

    Args:
        function: G, a JAX function from shape (m,) to shape (). Pass the same function object
            again rather than an equal one: each compiles its own programs.
        start: w(0), shape (m, dim).

    Raises:
        ValueError: G does not return a number; or G or ∇G is not finite at some w_k(0), or
            ∇G(w_k(0)) = 0, so that θ_k never moves (traced: NaN).

    Source: as derived in docs/theory.md; Li, Wang, Lee and Arora 2022 for the class.

    >>> entropy = ddln.Parametrisation(lambda w: w[0] ** 2 / 4, [[2.0]])  # Q'' = 1/θ
    >>> round(float(entropy.mirror_map([3.0])[0]), 12)  # log θ: exponentiated gradient
    1.098612288668
    >>> problem = ddln.least_squares([[1.0]], [3.0])
    >>> run = ddln.gradient_flow(problem, entropy, [0.0, 1.0, 20.0])
    >>> round(float(run.theta[-1, 0]), 8)
    3.0
    """

    function: Function = eqx.field(static=True)
    start: Float[Array, "m dim"]
    curve: GradientCurve

    domain: ClassVar = "lie within the tabulated values of G along its gradient curve"
    dual_domain: ClassVar = "as far as it is tabulated"

    def __init__(self, function: Function, start: ArrayLike):
        start = as_floats("start", start, 2)
        if 0 in start.shape:
            raise ValueError(
                f"`start` must have shape (m, dim) with m, dim ≥ 1, got {start.shape}."
            )
        result = jax.eval_shape(function, start[:, 0])
        if getattr(result, "shape", None) != () or result.dtype != start.dtype:
            raise ValueError(
                f"`function` must return a number of type {start.dtype} for w of shape "
                f"({len(start)},), got {result}."
            )
        self.function = function
        self.start = _refuse_critical(function, start)
        self.curve = _tabulate(function, jax.lax.stop_gradient(self.start))

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return self.start.shape[1]

    @property
    def dtype(self) -> jnp.dtype:
        """Of θ."""
        return self.start.dtype

    def theta(self, w: Float[Array, "m dim"]) -> Float[Array, " dim"]:
        """θ = G(w), coordinate by coordinate.

        >>> entropy = ddln.Parametrisation(lambda w: w[0] * w[1], [[0.0], [2.0]])
        >>> entropy.theta(jnp.array([[3.0], [2.0]])).tolist()
        [6.0]
        """
        return theta_of(w, self.function)

    def mobility(self, w: Float[Array, "m dim"]) -> Float[Array, " dim"]:
        """M = |∇G(w)|², coordinate by coordinate.

        >>> entropy = ddln.Parametrisation(lambda w: w[0] * w[1], [[0.0], [2.0]])
        >>> entropy.mobility(jnp.array([[3.0], [2.0]])).tolist()
        [13.0]
        """
        return jax.vmap(lambda w: _gradient_curve.mobility(self.function, w), 1)(w)

    def mobility_and_slope(
        self, w: Float[Array, "m dim"]
    ) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """M, and dM/dξ along the curve dw/dξ = ∇G(w), coordinate by coordinate.

        >>> entropy = ddln.Parametrisation(lambda w: w[0] * w[1], [[0.0], [2.0]])
        >>> entropy.mobility_and_slope(jnp.array([[3.0], [2.0]]))[1].tolist()  # 4 w₀ w₁
        [24.0]
        """
        return jax.vmap(lambda w: _gradient_curve.mobility_and_slope(self.function, w), 1)(w)

    def range(self) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """The ends (low, high) of the interval over which each ∇Q(θ)_k ranges, shape (dim,).

        They are extrapolated from the lengths of the pieces.

        >>> low, high = ddln.Parametrisation(lambda w: w[0] ** 3, [[1.0]]).range()
        >>> round(float(high[0]), 12), float(low[0])  # θ = (1 − 3ξ)⁻³
        (0.333333333333, -inf)
        """
        return self.curve.ends[:, 0], self.curve.ends[:, 1]

    @eqx.filter_jit
    def at_dual(self, xi: Float[Array, " dim"]) -> DualPoint:
        w = self.parameters(xi)
        edges = self.curve.edges
        return DualPoint(
            theta=self.theta(w),
            mobility=self.mobility(w),
            conjugate=_conjugate(xi, self),
            rate=jax.vmap(lambda w: _gradient_curve.growth_rate(self.function, w), 1)(w),
            in_range=(xi > edges[:, 0]) & (xi < edges[:, -1]),
        )

    @eqx.filter_jit
    def parameters(self, xi: Float[Array, " dim"]) -> Float[Array, "m dim"]:
        return _parameters(xi, self)

    def has_hessian(self, theta: Float[Array, " dim"]) -> Bool[Array, " dim"]:
        return ~self._is_outside(theta, interior=True)

    @eqx.filter_jit
    def _is_outside(self, theta: Float[Array, " dim"], interior: bool) -> Bool[Array, " dim"]:
        return ~((theta > self.curve.theta[:, 0]) & (theta < self.curve.theta[:, -1]))

    @eqx.filter_jit
    def _values(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return _value(theta, self)

    @eqx.filter_jit
    def _duals(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return _dual(theta, self)

    @eqx.filter_jit
    def _curvatures(self, theta: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return 1 / self.mobility(self.parameters(_dual(theta, self)))

    @eqx.filter_jit
    def _divergences(
        self, theta: Float[Array, " dim"], other: Float[Array, " dim"]
    ) -> Float[Array, " dim"]:
        change = _value(theta, self) - _value(other, self)
        return change - _dual(other, self) * (theta - other)


@eqx.filter_jit
def _tabulate(function: Function, start: Float[Array, "m dim"]) -> GradientCurve:
    return jax.vmap(lambda w: _gradient_curve.tabulate(function, w), 1)(start)


@eqx.filter_jit
def _mobility_at(function: Function, start: Float[Array, "m dim"]) -> Float[Array, " dim"]:
    """M, NaN where G is not finite."""

    def of_one(w: Float[Array, " m"]) -> Float[Array, ""]:
        is_finite = jnp.isfinite(function(w))
        return jnp.where(is_finite, _gradient_curve.mobility(function, w), jnp.nan)

    return jax.vmap(of_one, 1)(start)


def _refuse_critical(function: Function, start: Float[Array, "m dim"]) -> Float[Array, "m dim"]:
    """The start; an error where G or ∇G is not finite, or ∇G is 0."""
    mobility = _mobility_at(function, start)
    wrong, message = ~((mobility > 0) & (mobility < jnp.inf)), ""
    if is_concrete(wrong) and np.asarray(wrong).any():
        k = int(np.argmax(np.asarray(wrong)))
        message = (
            f"`start` must have finite G(w_k) and ∇G(w_k) ≠ 0 for every k, got "
            f"{np.asarray(start)[:, k]} with |∇G|² = {float(mobility[k]):g} at index {k}: where "
            "∇G = 0, no gradient ever moves θ_k."
        )
    return refuse(wrong[None], message, start)


def _refuse_start_derivative(tangent: Any) -> None:
    if jax.tree.leaves(tangent):
        raise ValueError(
            "A parametrisation can be differentiated with respect to θ or ξ, not to its start: "
            "wrap the start in `jax.lax.stop_gradient`."
        )


@eqx.filter_custom_jvp
def _parameters(xi: Vector, entropy: Parametrisation) -> Float[Array, "m dim"]:
    """w at ξ."""
    return jax.vmap(_gradient_curve.point, out_axes=1)(entropy.curve, xi)


@_parameters.def_jvp
def _parameters_jvp(
    primals: tuple[Vector, Parametrisation], tangents: tuple[Tangent, Any]
) -> tuple[Float[Array, "m dim"], Float[Array, "m dim"]]:
    (xi, entropy), (xi_dot, entropy_dot) = primals, tangents
    _refuse_start_derivative(entropy_dot)
    w = _parameters(xi, entropy)
    slopes = jax.vmap(jax.grad(entropy.function), 1, 1)(w)
    return w, slopes * or_zero(xi_dot, xi)[None]


@eqx.filter_custom_jvp
def _dual(theta: Vector, entropy: Parametrisation) -> Vector:
    """ξ at θ."""
    of_one = jax.vmap(lambda curve, theta: _gradient_curve.dual(entropy.function, curve, theta))
    return of_one(entropy.curve, theta)


@_dual.def_jvp
def _dual_jvp(
    primals: tuple[Vector, Parametrisation], tangents: tuple[Tangent, Any]
) -> tuple[Vector, Vector]:
    (theta, entropy), (theta_dot, entropy_dot) = primals, tangents
    _refuse_start_derivative(entropy_dot)
    xi = _dual(theta, entropy)
    return xi, or_zero(theta_dot, theta) / entropy.mobility(_parameters(xi, entropy))


def _integrals(xi: Vector, entropy: Parametrisation) -> tuple[Vector, Vector]:
    """Q* and Q at ξ."""
    of_one = jax.vmap(lambda curve, xi: _gradient_curve.integrals(entropy.function, curve, xi))
    return of_one(entropy.curve, xi)


@eqx.filter_custom_jvp
def _conjugate(xi: Vector, entropy: Parametrisation) -> Vector:
    """Q*(ξ)."""
    return _integrals(xi, entropy)[0]


@_conjugate.def_jvp
def _conjugate_jvp(
    primals: tuple[Vector, Parametrisation], tangents: tuple[Tangent, Any]
) -> tuple[Vector, Vector]:
    (xi, entropy), (xi_dot, entropy_dot) = primals, tangents
    _refuse_start_derivative(entropy_dot)
    return _conjugate(xi, entropy), entropy.theta(_parameters(xi, entropy)) * or_zero(xi_dot, xi)


@eqx.filter_custom_jvp
def _value(theta: Vector, entropy: Parametrisation) -> Vector:
    """Q(θ)."""
    return _integrals(_dual(theta, entropy), entropy)[1]


@_value.def_jvp
def _value_jvp(
    primals: tuple[Vector, Parametrisation], tangents: tuple[Tangent, Any]
) -> tuple[Vector, Vector]:
    (theta, entropy), (theta_dot, entropy_dot) = primals, tangents
    _refuse_start_derivative(entropy_dot)
    return _value(theta, entropy), _dual(theta, entropy) * or_zero(theta_dot, theta)
