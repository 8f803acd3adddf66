"""What limits are compared with: minimisers of least ℓ1 and ℓ2 norm, the lasso, largest margins."""

import numpy as np
from scipy.linalg import solve_triangular

from ddln._internal.validation import Number
from ddln.problems._column_space import product
from ddln.problems._infimum import escaping
from ddln.problems.base import LeastSquares, LinearRisk, Problem

_GAP = 1e-10
"""How far margins, and the share of the norm that duality proves necessary, may stay below 1."""
_ROUNDING = 4 * np.finfo(float).eps
"""Of a feature: as exactly as multipliers can be feasible."""


def _unsigned(problem: Problem) -> LeastSquares:
    if not isinstance(problem, LeastSquares):
        raise ValueError(
            "`problem` must be least squares (of a signed one, its `.unsigned`), "
            f"got {type(problem).__name__}."
        )
    return problem


def min_l1(problem: Problem) -> np.ndarray:
    """argmin { ‖θ‖₁ : Xθ = ŷ }, basis pursuit by SciPy's HiGHS; ŷ is y projected on X's range.

    Args:
        problem: least squares, not signed.

    Returns:
        shape (dim,), of NumPy: not for use under transformations.

    Raises:
        ValueError: another loss.
        RuntimeError: HiGHS found no optimum.

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> ddln.theory.min_l1(problem).tolist()
    [1.0, 0.0]
    """
    from scipy.optimize import linprog

    problem = _unsigned(problem)
    matrix = np.asarray(problem.features)
    doubled = np.hstack([matrix, -matrix])
    found = linprog(np.ones(doubled.shape[1]), A_eq=doubled, b_eq=np.asarray(problem.fitted))
    if found.status != 0:
        raise RuntimeError(f"HiGHS found no solution of least ℓ1 norm: {found.message}")
    positive, negative = np.split(found.x, 2)
    return positive - negative


def min_l2(problem: Problem) -> np.ndarray:
    """argmin { ‖θ‖₂ : Xθ = ŷ }, shape (dim,).

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> ddln.theory.min_l2(problem).round(6).tolist()
    [0.862069, 0.344828]
    """
    return np.asarray(_unsigned(problem).minimiser)


def lasso(problem: Problem, penalty: Number) -> np.ndarray:
    """argmin ℒ(θ) + penalty · ‖θ‖₁ by scikit-learn's coordinate descent, shape (dim,).

    scikit-learn minimises ‖Xθ − y‖²/(2n) + a ‖θ‖₁: its a is penalty / (2cn) for ℒ = c‖Xθ − y‖².

    Args:
        problem: least squares, not signed.
        penalty: > 0.

    Raises:
        ValueError: the penalty is not positive.

    >>> problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    >>> ddln.theory.lasso(problem, 0.25).round(9).tolist()  # soft thresholding
    [0.75]
    """
    from sklearn.linear_model import Lasso

    problem = _unsigned(problem)
    weight = float(np.asarray(penalty))
    if not weight > 0:
        raise ValueError(f"`penalty` must be > 0, got {weight}.")
    strength = weight / (2 * problem.factor * problem.samples)
    model = Lasso(alpha=strength, fit_intercept=False, tol=1e-12, max_iter=1_000_000)
    return model.fit(np.asarray(problem.features), np.asarray(problem.targets)).coef_


def max_margin(problem: Problem, *, norm: int) -> np.ndarray:
    """argmin { ‖θ‖ : y_i x_iᵀθ ≥ 1 }, the direction of largest margin, shape (dim,).

    In the ℓ1 norm a linear program (SciPy's HiGHS, refined), in the ℓ2 norm a quadratic one by the
    dual active set method (Goldfarb & Idnani 1983). Its margin is 1 / ‖θ‖. That the margins reach 1
    and that multipliers prove the norm least is checked in doubled precision.

    Args:
        problem: a loss of labels ±1 on a linear model, not signed.
        norm: 1 or 2.

    Raises:
        ValueError: another problem or norm, labels that no θ separates, or data whose
            largest margin float64 does not tell.

    >>> problem = ddln.logistic([[2.0, 1.0]], [1.0])
    >>> ddln.theory.max_margin(problem, norm=1).tolist()
    [0.5, 0.0]
    >>> ddln.theory.max_margin(problem, norm=2).round(12).tolist()
    [0.4, 0.2]
    """
    if not isinstance(problem, LinearRisk) or not np.all(np.abs(np.asarray(problem.targets)) == 1):
        raise ValueError(
            "`problem` must have labels ±1 and a linear model (of a signed one, its `.unsigned`), "
            f"got {type(problem).__name__}."
        )
    if norm not in (1, 2):
        raise ValueError(f"`norm` must be 1 or 2, got {norm}.")
    features = np.asarray(problem.features, float)
    labels = np.asarray(problem.targets, float)
    precision = float(np.finfo(problem.features.dtype).eps)
    if not escaping(features, labels, np.zeros(labels.size, bool), precision)[0].all():
        raise ValueError("`problem` must have labels that some θ separates: no margin is positive.")
    exponent = np.frexp(np.max(np.abs(features)))[1]
    signed = labels[:, None] * np.ldexp(features, -exponent)
    theta, multipliers = (_least_l1 if norm == 1 else _least_l2)(signed)
    margin, pull = np.min(_times(signed, theta)), _times(signed.T, multipliers)
    # Bounds of the least norm from below, by duality, over the norm found.
    if norm == 1:
        pull = np.abs(pull) - _ROUNDING * (multipliers @ np.abs(signed))
        bound = np.sum(multipliers) / np.sum(np.abs(theta)) / max(1.0, np.max(pull))
    else:
        bound = (2 * np.sum(multipliers) - pull @ pull) / (theta @ theta)
    if not (margin >= 1 - _GAP and bound >= 1 - _GAP and np.all(multipliers >= 0)):
        raise ValueError(
            "`problem` must have a largest margin that float64 tells, but the θ found has the "
            f"margin {margin:.12g} for 1, and of its norm {bound:.12g} is proved to be necessary: "
            "give features in like units, centred."
        )
    return np.ldexp(theta, -exponent)


