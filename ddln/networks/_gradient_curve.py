"""The curve dw/ds = ∇G(w) through a point, tabulated once as polynomials on pieces.

On a piece of length h from s₀ the curve is the fixed point of

    w(s) = w(s₀) + ∫_{s₀}^{s} ∇G(w),

by Picard's iteration at the nodes of a Chebyshev polynomial, in which the k-th change falls like
(h ‖∇²G‖)^k / k!. Pieces have h ≤ 1/‖∇²G‖, so that the relative change of w over one is moderate,
and are halved until the last coefficients are rounding errors. Towards an end of the range of s
they shrink like the distance from it, towards s = ± ∞ they grow where the curve slows down: a few
dozen of them cover hundreds of decades of G.

Everything here is about one coordinate; `jax.vmap` adds the others.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.polynomial import chebyshev

from ddln.networks.layers import Function

_DEGREE = 23
_PIECES = 64
"""In each direction."""
_PICARD_STEPS = 32
_ROUNDINGS = 16
"""The size, in roundings of w, of the last coefficients and of the last change that pass."""
_MOST_HALVINGS = 60
_TIGHT = 1e-3
"""An end of the range is where pieces have become this much shorter than the longest."""


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Nodes in (0, 1); values there to coefficients; values to integrals over [0, u]; over [0, 1].

    The coefficients are those of Chebyshev polynomials in 2u − 1.
    """
    x = chebyshev.chebpts1(_DEGREE + 1)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(x, _DEGREE))
    primitive = chebyshev.chebint(to_coefficients, lbnd=-1) / 2
    to_ends = chebyshev.chebvander(np.append(x, 1.0), _DEGREE + 1) @ primitive
    return (1 + x) / 2, to_coefficients, to_ends[:-1], to_ends[-1]


_NODES, _TO_COEFFICIENTS, _TO_INTEGRALS, _WEIGHTS = _matrices()


class GradientCurve(NamedTuple):
    """The curve through w(0), on pieces that ascend in s. Unused pieces have length 0."""

    edges: Float[Array, "*dim pieces+1"]
    """s at the ends of the pieces."""
    theta: Float[Array, "*dim pieces+1"]
    """G there."""
    origin: Float[Array, "*dim pieces"]
    """s at the end of each piece that is nearer to 0."""
    length: Float[Array, "*dim pieces"]
    """Of each piece, from its origin: negative to the left of 0."""
    coefficients: Float[Array, "*dim pieces nodes m"]
    """Of w, in Chebyshev polynomials of 2u − 1, s = origin + u · length."""
    conjugate: Float[Array, "*dim pieces"]
    """∫₀ˢ G at the origins."""
    value: Float[Array, "*dim pieces"]
    """∫₀ˢ s |∇G|² at the origins."""
    ends: Float[Array, "*dim 2"]
    """The ends of the range of s, as far as the pieces tell."""


def tabulate(function: Function, start: Float[Array, " m"]) -> GradientCurve:
    """The curve through `start` at s = 0, in both directions."""
    right, left = (_pieces(function, start, direction) for direction in (1.0, -1.0))
    theta = function(start)[None]

    def ascending(name: str) -> Array:
        return jnp.concatenate([getattr(left, name)[::-1], getattr(right, name)])

    def with_start(name: str, middle: Float[Array, "1"]) -> Array:
        return jnp.concatenate([getattr(left, name)[::-1], middle, getattr(right, name)])

    return GradientCurve(
        edges=with_start("end", jnp.zeros_like(theta)),
        theta=with_start("theta", theta),
        **{
            name: ascending(name)
            for name in ("origin", "length", "coefficients", "conjugate", "value")
        },
        ends=jnp.stack([_end(left), _end(right)]),
    )


def point(curve: GradientCurve, s: Float[Array, ""]) -> Float[Array, " m"]:
    """w at s; outside the pieces, at their end."""
    piece, u = _locate(curve, s)
    return _evaluate(curve.coefficients[piece], u[None])[0]


