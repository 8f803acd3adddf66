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


def _in_blocks(function, *arguments):
    """function(*arguments), a block of coordinates (their last axis) after another."""
    dim = arguments[0].shape[0]
    if dim <= 2 * _BLOCK:
        return function(*arguments)

    count = -(-dim // _BLOCK)

    def split(array):
        rows = array.shape[:-1]
        last = jnp.broadcast_to(array[..., -1:], (*rows, count * _BLOCK - dim))
        blocks = jnp.concatenate([array, last], axis=-1).reshape(*rows, count, _BLOCK)
        return jnp.moveaxis(blocks, -2, 0)

    parts = jax.lax.map(lambda block: function(*block), jax.tree.map(split, arguments))
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


def _gauss(integrand, length):
    """∫₀^length of integrand(distance) over one piece."""
    nodes = jnp.asarray(_NODES, length.dtype)[:, None]
    weights = jnp.asarray(_WEIGHTS, length.dtype)[:, None]
    half = length / 2
    return half * jnp.sum(weights * jax.vmap(integrand)(half[None] * (1 + nodes)), axis=0)


def _density_integral(x, length, reduction):
    """∫ dx / R over one piece that starts at outward coordinate x; it leads inwards if negative."""
    return _gauss(lambda distance: _density(x + distance, reduction), length)


def _quadrature(low, length, reduction):
    """∫ dx / R over [low, low + length], outwards, until the rest no longer counts."""
    precision = jnp.finfo(low.dtype).eps / 8

    def unfinished(state):
        return jnp.any(state[3])

    def add_piece(state):
        x, left, total, active = state
        piece = jnp.minimum(left, _piece(x, reduction))
        part = jnp.where(active, _density_integral(x, piece, reduction), 0.0)
        x, left, total = x + piece, left - piece, total + part
        return x, left, total, active & (left > 0) & (part > precision * total)

    first = low, length, jnp.zeros_like(low), length > 0
    return jax.lax.while_loop(unfinished, add_piece, first)[2]


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


def _closed_form(low, length, reduction):
    """∫ dx / R over [low, low + length] at depths 3 and 4, in ratios of each layer at both ends.

    With t = w² it is ½ ∫ dt / √(t (t + λ₁) (t + λ₂) (t + λ₃)), the last factor absent at depth 3.

    Source: DLMF 19.29.4.
    """

    def factors(x):
        v = _from_outward(x, reduction)
        w, partner = jnp.abs(reduction.smallest(v)), reduction.partner(v)
        return w, partner, *jnp.sqrt(w[None] ** 2 + reduction.gaps)

    near, far = factors(low), factors(low + length)
    p, q, r, *s = (a / jnp.where(b > 0, b, 1.0) for a, b in zip(near, far, strict=True))
    s = s[0] if s else jnp.ones_like(p)
    moves = length > 0
    growth = jnp.abs(
        reduction.smallest_change(_from_outward(low, reduction), _from_outward(length, reduction))
    )
    fraction = growth / far[1] * ((far[0] + near[0]) / jnp.where(moves, far[0], 1.0))
    scale = jnp.prod(jnp.stack(far[2:]), axis=0)
    roots = r * s + p * q, q * s + p * r, p * s + q * r
    whole = _carlson_rf(*(jnp.where(moves, root, 1.0) for root in roots))
    return jnp.where(moves, jnp.where(moves, fraction, 0.0) / scale * whole, 0.0)


def _integral(low, length, reduction):
    """∫ dx / R over [low, low + length], outwards."""
    count = reduction.gaps.shape[0]
    if count == 0:
        return length
    return (_closed_form if count <= 2 else _quadrature)(low, length, reduction)


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
        step = jnp.where(bounded, end - reduction.start, 0.0)
        whole = dual(step, reduction.start, reduction)
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
def dual(
    step: Float[Array, " dim"], base: Float[Array, " dim"], reduction: Reduction
) -> Float[Array, " dim"]:
    """ξ(base + step) − ξ(base) = ∫ dτ / R(τ), to relative accuracy however short the step."""
    return _in_blocks(_dual, step, base, reduction)


def _dual(step, base, reduction):
    # On either side of the peak of 1/R by itself, outwards: large integrals are never subtracted.
    v = base + step
    across = reduction.is_open & (v * base < 0)
    here, there = _outward(v, reduction), _outward(base, reduction)
    lows = jnp.stack([jnp.where(across, 0.0, jnp.minimum(here, there)), jnp.zeros_like(v)])
    lengths = jnp.stack([jnp.where(across, here, jnp.abs(step)), jnp.where(across, there, 0.0)])
    parts = jax.vmap(_integral, (0, 0, None))(lows, lengths, reduction)
    return jnp.sign(step) * jnp.sum(parts, axis=0)


@dual.def_jvp
def _dual_jvp(primals, tangents):
    (step, base, reduction), (step_dot, base_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    step_dot, base_dot = _or_zero(step_dot, step), _or_zero(base_dot, base)
    change = (step_dot + base_dot) / reduction.rest(base + step) - base_dot / reduction.rest(base)
    return dual(step, base, reduction), change


def _or_zero(tangent, primal):
    """A tangent; equinox has `None` for that of a constant."""
    return jnp.zeros_like(primal) if tangent is None else tangent


def position_of_dual(
    xi: Float[Array, " dim"], reduction: Reduction
) -> tuple[Float[Array, " dim"], Bool[Array, " dim"]]:
    """v with ξ(v) = ξ, and whether there is one.

    Where there is none, v is where ∇Q reaches the end of its range to rounding.
    """
    v, _, inside = step_of_dual(xi, reduction)
    return v, inside


@eqx.filter_custom_jvp
@eqx.filter_jit
def step_of_dual(
    xi: Float[Array, " dim"], reduction: Reduction
) -> tuple[Float[Array, " dim"], Float[Array, " dim"], Bool[Array, " dim"]]:
    """v as `position_of_dual` has it, v − v(0) to relative accuracy, and whether there is one."""
    return _in_blocks(_step_of_dual, xi, reduction)


class _Ray(eqx.Module):
    """Positions in one direction, +1 or −1, from that of θ(0)."""

    direction: Float[Array, " dim"]
    reduction: Reduction

    def outward(self, v):
        """Whether it leads outwards from v on."""
        is_open, side = self.reduction.is_open, self.reduction.side
        return jnp.where(is_open, v * self.direction >= 0, side == self.direction)

    def piece(self, v):
        """Length of a piece of quadrature, which ends at the peak of 1/R if it comes there."""
        inwards = ~self.outward(v) & self.reduction.is_open
        length = _piece(_outward(v, self.reduction), self.reduction)
        return jnp.minimum(length, jnp.where(inwards, jnp.abs(v), jnp.inf))

    def density(self, v, distance=0.0):
        """1/R so far from v."""
        return _density(_outward(v + self.direction * distance, self.reduction), self.reduction)

    def integral(self, v, distance):
        """∫ dτ / R over so much of the piece that starts at v."""
        sense = jnp.where(self.outward(v), 1.0, -1.0)
        low = _outward(v, self.reduction)
        return sense * _density_integral(low, sense * distance, self.reduction)


def _step_of_dual(xi, reduction):
    if reduction.gaps.shape[0] == 0:
        step = jnp.where(reduction.is_frozen, 0.0, xi)
        return reduction.start + step, step, jnp.full(xi.shape, True)
    ray = _Ray(jnp.where(xi < 0, -1.0, 1.0).astype(xi.dtype), reduction)
    v, travelled, missing, inside = _pass_pieces(jnp.abs(xi), ray)
    distance, solved = _solve_in_piece(v, missing, inside, ray)
    end_of_range = -jnp.log(jnp.finfo(xi.dtype).eps) / reduction.gaps.shape[0]
    distance = jnp.where(inside, distance, end_of_range)
    known = solved & ~jnp.isnan(xi)
    distance = jnp.where(reduction.is_frozen, 0.0, jnp.where(known, distance, jnp.nan))
    v, step = v + ray.direction * distance, ray.direction * (travelled + distance)
    return v, step, inside & known


def _pass_pieces(missing, ray):
    """Start of the piece in which the integral of 1/R is completed, how far that is from v(0), what
    is missing there, and whether the integral is so large."""

    def next_piece(state):
        v, travelled, missing, active, inside = state
        piece = ray.piece(v)
        part = ray.integral(v, piece)
        # 1/R is log-concave, so beyond v there is at most (1/R)/κ of it left.
        decay = _decay(_outward(v, ray.reduction), ray.reduction)
        out_of_reach = ray.outward(v) & (missing * decay > ray.density(v))
        passes = active & ~out_of_reach & (part < missing)
        v = jnp.where(passes, v + ray.direction * piece, v)
        travelled = jnp.where(passes, travelled + piece, travelled)
        missing = jnp.where(passes, missing - part, missing)
        return v, travelled, missing, passes, inside & ~(active & out_of_reach)

    start, moves = ray.reduction.start, ~ray.reduction.is_frozen
    first = start, jnp.zeros_like(start), missing, moves, jnp.full(start.shape, True)
    v, travelled, missing, _, inside = jax.lax.while_loop(
        lambda state: jnp.any(state[3]), next_piece, first
    )
    return v, travelled, missing, inside


def _solve_in_piece(v, missing, inside, ray):
    """How far from v the integral of 1/R is what is missing, and whether that was found.

    It is a concave function of the distance where the ray leads outwards, and a convex one where it
    leads inwards. So the tangent at v ends short of the solution, or beyond it, and Newton from
    there is monotone until rounding turns it round. Both keep the relative accuracy of `missing`.
    """
    precision = 4 * jnp.finfo(missing.dtype).eps
    sense = jnp.where(ray.outward(v), 1.0, -1.0)

    def newton(state):
        distance, active, count = state
        change = (missing - ray.integral(v, distance)) / ray.density(v, distance)
        active = active & (sense * change > precision * distance)
        return distance + jnp.where(active, change, 0.0), active, count + 1

    tangent = jnp.minimum(ray.piece(v), missing / ray.density(v))
    distance, unsolved, _ = jax.lax.while_loop(
        lambda state: jnp.any(state[1]) & (state[2] < _MOST_NEWTON_STEPS),
        newton,
        (tangent, inside & ~ray.reduction.is_frozen, 0),
    )
    return distance, ~unsolved


@step_of_dual.def_jvp
def _step_of_dual_jvp(primals, tangents):
    (xi, reduction), (xi_dot, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    v, step, inside = step_of_dual(xi, reduction)
    v_dot = xi_dot * reduction.rest(v)
    return (v, step, inside), (v_dot, v_dot, None)


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


def step_to_theta(
    theta: Float[Array, " dim"],
    change: Float[Array, " dim"],
    base: Float[Array, " dim"],
    reduction: Reduction,
) -> Float[Array, " dim"]:
    """v(θ) − base, to the relative accuracy of change = θ − θ(base)."""
    difference = position_of_theta(theta, reduction) - base
    solved = _solve_step(*jax.lax.stop_gradient((difference, theta, change, base, reduction)))
    # The value is solved for, the derivatives are those of the difference.
    return solved + (difference - jax.lax.stop_gradient(difference))


def _solve_step(difference, theta, change, base, reduction):
    step = difference
    for _ in range(2):  # from an error of rounding in v to its square, to its fourth power
        excess = reduction.theta_change(base, step) - change
        step = step - excess / reduction.slope(base + step)
    step = jnp.where(_close(theta, change), step, difference)
    return jnp.where(change == 0, 0.0, step)


def _close(theta, change):
    """Whether θ and θ − change are within a factor of 8 of each other.

    Beyond that differences of what increases with them lose no digits. Within, R changes by less
    than the factor: one piece of quadrature reaches from one to the other.
    """
    return 8 * jnp.abs(change) <= 7 * jnp.maximum(jnp.abs(theta), jnp.abs(theta - change))


@eqx.filter_custom_jvp
@eqx.filter_jit
def divergence(
    theta: Float[Array, " dim"],
    change: Float[Array, " dim"],
    step: Float[Array, " dim"],
    base: Float[Array, " dim"],
    reduction: Reduction,
) -> Float[Array, " dim"]:
    """D_Q(θ, θ') of each coordinate, with change = θ − θ' and step = v − v' from base = v'.

    It is ∫ (θ − θ(τ)) / R(τ) dτ, without a subtraction of like terms; where θ and θ' are far apart,
    what that comes to: θ (ξ − ξ') − ½ (w² − w'²).
    """
    return _in_blocks(_divergence, theta, change, step, base, reduction)


def _divergence(theta, change, step, base, reduction):
    v = base + step

    def integrand(distance):
        return -reduction.theta_change(v, -distance) / reduction.rest(v - distance)

    near = _gauss(integrand, step)
    far = theta * _dual(step, base, reduction) - _half_square_change(step, base, reduction)
    return jnp.where(_close(theta, change), near, far)


@divergence.def_jvp
def _divergence_jvp(primals, tangents):
    theta, change, step, base, reduction = primals
    theta_dot, _, _, base_dot, reduction_dot = tangents
    _refuse_layer_derivative(reduction_dot)
    dual_dot = _or_zero(base_dot, base) / reduction.rest(base)
    slope = dual(step, base, reduction) * _or_zero(theta_dot, theta) - change * dual_dot
    return divergence(theta, change, step, base, reduction), slope


def _half_square_change(step, base, reduction):
    w, change = reduction.smallest(base), reduction.smallest_change(base, step)
    return change * (2 * w + change) / 2


@eqx.filter_custom_jvp
def conjugate(
    v: Float[Array, " dim"], step: Float[Array, " dim"], reduction: Reduction
) -> Float[Array, " dim"]:
    """Q*(ξ) = ½ (w² − w(0)²) of each coordinate, with step = v − v(0)."""
    return _half_square_change(step, reduction.start, reduction)


@conjugate.def_jvp
def _conjugate_jvp(primals, tangents):
    # Of w itself: in that of the product a small w is nothing beside w(0).
    (v, step, reduction), (v_dot, _, reduction_dot) = primals, tangents
    _refuse_layer_derivative(reduction_dot)
    slope = reduction.smallest(v) * reduction.partner(v)
    return conjugate(v, step, reduction), slope * v_dot
