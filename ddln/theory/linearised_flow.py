"""The flow linearised at a point: its modes and the asymptotic rate of convergence."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.validation import (
    ArrayLike,
    as_layers,
    as_vector,
    is_concrete,
    refuse,
    smallest,
)
from ddln.networks.entropy import Entropy, as_entropy
from ddln.networks.layers import imbalance
from ddln.networks.reparametrisation import Reduction
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.problems.base import Problem


def mode_rates(
    problem: Problem, theta: ArrayLike, layers: ArrayLike | SeparableEntropy
) -> tuple[Float[Array, " modes"], Float[Array, "dim modes"]]:
    """Eigenvalues and eigenvectors of M^{1/2} ∇²ℒ(θ) M^{1/2}, the flow linearised at θ.

    A mode with eigenvalue r decays like exp(−r t). An eigenvalue that is 0 to rounding is set to 0;
    its mode does not move. With n < dim samples at most n modes move, and an SVD finds them in
    n² · dim operations.

    Args:
        problem: the loss.
        theta: where to linearise, shape (dim,).
        layers: initial layers of the run, shape (depth, dim); or the entropy of another
            parametrisation.

    Returns:
        Rates, ascending, shape (modes,), and the modes as columns, shape (dim, modes), in the
        coordinates M^{−1/2} θ. The number of modes is min(n, dim) if the loss has n samples, else
        dim.

    Raises:
        ValueError: θ outside the domain of the flow, see `asymptotic_rate` (traced: NaN).

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0, 0.0]], [2.0])
    >>> ddln.theory.mode_rates(problem, [0.0, 0.0], [[0.0, 0.0], [3.0, 1.0]])[0].round(9).tolist()
    [18.0]
    """
    if isinstance(layers, SeparableEntropy):
        theta = as_vector("theta", theta, problem.dim)
        return _mode_rates(problem, theta, as_entropy(layers, problem.dim))
    theta, layers = _in_domain(problem, theta, layers)
    return _mode_rates(problem, theta, Entropy(layers))


def _in_domain(problem: Problem, theta: ArrayLike, layers: ArrayLike) -> tuple[Array, Array]:
    """θ and the layers; an error (traced: NaN) if no layers of the same imbalance have this θ."""
    theta, layers = as_vector("theta", theta, problem.dim), as_layers(layers, problem.dim)
    reduction = Reduction(layers)
    outward = theta * jnp.prod(jnp.sign(layers), axis=0) < 0
    wrong = jnp.where(reduction.is_frozen, theta != 0, ~reduction.is_open & outward)
    message = ""
    if is_concrete(wrong) and np.asarray(wrong).any():
        k = int(np.argmax(np.asarray(wrong)))
        message = (
            f"`theta` must be 0 on frozen coordinates and keep the sign of θ(0) on half-lines (see "
            f"`ddln.describe(layers)`), got {float(theta[k]):g} at index {k}."
        )
    return refuse(jnp.any(wrong), message, theta), layers


@eqx.filter_jit
def _mode_rates(
    problem: Problem, theta: Float[Array, " dim"], entropy: SeparableEntropy
) -> tuple[Float[Array, " modes"], Float[Array, "dim modes"]]:
    root = 1 / jnp.sqrt(entropy.hessian(theta))
    thin = problem.hessian_root(theta)
    if thin is not None and thin.shape[0] < problem.dim:
        _, singular, rows = jnp.linalg.svd(thin * root[None], full_matrices=False)
        rates, modes = singular[::-1] ** 2, rows[::-1].T
    else:
        rates, modes = jnp.linalg.eigh(root[:, None] * problem.hessian(theta) * root[None])
    zero = rates <= rates[-1] * problem.dim * jnp.finfo(rates.dtype).eps
    return jnp.where(zero, 0.0, rates), modes


def asymptotic_rate(problem: Problem, theta: ArrayLike, layers: ArrayLike) -> Float[Array, ""]:
    """The smallest nonzero eigenvalue r of M^{1/2} ∇²ℒ(θ) M^{1/2}: the gap decays like exp(−2 r t).

    The rate is sharp at the limit point θ = θ_∞. If θ_∞ is on the edge θ_k = 0 of a half-line, M_k
    is 0 and the flow is not linear in θ_k. Let m be the number of tied smallest layers w, C the
    product of the others and g = |∂ℒ/∂θ_k| at the edge. Then

        ẇ = −C g w^{m−1}        if g > 0: θ_k = C w^m decays like exp(−2 C g t) for m = 2, so that
                                r ≤ C g, and like a power of t for m > 2, so that r = 0;
        θ̇_k ∝ −θ_k^{3−2/m}      if g = 0 and ℒ increases with θ_k even when the other coordinates
                                adapt: θ_k and the gap decay like powers of t, so that r = 0.

    The gap here is ℒ − ℒ(θ_∞), also where ℒ(θ_∞) is not ℒ*.

    Args:
        problem: the loss.
        theta: the limit point, or the last θ of a run, shape (dim,).
        layers: initial layers of the run, shape (depth, dim).

    Returns:
        A rate per unit of flow time, shape (): 0 if the gap decays more slowly than any
        exponential, infinite if nothing moves.

    Raises:
        ValueError: θ outside the domain of the flow, that is, not 0 on a frozen coordinate or of
            the sign opposite to θ(0) on a half-line (traced: NaN).

    Source: as derived in docs/theory.md from Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> round(float(ddln.asymptotic_rate(problem, [2.0], [[0.0], [3.0]])), 6)  # 2 √(4·2² + 3⁴)
    19.697716
    """
    return _asymptotic_rate(problem, *_in_domain(problem, theta, layers))


@eqx.filter_jit
def _asymptotic_rate(
    problem: Problem, theta: Float[Array, " dim"], layers: Float[Array, "depth dim"]
) -> Float[Array, ""]:
    rates, modes = _mode_rates(problem, theta, Entropy(layers))
    moves = rates > 0
    interior = smallest(jnp.where(moves, rates, jnp.inf))
    rate = jnp.minimum(interior, _edge_rate(problem, theta, layers, rates, modes))
    known = jnp.all(jnp.isfinite(theta)) & jnp.all(jnp.isfinite(rates))
    return jnp.where(known, rate, jnp.nan)


def _edge_rate(
    problem: Problem,
    theta: Float[Array, " dim"],
    layers: Float[Array, "depth dim"],
    rates: Float[Array, " modes"],
    modes: Float[Array, "dim modes"],
) -> Float[Array, ""]:
    """The smallest rate of a coordinate on the edge of its half-line; inf if there is none."""
    reduction = Reduction(layers)
    on_edge = (theta == 0) & ~reduction.is_open & ~reduction.is_frozen
    is_smallest = imbalance(layers) == 0
    tied = jnp.sum(is_smallest, axis=0)
    others = jnp.prod(jnp.sqrt(jnp.where(is_smallest, 1.0, imbalance(layers))), axis=0)
    gradient = problem.gradient(theta) * jnp.prod(jnp.sign(layers), axis=0)
    curvature, total = _curvature_after_adapting(problem, theta, layers, rates, modes)
    precision = jnp.finfo(theta.dtype).eps
    increases = curvature > jnp.sqrt(precision) * total
    noise = 1e3 * precision * jnp.max(total) * jnp.max(jnp.abs(theta))
    rate = jnp.where(increases, 0.0, jnp.inf)
    rate = jnp.where(gradient > noise, jnp.where(tied == 2, others * gradient, 0.0), rate)
    rate = jnp.where(gradient < -noise, 0.0, rate)  # the coordinate leaves the edge again
    return smallest(jnp.where(on_edge, rate, jnp.inf))


def _curvature_after_adapting(
    problem: Problem,
    theta: Float[Array, " dim"],
    layers: Float[Array, "depth dim"],
    rates: Float[Array, " modes"],
    modes: Float[Array, "dim modes"],
) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
    """∂²ℒ/∂θ_k² with the moving modes minimised out (a Schur complement), and ∂²ℒ/∂θ_k² itself."""
    root = 1 / jnp.sqrt(Entropy(layers).hessian(theta))
    thin = problem.hessian_root(theta)
    if thin is None:
        hessian = problem.hessian(theta)
        total, coupling = jnp.diagonal(hessian), modes.T @ (root[:, None] * hessian)
    else:
        total, coupling = jnp.sum(thin**2, axis=0), ((thin * root[None]) @ modes).T @ thin
    removed = coupling**2 / jnp.where(rates > 0, rates, jnp.inf)[:, None]
    return total - jnp.sum(removed, axis=0), total
