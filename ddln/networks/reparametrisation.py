"""The reduced network: one number per coordinate in place of its depth layers.

Gradient flow on the layers conserves every difference (uⁱ)² − (uʲ)². One number per coordinate
therefore determines its whole column (u¹_k, …, u^L_k). Let w be the layer of smallest initial
magnitude, times the product of the signs of the others, and let λ_j ≥ 0 be the imbalance of layer j
against it. Then

    |u^j| = √(w² + λ_j),        θ = w · P(w),        P(w) = Π_j √(w² + λ_j).

Near w = 0 the smallest imbalance λ_min matters most. Its layer is the *second layer* of magnitude
g = √(w² + λ_min), and the *remaining product* is R = P/g, 1 at depth 2. The *reparametrised
coordinate* v solves dw/dv = g:

    w = √λ_min · sinh v     where the smallest layer is unique   (open: θ_k on the whole line)
    w = ± e^{± v}           where it is tied and nonzero         (half-line: θ_k keeps its sign)
    w = 0                   where it is tied and zero            (frozen: θ_k = 0 for ever)

Tiny and huge weights alike have a v of moderate size, and the formulas below subtract no like
terms. A single layer has no second one: there v = w = θ and g = P = R = 1.

`Reduction` is the change of variables; `ReducedPoint` is what follows from w and g, whether they
come from v or from w alone.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.validation import ArrayLike, as_layers


class Reduction(eqx.Module):
    """The change of variables from layers (depth, dim) to reparametrised coordinates v (dim,).

    The initial layers define it. It is exact, so the imbalance is conserved by construction. All
    operations are elementwise: v, and the arrays of the reduction with it, may have more axes.

    Source: as derived in docs/theory.md from Proposition 1 and Theorem 1, arXiv 2412.16765.

    >>> layers = jnp.array([[0.5], [1.0], [-2.0]])
    >>> reduction = ddln.Reduction(layers)
    >>> bool(jnp.allclose(reduction.layers(reduction.start), layers))
    True
    """

    start: Float[Array, " dim"]
    """v of the initial layers."""
    sqrt_min_imbalance: Float[Array, " dim"]
    """√λ_min, 0 where the smallest layer is tied; 1 at depth 1."""
    half_line_sign: Float[Array, " dim"]
    """Sign of w on a half-line, 0 elsewhere."""
    other_imbalances: Float[Array, "others dim"]
    """The imbalances other than 0 and λ_min, ascending."""
    layer_signs: Float[Array, "depth dim"]
    """Signs of the layers in ascending order of magnitude; first the product of the others'."""
    order: Int[Array, "depth dim"]
    """order[i, k]: index of the i-th smallest layer at coordinate k."""

    def __init__(self, layers: ArrayLike):
        (
            self.start,
            self.sqrt_min_imbalance,
            self.half_line_sign,
            self.other_imbalances,
            self.layer_signs,
            self.order,
        ) = _reduce(as_layers(layers))

    @property
    def depth(self) -> int:
        """The number L of layers."""
        return len(self.order)

    @property
    def is_open(self) -> Bool[Array, "dim *batch"]:
        """Whether the smallest layer is unique."""
        return self.sqrt_min_imbalance > 0

    @property
    def is_frozen(self) -> Bool[Array, "dim *batch"]:
        """Whether the smallest layer is tied and zero."""
        return (self.sqrt_min_imbalance == 0) & (self.half_line_sign == 0)

    def shrunk(self, dose: Float[Array, "*batch"]) -> "Reduction":
        """The reduction of the layers e^{−Ω} u: those that a dose Ω of weight decay alone leaves.

        >>> reduction = ddln.Reduction([[0.5], [1.0], [-2.0]]).shrunk(jnp.log(2.0))
        >>> reduction.layers(reduction.start).ravel().tolist()
        [0.25, 0.5, -1.0]
        """
        factor = jnp.exp(-dose)[None]
        if self.depth == 1:
            return eqx.tree_at(lambda reduction: reduction.start, self, self.start * factor)
        return eqx.tree_at(
            lambda reduction: (
                reduction.start,
                reduction.sqrt_min_imbalance,
                reduction.other_imbalances,
            ),
            self,
            (
                self.start - self.half_line_sign * dose[None],
                self.sqrt_min_imbalance * factor,
                self.other_imbalances * factor[None] ** 2,
            ),
        )

    def shrinkage(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """dv/dΩ under weight decay alone, in the reduction of the layers that it has left."""
        return -v if self.depth == 1 else -self.half_line_sign

    def at(self, v: Float[Array, "dim *batch"]) -> "ReducedPoint":
        """The reduced network at reparametrised coordinate v."""
        if self.depth == 1:
            return self.at_smallest(v)
        # One exponential, that of |v|, gives both: sinh keeps its relative accuracy near 0. Where
        # the exponential would overflow, so does w·g.
        largest = jnp.log(jnp.finfo(v.dtype).max)
        is_negative = v < 0  # at 0 both branches must have the same derivative
        growth = jnp.expm1(jnp.minimum(jnp.where(is_negative, -v, v), largest))
        up, down = 1 + growth, 1 / (1 + growth)
        half = (growth + growth * down) / 2
        sinh, cosh = jnp.where(is_negative, -half, half), (up + down) / 2
        exponential = jnp.where((self.half_line_sign < 0) == is_negative, up, down)  # e^{±v}
        w = self.sqrt_min_imbalance * sinh + self.half_line_sign * exponential
        g = self.sqrt_min_imbalance * cosh + jnp.abs(self.half_line_sign) * exponential
        return ReducedPoint(self, w, g)

    def at_smallest(self, w: Float[Array, "dim *batch"]) -> "ReducedPoint":
        """The reduced network whose smallest layer is w."""
        if self.depth == 1:
            return ReducedPoint(self, w, jnp.ones_like(w))
        root = _sqrt(w**2 + self.sqrt_min_imbalance**2)
        return ReducedPoint(self, w, jnp.where(self.is_frozen, 0.0, root))

    def coordinate(self, w: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """v(w), the inverse of `smallest`; 0 where frozen, and at the end w = 0 of a half-line."""
        if self.depth == 1:
            return w
        return _coordinate(w, self.sqrt_min_imbalance, self.half_line_sign)

    def smallest(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """w(v), the smallest layer up to sign."""
        return self.at(v).smallest

    def remaining_product(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """R(v), the product of the magnitudes of all layers but the smallest two."""
        return self.at(v).remaining_product

    def theta(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """θ(v) = w·g·R."""
        return self.at(v).theta

    def dtheta_dv(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """dθ/dv = M/R."""
        return self.at(v).dtheta_dv

    def mobility(self, v: Float[Array, "dim *batch"]) -> Float[Array, "dim *batch"]:
        """M(v) = R · dθ/dv."""
        return self.at(v).mobility

    def layers(self, v: Float[Array, " dim"]) -> Float[Array, "depth dim"]:
        """The layers at v."""
        return self.at(v).layers

    def smallest_change(
        self, v: Float[Array, "dim *batch"], step: Float[Array, "dim *batch"]
    ) -> Float[Array, "dim *batch"]:
        """w(v + step) − w(v), to relative accuracy however short the step."""
        if self.depth == 1:
            return step
        on_line = 2 * self.sqrt_min_imbalance * jnp.cosh(v + step / 2) * jnp.sinh(step / 2)
        sign = self.half_line_sign
        on_half_line = sign * jnp.exp(sign * v) * jnp.expm1(sign * step)
        return jnp.where(self.is_open, on_line, on_half_line)

    def theta_change(
        self, v: Float[Array, "dim *batch"], step: Float[Array, "dim *batch"]
    ) -> Float[Array, "dim *batch"]:
        """θ(v + step) − θ(v), to relative accuracy however short the step.

        All squares of layers change by the same y. A layer changes from a to b by y/(a + b), and a
        product ab by b·Δa + a·Δb.
        """
        if self.depth == 1:
            return step
        w, g = self.at(v).smallest, self.at(v).second
        change = self.smallest_change(v, step)
        w_after, g_after = w + change, self.at(v + step).second
        squares_change = change * (w + w_after)
        before = [g, *jnp.sqrt(w[None] ** 2 + self.other_imbalances)]
        after = [g_after, *jnp.sqrt(w_after[None] ** 2 + self.other_imbalances)]
        product = w
        for a, b in zip(before, after, strict=True):
            change = change * b + product * (squares_change / jnp.where(a + b > 0, a + b, 1.0))
            product = product * a
        return change


class ReducedPoint(eqx.Module):
    """A point of a reduced network: its smallest layer w, its second g, and what they determine.

    `Reduction.at` makes one from v, `Reduction.at_smallest` from w.

    >>> point = ddln.Reduction([[0.5], [1.0], [-2.0]]).at_smallest(jnp.array([-0.5]))
    >>> float(point.theta[0]), float(point.mobility[0])  # M = (1·2)² + (½·2)² + (½·1)²
    (-1.0, 5.25)
    """

    reduction: Reduction
    smallest: Float[Array, "dim *batch"]
    """w."""
    second: Float[Array, "dim *batch"]
    """g = √(w² + λ_min) = dw/dv; 1 at depth 1."""

    @property
    def remaining_squares(self) -> Float[Array, "remaining dim *batch"]:
        """w² + λ_j of all layers but the smallest two, ascending."""
        return self.smallest[None] ** 2 + self.reduction.other_imbalances

    @property
    def remaining_product(self) -> Float[Array, "dim *batch"]:
        """R = Π √(w² + λ_j) over all layers but the smallest two; 1 at depth 2."""
        return math.prod(self._remaining_factors, start=jnp.ones_like(self.smallest))

    @property
    def other_product(self) -> Float[Array, "dim *batch"]:
        """P = g·R, the product of the magnitudes of all layers but the smallest."""
        return math.prod(self._remaining_factors, start=self.second)

    @property
    def _remaining_factors(self) -> list[Float[Array, "dim *batch"]]:
        # One root for two layers: the product of more squares could overflow or underflow.
        squares, one = list(self.remaining_squares), jnp.ones_like(self.smallest)
        pairs = (squares[i : i + 2] for i in range(0, len(squares), 2))
        return [_sqrt(math.prod(pair, start=one)) for pair in pairs]

    @property
    def theta(self) -> Float[Array, "dim *batch"]:
        """θ = w·P."""
        return self.smallest * self.other_product

    @property
    def dR_dv(self) -> Float[Array, "dim *batch"]:
        """dR/dv = R · w g Σ_j 1/(w² + λ_j)."""
        w, g = self.smallest, self.second
        squares = _positive(self.remaining_squares)
        return self.remaining_product * sum((w * g / x for x in squares), start=jnp.zeros_like(w))

    @property
    def dg_dv(self) -> Float[Array, "dim *batch"]:
        """dg/dv = w; 0 at depth 1, where g is constant."""
        return jnp.zeros_like(self.smallest) if self.reduction.depth == 1 else self.smallest

    @property
    def dtheta_dv(self) -> Float[Array, "dim *batch"]:
        """dθ/dv = (g² + w dg/dv) R + w g dR/dv = M/R."""
        w, g = self.smallest, self.second
        return self.remaining_product * (w * self.dg_dv + g**2) + w * g * self.dR_dv

    @property
    def dP_dw(self) -> Float[Array, "dim *batch"]:
        """dP/dw = P · w (1/g² + Σ_j 1/(w² + λ_j)); 0 at depth 1, where P is constant."""
        w = self.smallest
        if self.reduction.depth == 1:
            return jnp.zeros_like(w)
        squares = _positive(jnp.concatenate([self.second[None] ** 2, self.remaining_squares]))
        return self.other_product * w * sum((1 / x for x in squares), start=jnp.zeros_like(w))

    @property
    def dtheta_dw(self) -> Float[Array, "dim *batch"]:
        """dθ/dw = P + w dP/dw = M/P."""
        return self.other_product + self.smallest * self.dP_dw

    @property
    def mobility(self) -> Float[Array, "dim *batch"]:
        """M = R · dθ/dv."""
        return self.remaining_product * self.dtheta_dv

    @property
    def layers(self) -> Float[Array, "depth dim *batch"]:
        """The layers, in their own order and with their own signs."""
        if self.reduction.depth == 1:
            return self.smallest[None]
        order, signs = self.reduction.order, self.reduction.layer_signs
        imbalances = jnp.zeros_like(signs).at[2:].set(self.reduction.other_imbalances)
        # Only constants are put into the order of the layers: under `vmap` over w, only once.
        signs, imbalances = _by_layer(signs, order), _by_layer(imbalances, order)
        layer, w, g = _layer_index(order), self.smallest[None], self.second[None]
        squares = w**2 + imbalances
        # The root of 1 where w or g is chosen, or on a frozen coordinate: that of 0 has no slope.
        has_slope = (squares != 0) & (layer != order[:1]) & (layer != order[1:2])
        others = jnp.where(has_slope, jnp.sqrt(jnp.where(has_slope, squares, 1.0)), 0.0)
        others = jnp.where(layer == order[1:2], g, others)
        return signs * jnp.where(layer == order[:1], w, others)


def _positive(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """The squares, no smaller than the smallest normal number."""
    return jnp.maximum(squares, jnp.finfo(squares.dtype).tiny)


def _sqrt(square: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """√, differentiable at 0: on frozen coordinates, where nothing depends on it."""
    return jnp.sqrt(_positive(square))


def _layer_index(order: Int[Array, "depth dim *batch"]) -> Int[Array, "depth ..."]:
    """0 … depth − 1 along the first axis."""
    return jnp.arange(len(order)).reshape(-1, *[1] * (order.ndim - 1))


def _by_layer(
    rows: Float[Array, "depth dim *batch"], order: Int[Array, "depth dim *batch"]
) -> Float[Array, "depth dim *batch"]:
    """Reorder rows from ascending magnitude to the order of the layers."""
    layer = _layer_index(order)
    # Selection runs at memory speed; sorting and gathering are far slower.
    selected = (
        jnp.where(layer == index[None], row[None], 0.0)
        for row, index in zip(rows, order, strict=True)
    )
    return sum(selected, start=jnp.zeros_like(rows))


def _coordinate(
    w: Float[Array, "dim *batch"],
    sqrt_min_imbalance: Float[Array, "dim *batch"],
    half_line_sign: Float[Array, "dim *batch"],
) -> Float[Array, "dim *batch"]:
    """v = arcsinh(w/√λ_min) on the line, ± log|w| on a half-line."""
    is_open = sqrt_min_imbalance > 0
    on_line = jnp.arcsinh(w / jnp.where(is_open, sqrt_min_imbalance, 1.0))
    on_half_line = half_line_sign * jnp.log(jnp.where(w == 0, 1.0, jnp.abs(w)))
    return jnp.where(is_open, on_line, on_half_line)


@jax.jit
def _reduce(
    layers: Float[Array, "depth dim"],
) -> tuple[
    Float[Array, " dim"],
    Float[Array, " dim"],
    Float[Array, " dim"],
    Float[Array, "others dim"],
    Float[Array, "depth dim"],
    Int[Array, "depth dim"],
]:
    """The fields of `Reduction`, in their order."""
    order = jnp.argsort(jnp.abs(layers), axis=0)
    ascending = jnp.take_along_axis(layers, order, axis=0)
    magnitude = jnp.abs(ascending)
    others = jnp.where(ascending[1:] < 0, -1.0, 1.0).astype(layers.dtype)
    signs = jnp.concatenate([jnp.prod(others, axis=0, keepdims=True), others])
    w = signs[0] * ascending[0]
    imbalances = (magnitude[2:] - magnitude[:1]) * (magnitude[2:] + magnitude[:1])
    if len(layers) == 1:
        line = jnp.ones_like(w), jnp.zeros_like(w)
        return w, *line, imbalances, signs, order
    # The root of each factor: their product could underflow.
    root = jnp.sqrt(magnitude[1] - magnitude[0]) * jnp.sqrt(magnitude[1] + magnitude[0])
    half_line_sign = jnp.where(root > 0, 0.0, jnp.sign(w))
    return _coordinate(w, root, half_line_sign), root, half_line_sign, imbalances, signs, order
