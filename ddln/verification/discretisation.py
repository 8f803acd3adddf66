"""Gradient descent against the gradient flow at equal time: an error of first order in the step.

Steps of size η are off the flow by η‖e‖ + O(η²) at equal time T, with e as in
`discretisation_error`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, Number, as_layers, as_positive, largest
from ddln.problems.base import Problem
from ddln.solvers.gradient_descent import descend
from ddln.solvers.gradient_flow import gradient_flow
from ddln.solvers.optimisers import optimiser
from ddln.solvers.trajectory import Trajectory
from ddln.verification import diagnostics
from ddln.verification.certificates import Claim

_RTOL = 1e-12
"""Relative tolerance of the flow, or 100 roundings."""
_FLOW_TIMES = 9
"""Saved times of the flow, at which its sharpness is computed."""
_SLOPE = 0.02
"""Tolerance of the order of the error."""
_SMALL = 0.5
"""ηS below which steps are small."""
_ABOVE = 1000
"""Errors this many times the accuracy of the flow change the order by at most 0.006."""


def discretisation_error(
    problem: Problem, layers: ArrayLike, until: Number, steps: ArrayLike
) -> Float[Array, " runs"]:
    """‖θ_K − θ(T)‖₂ of gradient descent with K steps of size T/K, for several K.

    With η = T/K it is η‖e(T)‖ + O(η²), e the first-order change of the flow's θ when ℒ becomes
    ℒ + (η/4)‖∂ℒ/∂u‖², the loss whose flow a step follows up to O(η³).

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        until: T > 0 in flow time.
        steps: the numbers K of steps, integers ≥ 1 that increase, shape (runs,).

    Returns:
        The errors, shape (runs,); NaN if the descent or the flow diverged.

    Raises:
        ValueError: layers of another shape, T ≤ 0 (traced: NaN), or invalid `steps`.

    Source: the modified loss, Barrett & Dherin 2021.

    >>> problem = ddln.least_squares([[1.0]], [2.0], normalisation="half")
    >>> from ddln.verification.discretisation import discretisation_error
    >>> errors = discretisation_error(problem, [[0.5], [0.5]], 1.0, [200, 400])
    >>> [round(float(x), 4) for x in errors]
    [0.0021, 0.0011]
    """
    layers = as_layers(layers, problem.dim)
    counts = np.asarray(steps)
    whole = counts.ndim == 1 and counts.size > 0 and np.issubdtype(counts.dtype, np.integer)
    if not whole or counts[0] < 1 or (np.diff(counts) <= 0).any():
        raise ValueError(
            f"`steps` must be whole numbers that increase from 1 or more, got {steps}."
        )
    counts = tuple(counts.tolist())
    return _against_the_flow(problem, layers, as_positive("until", until), counts)[0]


def discretisation_order(
    problem: Problem, layers: ArrayLike, until: Number, *, steps: int = 1000
) -> Claim:
    """Claim that gradient descent follows the flow to first order in its step η.

    Let E(η) = ‖θ_K − θ(T)‖ with Kη = T, and s(η) = log₂ E(2η)/E(η) = 1 + cη + O(η²). The claim
    measures the extrapolated order 2s(η) − s(2η) at the smallest η.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        until: T > 0 in flow time.
        steps: K of the largest step; the other two runs take 2K and 4K steps.

    Returns:
        A `Claim`: predicted 1, tolerance 0.02. It does not apply if the steps are too large (s
        still changes by 0.02, or ηS > ½ for the largest η, S the sharpness along the flow) or too
        small (E not far above the accuracy of the flow and of 4K steps).

    Raises:
        ValueError: layers of another shape, T ≤ 0 (traced: NaN), or steps < 1.

    Source: as derived in docs/theory.md, after Barrett & Dherin 2021.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [1.0])
    >>> claim = ddln.discretisation_order(problem, [[0.0, 0.0], [1.0, 0.8], [0.9, 1.1]], 1.0)
    >>> bool(claim.applies), round(float(claim.measured), 3)
    (True, 1.0)
    """
    if steps < 1:
        raise ValueError(f"`steps` must be ≥ 1, got {steps}.")
    layers, until = as_layers(layers, problem.dim), as_positive("until", until)
    counts = (steps, 2 * steps, 4 * steps)
    errors, flow = _against_the_flow(problem, layers, until, counts)
    slopes = jnp.log2(errors[:-1] / errors[1:])
    change = slopes[1] - slopes[0]
    reach = until / steps * largest(diagnostics.sharpness(problem, flow))
    rounding = 30 * flow.rtol + counts[-1] * jnp.finfo(flow.theta.dtype).eps
    floor = rounding * largest(jnp.linalg.norm(flow.theta, axis=1))
    return Claim(
        "order of the steps",
        "as derived in docs/theory.md",
        "gradient descent is off the flow, at equal time, in proportion to its step",
        measured=slopes[1] + change,
        predicted=1.0,
        tolerance=_SLOPE,
        reason="terms of third order in the step; extrapolation removes those of second order",
        applies=(reach < _SMALL) & (jnp.abs(change) < _SLOPE) & (errors[-1] > _ABOVE * floor),
    )


@eqx.filter_jit
def _against_the_flow(
    problem: Problem,
    layers: Float[Array, "depth dim"],
    until: Float[Array, ""],
    counts: tuple[int, ...],
) -> tuple[Float[Array, " runs"], Trajectory]:
    """The error of each number of steps, and the flow."""
    rtol = max(_RTOL, 100 * float(jnp.finfo(layers.dtype).eps))
    times = jnp.linspace(0.0, until, _FLOW_TIMES)
    flow = gradient_flow(problem, layers, times, rtol=rtol, throw=False)

    # One batch: every run takes the most steps, and is read where it has taken its own number.
    def train(rate: Float[Array, ""]) -> Float[Array, "records dim"]:
        rule = optimiser("sgd", learning_rate=rate)
        controls = {"record_at": counts, "ledger": False, "throw": False}
        return descend(problem, layers, rule, steps=counts[-1], **controls).theta

    theta = jax.vmap(train)(until / jnp.asarray(counts, until.dtype))
    own = np.arange(len(counts))
    return jnp.linalg.norm(theta[own, 1 + own] - flow.theta[-1:], axis=1), flow
