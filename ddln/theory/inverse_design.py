"""Inverse problems: initialisations with a prescribed rate bound or a prescribed entropy."""

from typing import NamedTuple

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
    """The a at which a · layers have this rate bound: (rate / μc)^{1 / (2 (depth − 1))}.

    Args:
        problem: with its PL constant μ.
        layers: shape (depth, dim).
        rate: > 0, per unit of flow time.

    Returns:
        a, shape ().

    Raises:
        ValueError: the bound of these layers is 0 at every scale, or does not depend on it as at
            depth 1; or the rate is not positive.

    Source: Corollary 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> a = ddln.theory.scale_for_rate(problem, [[0.0], [3.0]], 72.0)
    >>> float(a), float(ddln.rate_bound(problem, a * jnp.array([[0.0], [3.0]])))
    (2.0, 72.0)
    """
    layers, rate = as_layers(layers), as_positive("rate", rate)
    if len(layers) < 2:
        raise ValueError("`layers` must be at least two: at depth 1 the rate has no scale.")
    bound = rate_bound(problem, layers)
    if is_concrete(bound) and not np.asarray(bound) > 0:
        raise ValueError(
            "`layers` must have a unique smallest layer in every coordinate, and the problem "
            "μ > 0, for a rate bound that depends on the scale; this one is 0."
        )
    return (rate / bound) ** (0.5 / (layers.shape[0] - 1))


def imbalance_for_rate(problem: Problem, depth: int, rate: Number) -> Float[Array, ""]:
    """The λ at which a network with all imbalances λ has this rate bound: μ λ^{depth−1} = rate.

    Args:
        problem: with its PL constant μ.
        depth: ≥ 2.
        rate: > 0, per unit of flow time.

    Returns:
        λ, shape ().

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
"""Half-widths of log λ in the successive initial guesses of a fit."""
_MOST_EVALUATIONS = 200


def layers_for_entropy(
    theta: ArrayLike, curvature: ArrayLike, depth: int, *, tolerance: Number = 1e-6
) -> Float[Array, "depth 1"]:
    """Layers of one coordinate, the first of them 0, with prescribed Q'' at the given θ.

    A least-squares fit of the imbalances λ_j to log Q'', in double precision on the host, from a
    few initial guesses in turn until one meets the tolerance. The solution need not be unique: a
    curvature known only at large θ, or only at small θ, hardly determines the single λ_j.

    Args:
        theta: shape (points,).
        curvature: the prescribed Q''(θ) > 0, shape (points,).
        depth: ≥ 2.
        tolerance: > 0, the largest relative error of Q'' at the points.

    Returns:
        Layers (0, √λ_1, …), ascending, shape (depth, 1); rounding to the working precision comes on
        top of the tolerance.

    Raises:
        ValueError: invalid shapes, depth or signs; or no fit meets the tolerance, with the error of
            the best one.

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> wished = 1 / jnp.sqrt(4 * jnp.linspace(-2.0, 2.0, 9) ** 2 + 3.0**4)  # layers 0 and 3
    >>> layers = ddln.theory.layers_for_entropy(jnp.linspace(-2.0, 2.0, 9), wished, 2)
    >>> layers.ravel().round(6).tolist()
    [0.0, 3.0]
    """
    theta = np.asarray(as_floats("theta", theta, 1), float)
    curvature = np.asarray(as_floats("curvature", curvature, 1), float)
    limit = float(as_positive("tolerance", tolerance))
    if depth < 2 or theta.size < 1 or theta.shape != curvature.shape or (curvature <= 0).any():
        raise ValueError(
            "`theta` and `curvature` must have one shape (points,), points ≥ 1, `curvature` be "
            f"> 0 and `depth` ≥ 2, got {theta.shape}, {curvature.shape}, "
            f"{curvature.min(initial=np.inf):g} and {depth}."
        )
    # The tolerance is finer than float32, whatever the caller's precision.
    with jax.enable_x64(True):
        fit = _fit_entropy(theta, curvature, depth, limit)
    if not fit.error <= limit:
        raise ValueError(
            f"`curvature` must be that of a network of depth {depth} within {limit:g}; "
            f"the nearest found is {fit.error:.2g} off (SciPy's least_squares: {fit.message})"
        )
    return jnp.asarray(fit.layers, jnp.result_type(float))


class _Fit(NamedTuple):
    """The best fit so far."""

    error: float
    """Largest relative error of Q''."""
    layers: Float[np.ndarray, "depth 1"]
    message: str
    """Why SciPy's `least_squares` stopped."""


def _fit_entropy(
    theta: Float[np.ndarray, " points"],
    curvature: Float[np.ndarray, " points"],
    depth: int,
    tolerance: float,
) -> _Fit:
    """The first fit that meets the tolerance, or else the best one."""
    from scipy.optimize import least_squares

    def residual(log_imbalances: Float[np.ndarray, " imbalances"]) -> Float[np.ndarray, " dim"]:
        copies = np.repeat(_layers_of(log_imbalances), theta.size, axis=1)
        return np.log(np.asarray(Entropy(copies).hessian(theta)) / curvature)

    # At θ = 0 the curvature is 1 / Π λ_j.
    centre = -np.log(curvature[np.argmin(np.abs(theta))]) / (depth - 1)
    fits: list[_Fit] = []
    for spread in _SPREADS:
        guess = centre + np.linspace(-spread, spread, depth - 1)
        # The tightest tolerances that SciPy allows; the error decides, not the status.
        found = least_squares(
            residual, guess, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=_MOST_EVALUATIONS
        )
        error = float(np.max(np.abs(np.expm1(found.fun))))
        fits.append(_Fit(error, _layers_of(found.x), found.message))
        if error <= tolerance:
            break
    return min(fits, key=lambda fit: fit.error)


def _layers_of(log_imbalances: Float[np.ndarray, " others"]) -> Float[np.ndarray, "depth 1"]:
    return np.concatenate([[0.0], np.exp(np.sort(log_imbalances) / 2)])[:, None]
