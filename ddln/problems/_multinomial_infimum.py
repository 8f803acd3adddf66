"""The infimum of a multinomial logistic loss, in NumPy on the host.

The margins of pairs (sample, other class) are linear in θ, with rows x_i ⊗ (e_y − e_k), so that
escaping pairs are found as the escaping samples of a loss with labels ±1 are.
"""

from functools import partial

import numpy as np
from jaxtyping import Bool, Float

from ddln.problems._column_space import column_basis
from ddln.problems._escaping import escaping
from ddln.problems._infimum import Model, newton, refuse_unfound


def infimum(
    classes: int,
    factor: float,
    precision: float,
    features: Float[np.ndarray, "samples features"],
    labels: Float[np.ndarray, " samples"],
    weights: Float[np.ndarray, " samples"],
) -> tuple[
    Float[np.ndarray, "samples classes"],
    Bool[np.ndarray, "samples classes"],
    float,
    Float[np.ndarray, " dim"],
]:
    """The fitted z* − z*_y, the pairs that escape, ℒ* and the minimiser of least norm."""
    own = labels[:, None] == np.arange(classes)
    columns = column_basis(features, precision)
    rows, others = np.nonzero(~own)
    # x_i ⊗ (e_y − e_k), without the columns of class 0: it can have w_0 = 0.
    signs = (own[rows].astype(float) - (others[:, None] == np.arange(classes)))[:, 1:]
    pairs = (features[rows][:, :, None] * signs[:, None, :]).reshape(rows.size, -1)
    try:
        gone, basis = escaping(pairs, np.ones(rows.size), np.zeros(rows.size, bool), precision)
    except ValueError as error:
        raise ValueError(
            "`features` must show, beyond their rounding, which classes hyperplanes separate, but "
            "some samples are too close to one: centre the columns."
        ) from error
    escapes = np.zeros(own.shape, bool)
    escapes[rows[gone], others[gone]] = True
    design = np.zeros((*own.shape, basis.rank))
    design[rows[~gone], others[~gone]] = -basis.orthonormal
    model = partial(_softmax_model, own, escapes, weights, design)
    flat = design.reshape(own.size, basis.rank)

    def spread(change: Float[np.ndarray, " pairs"]) -> float:
        return np.max(np.ptp(change.reshape(own.shape), axis=1))

    coefficients, converged = newton(model, flat, spread)
    fitted = design @ coefficients
    minimum = factor * model(fitted.ravel()).value
    minimiser = np.full(features.shape[1] * classes, np.nan)
    if not gone.any():
        centred = fitted - fitted[:, :1]
        centred = columns.orthonormal.T @ (centred - centred.mean(axis=1, keepdims=True))
        minimiser = np.column_stack([columns.least_norm(z) for z in centred.T]).ravel()
    is_finite = np.isfinite(minimum) and (gone.any() or np.isfinite(minimiser).all())
    refuse_unfound(converged and bool(is_finite), minimum, "labels")
    return fitted, escapes, minimum, minimiser


def _softmax_model(
    own: Bool[np.ndarray, "samples classes"],
    escapes: Bool[np.ndarray, "samples classes"],
    weights: Float[np.ndarray, " samples"],
    design: Float[np.ndarray, "samples classes rank"],
    predictions: Float[np.ndarray, " pairs"],
) -> Model:
    """The model of Σ_i w_i log Σ_k exp(z_ik), without the classes that escape; z_iy = 0.

    The change v of z along a line has variance φ'' and third central moment φ''' under p, so
    |φ'''| ≤ (max v − min v) φ''.
    """
    from scipy.special import logsumexp

    z = np.where(escapes, -np.inf, predictions.reshape(own.shape))
    losses = np.logaddexp(0.0, logsumexp(np.where(own, -np.inf, z), axis=1))
    p = np.exp(z - losses[:, None])
    root = np.sqrt(np.maximum(weights[:, None] * p, np.finfo(float).tiny))
    mean = np.einsum("ik,ikr->ir", p, design)
    matrix = root[:, :, None] * (design - mean[:, None, :])
    residual = weights[:, None] * (own - p) / root
    curvatures = weights[:, None] * p * (1 - p)
    return Model(
        float(weights @ losses),
        matrix.reshape(own.size, design.shape[2]),
        residual.ravel(),
        curvatures.ravel(),
    )