def _times(matrix, vector):
    return product(matrix, vector[:, None])[:, 0]


def _least_l2(rows):
    """argmin { ‖θ‖₂ : rows θ ≥ 1 } and λ ≥ 0 with θ = rowsᵀ λ.

    A violated row at a time becomes active; on its way there those leave whose λ falls to 0.
    """
    samples, dim = rows.shape
    order = np.argsort(-np.max(np.abs(rows), axis=0))  # from large to small, for the QR's rounding
    turned, sizes = rows[:, order], np.linalg.norm(rows, axis=1)
    theta, multipliers, active = np.zeros(dim), np.zeros(samples), []
    for _ in range(10 * (samples + dim)):
        margins = _times(turned, theta)
        row = int(np.argmin((margins - 1) / sizes))
        if margins[row] >= 1 - _GAP / 100 or row in active:
            break
        while True:
            turn, triangle = np.linalg.qr(turned[[*active, row]].T)
            count = len(active)
            weights = solve_triangular(triangle[:count, :count], triangle[:count, count:][:, 0])
            room = np.full(count, np.inf)
            np.divide(multipliers[active], weights, out=room, where=weights > 0)
            longest, full = np.min(room, initial=np.inf), np.inf
            if count < dim:
                across = np.abs(turn[:, count])
                terms = across @ (np.abs(turned[row]) + np.abs(weights) @ np.abs(turned[active]))
                if abs(triangle[count, count]) > 100 * np.finfo(float).eps * terms:
                    full = (1 - _times(turned[[row]], theta)[0]) / triangle[count, count] ** 2
            length = min(longest, full)
            if not np.isfinite(length):
                return theta, multipliers  # as good as it gets: the caller looks
            multipliers[active] -= length * weights
            multipliers[row] += length
            if full <= longest:
                active.append(row)
                break
            if np.isfinite(full):
                theta = theta + length * triangle[count, count] * turn[:, count]
            leaving = int(np.argmin(room))
            multipliers[active.pop(leaving)] = 0.0
        turn, triangle = np.linalg.qr(turned[active].T)
        along = solve_triangular(triangle.T, np.ones(len(active)), lower=True)
        theta = turn @ along
        for _ in range(2):
            missing = 1 - _times(turned[active], theta)
            theta = theta + turn @ solve_triangular(triangle.T, missing, lower=True)
        multipliers[active] = solve_triangular(triangle, along)
    found = np.empty(dim)
    found[order] = theta
    return found, multipliers


def _least_l1(rows):
    """argmin { ‖θ‖₁ : rows θ ≥ 1 } and ν ≥ 0 with |rowsᵀ ν| ≤ 1 and Σν = ‖θ‖₁.

    HiGHS's tolerances are absolute. So what one solve leaves is solved again, magnified (Gleixner,
    Steffy and Wolter, INFORMS Journal on Computing 28, 2016).
    """
    from scipy.optimize import linprog

    exponents = np.frexp(np.max(np.abs(rows), axis=0))[1]
    scaled = np.ldexp(rows, -exponents)
    matrix, cost = np.hstack([scaled, -scaled]), np.ldexp(1.0, np.tile(-exponents, 2))
    place, multipliers, magnified = np.zeros(cost.size), np.zeros(len(rows)), np.ones(2)
    for _ in range(12):
        missing, slack = 1 - _times(matrix, place), cost - _times(matrix.T, multipliers)
        slack = np.maximum(slack, 0.0)
        found = linprog(
            magnified[1] * slack,
            A_ub=-matrix,
            b_ub=-magnified[0] * missing,
            bounds=np.column_stack([-magnified[0] * place, np.full(cost.size, np.inf)]),
        )
        if found.status != 0:
            raise ValueError(
                "`problem` must have a largest margin in the ℓ1 norm that HiGHS finds, but: "
                f"{found.message}"
            )
        place = np.maximum(place + found.x / magnified[0], 0.0)
        multipliers = np.maximum(multipliers - found.ineqlin.marginals / magnified[1], 0.0)
        # Shrunk until they are feasible, they leave the next program bounded.
        rounding = _ROUNDING * (multipliers @ np.abs(matrix))
        pull = np.max((_times(matrix.T, multipliers) - rounding) / cost)
        multipliers = multipliers / max(pull, 1.0)
        left = np.array([np.max(1 - _times(matrix, place)), pull - 1])
        gap = 1 - np.sum(multipliers) / (cost @ place)
        if max(*left, gap) <= _GAP / 100:
            break
        magnified = np.minimum(1e6 * magnified, 1 / np.maximum(left, 1e-12))
    positive, negative = np.split(place, 2)
    return np.ldexp(positive - negative, -exponents), multipliers
