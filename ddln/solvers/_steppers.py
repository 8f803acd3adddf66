"""Single steps of an explicit and an implicit Runge–Kutta method, for a batch of networks.

States have shape (dim, batch), so that the innermost loops run over the batch. Besides the state at
its end and an estimate of the error there, a step returns the coefficients of its dense output,

    y(t + sh) = (1 − s) y₀ + s [y₁ + (1 − s) (c₁ + s (c₂ + s c₃))],        0 ≤ s ≤ 1.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@runtime_checkable
class StepperSystem(Protocol):
    """A differential equation ẏ = f(t, y) for each network of a batch."""

    def rate(
        self, time: Float[Array, " batch"], y: Float[Array, "dim batch"]
    ) -> Float[Array, "dim batch"]:
        """f(t, y)."""
        ...

    def linearised(
        self, time: Float[Array, " batch"], y: Float[Array, "dim batch"]
    ) -> tuple[
        Float[Array, "dim batch"], Float[Array, "dim dim batch"], Float[Array, "dim batch"] | None
    ]:
        """f(t, y), ∂f/∂y and ∂f/∂t; the last is `None` if f does not depend on t."""
        ...

    def is_terminated(self, y: Float[Array, "dim batch"]) -> Bool[Array, " batch"]:
        """Which networks can stop at y."""
        ...


class Step(NamedTuple):
    """Result of a step."""

    end: Float[Array, "dim batch"]
    error: Float[Array, "dim batch"]
    """Estimate of the local error."""
    coefficients: tuple[Float[Array, "dim batch"], ...]
    """Of the dense output."""
    carry: Any
    """Input of the next step."""


class Tsit5:
    """An explicit Runge–Kutta method of order 5 with an error estimate of order 4.

    Its carry is f at the start of the step.

    Source: Tsitouras 2011, Computers & Mathematics with Applications 62, 770–775.
    """

    # As in diffrax, which would take long to load for these numbers alone.
    _STAGES = (
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    )
    _TIMES = (0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0)
    _END = np.array([*_STAGES[-1], 0.0])
    _ERROR = np.array(
        [
            0.0017800110522257773,
            0.0008164344596567463,
            -0.007880878010261994,
            0.1447110071732629,
            -0.5823571654525552,
            0.45808210592918686,
            -0.015151515151515152,
        ]
    )
    # Minus the leading coefficients of the stages' weights in the dense output.
    _LAST = np.array(
        [
            1.0530884977290216,
            -0.1017,
            -2.490627285651252793,
            16.54810288924490272,
            -47.37952196281928122,
            34.87065786149660974,
            -2.5,
        ]
    )

    @staticmethod
    def start(system: StepperSystem, y: Float[Array, "dim batch"]) -> Float[Array, "dim batch"]:
        """Carry for the first step, from y at time 0."""
        return system.rate(jnp.zeros_like(y[0]), y)

    @classmethod
    def step(
        cls,
        system: StepperSystem,
        time: Float[Array, " batch"],
        y: Float[Array, "dim batch"],
        carry: Float[Array, "dim batch"],
        h: Float[Array, " batch"],
    ) -> Step:
        """A step of size h from y."""
        slopes = [carry]
        for weights, fraction in zip(cls._STAGES, cls._TIMES, strict=True):
            end = y + h[None] * _combine(weights, slopes)
            slopes.append(system.rate(time + fraction * h, end))
        # The dense output has the derivatives of the solution at both ends.
        first = np.eye(7)[0] - cls._END
        middle = -np.eye(7)[6] + cls._END - first - cls._LAST
        coefficients = tuple(h[None] * _combine(c, slopes) for c in (first, middle, cls._LAST))
        return Step(end, h[None] * _combine(cls._ERROR, slopes), coefficients, slopes[-1])


class Rodas5P:
    """A Rosenbrock method: linearly implicit, L-stable, order 5 with an error estimate of order 4.

    Every stage solves (1/(γh) − ∂f/∂y) k = r. The matrices are small and many, so they are inverted
    explicitly. The carry is empty. Time is one more component of the state, with rate 1: its stages
    are known.

    Source: Steinebach 2023, BIT 63, 27; in the form without products by ∂f/∂y.
    """

    _GAMMA = 0.21193756319429014
    _STAGES = (
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        (
            -7.502846399306121,
            2.561846144803919,
            -11.627539656261098,
            -0.18268767659942256,
            0.030198172008377946,
        ),
    )
    _COUPLING = (
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (
            24.854864614690072,
            -3.0009227002832186,
            47.4931110020768,
            5.5814197821558125,
            -0.6610691825249471,
        ),
        (
            30.91273214028599,
            -3.1208243349937974,
            77.79954646070892,
            34.28646028294783,
            -19.097331116725623,
            -28.087943162872662,
        ),
        (
            37.80277123390563,
            -3.2571969029072276,
            112.26918849496327,
            66.9347231244047,
            -40.06618937091002,
            -54.66780262877968,
            -9.48861652309627,
        ),
    )
    _DENSE_OUTPUT = (
        (
            25.948786856663858,
            -2.5579724845846235,
            10.433815404888879,
            -2.3679251022685204,
            0.524948541321073,
            1.1241088310450404,
            0.4272876194431874,
            -0.17202221070155493,
        ),
        (
            -9.91568850695171,
            -0.9689944594115154,
            3.0438037242978453,
            -24.495224566215796,
            20.176138334709044,
            15.98066361424651,
            -6.789040303419874,
            -6.710236069923372,
        ),
        (
            11.419903575922262,
            2.8879645146136994,
            72.92137995996029,
            80.12511834622643,
            -52.072871366152654,
            -59.78993625266729,
            -0.15582684282751913,
            4.883087185713722,
        ),
    )

    @staticmethod
    def start(system: StepperSystem, y: Float[Array, "dim batch"]) -> tuple[()]:
        """Carry for the first step, from y at time 0."""
        return ()

    @classmethod
    def step(
        cls,
        system: StepperSystem,
        time: Float[Array, " batch"],
        y: Float[Array, "dim batch"],
        carry: tuple[()],
        h: Float[Array, " batch"],
    ) -> Step:
        """A step of size h from y."""
        rate, jacobian, drift = system.linearised(time, y)
        identity = jnp.eye(y.shape[0], dtype=y.dtype)[:, :, None]
        matrix = inverse(identity / (cls._GAMMA * h)[None, None] - jacobian)

        increments = [product(matrix, _drifting(rate, drift, cls._GAMMA * h))]
        end, passed = y, [cls._GAMMA]
        for i, coupling in enumerate(cls._COUPLING):
            # The last two stages start from the end of the stage before them.
            is_late = i >= len(cls._STAGES)
            end = end + increments[-1] if is_late else y + _combine(cls._STAGES[i], increments)
            fraction = 1.0 if is_late else float(np.dot(cls._STAGES[i], passed))
            passed.append(cls._GAMMA * (1 + float(np.dot(coupling, passed))))
            right = system.rate(time + fraction * h, end) + _combine(coupling, increments) / h[None]
            right = _drifting(right, drift, passed[-1] * h)
            increments.append(product(matrix, right))
        end = end + increments[-1]
        coefficients = tuple(_combine(c, increments) for c in cls._DENSE_OUTPUT)
        return Step(end, increments[-1], coefficients, ())


def _drifting(
    rate: Float[Array, "dim batch"],
    drift: Float[Array, "dim batch"] | None,
    passed: Float[Array, " batch"],
) -> Float[Array, "dim batch"]:
    """The right-hand side of a stage, with ∂f/∂t times the stage's increment of the time."""
    return rate if drift is None else rate + drift * passed[None]


