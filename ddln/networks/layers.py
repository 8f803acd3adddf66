"""Layers u¹ … u^L, shape (depth, dim), their effective parameter θ = u¹ ⊙ … ⊙ u^L and its gradient.

Under gradient flow on the layers every difference (uⁱ)² − (uʲ)² is conserved: the imbalance. Its
ties decide what a coordinate of θ can reach, see `coordinate_kinds`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddln._internal.validation import ArrayLike, as_layers

OPEN, HALF_LINE, FROZEN = 0, 1, 2
Points = Float[Array, "*points dim"]
Function = Callable[[Float[Array, " m"]], Float[Array, ""]]
"""G of another parametrisation θ_k = G(w_k), one coordinate at a time."""

_KINDS = {
    OPEN: "open: a unique smallest layer; θ_k moves on the whole line",
    HALF_LINE: "on a half-line: smallest layers tied and nonzero; θ_k keeps its sign",
    FROZEN: "frozen: smallest layers tied and zero; θ_k stays 0, a saddle",
}


def effective_parameter(layers: ArrayLike) -> Float[Array, " dim"]:
    """θ = u¹ ⊙ … ⊙ u^L.

    Args:
        layers: shape (depth, dim), depth ≥ 1.

    Returns:
        θ, shape (dim,).

    >>> ddln.effective_parameter([[1.0, 2.0], [3.0, 4.0]]).tolist()
    [3.0, 8.0]
    """
    return jnp.prod(as_layers(layers), axis=0)


def theta_of(
    layers: Float[Array, "depth dim"], function: Function | None = None
) -> Float[Array, " dim"]:
    """θ = u¹ ⊙ … ⊙ u^L; or θ_k = G(w_k) of the parameters w of another parametrisation.

    Args:
        layers: u or w, shape (depth, dim).
        function: G; `None` for the product of the layers.

    >>> theta_of(jnp.array([[2.0, 3.0], [1.0, 1.0]]), lambda w: w[0] ** 2 - w[1] ** 2).tolist()
    [3.0, 8.0]
    """
    if function is None:
        return effective_parameter(layers)
    return jax.vmap(function, in_axes=1)(layers)


def layer_gradient(
    layers: Float[Array, "depth dim"],
    gradient: Float[Array, " dim"],
    function: Function | None = None,
) -> Float[Array, "depth dim"]:
    """∂ℒ/∂u^j = ∇ℒ(θ) ⊙ ⊙_{i≠j} uⁱ: the gradient with respect to the layers.

    Args:
        layers: u, shape (depth, dim).
        gradient: ∇ℒ(θ) at θ = u¹ ⊙ … ⊙ u^L, shape (dim,); or that of any function of θ.
        function: as in `theta_of`.

    Returns:
        ∂ℒ/∂u, shape (depth, dim).

    Source: the chain rule, as in Proposition 1, arXiv 2412.16765.

    >>> layer_gradient(jnp.array([[2.0], [3.0], [5.0]]), jnp.array([10.0])).ravel().tolist()
    [150.0, 100.0, 60.0]
    """
    return jax.vjp(partial(theta_of, function=function), layers)[1](gradient)[0]


@jax.jit
def product_and_error(
    layers: Float[Array, "depth dim"],
) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """θ = u¹ ⊙ … ⊙ u^L rounded, and its rounding error: their sum has twice the digits.

    Every product of halves below is exact, so a fused multiply-add changes nothing.

    Source: Dekker, A floating-point technique for extending the available precision (1971).

    >>> product, error = product_and_error(jnp.array([[0.1], [3.0]]))
    >>> float(product[0]), float(error[0])  # 3 · 0.1 in float64
    (0.30000000000000004, -2.7755575615628914e-17)
    """
    digits = jnp.finfo(layers.dtype)
    # Scale to numbers in [½, 1): the lower half of a tiny number would underflow.
    layers, exponents = jnp.frexp(layers)
    exponent = jnp.sum(exponents, axis=0, dtype=exponents.dtype)

    def halves(x: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        upper = jax.lax.reduce_precision(x, digits.nexp, digits.nmant // 2 - 1)
        return upper, x - upper

    def multiply(
        so_far: tuple[Float[Array, " dim"], Float[Array, " dim"]], layer: Float[Array, " dim"]
    ) -> tuple[tuple[Float[Array, " dim"], Float[Array, " dim"]], None]:
        product, error = so_far
        (a, b), (c, d) = halves(product), halves(layer)
        product = a * c + (a * d + b * c + b * d)
        return (product, (((a * c - product) + a * d) + b * c) + b * d + error * layer), None

    start = layers[0], jnp.zeros_like(layers[0])
    (product, error), _ = jax.lax.scan(multiply, start, layers[1:])
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


@jax.jit
def mobility_of_squares(squares: Float[Array, "depth dim"]) -> Float[Array, " dim"]:
    """M as a function of the squares of the layers.

    >>> mobility_of_squares(jnp.array([[1.0], [4.0], [9.0]])).tolist()
    [49.0]
    """
    mobility, product = jnp.zeros_like(squares[0]), jnp.ones_like(squares[0])
    for square in squares:
        mobility, product = mobility * square + product, product * square
    return mobility


def mobility_and_slope(
    squares: Float[Array, "depth *points dim"],
) -> tuple[Points, Points]:
    """M and dM/dy, where y is the amount by which all squares of the layers grow along the flow.

    For each further layer θ² becomes θ² s, M becomes M s + θ², and its slope that of M s + θ²,
    where s = (u^j)² and dθ²/dy = M. The loop keeps both out of the arithmetic that follows, where
    XLA would compute them again for every use.

    >>> mobility, slope = mobility_and_slope(jnp.array([[1.0], [4.0], [9.0]]))
    >>> mobility.tolist(), slope.tolist()  # 2 (1 + 4 + 9)
    ([49.0], [28.0])
    """

    def add_layer(
        sums: tuple[Points, Points, Points], square: Points
    ) -> tuple[tuple[Points, Points, Points], None]:
        product, mobility, slope = sums
        return (product * square, mobility * square + product, slope * square + 2 * mobility), None

    none = jnp.zeros_like(squares[0])
    (_, mobility, slope), _ = jax.lax.scan(add_layer, (none + 1, none, none), squares)
    return mobility, slope


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
    """The kind of each coordinate: 0 open, 1 half-line, 2 frozen.

    The theorems assume that every coordinate is open, which holds almost surely for random layers.

    Args:
        layers: shape (depth, dim).

    Returns:
        0 where the smallest layer is unique, as a single layer is, 1 where it is tied and nonzero,
        2 where it is tied and zero, shape (dim,).

    >>> ddln.coordinate_kinds([[0.0, 1.0, 0.0], [2.0, -1.0, 0.0]]).tolist()
    [0, 1, 2]
    """
    magnitude = jnp.sort(jnp.abs(as_layers(layers)), axis=0)
    if len(magnitude) == 1:
        return jnp.full(magnitude.shape[1], OPEN)
    tied = magnitude[0] == magnitude[1]
    return jnp.where(tied, jnp.where(magnitude[0] > 0, HALF_LINE, FROZEN), OPEN)


def describe(layers: ArrayLike) -> str:
    """Count the coordinates of each kind, in words; name the first few that are not open.

    >>> print(ddln.describe([[0.0, 1.0], [2.0, -1.0]]))
    1 of 2 coordinates open: a unique smallest layer; θ_k moves on the whole line.
    1 of 2 coordinates on a half-line: smallest layers tied and nonzero; θ_k keeps its sign (k = 1).
    """
    kinds = np.asarray(coordinate_kinds(layers))
    lines = []
    for kind, words in _KINDS.items():
        members = [int(k) for k in np.flatnonzero(kinds == kind)]
        if members:
            shown = ", ".join(map(str, members[:5])) + (", …" if len(members) > 5 else "")
            indices = "" if kind == OPEN else f" (k = {shown})"
            lines.append(f"{len(members)} of {kinds.size} coordinates {words}{indices}.")
    return "\n".join(lines)
