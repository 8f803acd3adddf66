"""The scikit-learn estimators against least squares, logistic regression and limit points."""

from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import ddln
from ddln.sklearn import DiagonalNetworkClassifier, DiagonalNetworkRegressor

LATE = {"stop": "time", "horizon": 1e5, "rtol": 1e-8}
"""Long enough that nothing is left to learn."""


@pytest.fixture(scope="module")
def wide():
    """Twelve noiseless samples of two weights in twenty."""
    features = np.random.default_rng(0).normal(size=(12, 20))
    return features, features[:, 0] - 2 * features[:, 1] + 3.0


@pytest.fixture(scope="module")
def tall():
    """Forty noisy samples of five weights, and labels that no hyperplane separates."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(40, 5)) * 3.0 + 1.0
    targets = features @ [1.0, -2.0, 0.0, 0.5, 0.0] + generator.normal(size=40) + 5.0
    noisy = targets + 5 * generator.normal(size=40)
    return features, targets, np.where(noisy > noisy.mean(), "high", "low")


def test_late_coefficients_are_those_of_least_squares(tall):
    features, targets, _ = tall
    model = DiagonalNetworkRegressor(**LATE).fit(features, targets)
    exact = np.linalg.lstsq(np.column_stack([features, np.ones(40)]), targets, rcond=None)[0]
    np.testing.assert_allclose([*model.coef_, model.intercept_], exact, rtol=0, atol=1e-5)


def test_late_coefficients_are_those_of_logistic_regression(tall):
    features, _, labels = tall
    model = DiagonalNetworkClassifier(**LATE).fit(features, labels)
    exact = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(features, labels)
    np.testing.assert_allclose(model.coef_, exact.coef_, rtol=1e-3)
    np.testing.assert_allclose(model.intercept_, exact.intercept_, rtol=1e-3)
    assert (model.predict(features) == exact.predict(features)).all()


@pytest.mark.parametrize("depth", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_interpolating_coefficients_are_the_limit_point(wide, depth):
    features, targets = wide
    model = DiagonalNetworkRegressor(depth=depth, stop="gap", tol=1e-9, rtol=1e-8, horizon=1e5)
    model.fit(features, targets)
    columns, level = features - features.mean(axis=0), targets - targets.mean()
    size, height = np.sqrt(np.mean(columns**2)), np.sqrt(np.mean(level**2))
    problem = ddln.signed(ddln.least_squares(columns / size, level / height))
    start = ddln.init.signed(ddln.init.constant(depth, 20, model.scale))
    limit = problem.predictor(ddln.limit_point(problem, start)) * height / size
    np.testing.assert_allclose(model.coef_, limit, rtol=0, atol=1e-4)
    assert model.stop_index_ < len(model.path_.times) - 1


def test_units_of_the_data_change_the_coefficients_only_by_their_ratio(tall):
    features, targets, _ = tall
    plain = DiagonalNetworkRegressor(random_state=0).fit(features, targets)
    scaled = DiagonalNetworkRegressor(random_state=0).fit(1e6 * features, 1e-3 * targets)
    np.testing.assert_allclose(1e9 * scaled.coef_, plain.coef_, rtol=0, atol=1e-9)
    assert scaled.stop_index_ == plain.stop_index_


def test_validation_stops_where_the_held_out_loss_is_least(tall):
    features, targets, _ = tall
    model = DiagonalNetworkRegressor(random_state=0).fit(features, targets)
    assert model.stop_index_ == np.argmin(model.validation_losses_)
    np.testing.assert_array_equal(model.coef_, model.path_.coef[model.stop_index_])
    assert model.validation_losses_[0] > 10 * model.validation_losses_.min()


def test_path_starts_at_zero_and_its_gap_falls(tall):
    features, targets, labels = tall
    for model in (
        DiagonalNetworkRegressor(**LATE).fit(features, targets),
        DiagonalNetworkClassifier(**LATE).fit(features, labels),
    ):
        assert (model.path_.coef[0] == 0).all()
        assert (np.diff(model.path_.gap) <= 0).all()
        assert np.isfinite(model.path_.coef).all()


@pytest.mark.slow
def test_estimators_work_in_pipelines_and_searches(tall):
    features, targets, labels = tall
    search = GridSearchCV(DiagonalNetworkRegressor(stop="time"), {"horizon": [1, 300]}, cv=2)
    assert search.fit(features, targets).best_params_ == {"horizon": 300}
    pipeline = make_pipeline(StandardScaler(), DiagonalNetworkClassifier(stop="time", horizon=30))
    assert cross_val_score(pipeline, features, labels, cv=2).mean() > 0.5


def test_short_horizon_warns_that_the_gap_is_not_reached(wide):
    with pytest.warns(ConvergenceWarning, match="more than tol = 1.0e-06: raise horizon"):
        DiagonalNetworkRegressor(depth=3, stop="gap", horizon=1.0).fit(*wide)


def test_constant_targets_have_zero_coefficients():
    features = np.random.default_rng(2).normal(size=(40, 5))
    model = DiagonalNetworkRegressor(stop="time").fit(features, np.full(40, 7.0))
    assert (model.coef_ == 0).all()
    assert model.intercept_ == 7.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 1}, "'depth' parameter .* must be an int in the range \\[2"),
        ({"scale": 0.0}, "'scale' parameter .* must be a float in the range \\(0"),
        ({"stop": "soon"}, "'stop' parameter .* must be a str among"),
        ({"points": 1}, "'points' parameter .* must be an int in the range \\[2"),
    ],
)
def test_parameters_out_of_range_are_refused(wide, changes, message):
    with pytest.raises(ValueError, match=message):
        DiagonalNetworkRegressor(**changes).fit(*wide)


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        ([[1.0], [np.nan]], [0, 1], "Input X contains NaN"),
        ([[1.0]], [0], "minimum of 2 is required"),
        ([[1.0], [2.0]], ["a", "a"], "y must hold two classes, got one class: a"),
        ([[1.0], [2.0], [3.0]], [0, 1, 2], "Only binary classification is supported"),
        ([[1.0], [2.0]], [0.5, 1.5], "Unknown label type: continuous"),
        ([[1.0], [2.0]], [0, np.nan], "Input y contains NaN"),
        ([[1.0]] * 4, [0, 0, 1, 1], "each class, got 4 samples: The test_size = 1 should be"),
        ([[1.0]] * 9, [0] * 8 + [1], "each class, got 9 samples: The least populated class"),
    ],
)
def test_unusable_data_are_refused(features, targets, message):
    with pytest.raises(ValueError, match=message):
        DiagonalNetworkClassifier().fit(features, np.array(targets))


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        ([[1.0], [np.nan]], [0, 1], "Input X contains NaN"),
        ([[1.0], [2.0]], [0, np.inf], "Input y contains infinity"),
        ([[1.0]], [0], "minimum of 2 is required"),
        ([[1.0], [2.0]], [0, 1, 2], "inconsistent numbers of samples"),
        ([[1.0], [2.0]], ["a", "b"], "could not convert string to float"),
    ],
)
def test_data_that_allow_no_regression_are_refused(features, targets, message):
    with pytest.raises(ValueError, match=message):
        DiagonalNetworkRegressor().fit(features, np.array(targets))


@pytest.mark.slow
@pytest.mark.parametrize("model", [DiagonalNetworkRegressor, DiagonalNetworkClassifier])
def test_the_checks_of_scikit_learn_pass(model):
    checks: Any = estimator_checks_generator(model(points=20))
    for estimator, check in checks:
        if check.func.__name__ != "check_array_api_input":  # for estimators of the array API
            check(estimator)
