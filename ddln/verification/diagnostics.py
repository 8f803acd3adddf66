"""Measurements on flows and discrete runs, one quantity a function.

    S_k = λ_max(∂²ℒ/∂u²) at u_k                      `sharpness`
    the loss of held-out samples                     `held_out_loss`
    2(1 + β)/γ, above which steps leave a minimiser  `stability_threshold`
    Gain_k = ln |(u² − v²)₀ / (u² − v²)_k|           `gain`, at depth 2
    α_k² = |u² − v²|_k / 2 = α₀² exp(−Gain_k)        `effective_initialisation`, at depth 2
    ‖θ_k − θ(t_k)‖, θ(t) the gradient flow           `distance_to_flow`

Other quantities take one line:

>>> problem = ddln.least_squares([[1.0, 0.5]], [1.0], normalisation="half_mean")
>>> held_out = ddln.least_squares([[0.9, 0.6]], [0.9], normalisation="half_mean")
>>> layers = jnp.array([[1.0, 1.0], [0.0, 0.0]])
>>> run = ddln.descend(problem, layers, ddln.optimiser("sgd", learning_rate=0.05), steps=200)
>>> [round(float(x), 6) for x in jax.vmap(held_out.loss)(run.theta)[jnp.array([0, -1])]]
[0.405, 0.001337]
>>> [round(float(x), 6) for x in jax.vmap(ddln.imbalance)(run.layers)[-1, 0]]  # balancedness
[0.981693, 0.995394]
>>> distance = lambda theta: ddln.Entropy(layers).divergence(run.theta[-1], theta)  # Bregman's
>>> round(float(jax.vmap(distance)(run.theta)[0]), 6)  # D_Q(θ_end, θ(0))
0.352697
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddln import theory
from ddln._internal.validation import ArrayLike, Number, as_floats, refuse
from ddln.networks.layers import Function
from ddln.networks.parametrisation import Parametrisation
from ddln.problems.base import EmpiricalRisk, Problem
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.result import Run


def held_out_loss(
    problem: Problem,
    run: Run,
    features: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None = None,
) -> Float[Array, " records"]:
    """c n/m Σ_i w_i φ(x_iᵀθ, y_i) over m held-out samples, along a run trained on n.

    It is on the scale of the training loss, whatever the normalisation.

    Args:
        problem: the loss of the n samples, a sum over samples; it can be signed.
        run: from `gradient_flow`, `descend` and the like.
        features: held-out x_i, shape (m, dim).
        targets: held-out y_i, shape (m,).
        weights: w_i, shape (m,); 1 by default.

    Raises:
        ValueError: the problem is not a sum over samples.

    >>> problem = ddln.least_squares([[1.0], [1.0]], [1.0, 3.0])
    >>> run = ddln.gradient_flow(problem, [[0.0], [1.0]], [0.0, 20.0])
    >>> [round(float(x), 6) for x in held_out_loss(problem, run, [[1.0]], [2.0])]
    [8.0, 0.0]
    """
    linear = getattr(problem, "unsigned", problem)
    if not isinstance(linear, EmpiricalRisk):
        raise ValueError("`problem` must be a sum over samples.")
    features, targets = as_floats("features", features, 2), as_floats("targets", targets, 1)
    weights = None if weights is None else as_floats("weights", weights, 1)
    thetas = problem.predictor(run.theta)
    return jax.vmap(lambda theta: linear.held_out_loss(theta, features, targets, weights))(thetas)


def sharpness(
    problem: Problem,
    run: Run,
    records: slice | Sequence[int] | Int[np.ndarray, " records"] = slice(None),
) -> Float[Array, " records"]:
    """S_k = λ_max of the Hessian of ℒ(u¹ ⊙ … ⊙ u^L) in the layers, along a run.

    Args:
        problem: the loss.
        run: from `gradient_flow`, `descend` and the like.
        records: which records to evaluate, as a NumPy index. With more than 64 weights each takes
            some hundred products of the Hessian with a vector.

    Returns:
        `theory.sharpness` at each record, shape (records,); NaN if the layers are not finite.

    Raises:
        IndexError: no such record.

    Source: as derived in docs/theory.md; compared with 2/γ, the edge of stability, Cohen et al.
    2021.

    >>> problem = ddln.least_squares([[1.0]], [6.0], normalisation="half")
    >>> rule = ddln.optimiser("sgd", learning_rate=0.02)
    >>> run = ddln.descend(problem, [[1.0], [1.0]], rule, steps=100, record_every=50)
    >>> [round(float(x), 6) for x in sharpness(problem, run, [0, -1])]  # 2θ at the minimiser
    [5.0, 12.0]
    """
    return _sharpness(problem, run.layers[np.arange(len(run.layers))[records]], run.function)


@eqx.filter_jit
def _sharpness(
    problem: Problem, layers: Float[Array, "records depth dim"], function: Function | None
) -> Float[Array, " records"]:
    finite = jnp.all(jnp.isfinite(layers), axis=(1, 2))
    # LOBPCG would run to its iteration limit on NaN.
    safe_layers = jnp.where(finite[:, None, None], layers, 0.0)
    found = jax.lax.map(lambda layers: theory.sharpness(problem, layers, function), safe_layers)
    return jnp.where(finite, found, jnp.nan)


def stability_threshold(
    learning_rate: ArrayLike, momentum: Number = 0.0
) -> Float[Array, "*records"]:
    """2(1 + β)/γ: the sharpness above which steps of size γ leave a minimiser.

    On ½Su² heavy ball is u_{k+1} = (1 + β − γS) u_k − β u_{k−1}; a root of its characteristic
    polynomial reaches −1 at this S.

    Args:
        learning_rate: γ, of any shape, such as the `rates` of a run of plain steps.
        momentum: β of heavy ball, 0 for gradient descent.

    Returns:
        The threshold, with the shape of γ.

    Raises:
        ValueError: γ ≤ 0, or β outside [0, 1) (traced: NaN).

    Source: Polyak 1964; the edge of stability of Cohen et al. 2021.

    >>> float(ddln.diagnostics.stability_threshold(0.01, momentum=0.5))
    300.0
    """
    rate = as_floats("learning_rate", learning_rate, np.ndim(learning_rate))
    rate = refuse(rate <= 0, f"`learning_rate` must be > 0, got {rate}.", rate)
    beta = as_floats("momentum", momentum, 0)
    beta = refuse((beta < 0) | (beta >= 1), f"`momentum` must be ≥ 0 and < 1, got {beta}.", beta)
    return 2 * (1 + beta) / rate


@eqx.filter_jit
def gain(run: Run) -> Float[Array, "records dim"]:
    """Gain_k = ln |(u² − v²)₀ / (u² − v²)_k| of each coordinate, at depth 2.

    The flow has gain 0. Plain steps of any size, on any samples, have gain Σ_k q(γ_k ∇ℓ_k) with
    q(x) = −½ ln (1 − x²)² ≥ 0 for |x| ≤ √2: large and noisy steps increase it.

    Args:
        run: of depth 2; its ledger, if it has one, keeps small differences exact.

    Returns:
        The gain since the first record, shape (records, dim); NaN at balanced coordinates.

    Raises:
        ValueError: the depth is not 2.

    Source: Gain_γ of Even et al. 2023.

    >>> problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    >>> rule = ddln.optimiser("sgd", learning_rate=0.5)
    >>> run = ddln.descend(problem, [[1.0], [0.0]], rule, steps=1)  # ∇ℓ = −1
    >>> round(float(gain(run)[-1, 0] + jnp.log(1 - 0.5**2)), 12)
    0.0
    """
    difference = _difference_of_squares(run)
    return -jnp.log(jnp.abs(difference / difference[:1]))


@eqx.filter_jit
def effective_initialisation(run: Run) -> Float[Array, "records dim"]:
    """α_k = (|u² − v²|_k / 2)^{1/2} = α₀ exp(−Gain_k/2) of each coordinate, at depth 2.

    The flow from layers √2 α and 0 keeps it at α. At the end of a discrete run it is α_∞, the scale
    of the entropy that the limit minimises; large steps make it smaller than the initial scale.

    Args:
        run: of depth 2; its ledger, if it has one, keeps small α exact.

    Returns:
        α_k, shape (records, dim); the last is α_∞.

    Raises:
        ValueError: the depth is not 2.

    Source: Even et al. 2023, with the same α; for momentum Papazov et al. 2024, whose balancedness
    is 2α².

    >>> problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    >>> rule = ddln.optimiser("sgd", learning_rate=0.5)
    >>> run = ddln.descend(problem, [[2.0**0.5], [0.0]], rule, steps=1)
    >>> round(float(effective_initialisation(run)[-1, 0] ** 2), 12)  # 1 − γ²∇ℓ²
    0.75
    """
    return jnp.sqrt(jnp.abs(_difference_of_squares(run)) / 2)


def _difference_of_squares(run: Run) -> Float[Array, "records dim"]:
    """u² − v²."""
    if run.layers.shape[1] != 2 or run.function is not None:
        got = f"depth {run.layers.shape[1]}" if run.function is None else "another parametrisation"
        raise ValueError(f"`run` must be of depth 2, got {got}.")
    u, v = run.layers[:, 0], run.layers[:, 1]
    difference = (u - v) * (u + v)
    if not isinstance(run, Descent) or run.ledger is None:
        return difference
    # Subtraction cancels where the layers are nearly equal; the ledger does not subtract.
    growth = jnp.prod(run.ledger.growth, axis=1)
    return difference[:1] * (growth / growth[:1])


@eqx.filter_jit
def distance_to_flow(problem: Problem, run: Run) -> Float[Array, " records"]:
    """‖θ_k − θ(t_k)‖₂ at each record, θ(t) the gradient flow from the first record.

    Args:
        problem: the loss.
        run: a run whose `times` are flow times. (After an optax transformation passed to `descend`
            directly they are step counts, since its step size is not known: replace them by
            `dataclasses.replace`.) A run that stopped rests while the flow continues.

    Returns:
        The distance, shape (records,); NaN if the run or the flow diverged.

    Source: k steps of size η reach flow time kη; with heavy ball, kη/(1 − β).

    >>> problem = ddln.least_squares([[1.0]], [2.0], normalisation="half")
    >>> rule = ddln.optimiser("sgd", learning_rate=0.01)
    >>> run = ddln.descend(problem, [[0.5], [0.5]], rule, steps=100, record_every=50)
    >>> [round(float(x), 4) for x in distance_to_flow(problem, run)]
    [0.0, 0.0012, 0.0043]
    """
    from ddln.solvers.gradient_flow import gradient_flow  # loads diffrax

    start = run.layers[0]
    start = start if run.function is None else Parametrisation(run.function, start)
    flow = gradient_flow(problem, start, run.times, throw=False)
    return jnp.linalg.norm(run.theta - flow.theta, axis=1)
