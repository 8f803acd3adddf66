"""Reference solutions for limits: least ℓ1 and ℓ2 norm, the lasso, and largest margins.

All are computed on the host by NumPy, SciPy and scikit-learn, and independently of the flow.
"""

import warnings

import numpy as np
from jaxtyping import Float

from ddln._internal.extras import needed_for
from ddln._internal.validation import ArrayLike, Number
from ddln.problems._column_space import product
from ddln.problems._escaping import escaping
from ddln.problems.base import LinearRisk, Problem
from ddln.problems.least_squares import LeastSquares

_GAP = 1e-10
"""Largest shortfall below 1 of a margin, and of the dual bound on the norm over the norm found."""
_ROUNDING = 4 * np.finfo(float).eps
"""Relative accuracy with which multipliers can be feasible."""
_LASSO_TOLERANCE = 1e-12
_LASSO_ITERATIONS = 1_000_000


def min_l1(problem: Problem) -> Float[np.ndarray, " dim"]:
    """argmin { ‖θ‖₁ : Xθ = ŷ }, basis pursuit, with ŷ the projection of y on the range of X.

    Solved as a linear program in the positive and negative parts of θ by SciPy's HiGHS.

    Args:
        problem: least squares, not signed.

    Returns:
        θ, shape (dim,), a NumPy array: the function does not work under transformations.

    Raises:
        ValueError: another loss.
        RuntimeError: HiGHS found no optimum.

    Source: Chen, Donoho & Saunders, SIAM Review 43, 2001.

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> ddln.theory.min_l1(problem).tolist()
    [1.0, 0.0]
    """
    from scipy.optimize import linprog

    problem = _least_squares(problem)
    matrix = np.asarray(problem.features)
    doubled = np.hstack([matrix, -matrix])
    found = linprog(np.ones(doubled.shape[1]), A_eq=doubled, b_eq=np.asarray(problem.fitted))
    if found.status != 0:
        raise RuntimeError(
            "HiGHS found no interpolator of least ℓ1 norm for the features and fitted targets of "
            f"`problem`: {found.message}"
        )
    positive, negative = np.split(found.x, 2)
    return positive - negative


def statistical_dimension(nonzeros: ArrayLike, dim: int) -> Float[np.ndarray, "..."]:
    """δ(k), the number of samples at which basis pursuit begins to recover k nonzero entries.

        δ(k) = min_t { k (1 + t²) + 2 (d − k) ∫_t^∞ (x − t)² φ(x) dx },  φ the density of N(0, 1).

    With n ≥ δ + c√d random samples of a signal in R^d, basis pursuit recovers it with high
    probability, and with n ≤ δ − c√d it fails with high probability.

    Args:
        nonzeros: k, numbers from 1 to dim, any shape.
        dim: d, the number of entries.

    Returns:
        δ(k), the statistical dimension of the descent cone of the ℓ1 norm at the signal, in the
        shape of `nonzeros`.

    Source: Amelunxen, Lotz, McCoy & Tropp, Information and Inference 3, 2014.

    >>> ddln.theory.statistical_dimension([1, 5, 40], dim=40).round(3).tolist()
    [4.925, 15.23, 40.0]
    """
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    def bound(t: float, k: float) -> float:
        tail = (1 + t**2) * norm.sf(t) - t * norm.pdf(t)
        return float(k * (1 + t**2) + 2 * (dim - k) * tail)

    counts = np.asarray(nonzeros, float)
    least = [minimize_scalar(bound, (0.0, 1.0), args=(k,)).fun for k in counts.ravel()]
    return np.reshape(least, counts.shape)


def min_l2(problem: Problem) -> Float[np.ndarray, " dim"]:
    """argmin { ‖θ‖₂ : Xθ = ŷ }, with ŷ the projection of y on the range of X.

    Args:
        problem: least squares, not signed.

    Returns:
        θ, shape (dim,).

    Raises:
        ValueError: another loss.

    >>> problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    >>> ddln.theory.min_l2(problem).round(6).tolist()
    [0.862069, 0.344828]
    """
    return np.asarray(_least_squares(problem).minimiser)


def lasso(problem: Problem, penalty: Number) -> Float[np.ndarray, " dim"]:
    """argmin ℒ(θ) + penalty · ‖θ‖₁ by scikit-learn's coordinate descent.

    scikit-learn minimises ‖Xθ − y‖²/(2n) + a ‖θ‖₁, so that a = penalty / (2cn) for ℒ = c‖Xθ − y‖².

    Args:
        problem: least squares, not signed.
        penalty: > 0.

    Returns:
        θ, shape (dim,).

    Raises:
        ValueError: another loss, or a penalty that is not positive.
        RuntimeError: coordinate descent did not converge.

    Source: Tibshirani, Journal of the Royal Statistical Society B 58, 1996.

    >>> problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    >>> ddln.theory.lasso(problem, 0.25).round(9).tolist()  # soft thresholding
    [0.75]
    """
    with needed_for("ddln.theory.lasso", "sklearn"):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import Lasso

    problem = _least_squares(problem)
    weight = float(np.asarray(penalty))
    if not weight > 0:
        raise ValueError(f"`penalty` must be > 0, got {weight}.")
    strength = weight / (2 * problem.factor * problem.samples)
    model = Lasso(
        alpha=strength, fit_intercept=False, tol=_LASSO_TOLERANCE, max_iter=_LASSO_ITERATIONS
    )
    with warnings.catch_warnings():
        # A warning is the only sign of failure that scikit-learn gives.
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(np.asarray(problem.features), np.asarray(problem.targets))
        except ConvergenceWarning as warning:
            raise RuntimeError(
                f"The lasso of `problem` at penalty {weight:g} did not converge: {warning}"
            ) from None
    return model.coef_


