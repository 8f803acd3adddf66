"""The minimisers that limits are compared with: of least ℓ1 norm, of least ℓ2 norm, the lasso."""

import numpy as np

from ddln._checks import Number
from ddln.problem import LeastSquares, Problem


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
