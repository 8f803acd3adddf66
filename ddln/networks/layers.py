"""The network: layers u¹ … u^L, shape (depth, dim), and their effective parameter θ = u¹ ⊙ … ⊙ u^L.

Under gradient flow on the layers all differences (uⁱ)² − (uʲ)² stay what they were, so that one
number per coordinate says where the whole column (u¹_k, …, u^L_k) is. `Reduction` is that change
of variables. Per coordinate let w be the layer of smallest initial magnitude (times the product
of the signs of the others) and λ_j ≥ 0 the imbalance of another layer against it:

    |u^j| = √(w² + λ_j),        θ = w · Π_j √(w² + λ_j).

The smallest λ is the one that matters near w = 0; write g = √(w² + λ_min) for its layer and R(w)
for the product over the remaining ones. The *position* v is the coordinate with dw/dv = g,

    w = √λ_min · sinh v     where the smallest layer is unique   (open: θ_k on the whole line)
    w = ± e^{± v}           where it is tied and nonzero         (half-line: θ_k keeps its sign)
    w = 0                   where it is tied and zero            (frozen: θ_k = 0 for ever)

so that θ = w·g·R on either branch, and both tiny and huge weights are numbers of moderate size.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddln._internal.validation import ArrayLike, as_layers

OPEN, HALF_LINE, FROZEN = 0, 1, 2

_KINDS = {
    OPEN: "open: a unique smallest layer; θ_k moves on the whole line",
    HALF_LINE: "on a half-line: smallest layers tied and nonzero; θ_k keeps its sign",
    FROZEN: "frozen: smallest layers tied and zero; θ_k stays 0, a saddle",
}


def effective_parameter(layers: ArrayLike) -> Float[Array, " dim"]:
    """θ = u¹ ⊙ … ⊙ u^L.

    Args:
        layers: shape (depth, dim), depth ≥ 2.

    Returns:
        θ, shape (dim,).

    >>> ddln.effective_parameter([[1.0, 2.0], [3.0, 4.0]]).tolist()
    [3.0, 8.0]
    """
    return jnp.prod(as_layers(layers), axis=0)


def product_and_error(
    layers: Float[Array, "depth dim"],
) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """θ = u¹ ⊙ … ⊙ u^L rounded, and what the rounding left out: their sum has twice the digits.

    Every product of halves below is exact, so that a fused multiply-add changes nothing.

    Source: Dekker, A floating-point technique for extending the available precision (1971).

    >>> product, error = product_and_error(jnp.array([[0.1], [3.0]]))
    >>> float(product[0]), float(error[0])  # 0.1 is 0.1 + 5.55e-18, three of which are left out
    (0.30000000000000004, -2.7755575615628914e-17)
    """
    digits = jnp.finfo(layers.dtype)
    # Of numbers below 1: the lower half of a tiny one would be less than the smallest number.
    layers, exponents = jnp.frexp(layers)
    exponent = jnp.sum(exponents, axis=0, dtype=exponents.dtype)

    def halves(x):
        upper = jax.lax.reduce_precision(x, digits.nexp, digits.nmant // 2 - 1)
        return upper, x - upper

    product, error = layers[0], jnp.zeros_like(layers[0])
    for layer in layers[1:]:
        (a, b), (c, d) = halves(product), halves(layer)
        product = a * c + (a * d + b * c + b * d)
        error = (((a * c - product) + a * d) + b * c) + b * d + error * layer
    return jnp.ldexp(product, exponent), jnp.ldexp(error, exponent)


def mobility(layers: ArrayLike) -> Float[Array, " dim"]:
    """M_k = Σ_j Π_{i≠j} (uⁱ_k)²: under gradient flow dθ/dt = −M ⊙ ∇ℒ(θ), and ∇²Q = 1/M.

    Args:
        layers: shape (depth, dim).

    Returns:
        M, shape (dim,).

    Source: Proposition 1, arXiv 2412.16765.

    >>> ddln.mobility([[1.0], [2.0], [3.0]]).tolist()  # 4·9 + 1·9 + 1·4
    [49.0]
    """
    return mobility_of_squares(as_layers(layers) ** 2)


def mobility_of_squares(squares: Float[Array, "depth dim"]) -> Float[Array, " dim"]:
    """M, from the squares of the layers.

    >>> mobility_of_squares(jnp.array([[1.0], [4.0], [9.0]])).tolist()
    [49.0]
    """
    mobility, product = jnp.zeros_like(squares[0]), jnp.ones_like(squares[0])
    for square in squares:
        mobility, product = mobility * square + product, product * square
    return mobility


def imbalance(layers: ArrayLike) -> Float[Array, "depth dim"]:
    """λ_jk = (u^j_k)² − min_i (uⁱ_k)², conserved by gradient flow.

    Args:
        layers: shape (depth, dim).

    Returns:
        λ ≥ 0, shape (depth, dim); 0 at each coordinate's smallest layer.

    Source: Proposition 1, arXiv 2412.16765.

    >>> ddln.imbalance([[1.0], [2.0], [3.0]]).ravel().tolist()
    [0.0, 3.0, 8.0]
    """
    magnitude = jnp.abs(as_layers(layers))
    smallest = jnp.min(magnitude, axis=0, keepdims=True)
    return (magnitude - smallest) * (magnitude + smallest)


def coordinate_kinds(layers: ArrayLike) -> Int[Array, " dim"]:
    """Which of the three kinds each coordinate is: 0 open, 1 half-line, 2 frozen.

    The theorems assume every coordinate open, which holds almost surely for random layers.

    Args:
        layers: shape (depth, dim).

    >>> ddln.coordinate_kinds([[0.0, 1.0, 0.0], [2.0, -1.0, 0.0]]).tolist()
    [0, 1, 2]
    """
    magnitude = jnp.sort(jnp.abs(as_layers(layers)), axis=0)
    tied = magnitude[0] == magnitude[1]
    return jnp.where(tied, jnp.where(magnitude[0] > 0, HALF_LINE, FROZEN), OPEN)


def describe(layers: ArrayLike) -> str:
    """How many coordinates are of which kind, in words, with the first indices of the rare ones.

    >>> print(ddln.describe([[0.0, 1.0], [2.0, -1.0]]))
    1 of 2 coordinates open: a unique smallest layer; θ_k moves on the whole line.
    1 of 2 coordinates on a half-line: smallest layers tied and nonzero; θ_k keeps its sign (k = 1).
    """
    kinds = coordinate_kinds(layers)
    lines = []
    for kind, words in _KINDS.items():
        members = [int(k) for k in jnp.flatnonzero(kinds == kind)]
        if members:
            shown = ", ".join(map(str, members[:5])) + (", …" if len(members) > 5 else "")
            indices = "" if kind == OPEN else f" (k = {shown})"
            lines.append(f"{len(members)} of {kinds.size} coordinates {words}{indices}.")
    return "\n".join(lines)


class Reduction(eqx.Module):
    """The change of variables between layers (depth, dim) and positions v (dim,).

    Built from the initial layers; exact, so the imbalance is conserved by construction. What it
    computes is elementwise, so that positions and fields may have more axes, such as lanes.

    Source: as derived in docs/theory.md from Proposition 1 and Theorem 1, arXiv 2412.16765.

    >>> layers = jnp.array([[0.5], [1.0], [-2.0]])
    >>> reduction = ddln.Reduction(layers)
    >>> bool(jnp.allclose(reduction.layers(reduction.start), layers))
    True
    """

    start: Float[Array, " dim"]
    """Position of the initial layers."""
    radius: Float[Array, " dim"]
    """√λ_min, 0 where the smallest layer is tied."""
    side: Float[Array, " dim"]
    """Sign of w on a half-line, 0 elsewhere."""
    gaps: Float[Array, "depth-2 dim"]
    """The other λ_j, ascending."""
    sign: Float[Array, "depth dim"]
    """Signs of the layers in ascending order of magnitude; of w, the product of the others'."""
    order: Int[Array, "depth dim"]
    """order[i, k]: which layer is the i-th smallest at coordinate k."""

    def __init__(self, layers: ArrayLike):
        for name, value in _reduce(as_layers(layers)).items():
            setattr(self, name, value)

    @property
    def is_open(self):
        return self.radius > 0

    @property
    def is_frozen(self):
        return (self.radius == 0) & (self.side == 0)

    def smallest(self, v: Float[Array, "dim *lanes"]) -> Float[Array, "dim *lanes"]:
        """w(v): the smallest layer, up to sign."""
        return self._smallest_and_partner(v)[0]

    def partner(self, v: Float[Array, "dim *lanes"]) -> Float[Array, "dim *lanes"]:
        """g(v) = √(w² + λ_min) = dw/dv: magnitude of the second smallest layer."""
        return self._smallest_and_partner(v)[1]

    def _smallest_and_partner(self, v):
        # All from one exponential, of |v|, so that sinh keeps its relative accuracy near 0. Where
        # it would overflow, w·g does in any case.
        largest = jnp.log(jnp.finfo(v.dtype).max)
        below = v < 0  # at 0 too, both sides of a choice must have the same slope
        grown = jnp.expm1(jnp.minimum(jnp.where(below, -v, v), largest))
        up, down = 1 + grown, 1 / (1 + grown)
        half = (grown + grown * down) / 2
        sinh, cosh = jnp.where(below, -half, half), (up + down) / 2
        exponential = jnp.where((self.side < 0) == below, up, down)  # e^{side · v}
        return (
            self.radius * sinh + self.side * exponential,
            self.radius * cosh + jnp.abs(self.side) * exponential,
        )

    def smallest_change(
        self, v: Float[Array, "dim *lanes"], step: Float[Array, "dim *lanes"]
    ) -> Float[Array, "dim *lanes"]:
        """w(v + step) − w(v), to relative accuracy however short the step."""
        on_line = 2 * self.radius * jnp.cosh(v + step / 2) * jnp.sinh(step / 2)
        on_half_line = self.side * jnp.exp(self.side * v) * jnp.expm1(self.side * step)
        return jnp.where(self.is_open, on_line, on_half_line)

    def rest(self, v: Float[Array, "dim *lanes"]) -> Float[Array, "dim *lanes"]:
        """R(v): product of the magnitudes of the remaining layers; 1 at depth 2."""
        squares = list(self.smallest(v)[None] ** 2 + self.gaps)
        # One root for two layers: more at once would leave the range of the numbers.
        pairs = [math.prod(squares[i : i + 2]) for i in range(0, len(squares), 2)]
        # Where a square is 0, as on frozen coordinates, its root has no derivative, and needs none.
        least = jnp.finfo(v.dtype).tiny
        return math.prod((jnp.sqrt(jnp.maximum(x, least)) for x in pairs), start=jnp.ones_like(v))

    def theta(self, v: Float[Array, "dim *lanes"]) -> Float[Array, "dim *lanes"]:
        """θ(v) = w·g·R."""
        return self.smallest(v) * self.partner(v) * self.rest(v)

    def theta_change(
        self, v: Float[Array, "dim *lanes"], step: Float[Array, "dim *lanes"]
    ) -> Float[Array, "dim *lanes"]:
        """θ(v + step) − θ(v), to relative accuracy however short the step.

        The squares of all layers change by the same y, each layer a to b by y/(a + b), and a
        product ab by b·Δa + a·Δb.
        """
        w, rise = self.smallest(v), self.smallest_change(v, step)
        w_after = w + rise
        squares_rise = rise * (w + w_after)
        before = [self.partner(v), *jnp.sqrt(w[None] ** 2 + self.gaps)]
        after = [self.partner(v + step), *jnp.sqrt(w_after[None] ** 2 + self.gaps)]
        product, change = w, rise
        for a, b in zip(before, after, strict=True):
            change = change * b + product * (squares_rise / jnp.where(a + b > 0, a + b, 1.0))
            product = product * a
        return change

    def bend(self, v: Float[Array, "dim *lanes"]) -> Float[Array, "dim *lanes"]:
        """dR/dv = R · w g Σ_j 1/(w² + λ_j)."""
        w, g = self._smallest_and_partner(v)
        squares = jnp.maximum(w[None] ** 2 + self.gaps, jnp.finfo(v.dtype).tiny)
        return self.rest(v) * sum((w * g / x for x in squares), start=jnp.zeros_like(v))

    def slope(self, v: Float[Array, "dim *lanes"]) -> Float[Array, "dim *lanes"]:
        """dθ/dv = (w² + g²) R + w g dR/dv = M/R."""
        w, g = self._smallest_and_partner(v)
        return self.rest(v) * (w**2 + g**2) + w * g * self.bend(v)

    def mobility(self, v: Float[Array, "dim *lanes"]) -> Float[Array, "dim *lanes"]:
        """M(v) = R · dθ/dv."""
        return self.rest(v) * self.slope(v)

    def layers(self, v: Float[Array, " dim"]) -> Float[Array, "depth dim"]:
        """The layers at position v."""
        w, g = self.smallest(v)[None], self.partner(v)[None]
        return self.by_layer(self.sign * jnp.concatenate([w, g, jnp.sqrt(w**2 + self.gaps)]))

    def by_layer(self, rows: Float[Array, "depth dim"]) -> Float[Array, "depth dim"]:
        """Rows in the ascending order of the layers' magnitudes as rows in the layers' own."""
        layer = jnp.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1))
        # Choices run as fast as memory is, sorting and gathering far from it.
        chosen = (
            jnp.where(place[None] == layer, row[None], 0.0)
            for row, place in zip(rows, self.order, strict=True)
        )
        return sum(chosen, start=jnp.zeros_like(rows))


@jax.jit
def _reduce(layers: Float[Array, "depth dim"]) -> dict[str, Array]:
    order = jnp.argsort(jnp.abs(layers), axis=0)
    ascending = jnp.take_along_axis(layers, order, axis=0)
    magnitude = jnp.abs(ascending)
    others = jnp.where(ascending[1:] < 0, -1.0, 1.0).astype(layers.dtype)
    sign = jnp.concatenate([jnp.prod(others, axis=0, keepdims=True), others])
    w = sign[0] * ascending[0]
    imbalance = (magnitude[1:] - magnitude[:1]) * (magnitude[1:] + magnitude[:1])
    radius = jnp.sqrt(magnitude[1] - magnitude[0]) * jnp.sqrt(magnitude[1] + magnitude[0])
    is_open = radius > 0
    side = jnp.where(is_open, 0.0, jnp.sign(w))
    on_line = jnp.arcsinh(w / jnp.where(is_open, radius, 1.0))
    on_half_line = side * jnp.log(jnp.where(side == 0, 1.0, jnp.abs(w)))
    return {
        "start": jnp.where(is_open, on_line, on_half_line),
        "radius": radius,
        "side": side,
        "gaps": imbalance[1:],
        "sign": sign,
        "order": order,
    }
