"""One step of an integrator for many lanes at once: an explicit method, and one for stiff lanes.

States have shape (dim, lanes), so that the innermost loops run over lanes. Besides the state at its
end and an estimate of the error there, a step gives the coefficients of a polynomial in between,

    y(t + sh) = (1 − s) y₀ + s [y₁ + (1 − s) (c₁ + s (c₂ + s c₃))],        0 ≤ s ≤ 1.
"""

import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@runtime_checkable
class System(Protocol):
    """A differential equation ẏ = f(y), lane by lane."""

    def rate(self, y: Float[Array, "dim lanes"]) -> Float[Array, "dim lanes"]:
        """f(y)."""
        ...

    def linearised(
        self, y: Float[Array, "dim lanes"]
    ) -> tuple[Float[Array, "dim lanes"], Float[Array, "dim dim lanes"]]:
        """f(y) and ∂f/∂y."""
        ...

    def arrived(self, y: Float[Array, "dim lanes"]) -> Bool[Array, " lanes"]:
        """Which lanes need not go on."""
        ...


class Step(NamedTuple):
    """What a step comes to, and what the next one needs to remember of it."""

    end: Float[Array, "dim lanes"]
    error: Float[Array, "dim lanes"]
    coefficients: tuple[Float[Array, "dim lanes"], ...]
    memory: Any


class Tsit5:
    """Runge–Kutta: explicit, order 5 with an error estimate of order 4 (Tsitouras 2011)."""

    _STAGES = diffrax.Tsit5.tableau.a_lower
    _END = diffrax.Tsit5.tableau.b_sol
    _ERROR = diffrax.Tsit5.tableau.b_error
    # Minus the leading coefficients of the stages' weights in between.
    _LAST = np.array(
        [
            *(1.0530884977290216, -0.1017, -2.490627285651252793, 16.54810288924490272),
            *(-47.37952196281928122, 34.87065786149660974, -2.5),
        ]
    )

    @staticmethod
    def start(system: System, y):
        return system.rate(y)

    @classmethod
    def step(cls, system: System, y, memory, h) -> Step:
        slopes = [memory]
        for weights in cls._STAGES:
            end = y + h[None] * _combine(weights, slopes)
            slopes.append(system.rate(end))
        # The polynomial has the slopes of the curve at both ends.
        first = np.eye(7)[0] - cls._END
        middle = -np.eye(7)[6] + cls._END - first - cls._LAST
        coefficients = tuple(h[None] * _combine(c, slopes) for c in (first, middle, cls._LAST))
        return Step(end, h[None] * _combine(cls._ERROR, slopes), coefficients, slopes[-1])


class Rodas5P:
    """Rosenbrock: linearly implicit, L-stable, order 5 with an error estimate of order 4.

    It solves (1/(γh) − ∂f/∂y) k = r for every stage, by the inverse, since lanes are many and
    their matrices small.

    Source: Steinebach 2023, BIT 63, 27; in the form without products by ∂f/∂y.
    """

    _GAMMA = 0.21193756319429014
    _STAGES = (
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (
            *(-7.502846399306121, 2.561846144803919, -11.627539656261098),
            *(-0.18268767659942256, 0.030198172008377946),
        ),
    )
    _COUPLING = (
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            *(24.854864614690072, -3.0009227002832186, 47.4931110020768),
            *(5.5814197821558125, -0.6610691825249471),
        ),
        (
            *(30.91273214028599, -3.1208243349937974, 77.79954646070892),
            *(34.28646028294783, -19.097331116725623, -28.087943162872662),
        ),
        (
            *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047),
            *(-40.06618937091002, -54.66780262877968, -9.48861652309627),
        ),
    )
    _BETWEEN = (
        (
            *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
            *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
        ),
        (
            *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
            *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
        ),
        (
            *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
            *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
        ),
    )

    @staticmethod
    def start(system: System, y):
        return ()

    @classmethod
    def step(cls, system: System, y, memory, h) -> Step:
        rate, jacobian = system.linearised(y)
        identity = jnp.eye(y.shape[0], dtype=y.dtype)[:, :, None]
        matrix = inverse(identity / (cls._GAMMA * h)[None, None] - jacobian)

        increments = [product(matrix, rate)]
        end = y
        for i, coupling in enumerate(cls._COUPLING):
            # The last two stages start where their predecessor ended.
            after = i >= len(cls._STAGES)
            end = end + increments[-1] if after else y + _combine(cls._STAGES[i], increments)
            right = system.rate(end) + _combine(coupling, increments) / h[None]
            increments.append(product(matrix, right))
        end = end + increments[-1]
        coefficients = tuple(_combine(c, increments) for c in cls._BETWEEN)
        return Step(end, increments[-1], coefficients, ())


def _combine(weights, terms) -> Array:
    return functools.reduce(jnp.add, map(jnp.multiply, map(float, weights), terms))


def inverse(matrix: Float[Array, "dim dim lanes"]) -> Float[Array, "dim dim lanes"]:
    """The inverse of each lane's matrix, by Gauss–Jordan elimination without pivoting.

    For lanes of moderate dim, side by side, it is many times as fast as a batched LAPACK. Where a
    pivot vanishes the result is not finite, and the step that asked for it is rejected.

    >>> inverse(jnp.array([[2.0, 0.0], [1.0, 4.0]])[:, :, None])[:, :, 0].tolist()
    [[0.5, 0.0], [-0.125, 0.25]]
    """

    def eliminate(k, matrix):
        pivot = 1 / matrix[k, k]
        row, column = matrix[k] * pivot[None], matrix[:, k]
        matrix = matrix - column[:, None] * row[None]
        return matrix.at[k].set(row).at[:, k].set(-column * pivot[None]).at[k, k].set(pivot)

    dim = matrix.shape[0]
    return jax.lax.fori_loop(0, dim, eliminate, matrix, unroll=True if dim <= 32 else 2)


def product(
    matrix: Float[Array, "dim dim lanes"], vector: Float[Array, "dim lanes"]
) -> Float[Array, "dim lanes"]:
    """Matrix times vector, lane by lane, so that lanes stay the innermost loop.

    >>> product(jnp.array([[2.0, 0.0], [1.0, 4.0]])[:, :, None], jnp.array([[1.0], [2.0]]))[:, 0]
    Array([2., 9.], dtype=float64)
    """

    def add(j, total):
        return total + matrix[:, j] * vector[j][None]

    # Not unrolled to the end: what enters a loop is computed once, not wherever it is used.
    return jax.lax.fori_loop(0, len(vector), add, jnp.zeros_like(vector), unroll=4)
