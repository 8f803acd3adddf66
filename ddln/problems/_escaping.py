"""Samples whose loss tends to 0 at infinity, decided beyond the rounding of the data.

A sample i *escapes* if some direction w has s_i x_iᵀw > 0 and s_j x_jᵀw ≥ 0 for every j, with
equality for held samples. Both answers come with a certificate, by Stiemke's theorem of the
alternative: for a matrix A with rows s_i x_i, exactly one of

    Aw ≥ 0, Aw ≠ 0  for some w,          Aᵀλ = 0, λ > 0  for some λ

holds. A held sample counts twice, with both signs, which makes its inequality an equality.

Source: Stiemke, Math. Ann. 76 (1915) 340–342; with Gordan's theorem (1873), its counterpart for
Aw > 0, in Mangasarian, Nonlinear Programming (1969), section 2.4.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from ddln.problems._column_space import NOISE, SIGNAL, ColumnBasis, column_basis

_EPSILON = float(np.finfo(np.float64).eps)
_ROUNDINGS = 100
"""Machine epsilons per unit vector within which a sum of unit vectors counts as 0."""
_RANK_TOLERANCE = 1e-8
"""The relative size of a singular value that counts as 0."""


def escaping(
    features: Float[np.ndarray, "samples dim"],
    signs: Float[np.ndarray, " samples"],
    held: Bool[np.ndarray, " samples"],
    precision: float,
) -> tuple[Bool[np.ndarray, " samples"], ColumnBasis]:
    """The samples that escape, and a basis of the range of the others' X.

    Let Q be an orthonormal basis of the range of X, with rows q_i, and w = Σ λ_i s_i q_i / ‖q_i‖
    the shortest such sum with λ ≥ 1. Optimality gives s_i q_iᵀw ≥ 0 for every i.

    If ‖w‖ < 1, no sample escapes: subtract s_i ‖q_i‖ q_iᵀw < 1 from every λ_i. The λ stay positive,
    and the sum becomes w − QᵀQw = 0, which is Stiemke's second alternative.

    Otherwise w is a direction of the first alternative: samples with s_i x_iᵀw > 0 escape. They are
    removed, and the remaining samples, in a basis of their own, are tested again. Each certificate
    must hold for all data within the rounding of X.

    Args:
        features: X, shape (samples, dim).
        signs: s, shape (samples,).
        held: samples that must have x_iᵀw = 0, shape (samples,).
        precision: the relative rounding of X.

    Raises:
        ValueError: the rounding of X leaves the answer open.
    """
    rest, unclear = np.arange(held.size), np.zeros(held.size, bool)
    while True:
        basis = column_basis(features[rest], precision)
        direction = _separating(basis, signs[rest], held[rest], rest)
        if direction is None:
            break
        values, rounding = basis.predictions(direction)
        margins = np.divide(
            signs[rest] * values, rounding, out=np.zeros_like(values), where=rounding > 0
        )
        violated = np.where(held[rest], np.abs(margins), -margins) > NOISE
        gone = ~held[rest] & (margins > SIGNAL)
        if violated.any() or not gone.any():
            _refuse_row(rest[np.argmax(violated) if violated.any() else np.argmax(margins)])
        unclear[rest[(margins > NOISE) & ~gone]] = True
        rest = rest[~gone]
    if unclear[rest].any():
        _refuse_row(rest[np.argmax(unclear[rest])])
    escapes = np.ones(held.size, bool)
    escapes[rest] = False
    return escapes, basis


def _separating(
    basis: ColumnBasis,
    signs: Float[np.ndarray, " samples"],
    held: Bool[np.ndarray, " samples"],
    rows: Int[np.ndarray, " samples"],
) -> Float[np.ndarray, " rank"] | None:
    """The unit direction w of `escaping` in the coordinates of Q; None if no sample escapes."""
    if held.all() or not basis.rank:
        return None
    lengths = np.linalg.norm(basis.orthonormal, axis=1)
    sizes = np.where(lengths > 0, lengths, np.inf)[:, None]
    units = signs[:, None] * basis.orthonormal / sizes
    cone = np.vstack([units, -units[held]])
    weights, direction = _shortest(cone)
    uncertain = np.vstack([basis.rounding / sizes, (basis.rounding / sizes)[held]])
    uncertainty = np.linalg.norm((weights @ uncertain) @ np.abs(basis.transform))
    size = np.linalg.norm(direction)
    if size + 2 * uncertainty < 0.5:
        return None
    # Rows with c_iᵀw = 0 up to the rounding of w: project w so that they are exactly 0.
    unit, noise = direction / size, _ROUNDINGS * _EPSILON * np.sum(weights) / size
    near = cone[np.abs(cone @ unit) <= noise]
    _, singular, modes = np.linalg.svd(near, full_matrices=False)
    modes = modes[singular > _RANK_TOLERANCE * np.max(singular, initial=0.0)]
    for _ in range(2):
        unit = unit - modes.T @ (modes @ unit)
    size = np.linalg.norm(unit)
    if size < 0.1:
        _refuse_row(rows[0])
    return unit / size


def _shortest(
    cone: Float[np.ndarray, "rows rank"],
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rank"]]:
    """λ ≥ 1 with the shortest w = Σ λ_i c_i, and w, for rows c_i of length 1 or 0.

    The active set method of Lawson and Hanson (1974, chapter 23) for λ − 1 ≥ 0. SciPy's version
    admits rows with c_iᵀw < 0 by rounding alone and then fails on opposite rows, such as those of
    held samples. The caller verifies the result.
    """
    import scipy.linalg

    base = np.sum(cone, axis=0)
    extra, direction, passive = np.zeros(len(cone)), base, []
    for _ in range(3 * len(cone)):
        margins = cone @ direction
        row = int(np.argmin(margins))
        rounding = _ROUNDINGS * _EPSILON * (len(cone) + np.sum(extra))
        if margins[row] >= -rounding or row in passive:
            break
        passive = [*passive, row][-cone.shape[1] :]
        while True:
            q, r = np.linalg.qr(cone[passive].T)
            wanted, now = scipy.linalg.solve_triangular(r, -q.T @ base), extra[passive]
            falling = wanted <= 0
            if not falling.any():
                break
            # Move towards the solution until the first weight reaches 0, and drop that row.
            lengths = np.where(falling, np.maximum(now - wanted, np.finfo(float).tiny), 1.0)
            shares = np.where(falling, now / lengths, np.inf)
            extra[passive] = now + np.min(shares) * (wanted - now)
            extra[np.array(passive)[shares == np.min(shares)]] = 0.0
            passive = [k for k in passive if extra[k] > 0]
        extra[passive] = wanted
        direction = base - q @ (q.T @ base)
        direction = direction - q @ (q.T @ direction)
    return 1 + extra, direction


def _refuse_row(row: int | np.integer) -> None:
    raise ValueError(
        "`features` must show, beyond their rounding, which samples a hyperplane separates, but "
        f"the sample at row {row} (from 0) is too close to it: centre the columns, or leave the "
        "sample out."
    )
