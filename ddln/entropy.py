"""The entropy Q whose mirror flow gradient flow on the layers is, at any depth and initialisation.

With the position v of `ddln.network` (dw/dv = g, θ = w·g·R), anchored at the initial layers,

    ∇Q(θ) = ξ = ∫_{v(0)}^{v} dτ / R(τ),        Q(θ) = θ·ξ − (w² − w(0)²)/2,
    ∇²Q(θ) = 1/M,                              Q*(ξ) = (w² − w(0)²)/2,

so ∇Q(θ(0)) = 0, Q(θ(0)) = 0, and along the flow d/dt ∇Q(θ) = −∇ℒ(θ). At depth 2, R = 1: the
hyperbolic entropy, or x log x on a half-line. From depth 3 on the range of ∇Q is bounded where R
grows fast enough for the integral to converge.

The integral is Gauss–Legendre on pieces. 1/R is analytic in the strip |Im τ| < π/2 and decays at
the rate κ = R'/R, so pieces no longer than 2 over which it falls by less than e⁵ or so are
integrated to rounding by 16 nodes. It is never differentiated: its derivative is 1/R.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._checks import ArrayLike, as_layers, as_vector, refuse
from ddln.network import Reduction

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_LONGEST, _FALL = 2.0, 4.0
_MOST_NEWTON_STEPS = 60


class Entropy(eqx.Module):
    """Q of a network, as a function of θ, anchored at the network's initialisation.

    Q lives on the line, or on a closed half-line, at whose end 0 it is finite with ∇Q infinite. A
    frozen coordinate has no entropy of its own: there Q is 0 at 0 and not defined elsewhere.

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

    def __init__(self, layers: ArrayLike):
        self.reduction = Reduction(as_layers(layers))

    def value(self, theta: ArrayLike) -> Float[Array, ""]:
        """Q(θ), summed over the coordinates; Q(θ(0)) = 0.

        Args:
            theta: shape (dim,).

        Raises:
            ValueError: θ is outside Q's domain (under a transformation: NaN).

        >>> float(ddln.Entropy([[0.5, -0.3], [2.0, 1.0]]).value([1.0, -0.3]))
        0.0
        """
        theta, v = self._positions(theta)
        return jnp.sum(theta * _dual(v, self.reduction) - self._half_square(v, theta))

    def mirror_map(self, theta: ArrayLike) -> Float[Array, " dim"]:
        """∇Q(θ), shape (dim,). Raises as `value` does, and at the end 0 of a half-line.

        >>> float(ddln.Entropy([[0.5], [2.0]]).mirror_map([1.0])[0])
        0.0
        """
        return _dual(self._positions(theta, inside=True)[1], self.reduction)

    def inverse(self, xi: ArrayLike) -> Float[Array, " dim"]:
        """θ with ∇Q(θ) = ξ, that is ∇Q*(ξ), shape (dim,).

        Raises:
            ValueError: ξ is outside the range of ∇Q (under a transformation: NaN).

        >>> entropy = ddln.Entropy([[0.0], [2.0], [1.0]])
        >>> bool(jnp.allclose(entropy.inverse(entropy.mirror_map([0.7])), 0.7))
        True
        """
        return self.reduction.theta(self._position_of_dual(xi))

    def conjugate(self, xi: ArrayLike) -> Float[Array, ""]:
        """Q*(ξ), summed over the coordinates. Raises as `inverse` does.

        >>> float(ddln.Entropy([[0.0], [2.0], [1.0]]).conjugate([0.0]))
        0.0
        """
        return jnp.sum(self._half_square(self._position_of_dual(xi)))

    def hessian(self, theta: ArrayLike) -> Float[Array, " dim"]:
        """The diagonal of ∇²Q(θ), which is 1/M, shape (dim,).

        Infinite where frozen, and at the end θ_k = 0 of a half-line.

        >>> float(ddln.Entropy([[0.0], [2.0], [1.0]]).hessian([0.0])[0])
        0.25
        """
        theta, v = self._positions(theta)
        return 1 / jnp.where(self._at_end(theta), 0.0, self.reduction.mobility(v))

    def divergence(self, theta: ArrayLike, other: ArrayLike) -> Float[Array, ""]:
        """D_Q(θ, θ') = Q(θ) − Q(θ') − ⟨∇Q(θ'), θ − θ'⟩ ≥ 0. Raises as `value` and `mirror_map` do.

        >>> entropy = ddln.Entropy([[0.0], [2.0], [1.0]])
        >>> float(entropy.divergence([0.7], [0.7]))
        0.0
        """
        (theta, v), (other, v_other) = self._positions(theta), self._positions(other, inside=True)
        dual, dual_other = _dual(v, self.reduction), _dual(v_other, self.reduction)
        # θξ − ½w² − (θ'ξ' − ½w'²) − ξ'(θ − θ') with the base point gone.
        half_squares = self._half_square(v, theta) - self._half_square(v_other, other)
        return jnp.sum(theta * (dual - dual_other) - half_squares)

    def _half_square(self, v, theta=None):
        w, start = self.reduction.smallest(v), self.reduction.smallest(self.reduction.start)
        if theta is not None:
            w = jnp.where(self._at_end(theta), 0.0, w)
        return (w - start) * (w + start) / 2

    def _at_end(self, theta):
        """Where M = 0: at the end of a half-line, or frozen."""
        return ~self.reduction.is_open & (theta == 0)

    def _positions(self, theta, inside: bool = False):
        """θ and its positions v, those of θ(0) at the end of a half-line, where v is infinite."""
        theta = as_vector("theta", theta, self.reduction.start.size)
        beyond = theta * self.reduction.side < 0
        at_end = self._at_end(theta) & ~self.reduction.is_frozen
        outside = beyond | (at_end & inside) | (self.reduction.is_frozen & (theta != 0))
        theta = refuse(
            outside,
            "`theta` must keep the sign of the initial θ_k where the smallest layer is tied "
            "(and be 0 where it is tied and zero): Q is not defined elsewhere.",
            theta,
        )
        inner = jnp.where(at_end, self.reduction.theta(self.reduction.start), theta)
        return theta, position_of_theta(inner, self.reduction)

    def _position_of_dual(self, xi):
        xi = as_vector("xi", xi, self.reduction.start.size)
        v, inside = position_of_dual(xi, self.reduction)
        return refuse(
            ~inside,
            "`xi` must lie in the range of ∇Q, which is bounded from depth 3 on: "
            "some coordinate has no θ with ∇Q(θ) = ξ.",
            v,
        )