def _least_squares(problem: Problem) -> LeastSquares:
    if not isinstance(problem, LeastSquares):
        raise ValueError(
            "`problem` must be least squares (of a signed one, its `.unsigned`), "
            f"got {type(problem).__name__}."
        )
    return problem


def max_margin(problem: Problem, *, norm: int) -> Float[np.ndarray, " dim"]:
    """argmin { ‖θ‖ : y_i x_iᵀθ ≥ 1 }, the direction of largest margin; the margin is 1 / ‖θ‖.

    In the ℓ1 norm this is a linear program, solved by SciPy's HiGHS with iterative refinement; in
    the ℓ2 norm a quadratic program, solved by the dual active set method. The margins, and the
    multipliers that prove the norm minimal, are verified in doubled precision.

    Args:
        problem: a loss of labels ±1 on a linear model, not signed.
        norm: 1 or 2.

    Returns:
        θ, shape (dim,).

    Raises:
        ValueError: another problem or norm, labels that no θ separates, or data whose largest
            margin cannot be determined in float64.

    Source: Goldfarb & Idnani, Mathematical Programming 27, 1983, for the dual active set method.

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
    rows = labels[:, None] * np.ldexp(features, -exponent)
    theta, multipliers = _min_l1_margin(rows) if norm == 1 else _min_l2_margin(rows)
    _verify_margin(rows, theta, multipliers, norm)
    return np.ldexp(theta, -exponent)


def _verify_margin(
    rows: Float[np.ndarray, "samples dim"],
    theta: Float[np.ndarray, " dim"],
    multipliers: Float[np.ndarray, " samples"],
    norm: int,
) -> None:
    """Raise unless rows θ ≥ 1 and, by duality, no smaller norm reaches this margin."""
    margin, combined = np.min(_times(rows, theta)), _times(rows.T, multipliers)
    # Lower bounds on the least norm (its square for ℓ2), relative to what was found.
    if norm == 1:
        combined = np.abs(combined) - _ROUNDING * (multipliers @ np.abs(rows))
        bound = np.sum(multipliers) / np.sum(np.abs(theta)) / max(1.0, np.max(combined))
    else:
        bound = (2 * np.sum(multipliers) - combined @ combined) / (theta @ theta)
    if not (margin >= 1 - _GAP and bound >= 1 - _GAP and np.all(multipliers >= 0)):
        raise ValueError(
            "`problem` must have a largest margin that float64 can determine, but the θ found has "
            f"margin {margin:.12g} instead of 1, and duality proves only {bound:.12g} of its norm "
            "necessary: give features in similar units, centred."
        )


def _times(
    matrix: Float[np.ndarray, "rows columns"], vector: Float[np.ndarray, " columns"]
) -> Float[np.ndarray, " rows"]:
    """matrix @ vector in doubled precision."""
    return product(matrix, vector[:, None])[:, 0]


class _ActiveSet:
    """The state of the dual active set method for min ‖θ‖₂ subject to rows θ ≥ 1.

    `theta` is always Σ multipliers_i rows_i, and the rows in `active` have margin 1 whenever no row
    is being added.
    """

    def __init__(self, rows: Float[np.ndarray, "samples dim"]):
        samples, dim = rows.shape
        self.rows, self.theta = rows, np.zeros(dim)
        self.multipliers, self.active = np.zeros(samples), list[int]()

    def add(self, row: int) -> bool:
        """Make a violated row active; drop rows whose multiplier falls to 0 on the way.

        Returns:
            False if rounding leaves no step to take.
        """
        from scipy.linalg import solve_triangular

        while True:
            basis, triangle = np.linalg.qr(self.rows[[*self.active, row]].T)
            count = len(self.active)
            weights = solve_triangular(triangle[:count, :count], triangle[:count, count])
            lengths = np.full(count, np.inf)
            np.divide(self.multipliers[self.active], weights, out=lengths, where=weights > 0)
            partial = np.min(lengths, initial=np.inf)
            full = self._full_step(row, weights, basis, triangle)
            length = min(partial, full)
            if not np.isfinite(length):
                return False
            self.multipliers[self.active] -= length * weights
            self.multipliers[row] += length
            if full <= partial:
                self.active.append(row)
                return True
            if np.isfinite(full):
                self.theta = self.theta + length * triangle[count, count] * basis[:, count]
            leaving = int(np.argmin(lengths))
            self.multipliers[self.active.pop(leaving)] = 0.0

    def _full_step(
        self,
        row: int,
        weights: Float[np.ndarray, " active"],
        basis: Float[np.ndarray, "dim rank"],
        triangle: Float[np.ndarray, "rank columns"],
    ) -> float:
        """The step that gives the row margin 1; inf if the row depends on the active ones."""
        count = len(self.active)
        if count == self.theta.size:
            return np.inf
        terms = np.abs(self.rows[row]) + np.abs(weights) @ np.abs(self.rows[self.active])
        rounding = np.finfo(float).eps * (np.abs(basis[:, count]) @ terms)
        if abs(triangle[count, count]) <= 100 * rounding:
            return np.inf
        return (1 - _times(self.rows[[row]], self.theta)[0]) / triangle[count, count] ** 2

    def refine(self) -> None:
        """Recompute θ and the multipliers from the active rows, with iterative refinement."""
        from scipy.linalg import solve_triangular

        rows = self.rows[self.active]
        basis, triangle = np.linalg.qr(rows.T)
        coefficients = solve_triangular(triangle.T, np.ones(len(self.active)), lower=True)
        theta = basis @ coefficients
        for _ in range(2):
            missing = 1 - _times(rows, theta)
            theta = theta + basis @ solve_triangular(triangle.T, missing, lower=True)
        self.theta = theta
        self.multipliers[self.active] = solve_triangular(triangle, coefficients)


def _min_l2_margin(
    rows: Float[np.ndarray, "samples dim"],
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " samples"]]:
    """argmin { ‖θ‖₂ : rows θ ≥ 1 } and λ ≥ 0 with θ = rowsᵀ λ, by the dual active set method.

    If rounding stops the method early, the result is its last iterate, to be verified.
    """
    samples, dim = rows.shape
    # Columns from large to small reduce the rounding errors of the QR factorisation.
    order = np.argsort(-np.max(np.abs(rows), axis=0))
    state, sizes = _ActiveSet(rows[:, order]), np.linalg.norm(rows, axis=1)
    for _ in range(10 * (samples + dim)):
        margins = _times(state.rows, state.theta)
        row = int(np.argmin((margins - 1) / sizes))
        if margins[row] >= 1 - _GAP / 100 or row in state.active or not state.add(row):
            break
        state.refine()
    theta = np.empty(dim)
    theta[order] = state.theta
    return theta, state.multipliers


def _min_l1_margin(
    rows: Float[np.ndarray, "samples dim"],
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " samples"]]:
    """argmin { ‖θ‖₁ : rows θ ≥ 1 } and ν ≥ 0 with |rowsᵀ ν| ≤ 1 and Σν = ‖θ‖₁.

    HiGHS's tolerances are absolute, so the residual problem is magnified and solved again.

    Source: Gleixner, Steffy & Wolter, INFORMS Journal on Computing 28, 2016.
    """
    from scipy.optimize import linprog

    exponents = np.frexp(np.max(np.abs(rows), axis=0))[1]
    scaled = np.ldexp(rows, -exponents)
    matrix, cost = np.hstack([scaled, -scaled]), np.ldexp(1.0, np.tile(-exponents, 2))
    point, multipliers, magnification = np.zeros(cost.size), np.zeros(len(rows)), np.ones(2)
    for _ in range(12):
        missing, slack = 1 - _times(matrix, point), cost - _times(matrix.T, multipliers)
        slack = np.maximum(slack, 0.0)
        found = linprog(
            magnification[1] * slack,
            A_ub=-matrix,
            b_ub=-magnification[0] * missing,
            bounds=np.column_stack([-magnification[0] * point, np.full(cost.size, np.inf)]),
        )
        if found.status != 0:
            raise ValueError(
                "`problem` must have a largest margin in the ℓ1 norm that HiGHS finds, but: "
                f"{found.message}"
            )
        point = np.maximum(point + found.x / magnification[0], 0.0)
        multipliers = np.maximum(multipliers - found.ineqlin.marginals / magnification[1], 0.0)
        # Feasible multipliers keep the next program bounded, so shrink them until they are.
        rounding = _ROUNDING * (multipliers @ np.abs(matrix))
        ratio = np.max((_times(matrix.T, multipliers) - rounding) / cost)
        multipliers = multipliers / max(ratio, 1.0)
        residuals = np.array([np.max(1 - _times(matrix, point)), ratio - 1])
        gap = 1 - np.sum(multipliers) / (cost @ point)
        if max(*residuals, gap) <= _GAP / 100:
            break
        magnification = np.minimum(1e6 * magnification, 1 / np.maximum(residuals, 1e-12))
    positive, negative = np.split(point, 2)
    return np.ldexp(positive - negative, -exponents), multipliers
