"""The scikit-learn regressor beside LassoCV and skglm's MCP, on real and on wide sparse data.

Every estimator chooses its own amount of regularisation: by a held-out fifth of the samples
(ddln), or by five-fold cross-validation along a path of penalties (the others). Each is fitted
twice, and the second time counts, so that neither compilation nor Numba's is in it.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.linear_model import LassoCV
from sklearn.model_selection import GridSearchCV, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import ddln
from ddln.config import datasets
from ddln.sklearn import DiagonalNetworkRegressor

SPLITS = 5
IN_THE_MODEL = 0.01
"""A coefficient of at least this share of the largest counts as in the model."""


def diabetes() -> tuple[np.ndarray, np.ndarray, None]:
    """442 patients, 10 measurements with their products and squares."""
    features, targets = datasets.draw(ddln.load("configs/diabetes_poly.toml").problem.data)
    return np.asarray(features), np.asarray(targets), None


def sparse() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 samples of ten weights ±1 in 2,000, with noise of standard deviation 1."""
    generator = np.random.default_rng(0)
    truth = np.zeros(2000)
    truth[:10] = generator.choice([-1.0, 1.0], 10)
    features = generator.normal(size=(200, 2000))
    return features, features @ truth + generator.normal(size=200), truth


def estimators() -> dict[str, Callable[[], Any]]:
    """A constructor of each estimator."""
    from skglm import MCPRegression

    penalties = {"alpha": np.geomspace(1e-2, 1.0, 20)}
    return {
        "ddln, depth 2": lambda: DiagonalNetworkRegressor(depth=2, random_state=0),
        "ddln, depth 3": lambda: DiagonalNetworkRegressor(depth=3, random_state=0),
        "LassoCV": lambda: LassoCV(cv=5),
        "skglm MCP, cross-validated": lambda: GridSearchCV(MCPRegression(), penalties, cv=5),
    }


def measure(
    make: Callable[[], Any], features: np.ndarray, targets: np.ndarray, truth: np.ndarray | None
) -> tuple[list[float], list[float], list[int], list[int]]:
    """R² on held-out samples, seconds, coefficients in the model, and how many are true."""
    scores, seconds, sizes, hits = [], [], [], []
    splits = ShuffleSplit(SPLITS, test_size=0.2, random_state=0)
    for train, test in splits.split(features):
        for _ in range(2):
            model = make_pipeline(StandardScaler(), make())
            start = time.perf_counter()
            model.fit(features[train], targets[train])
            elapsed = time.perf_counter() - start
        scores.append(model.score(features[test], targets[test]))
        seconds.append(elapsed)
        fitted = getattr(model[-1], "best_estimator_", model[-1])
        is_in = np.abs(fitted.coef_) >= IN_THE_MODEL * np.abs(fitted.coef_).max()
        sizes.append(int(is_in.sum()))
        hits.append(0 if truth is None else int((is_in & (truth != 0)).sum()))
    return scores, seconds, sizes, hits


def rows() -> Iterator[str]:
    """The rows of the table."""
    for name, (features, targets, truth) in {"diabetes": diabetes(), "sparse": sparse()}.items():
        for estimator, make in estimators().items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores, seconds, sizes, hits = measure(make, features, targets, truth)
            found = "" if truth is None else f", {np.median(hits):.0f} of {np.sum(truth != 0)} true"
            yield (
                f"| {name}, {features.shape[0]:,} × {features.shape[1]:,} | {estimator} "
                f"| {np.mean(scores):.3f} ± {np.std(scores):.3f} "
                f"| {np.median(sizes):.0f}{found} | {np.median(seconds):.2f} |"
            )


def table() -> str:
    """A table in Markdown."""
    return "\n".join(
        [
            f"## Estimators for scikit-learn, {SPLITS} random splits",
            "",
            "| data | estimator | R² on a held-out fifth | coefficients above 1 % of the largest "
            "| seconds |",
            "|---|---|---|---|---|",
            *rows(),
        ]
    )