# One coordinate at a time: w, θ, ξ and v are increasing functions of each other with known
# derivatives, which the rules below give. *Outward* is the direction in which |w| grows.


def _outward(v, reduction):
    """Outward coordinate: w(v)² is an increasing function of it, even in v where open."""
    return jnp.where(reduction.is_open, jnp.abs(v), reduction.side * v)


def _from_outward(x, reduction):
    return jnp.where(reduction.is_open, x, reduction.side * x)


def _density(x, reduction):
    """1/R at outward coordinate x."""
    return 1 / reduction.rest(_from_outward(x, reduction))


def _decay(x, reduction):
    """κ = R'/R = Σ_j w·g/(w² + λ_j) ≥ 0 at outward coordinate x; it increases with x."""
    v = _from_outward(x, reduction)
    w, g = jnp.abs(reduction.smallest(v)), reduction.partner(v)
    squares = w[None] ** 2 + reduction.gaps
    return jnp.sum((w * g)[None] / jnp.where(squares > 0, squares, 1.0), axis=0)


def _piece(x, reduction):
    """Length of a piece of quadrature that starts at outward coordinate x."""
    spread, decay = reduction.gaps.shape[0] ** 0.5, _decay(x, reduction)
    length = jnp.minimum(_LONGEST, _FALL / (decay + spread))
    # Far down a half-line κ grows like e^{2x} at most: while it is below rounding, R is constant.
    constant = jnp.log(jnp.finfo(x.dtype).eps / jnp.maximum(decay, jnp.finfo(x.dtype).tiny)) / 2
    return jnp.where(reduction.is_open, length, jnp.maximum(length, constant))


