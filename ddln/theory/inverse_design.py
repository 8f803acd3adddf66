"""The theorems read backwards: initialisations that have a wished rate, or a wished entropy."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import (
    ArrayLike,
    Number,
    as_floats,
    as_layers,
    as_positive,
    is_concrete,
)
from ddln.networks.entropy import Entropy
from ddln.problems.base import Problem
from ddln.theory.convergence import rate_bound


def scale_for_rate(problem: Problem, layers: ArrayLike, rate: Number) -> Float[Array, ""]:
    """a with μ · c(a · layers) = rate: a = (rate / (μ c))^{1 / (2 (depth − 1))}.

    Args:
        problem: with its PL constant μ.
        layers: shape (depth, dim).
        rate: > 0, per unit of flow time.

    Raises:
        ValueError: the bound of these layers is 0 at every scale, or the rate is not positive.

    Source: Corollary 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> a = ddln.theory.scale_for_rate(problem, [[0.0], [3.0]], 72.0)
    >>> float(a), float(ddln.rate_bound(problem, a * jnp.array([[0.0], [3.0]])))
    (2.0, 72.0)
    """
    layers, rate = as_layers(layers), as_positive("rate", rate)
    bound = rate_bound(problem, layers)
    if is_concrete(bound) and not np.asarray(bound) > 0:
        raise ValueError(
            "`layers` must have a unique smallest layer in every coordinate, and the problem "
            "μ > 0, for a rate bound that a scale can change: it is 0."
        )
    return (rate / bound) ** (0.5 / (layers.shape[0] - 1))


def imbalance_for_rate(problem: Problem, depth: int, rate: Number) -> Float[Array, ""]:
    """λ with μ λ^{depth−1} = rate: of a network all of whose imbalances are λ.

    Args:
        problem: with its PL constant μ.
        depth: ≥ 2.
        rate: > 0, per unit of flow time.

    Raises:
        ValueError: depth < 2, no positive PL constant, or the rate is not positive.

    Source: Corollary 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])  # μ = 2
    >>> imbalance = ddln.theory.imbalance_for_rate(problem, 3, 8.0)
    >>> layers = ddln.init.imbalanced([0.0], jnp.full((2, 1), imbalance))
    >>> round(float(ddln.rate_bound(problem, layers)), 12)
    8.0
    """
    if depth < 2:
        raise ValueError(f"`depth` must be ≥ 2, got {depth}.")
    unit = jnp.ones((depth, 1)).at[0].set(0.0)
    return scale_for_rate(problem, unit, rate) ** 2


_SPREADS = (0.5, 2.0, 8.0)
"""Of log λ at the start of a fit."""


def layers_for_entropy(
    theta: ArrayLike, curvature: ArrayLike, depth: int, *, tolerance: Number = 1e-6
) -> Float[Array, "depth 1"]:
    """Layers of one coordinate, the first of them 0, whose Q'' is the wished one at the given θ.

    The imbalances λ_j are fitted by least squares on log Q'', in double precision on the host, from
    a few starts in turn until the tolerance is met. Several networks can meet it: a curvature
    seen only at large θ, or at small ones, says little of single λ_j.

    Args:
        theta: shape (points,).
        curvature: the wished Q''(θ) > 0, shape (points,).
        depth: of the network.
        tolerance: > 0, largest relative error of Q'' at the points.

    Returns:
        Layers (0, √λ_1, …), ascending, shape (depth, 1); within the tolerance but for their
        rounding to the working precision.

    Raises:
        ValueError: shapes, depth or signs that make no sense; or no network of this depth has such
            an entropy within the tolerance, and how near the best comes.

    >>> wished = 1 / jnp.sqrt(4 * jnp.linspace(-2.0, 2.0, 9) ** 2 + 3.0**4)  # layers 0 and 3
    >>> layers = ddln.theory.layers_for_entropy(jnp.linspace(-2.0, 2.0, 9), wished, 2)
    >>> layers.ravel().round(6).tolist()
    [0.0, 3.0]
    """
    theta, curvature, tolerance = (
        np.asarray(part, float)
        for part in (
            as_floats("theta", theta, 1),
            as_floats("curvature", curvature, 1),
            as_positive("tolerance", tolerance),
        )
    )
    if depth < 2 or theta.size < 1 or theta.shape != curvature.shape or (curvature <= 0).any():
        raise ValueError(
            "`theta` and `curvature` must have one shape (points,), points ≥ 1, `curvature` be "
            f"> 0 and `depth` ≥ 2, got {theta.shape}, {curvature.shape}, "
            f"{curvature.min(initial=np.inf):g} and {depth}."
        )
    # The wished accuracy is beyond float32, whatever the caller computes in.
    with jax.enable_x64(True):
        layers, error = _fit_entropy(theta, curvature, depth, tolerance)
    if not error <= tolerance:
        raise ValueError(
            f"`curvature` must be that of a network of depth {depth} within {tolerance:g}; "
            f"the nearest found is {error:.2g} off."
        )
    return jnp.asarray(layers, jnp.result_type(float))


def _fit_entropy(theta, curvature, depth, tolerance):
    """The first fit within the tolerance, or else the nearest, and its error."""
    from scipy.optimize import least_squares

    def layers_of(logarithms):
        return np.concatenate([[0.0], np.exp(np.sort(logarithms) / 2)])[:, None]

    def misfit(logarithms):
        copies = np.repeat(layers_of(logarithms), theta.size, axis=1)
        return np.log(np.asarray(Entropy(copies).hessian(theta)) / curvature)

    # At θ = 0 the curvature is 1 / Π λ_j.
    middle = -np.log(curvature[np.argmin(np.abs(theta))]) / (depth - 1)
    best, least = np.zeros((depth, 1)), np.inf
    for spread in _SPREADS:
        start = middle + np.linspace(-spread, spread, depth - 1)
        fit = least_squares(misfit, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=200)
        error = float(np.max(np.abs(np.expm1(fit.fun))))
        if error < least:
            best, least = layers_of(fit.x), error
        if least <= tolerance:
            break
    return best, least
