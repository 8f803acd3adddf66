"""One coordinate at a time: w, θ, ξ and v are increasing functions of each other.

Between θ(v) = w·g·R and ξ(v) = ∫_{v(0)}^{v} dτ / R(τ) the position v is what is computed with.
*Outward* is the direction in which |w| grows: w² is an increasing function of the outward
coordinate x = |v| on the line, ± v on a half-line.

The integral of 1/R is x itself at depth 2, Carlson's R_F at depths 3 and 4, and from there on
Gauss–Legendre on pieces. 1/R is analytic in the strip |Im τ| < π/2 and decays at the rate κ = R'/R,
so pieces no longer than 2 over which it falls by less than e⁵ or so are integrated to rounding by
16 nodes. None of this is ever differentiated: the derivatives are known, 1/R and 1/M.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddln.networks.layers import Reduction

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_LONGEST, _FALL = 2.0, 4.0
_MOST_NEWTON_STEPS = 60
_MOST_DUPLICATIONS = 60
_BLOCK = 256
"""Coordinates that wait for each other's last step."""


def _in_blocks(function, x, reduction):
    """function(x, reduction), a block of coordinates after another."""
    dim = x.shape[0]
    if dim <= 2 * _BLOCK:
        return function(x, reduction)

    count = -(-dim // _BLOCK)

    def split(array):
        rows = array.shape[:-1]
        last = jnp.broadcast_to(array[..., -1:], (*rows, count * _BLOCK - dim))
        blocks = jnp.concatenate([array, last], axis=-1).reshape(*rows, count, _BLOCK)
        return jnp.moveaxis(blocks, -2, 0)

    parts = jax.lax.map(lambda block: function(*block), jax.tree.map(split, (x, reduction)))
    return jax.tree.map(lambda part: part.reshape(-1)[:dim], parts)


def _outward(v, reduction):
    """Outward coordinate: w(v)² is an increasing function of it, even in v where open."""
    return jnp.where(reduction.is_open, jnp.abs(v), reduction.side * v)


def _from_outward(x, reduction):
    return jnp.where(reduction.is_open, x, reduction.side * x)


def _density(x, reduction):
    """1/R at outward coordinate x."""
    grown = jnp.exp(x)
    # Near x = 0 known to rounding against √λ_min, which is all that counts beside λ_j ≥ λ_min.
    w = jnp.where(reduction.is_open, reduction.radius * (grown - 1 / grown) / 2, grown)
    return 1 / jnp.prod(jnp.sqrt(w[None] ** 2 + reduction.gaps), axis=0)


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


def _quadrature(low, high, reduction):
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


def _carlson_rf(a, b, c):
    """R_F(a², b², c²) = ½ ∫₀^∞ dt / √((t+a²)(t+b²)(t+c²)) by duplication; at most one may be 0.

    From the roots, since the squares of small ones are nothing.

    Source: Carlson, Numerical computation of real or complex elliptic integrals (1995).
    """

    def duplicate(state):
        *roots, count = state
        a, b, c = roots
        mixed = a * (b + c) + b * c
        return *(jnp.sqrt(root**2 + mixed) / 2 for root in roots), count + 1

    def shares(state):
        squares = jnp.stack(state[:3]) ** 2
        return 1 - squares / jnp.mean(squares, axis=0)[None]

    # The series leaves out the sixth power of the shares.
    enough = (3 * jnp.finfo(a.dtype).eps) ** (1 / 6) / 2
    state = jax.lax.while_loop(
        lambda state: jnp.any(jnp.abs(shares(state)) > enough) & (state[3] < _MOST_DUPLICATIONS),
        duplicate,
        duplicate((a, b, c, 0)),
    )
    x, y, z = shares(state)
    second, third = x * y - z * z, x * y * z
    series = 1 - second / 10 + third / 14 + second**2 / 24 - 3 * second * third / 44
    return series / jnp.sqrt(jnp.mean(jnp.stack(state[:3]) ** 2, axis=0))


def _closed_form(low, high, reduction):
    """∫ dx / R from low to high at depths 3 and 4, in ratios of each layer at both ends.

    With t = w² it is ½ ∫ dt / √(t (t + λ₁) (t + λ₂) (t + λ₃)), the last factor absent at depth 3.

    Source: DLMF 19.29.4.
    """

    def factors(x):
        v = _from_outward(x, reduction)
        w, partner = jnp.abs(reduction.smallest(v)), reduction.partner(v)
        return w, partner, *jnp.sqrt(w[None] ** 2 + reduction.gaps)

    near, far = factors(low), factors(high)
    p, q, r, *s = (a / jnp.where(b > 0, b, 1.0) for a, b in zip(near, far, strict=True))
    s = s[0] if s else jnp.ones_like(p)
    fraction = (far[0] - near[0]) * (far[0] + near[0]) / (far[0] * far[1])
    scale = jnp.prod(jnp.stack(far[2:]), axis=0)
    moves = high > low
    roots = r * s + p * q, q * s + p * r, p * s + q * r
    whole = _carlson_rf(*(jnp.where(moves, root, 1.0) for root in roots))
    return jnp.where(moves, jnp.where(moves, fraction, 0.0) / scale * whole, 0.0)


def _integral(low, high, reduction):
    """∫ dx / R from low to high, outwards."""
    count = reduction.gaps.shape[0]
    if count == 0:
        return high - low
    return (_closed_form if count <= 2 else _quadrature)(low, high, reduction)


def dual_range(reduction: Reduction) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """Both ends of the range of ∇Q; infinite where ∇Q is unbounded, 0 and 0 where frozen."""
    far = -1.5 * jnp.log(jnp.finfo(reduction.start.dtype).eps)
    ends = []
    for direction in (-1.0, 1.0):
        outwards = reduction.is_open | (reduction.side == direction)
        # 1/R falls at least as fast as its slowest factor once w exceeds every λ.
        largest = jnp.log(jnp.max(reduction.gaps, axis=0, initial=1.0)) / 2
        least = jnp.log(jnp.where(reduction.is_open, reduction.radius, 1.0))
        reach = far + jnp.maximum(largest - least, 0.0) + jnp.abs(reduction.start)
        end = jnp.where(reduction.is_open, direction * reach, reduction.side * reach)
        bounded = outwards & (reduction.gaps.shape[0] > 0)
        whole = dual(jnp.where(bounded, end, reduction.start), reduction)
        unbounded = jnp.where(reduction.is_frozen, 0.0, direction * jnp.inf)
        ends.append(jnp.where(bounded, whole, unbounded))
    return ends[0], ends[1]


def _refuse_layer_derivative(tangent):
    if jax.tree.leaves(tangent):
        raise ValueError(
            "An entropy can be differentiated with respect to θ or ξ, not to its initial layers: "
            "wrap the layers in `jax.lax.stop_gradient`."
        )


@eqx.filter_custom_jvp
@eqx.filter_jit
def dual(v: Float[Array, " dim"], reduction: Reduction) -> Float[Array, " dim"]:
    """ξ(v) = ∫_{v(0)}^{v} dτ / R(τ)."""
    return _in_blocks(_dual, v, reduction)


def _dual(v, reduction):
    # On either side of the peak of 1/R by itself, outwards: large integrals are never subtracted.
    across = reduction.is_open & (v * reduction.start < 0)
    here, base = _outward(v, reduction), _outward(reduction.start, reduction)
    low, high = jnp.minimum(here, base), jnp.maximum(here, base)
    lows = jnp.stack([jnp.where(across, 0.0, low), jnp.zeros_like(low)])
    highs = jnp.stack([high, jnp.where(across, low, 0.0)])
    parts = jax.vmap(_integral, (0, 0, None))(lows, highs, reduction)
    return jnp.sign(v - reduction.start) * jnp.sum(parts, axis=0)


@dual.def_jvp
def _dual_jvp(primals, tangents):
    (v, reduction), (v_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    return dual(v, reduction), v_dot / reduction.rest(v)


@eqx.filter_custom_jvp
@eqx.filter_jit
def position_of_dual(
    xi: Float[Array, " dim"], reduction: Reduction
) -> tuple[Float[Array, " dim"], Bool[Array, " dim"]]:
    """v with ξ(v) = ξ, and whether there is one.

    Where there is none, v is where ∇Q reaches the end of its range to rounding.
    """
    return _in_blocks(_position_of_dual, xi, reduction)


def _position_of_dual(xi, reduction):
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
    unknown = jnp.isnan(xi)
    v = jnp.where(unknown, jnp.nan, v)
    return jnp.where(reduction.is_frozen, reduction.start, v), inside & ~unknown


@position_of_dual.def_jvp
def _position_of_dual_jvp(primals, tangents):
    (xi, reduction), (xi_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    v, inside = position_of_dual(xi, reduction)
    return (v, inside), (xi_dot * reduction.rest(v), None)


@eqx.filter_custom_jvp
@eqx.filter_jit
def position_of_theta(theta: Float[Array, " dim"], reduction: Reduction) -> Float[Array, " dim"]:
    """v with θ(v) = θ.

    log|θ| is a convex function of log|w| with slopes between 1 and depth. Replacing each
    √(w² + λ_j) by max(w, √λ_j) bounds it from below by a maximum of straight lines: where that
    reaches log|θ| Newton starts, to the right of the solution, and descends to it.
    """
    return _in_blocks(_position_of_theta, theta, reduction)


def _position_of_theta(theta, reduction):
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
    v = jnp.where(reduction.is_open, on_line, on_half_line)
    return jnp.where(jnp.isnan(theta), jnp.nan, v)


@position_of_theta.def_jvp
def _position_of_theta_jvp(primals, tangents):
    (theta, reduction), (theta_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    v = position_of_theta(theta, reduction)
    return v, theta_dot / reduction.slope(v)