def integrals(
    function: Function, curve: GradientCurve, s: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """∫₀ˢ G and ∫₀ˢ s |∇G|² ds."""
    piece, u = _locate(curve, s)
    nodes, weights = jnp.asarray(_NODES, s.dtype), jnp.asarray(_WEIGHTS, s.dtype)
    w, step = _evaluate(curve.coefficients[piece], u * nodes), u * curve.length[piece]
    along = curve.origin[piece] + step * nodes
    conjugate = step * (weights @ jax.vmap(function)(w))
    value = step * (weights @ (along * jax.vmap(partial(mobility, function))(w)))
    return curve.conjugate[piece] + conjugate, curve.value[piece] + value


def mobility(function: Function, w: Float[Array, " m"]) -> Float[Array, ""]:
    """M = |∇G|²."""
    return jnp.sum(jax.grad(function)(w) ** 2)


def mobility_and_slope(
    function: Function, w: Float[Array, " m"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """M and dM/ds = 2 ∇Gᵀ ∇²G ∇G."""
    return jax.jvp(partial(mobility, function), (w,), (jax.grad(function)(w),))


def growth_rate(function: Function, w: Float[Array, " m"]) -> Float[Array, ""]:
    """‖∇²G‖, by Frobenius: |d log M/ds| is at most twice that."""
    return jnp.sqrt(jnp.sum(jax.hessian(function)(w) ** 2))


class _Search(NamedTuple):
    """A bracketed search for u in [0, 1]."""

    low: Float[Array, ""]
    high: Float[Array, ""]
    u: Float[Array, ""]
    is_active: Bool[Array, ""]
    count: Int[Array, ""]


def dual(function: Function, curve: GradientCurve, theta: Float[Array, ""]) -> Float[Array, ""]:
    """s with G(w(s)) = θ, by Newton's method with a bracket on the piece that holds θ."""
    pieces = curve.length.size
    piece = jnp.clip(jnp.searchsorted(curve.theta, theta, side="right") - 1, 0, pieces - 1)
    coefficients, length = curve.coefficients[piece], curve.length[piece]
    precision = jnp.finfo(theta.dtype).eps

    def improve(search: _Search) -> _Search:
        w = _evaluate(coefficients, search.u[None])[0]
        excess = function(w) - theta
        is_high = excess * jnp.sign(length) > 0
        low = jnp.where(is_high, search.low, search.u)
        high = jnp.where(is_high, search.u, search.high)
        newton = search.u - excess / (length * mobility(function, w))
        u = jnp.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        moves = jnp.abs(u - search.u) > precision
        return _Search(low, high, u, moves, search.count + 1)

    zero, one = jnp.zeros_like(theta), jnp.ones_like(theta)
    start = _Search(zero, one, one / 2, length != 0, jnp.zeros((), jnp.int32))
    found = jax.lax.while_loop(lambda x: x.is_active & (x.count < _MOST_HALVINGS), improve, start)
    return curve.origin[piece] + found.u * length


def _locate(curve: GradientCurve, s: Float[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """The piece that holds s, and u there."""
    piece = jnp.searchsorted(curve.edges, s, side="right") - 1
    piece = jnp.clip(piece, 0, curve.length.size - 1)
    length = curve.length[piece]
    u = (s - curve.origin[piece]) / jnp.where(length == 0, 1.0, length)
    return piece, jnp.clip(u, 0.0, 1.0)


def _evaluate(
    coefficients: Float[Array, "nodes m"], u: Float[Array, " points"]
) -> Float[Array, "points m"]:
    angle = jnp.arccos(jnp.clip(2 * u - 1, -1.0, 1.0))
    degrees = jnp.arange(_DEGREE + 1, dtype=u.dtype)
    return jnp.cos(angle[:, None] * degrees[None]) @ coefficients


class _Piece(NamedTuple):
    """A piece, and what the curve is at its outer end."""

    end: Float[Array, "*pieces"]
    theta: Float[Array, "*pieces"]
    origin: Float[Array, "*pieces"]
    length: Float[Array, "*pieces"]
    coefficients: Float[Array, "*pieces nodes m"]
    conjugate: Float[Array, "*pieces"]
    value: Float[Array, "*pieces"]


class _CurveState(NamedTuple):
    """The curve so far, in one direction."""

    s: Float[Array, ""]
    w: Float[Array, " m"]
    conjugate: Float[Array, ""]
    value: Float[Array, ""]
    longest: Float[Array, ""]
    """Of the next piece."""
    is_active: Bool[Array, ""]


class _TrialPiece(NamedTuple):
    """A piece of some length before it is accepted."""

    size: Float[Array, ""]
    halvings: Int[Array, ""]
    w: Float[Array, "nodes m"]
    is_resolved: Bool[Array, ""]


def _pieces(function: Function, start: Float[Array, " m"], direction: float) -> _Piece:
    """The pieces in one direction, outwards."""
    zero = jnp.zeros_like(start[0])
    rate = growth_rate(function, start)
    speed = jnp.sqrt(mobility(function, start))
    first = 1 / (rate + speed / (1 + jnp.linalg.norm(start)))
    state = _CurveState(zero, start, zero, zero, first, jnp.asarray(True))
    return jax.lax.scan(
        lambda state, _: _add_piece(state, function, direction), state, length=_PIECES
    )[1]


def _add_piece(
    state: _CurveState, function: Function, direction: float
) -> tuple[_CurveState, _Piece]:
    """The next piece; one of length 0 if the curve ends."""
    precision = jnp.finfo(state.s.dtype).eps
    attempt = partial(_attempt, state=state, function=function, direction=direction)
    trial = jax.lax.while_loop(
        lambda trial: ~trial.is_resolved & (trial.halvings < _MOST_HALVINGS) & state.is_active,
        lambda trial: attempt(trial.size / 2, trial.halvings + 1),
        attempt(state.longest, jnp.zeros((), jnp.int32)),
    )
    length = direction * trial.size
    weights, nodes = (jnp.asarray(x, state.s.dtype) for x in (_WEIGHTS, _NODES))
    slopes = jax.vmap(jax.grad(function))(trial.w)
    end, w = state.s + length, state.w + length * (weights @ slopes)
    along = state.s + length * nodes
    conjugate = state.conjugate + length * (weights @ jax.vmap(function)(trial.w))
    value = state.value + length * (weights @ (along * jnp.sum(slopes**2, axis=1)))
    theta, rate = function(w), growth_rate(function, w)
    finite = [jnp.all(jnp.isfinite(x)) for x in (end, w, conjugate, value, theta, rate)]
    is_active = state.is_active & trial.is_resolved & jnp.all(jnp.stack(finite))
    is_active = is_active & (trial.size > precision * jnp.abs(state.s))
    is_active = is_active & (direction * (theta - function(state.w)) > 0)
    longest = jnp.minimum(2 * trial.size, 1 / rate)
    coefficients = jnp.asarray(_TO_COEFFICIENTS, state.s.dtype) @ trial.w
    at_rest = jnp.zeros_like(coefficients).at[0].set(state.w)
    piece = _Piece(
        end=jnp.where(is_active, end, state.s),
        theta=jnp.where(is_active, theta, function(state.w)),
        origin=state.s,
        length=jnp.where(is_active, length, 0.0),
        coefficients=jnp.where(is_active, coefficients, at_rest),
        conjugate=state.conjugate,
        value=state.value,
    )
    after = _CurveState(end, w, conjugate, value, longest, is_active)
    stays = state._replace(is_active=is_active)
    return jax.tree.map(partial(jnp.where, is_active), after, stays), piece


def _attempt(
    size: Float[Array, ""],
    halvings: Int[Array, ""],
    *,
    state: _CurveState,
    function: Function,
    direction: float,
) -> _TrialPiece:
    """A piece of the given length by Picard's iteration, and whether it is exact to rounding."""
    to_integrals, to_coefficients = (
        jnp.asarray(x, size.dtype) for x in (_TO_INTEGRALS, _TO_COEFFICIENTS)
    )

    def improve(_: Int[Array, ""], w: Float[Array, "nodes m"]) -> Float[Array, "nodes m"]:
        slopes = jax.vmap(jax.grad(function))(w)
        return state.w[None] + direction * size * (to_integrals @ slopes)

    before = jnp.broadcast_to(state.w, (_DEGREE + 1, state.w.size))
    before = jax.lax.fori_loop(0, _PICARD_STEPS, improve, before)
    w = improve(jnp.zeros((), jnp.int32), before)
    errors = jnp.concatenate([(to_coefficients @ w)[-2:], w - before])
    allowed = _ROUNDINGS * jnp.finfo(size.dtype).eps * jnp.max(jnp.abs(w), axis=0)
    is_resolved = jnp.all(jnp.max(jnp.abs(errors), axis=0) <= allowed)
    return _TrialPiece(size, halvings, w, is_resolved)


def _end(pieces: _Piece) -> Float[Array, ""]:
    """The end of the range of s in one direction.

    Pieces that shrink all along do so like the distance from the end, which is their limit.
    """
    used = pieces.length != 0
    sizes = jnp.abs(pieces.length)
    count = jnp.sum(used)
    last, before = sizes[count - 1], sizes[jnp.maximum(count - 2, 0)]
    ratio = jnp.minimum(last / before, 1 - _TIGHT)
    limit = pieces.end[-1] + jnp.sign(pieces.length[0]) * last * ratio / (1 - ratio)
    is_tight = last < _TIGHT * jnp.max(sizes)
    return jnp.where(is_tight, limit, jnp.sign(pieces.length[0]) * jnp.inf)
