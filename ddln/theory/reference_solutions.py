"""What limits are compared with: minimisers of least ℓ1 and ℓ2 norm, the lasso, largest margins."""

import numpy as np

from ddln._internal.validation import Number
from ddln.problems.base import LeastSquares, LinearRisk, Problem

_SEPARATES = 1e-12
"""The share of 1 that is left of the last equation of the least distance problem, at least."""


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

    In the ℓ1 norm a linear program (SciPy's HiGHS), in the ℓ2 norm a least distance problem by
    nonnegative least squares (Lawson & Hanson 1974, chapter 23). Its margin is 1 / ‖θ‖.

    Args:
        problem: a loss of labels ±1 on a linear model, not signed.
        norm: 1 or 2.

    Raises:
        ValueError: another problem or norm, or labels that no θ separates.

    >>> problem = ddln.logistic([[2.0, 1.0]], [1.0])
    >>> ddln.theory.max_margin(problem, norm=1).tolist()
    [0.5, 0.0]
    >>> ddln.theory.max_margin(problem, norm=2).round(12).tolist()
    [0.4, 0.2]
    """
    from scipy.optimize import linprog, nnls

    if not isinstance(problem, LinearRisk) or not np.all(np.abs(np.asarray(problem.targets)) == 1):
        raise ValueError(
            "`problem` must have labels ±1 and a linear model (of a signed one, its `.unsigned`), "
            f"got {type(problem).__name__}."
        )
    if norm not in (1, 2):
        raise ValueError(f"`norm` must be 1 or 2, got {norm}.")
    signed = np.asarray(problem.targets)[:, None] * np.asarray(problem.features)
    samples, dim = signed.shape
    if norm == 1:
        doubled = np.hstack([signed, -signed])
        found = linprog(np.ones(2 * dim), A_ub=-doubled, b_ub=-np.ones(samples))
        theta = None if found.x is None else found.x[:dim] - found.x[dim:]
    else:
        matrix, wanted = np.vstack([signed.T, np.ones(samples)]), np.append(np.zeros(dim), 1.0)
        residual = wanted - matrix @ nnls(matrix, wanted)[0]
        theta = -residual[:dim] / residual[dim] if residual[dim] > _SEPARATES else None
    if theta is None:
        raise ValueError("`problem` must have labels that some θ separates: no margin is positive.")
    return theta