def _gauss(low, high, reduction):
    """∫ dx / R over one piece [low, high] of outward coordinates."""
    nodes = jnp.asarray(_NODES, low.dtype)[:, None]
    weights = jnp.asarray(_WEIGHTS, low.dtype)[:, None]
    middle, half = (low + high) / 2, (high - low) / 2
    points = middle[None] + half[None] * nodes
    return half * jnp.sum(weights * jax.vmap(_density, (0, None))(points, reduction), axis=0)


def _integral(low, high, reduction):
    """∫ dx / R from low to high, outwards, until the rest no longer counts."""
    precision = jnp.finfo(low.dtype).eps / 8

    def unfinished(state):
        return jnp.any(state[2])

    def add_piece(state):
        x, total, active = state
        end = jnp.minimum(high, x + _piece(x, reduction))
        part = jnp.where(active, _gauss(x, end, reduction), 0.0)
        total = total + part
        return end, total, active & (end < high) & (part > precision * total)

    return jax.lax.while_loop(unfinished, add_piece, (low, jnp.zeros_like(low), high > low))[1]


def _refuse_layer_derivative(tangent):
    if jax.tree.leaves(tangent):
        raise ValueError(
            "An entropy can be differentiated with respect to θ or ξ, not to its initial layers: "
            "wrap the layers in `jax.lax.stop_gradient`."
        )


@eqx.filter_custom_jvp
@eqx.filter_jit
def _dual(v, reduction):
    """ξ(v) = ∫_{v(0)}^{v} dτ / R(τ)."""
    if reduction.gaps.shape[0] == 0:
        return v - reduction.start
    # On either side of the peak of 1/R by itself, outwards: large integrals are never subtracted.
    across = reduction.is_open & (v * reduction.start < 0)
    here, base = _outward(v, reduction), _outward(reduction.start, reduction)
    low, high = jnp.minimum(here, base), jnp.maximum(here, base)
    lows = jnp.stack([jnp.where(across, 0.0, low), jnp.zeros_like(low)])
    highs = jnp.stack([high, jnp.where(across, low, 0.0)])
    parts = jax.vmap(_integral, (0, 0, None))(lows, highs, reduction)
    return jnp.sign(v - reduction.start) * jnp.sum(parts, axis=0)


