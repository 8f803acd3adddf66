"""The scikit-learn regressor beside LassoCV and skglm's MCP, on real and on wide sparse data.

Every estimator chooses its own amount of regularisation: by a held-out fifth of the samples
(ddln), or by five-fold cross-validation along a path of penalties (the others). The seconds are
processor time, and the median over the splits: the first one, which compiles, does not count.

`python -m benchmarks.estimators` prints the table alone.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
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
    """200 samples of ten weights ±1 in 2,000 with noise of deviation 1, and which weights."""
    generator = np.random.default_rng(0)
    weights = np.zeros(2000)
    weights[:10] = generator.choice([-1.0, 1.0], 10)
    features = generator.normal(size=(200, 2000))
    targets = features @ weights + generator.normal(size=200)
    return features, targets / targets.std(), weights != 0


def estimators() -> dict[str, Callable[[], Any]]:
    """A constructor of each estimator."""
    from skglm import MCPRegression

    penalties = {"alpha": np.geomspace(1e-2, 1.0, 20)}  # 1 leaves no coefficient: unit variances
    return {
        "ddln, depth 2": lambda: DiagonalNetworkRegressor(depth=2, random_state=0),
        "ddln, depth 3": lambda: DiagonalNetworkRegressor(depth=3, random_state=0),
        "LassoCV": lambda: LassoCV(cv=5),
        "skglm MCP": lambda: GridSearchCV(MCPRegression(), penalties, cv=5),
    }


def measure(
    make: Callable[[], Any], features: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R² on the held-out samples, processor seconds, and which coefficients are in the model."""
    scores, seconds, models = [], [], []
    splits = ShuffleSplit(SPLITS, test_size=0.2, random_state=0)
    for train, test in splits.split(features):
        model = make_pipeline(StandardScaler(), make())
        start = time.process_time()
        model.fit(features[train], targets[train])
        seconds.append(time.process_time() - start)
        scores.append(model.score(features[test], targets[test]))
        fitted: Any = getattr(model[-1], "best_estimator_", model[-1])
        models.append(np.abs(fitted.coef_) >= IN_THE_MODEL * np.abs(fitted.coef_).max())
    return np.array(scores), np.array(seconds), np.array(models)


def row(name: str, estimator: str, make: Callable[[], Any], data: tuple) -> str:
    """A row of the table."""
    features, targets, truth = data
    rows, columns = features.shape
    head = f"| {name}, {rows:,} × {columns:,} | {estimator} "
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scores, seconds, models = measure(make, features, targets)
        except RuntimeError:  # the flow ended early
            return head + "| out of steps | – | – | – | – |"
    sizes = models.sum(axis=1)
    precision = recall = "–"
    if truth is not None:
        hits = (models & truth).sum(axis=1)
        precision, recall = f"{np.mean(hits / sizes):.2f}", f"{np.mean(hits) / truth.sum():.2f}"
    return (
        f"{head}| {scores.mean():.3f} ± {scores.std():.3f} | {np.median(sizes):.0f} "
        f"| {precision} | {recall} | {np.median(seconds):.2f} |"
    )


def lines() -> Iterator[str]:
    """The lines of the table, in Markdown, each as soon as it is measured."""
    yield f"## Estimators for scikit-learn, {SPLITS} random splits"
    yield ""
    head = "data", "estimator", "R² on a held-out fifth", "coefficients", "precision", "recall"
    yield f"| {' | '.join(head)} | seconds |"
    yield "|---|---|---|---|---|---|---|"
    for name, data in {"diabetes": diabetes(), "sparse": sparse()}.items():
        for estimator, make in estimators().items():
            yield row(name, estimator, make, data)


def table() -> str:
    """The table in Markdown."""
    return "\n".join(lines())


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    for line in lines():
        print(line, flush=True)
