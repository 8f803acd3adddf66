"""Limits under constant weight decay: the lasso, and its relatives with powers below 1."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import ddln
from ddln import theory

SAMPLES, FEATURES = 8, 5
SAME_MINIMUM = 1e-9
LATE = [0.0, 100.0, 300.0]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(4)
    features = rng.standard_normal((SAMPLES, FEATURES))
    return ddln.least_squares(features, features @ [1.5, -2.0, 0, 0, 0.8] + 0.1)


def signed_start(depth, size=1.0):
    """Open coordinates that start at 0, so that θ can take either sign."""
    layers = np.full((depth, FEATURES), size) * np.linspace(1.0, 1.3, depth)[:, None]
    layers[0] = 0.0
    return layers


def test_constant_decay_at_depth_two_ends_at_the_lasso(problem):
    """scikit-learn minimises ‖Xθ − y‖²/2n + α‖θ‖₁; ours is ‖Xθ − y‖² + ω‖θ‖₁."""
    from sklearn.linear_model import Lasso

    omega = 1.0
    lasso = Lasso(omega / 2 / SAMPLES, fit_intercept=False, tol=1e-14, max_iter=100_000)
    expected = lasso.fit(np.asarray(problem.features), np.asarray(problem.targets)).coef_
    run = ddln.gradient_flow(
        problem, signed_start(2), LATE, weight_decay=omega, rtol=1e-12, atol=1e-14
    )
    assert 0 < (expected == 0).sum() < FEATURES
    np.testing.assert_allclose(run.theta[-1], expected, atol=SAME_MINIMUM)


def coordinate_descent(problem, theta, depth, omega):
    """A local minimum of ‖Xθ − y‖² + (ωL/2) Σ|θ|^{2/L} near θ, by exact coordinate steps."""
    features, targets = np.asarray(problem.features), np.asarray(problem.targets)
    theta = np.where(np.abs(theta) < 1e-6, 0.0, theta)
    curvature = 2 * (features**2).sum(0)
    for _ in range(3000):
        for k in np.flatnonzero(theta):
            rest = targets - features @ theta + features[:, k] * theta[k]
            t, x = 2 * features[:, k] @ rest / curvature[k], abs(theta[k])
            for _ in range(5):  # Newton on a(x − |t|) + ω x^{2/L − 1} = 0
                slope = curvature[k] * (x - abs(t)) + omega * x ** (2 / depth - 1)
                x -= slope / (curvature[k] + omega * (2 / depth - 1) * x ** (2 / depth - 2))
            theta[k] = np.sign(t) * x
    return theta


@pytest.mark.parametrize("depth", [3, 4])
def test_constant_decay_at_larger_depths_ends_at_a_local_minimum(problem, depth):
    omega = 0.5
    run = ddln.gradient_flow(
        problem, signed_start(depth), LATE, weight_decay=omega, rtol=1e-12, atol=1e-14
    )
    theta = np.asarray(run.theta[-1])
    expected = coordinate_descent(problem, theta, depth, omega)
    assert 0 < (expected == 0).sum() < FEATURES
    np.testing.assert_allclose(theta, expected, atol=SAME_MINIMUM)
    layers = np.abs(run.layers[-1])[:, expected != 0]
    np.testing.assert_allclose(layers, layers[:1].repeat(depth, 0), rtol=1e-9)  # balanced
    penalty = omega / 2 * np.sum(np.asarray(run.layers[-1]) ** 2)
    np.testing.assert_allclose(theory.decay_penalty(theta, depth, omega), penalty, rtol=1e-9)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_thresholds_separate_one_minimum_from_two(depth):
    omega, curvature = 0.7, 1.6
    local, everywhere = map(float, theory.decay_thresholds(depth, omega, curvature))

    def objective(x, t):
        return curvature / 2 * (x - t) ** 2 + omega * depth / 2 * abs(x) ** (2 / depth)

    def least_slope(t):
        def slope(x):
            return curvature * (x - t) + omega * x ** (2 / depth - 1)

        return minimize_scalar(slope, bounds=(1e-9, 5.0), options={"xatol": 1e-10}).fun

    assert least_slope(local * 1.001) < 0 < least_slope(local * 0.999)
    grid = np.linspace(1e-6, 5.0, 200_001)
    assert objective(grid, everywhere * 1.001).min() < objective(0.0, everywhere * 1.001)
    assert objective(grid, everywhere * 0.999).min() > objective(0.0, everywhere * 0.999)
    if depth == 2:
        assert local == everywhere == omega / curvature


@pytest.mark.slow
def test_hypotheses_name_the_trap_at_zero(problem):
    found = [
        ddln.check_hypotheses(
            problem, ddln.gradient_flow(problem, signed_start(depth), [0, 1], weight_decay=omega)
        )
        for depth, omega in ((2, 0.1), (3, 0.1), (3, 0.0))
    ]
    assert [bool(holds["no weight decay"]) for holds in found] == [False, False, True]
    assert [bool(holds["no trap at 0"]) for holds in found] == [True, False, True]
    without = ddln.gradient_flow(problem, signed_start(2), [0, 1])
    assert "no weight decay" not in ddln.check_hypotheses(problem, without)


def test_depths_below_two_are_refused():
    with pytest.raises(ValueError, match="`depth` must be ≥ 2, got 1"):
        theory.decay_thresholds(1, 0.1)
    with pytest.raises(ValueError, match="`rate` must be > 0"):
        theory.decay_thresholds(3, 0.0)