@_dual.def_jvp
def _dual_jvp(primals, tangents):
    (v, reduction), (v_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    return _dual(v, reduction), v_dot / reduction.rest(v)


@eqx.filter_custom_jvp
@eqx.filter_jit
def position_of_dual(xi, reduction):
    """v with ξ(v) = ξ, and whether there is one.

    Where there is none, v is where ∇Q reaches the end of its range to rounding.
    """
    if reduction.gaps.shape[0] == 0:
        moved = jnp.where(reduction.is_frozen, 0.0, xi)
        return reduction.start + moved, jnp.full(xi.shape, True)
    direction = jnp.where(xi < 0, -1.0, 1.0).astype(xi.dtype)

    def faces_outward(v):
        return jnp.where(reduction.is_open, v * direction >= 0, reduction.side == direction)

    def length(v):
        to_peak = jnp.where(faces_outward(v) | ~reduction.is_open, jnp.inf, jnp.abs(v))
        return jnp.minimum(_piece(_outward(v, reduction), reduction), to_peak)

    def between(v, distance):
        """∫ dτ / R over [v, v + direction · distance], on one side of the peak."""
        x, y = _outward(v, reduction), _outward(v + direction * distance, reduction)
        return _gauss(jnp.minimum(x, y), jnp.maximum(x, y), reduction)

    def unfinished(state):
        return jnp.any(state[2])

    def next_piece(state):
        v, missing, active, inside = state
        step = length(v)
        part = between(v, step)
        # 1/R is log-concave, so beyond v there is at most (1/R)/κ of it left.
        x = _outward(v, reduction)
        decay = _decay(x, reduction)
        out_of_reach = faces_outward(v) & (missing * decay > _density(x, reduction))
        passes = active & ~out_of_reach & (part < missing)
        v = jnp.where(passes, v + direction * step, v)
        missing = jnp.where(passes, missing - part, missing)
        return v, missing, passes, inside & ~(active & out_of_reach)

    v, missing, _, inside = jax.lax.while_loop(
        unfinished,
        next_piece,
        (reduction.start, jnp.abs(xi), ~reduction.is_frozen, jnp.full(xi.shape, True)),
    )

    # The integral over the last piece is concave in its length when it leads outwards and convex
    # when it leads inwards: Newton from the near, or the far, end is monotone.
    precision = 16 * jnp.finfo(xi.dtype).eps

    def newton(state):
        distance, _, count = state
        density = _density(_outward(v + direction * distance, reduction), reduction)
        change = (missing - between(v, distance)) / density
        active = inside & ~reduction.is_frozen & (jnp.abs(change) > precision * distance)
        return distance + jnp.where(active, change, 0.0), active, count + 1

    near = jnp.where(faces_outward(v), 0.0, length(v))
    distance, _, _ = jax.lax.while_loop(
        lambda state: jnp.any(state[1]) & (state[2] < _MOST_NEWTON_STEPS),
        newton,
        (near, jnp.full(xi.shape, True), 0),
    )
    end_of_range = -jnp.log(jnp.finfo(xi.dtype).eps) / reduction.gaps.shape[0]
    v = v + direction * jnp.where(inside, distance, end_of_range)
    return jnp.where(reduction.is_frozen, reduction.start, v), inside


@position_of_dual.def_jvp
def _position_of_dual_jvp(primals, tangents):
    (xi, reduction), (xi_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    v, inside = position_of_dual(xi, reduction)
    return (v, inside), (xi_dot * reduction.rest(v), None)


@eqx.filter_custom_jvp
@eqx.filter_jit
def position_of_theta(theta, reduction):
    """v with θ(v) = θ.

    log|θ| is a convex function of log|w| with slopes between 1 and depth. Replacing each
    √(w² + λ_j) by max(w, √λ_j) bounds it from below by a maximum of straight lines: where that
    reaches log|θ| Newton starts, to the right of the solution, and descends to it.
    """
    zero = (theta == 0) | reduction.is_frozen
    target = jnp.log(jnp.where(zero, 1.0, jnp.abs(theta)))
    imbalances = jnp.concatenate([reduction.radius[None] ** 2, reduction.gaps])
    depth = imbalances.shape[0] + 1
    floors = jnp.concatenate(
        [jnp.cumsum(jnp.log(imbalances)[::-1] / 2, axis=0)[::-1], jnp.zeros_like(target)[None]]
    )
    lines = (target[None] - floors) / jnp.arange(1, depth + 1, dtype=theta.dtype)[:, None]
    start = jnp.min(lines, axis=0)

    def descend(state):
        x, _, count = state
        squares = jnp.exp(2 * x)[None] + imbalances
        excess = x + jnp.sum(jnp.log(squares), axis=0) / 2 - target
        change = excess / (1 + jnp.sum(jnp.exp(2 * x)[None] / squares, axis=0))
        active = jnp.abs(change) > 1e3 * jnp.finfo(theta.dtype).eps * (1 + jnp.abs(x))
        return x - change, active & ~zero, count + 1

    x, _, _ = jax.lax.while_loop(
        lambda state: jnp.any(state[1]) & (state[2] < _MOST_NEWTON_STEPS),
        descend,
        (jnp.where(zero, 0.0, start), ~zero, 0),
    )
    # Logarithms know w to |log w| roundings: a last step in w itself.
    w = jnp.exp(x)
    squares = w[None] ** 2 + imbalances
    product = w * jnp.prod(jnp.sqrt(squares), axis=0)
    correction = (product / jnp.where(zero, 1.0, jnp.abs(theta)) - 1) / (
        1 + jnp.sum(w[None] ** 2 / squares, axis=0)
    )
    w = jnp.where(zero, 0.0, w * (1 - correction))
    scale = jnp.where(reduction.is_open, reduction.radius, 1.0)
    on_line = jnp.arcsinh(jnp.sign(theta) * w / scale)
    on_half_line = reduction.side * jnp.log(jnp.where(w > 0, w, 1.0))
    return jnp.where(reduction.is_open, on_line, on_half_line)


@position_of_theta.def_jvp
def _position_of_theta_jvp(primals, tangents):
    (theta, reduction), (theta_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    v = position_of_theta(theta, reduction)
    return v, theta_dot / reduction.slope(v)
