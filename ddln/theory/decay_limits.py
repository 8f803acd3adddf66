"""Where constant weight decay leads: balanced layers, and a penalty on θ.

As the dose ω t grows the layers of each coordinate balance, |u^j_k| = |θ_k|^{1/L}, and the flow
ends at a local minimum of

    ℒ(θ) + (ω L / 2) Σ_k |θ_k|^{2/L},

since (ω/2) Σ_j ‖u^j‖² is at least that for layers whose product is θ. At depth 2 it is the lasso,
ℒ + ω ‖θ‖₁. From depth 3 on the penalty is not convex, and its slope at 0 is infinite.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, Number, as_floats, as_positive

Thresholds = tuple[Float[Array, ""], Float[Array, ""]]


def decay_penalty(theta: ArrayLike, depth: int, rate: Number) -> Float[Array, ""]:
    """(ω L / 2) Σ_k |θ_k|^{2/L}, the least (ω/2) Σ_j ‖u^j‖² of layers with product θ.

    Args:
        theta: shape (dim,).
        depth: L ≥ 2.
        rate: ω, the weight decay.

    Raises:
        ValueError: a depth below 2.

    Source: as derived in docs/theory.md, by the inequality of the arithmetic and geometric means.

    >>> float(ddln.theory.decay_penalty([3.0, -1.0], depth=2, rate=0.5))
    2.0
    """
    theta = as_floats("theta", theta, 1)
    return as_floats("rate", rate, 0) * _checked(depth) / 2 * jnp.sum(jnp.abs(theta) ** (2 / depth))


def decay_thresholds(depth: int, rate: Number, curvature: Number = 1.0) -> Thresholds:
    """The |t| above which ½a(x − t)² + (ωL/2)|x|^{2/L} has a local, or global, minimum x ≠ 0.

    With p = 1 − 2/L these are x (1 + 1/p) at x = (ωp/a)^{1/(1+p)}, and half of that at
    x = (ωLp/a)^{1/(1+p)}. From depth 3 on, 0 is a local minimum for every t. At depth 2 both
    thresholds are ω/a, the one of soft thresholding.

    Args:
        depth: L ≥ 2.
        rate: ω > 0, the weight decay.
        curvature: a > 0.

    Returns:
        The thresholds of a local and of a global minimum, shape () each.

    Raises:
        ValueError: a depth below 2, or a number that is not positive (traced: NaN).

    Source: as derived in docs/theory.md.

    >>> local, everywhere = ddln.theory.decay_thresholds(depth=4, rate=0.5)  # λ = 2ω = 1
    >>> round(float(local), 6), float(everywhere)  # 3 (λ/4)^{2/3} and 1.5 λ^{2/3}
    (1.190551, 1.5)
    """
    ratio = as_positive("rate", rate) / as_positive("curvature", curvature)
    p = 1 - 2 / _checked(depth)
    if p == 0:
        return ratio, ratio
    at_local, at_global = ((ratio * p * c) ** (1 / (1 + p)) for c in (1, depth))
    return at_local * (1 + 1 / p), at_global * (1 + 1 / p) / 2


def _checked(depth: int) -> int:
    if depth < 2:
        raise ValueError(f"`depth` must be ≥ 2, got {depth}.")
    return depth