def _combine(
    weights: Sequence[float] | Float[np.ndarray, " terms"],
    terms: Sequence[Float[Array, "dim batch"]],
) -> Float[Array, "dim batch"]:
    """Linear combination of the leading terms, as many as there are weights."""
    return functools.reduce(jnp.add, map(jnp.multiply, map(float, weights), terms))


def inverse(matrix: Float[Array, "dim dim batch"]) -> Float[Array, "dim dim batch"]:
    """Inverses of a batch of matrices, by Gauss–Jordan elimination without pivoting.

    For a batch of moderate dim this is many times as fast as LAPACK. A zero pivot makes the result
    infinite or NaN, and the step that uses it is rejected.

    >>> inverse(jnp.array([[2.0, 0.0], [1.0, 4.0]])[:, :, None])[:, :, 0].tolist()
    [[0.5, 0.0], [-0.125, 0.25]]
    """

    def eliminate(k: Any, matrix: Float[Array, "dim dim batch"]) -> Float[Array, "dim dim batch"]:
        pivot = 1 / matrix[k, k]
        row, column = matrix[k] * pivot[None], matrix[:, k]
        matrix = matrix - column[:, None] * row[None]
        return matrix.at[k].set(row).at[:, k].set(-column * pivot[None]).at[k, k].set(pivot)

    dim = matrix.shape[0]
    return jax.lax.fori_loop(0, dim, eliminate, matrix, unroll=True if dim <= 32 else 2)


def product(
    matrix: Float[Array, "dim dim batch"], vector: Float[Array, "dim batch"]
) -> Float[Array, "dim batch"]:
    """Matrix times vector for each network, with the batch as the innermost loop.

    >>> product(jnp.array([[2.0, 0.0], [1.0, 4.0]])[:, :, None], jnp.array([[1.0], [2.0]]))[:, 0]
    Array([2., 9.], dtype=float64)
    """

    def add(j: Any, total: Float[Array, "dim batch"]) -> Float[Array, "dim batch"]:
        return total + matrix[:, j] * vector[j][None]

    # A loop, not fully unrolled: XLA computes the inputs of a loop once, but fuses (and repeats)
    # them into every term of an unrolled sum.
    return jax.lax.fori_loop(0, len(vector), add, jnp.zeros_like(vector), unroll=4)
