"""Linear models for scikit-learn, fitted by the gradient flow of a diagonal linear network.

The coefficients are those of the signed network β = u¹ ⊙ … ⊙ u^L − v¹ ⊙ … ⊙ v^L. It starts with
every weight equal to a small number, so that β(0) = 0. The larger its gradient, the earlier a
coefficient grows; if the flow stops in time, the others stay near 0. Smaller starts and deeper
networks leave β sparser.

The estimators rescale the features by one number and the targets by another before they fit, so
that `scale` and `horizon` mean the same in any units. They do not rescale columns one by one: as
with the lasso, put a `StandardScaler` before.
"""

import warnings
from abc import abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from ddln._internal.extras import needed_for
from ddln.networks import init
from ddln.networks.entropy import Entropy
from ddln.problems.base import Problem
from ddln.problems.convex import logistic
from ddln.problems.least_squares import least_squares
from ddln.problems.signed import Signed
from ddln.solvers.batched_flow import gradient_flows

with needed_for("ddln.sklearn", "sklearn"):
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, _fit_context
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data

FIRST_TIME = 0.1
"""The first saved time after 0; no coefficient has grown by then."""
NOTHING_LEFT = 1e-12
"""A flow ends if its gap falls below this share of the first one."""


class Path(NamedTuple):
    """The coefficients along the flow, in the units of the data.

    Attributes:
        times: shape (points,), as a multiple of the time in which the fastest coefficient grows.
        coef: shape (points, features).
        intercept: shape (points,).
        gap: training loss minus its infimum, shape (points,).
    """

    times: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    gap: np.ndarray


class _DiagonalNetwork(BaseEstimator):
    """What the regressor and the classifier share: parameters, the flow, and when it stops."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "depth": [Interval(Integral, 2, None, closed="left")],
        "scale": [Interval(Real, 0, None, closed="neither")],
        "stop": [StrOptions({"validation", "gap", "time"})],
        "horizon": [Interval(Real, FIRST_TIME, None, closed="neither")],
        "tol": [Interval(Real, NOTHING_LEFT, 1, closed="neither")],
        "points": [Interval(Integral, 2, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "fit_intercept": ["boolean"],
        "rtol": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    # scikit-learn asks that any value be taken here, and that `fit` check it.
    def __init__(
        self,
        *,
        depth: Any = 2,
        scale: Any = 1e-3,
        stop: Any = "validation",
        horizon: Any = 1000.0,
        tol: Any = 1e-6,
        points: Any = 100,
        validation_fraction: Any = 0.2,
        fit_intercept: Any = True,
        rtol: Any = 1e-6,
        random_state: Any = None,
    ):
        self.depth = depth
        self.scale = scale
        self.stop = stop
        self.horizon = horizon
        self.tol = tol
        self.points = points
        self.validation_fraction = validation_fraction
        self.fit_intercept = fit_intercept
        self.rtol = rtol
        self.random_state = random_state

    @abstractmethod
    def _path(self, features: np.ndarray, targets: np.ndarray) -> Path:
        """The flow on these samples."""

    @abstractmethod
    def _losses(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Mean losses of predictions of shape (points, samples)."""

    def _fit_path(self, features: np.ndarray, targets: np.ndarray, classes: Any = None) -> int:
        """Set `path_` and return the index of the point at which it stops."""
        if self.stop == "validation":
            train, held_out = self._split(len(targets), classes)
            path = self._path(features[train], targets[train])
            predictions = path.coef @ features[held_out].T + path.intercept[:, None]
            self.validation_losses_ = self._losses(predictions, targets[held_out])
        self.path_ = self._path(features, targets)
        if self.stop == "validation":
            return int(np.argmin(self.validation_losses_))
        if self.stop == "gap":
            is_reached = self.path_.gap <= self.tol * self.path_.gap[0]
            if is_reached.any():
                return int(np.argmax(is_reached))
            warnings.warn(
                f"at the horizon the gap is {self.path_.gap[-1] / self.path_.gap[0]:.1e} of its "
                f"first value, more than tol = {self.tol:.1e}: raise horizon or tol",
                ConvergenceWarning,
                stacklevel=4,
            )
        return len(self.path_.times) - 1

    def _split(self, samples: int, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The rows to train on and those held out, with the same shares of each class."""
        try:
            parts: Any = train_test_split(
                np.arange(samples),
                test_size=self.validation_fraction,
                random_state=self.random_state,
                stratify=classes,
            )
        except ValueError as error:
            raise ValueError(
                f"stop='validation' must be able to hold out {self.validation_fraction} "
                f"(validation_fraction) of the samples and of each class, got {samples} samples: "
                f"{error}"
            ) from None
        return parts[0], parts[1]

    def _flow(
        self, problem: Problem, bias: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Times, β, intercepts and gaps of the flow, all in the units of the problem.

        With `bias` the last feature is constant; its weights start at 1, so that it is fitted at
        once, and are not part of β.
        """
        start = np.full((self.depth, problem.dim), self.scale)
        if bias:
            start[:, -1] = 1.0
        slopes = np.abs(problem.gradient(np.zeros(problem.dim)))[: problem.dim - bias]
        # ∇Q(θ) is the time in which θ grows from its start under a unit gradient.
        growth = Entropy(start[:, :1]).mirror_map([self.scale**self.depth + 1.0])
        unit = float(growth[0]) / (slopes.max() or 1.0)
        times = np.append(0.0, np.geomspace(FIRST_TIME, self.horizon, self.points - 1))
        signed = Signed(problem)
        first_gap = float(signed.gap(np.zeros(signed.dim)))
        flows = gradient_flows(
            signed,
            init.signed(start)[None],
            unit * times,
            rtol=self.rtol,
            atol=1e-3 * self.rtol * self.scale,
            target_gap=max(NOTHING_LEFT * first_gap, np.finfo(float).tiny),
        )
        run = flows.trajectories()
        status = run.statuses[int(run.status[0])]
        if not status.is_finished:
            raise RuntimeError(
                f"The flow ended early ({status.value}): {status.meaning}. To mend it, lower "
                "horizon or scale, or raise rtol."
            )
        self.n_steps_ = int(flows.stats["num_steps"][0])
        coef = np.asarray(signed.predictor(run.theta[0]))
        intercept = coef[:, -1] if bias else np.zeros(len(times))
        return times, coef[:, : problem.dim - bias], intercept, np.asarray(run.gap[0])


class DiagonalNetworkRegressor(RegressorMixin, _DiagonalNetwork):
    """Least squares with the coefficients of a diagonal linear network.

    Args:
        depth: number of layers L ≥ 2.
        scale: what every weight starts at, in units in which features and targets have size 1.
            The smaller it is, the nearer is an interpolating fit to the one of least ℓ1 norm.
        stop: where to stop the flow. "validation": where the loss on held-out samples is least; the
            flow then starts again on all samples. "gap": where the training loss, less its
            minimum, is `tol` of its first value. "time": at the horizon.
        horizon: last time of the flow, as a multiple of the time in which the fastest coefficient
            grows. Its inverse acts like the lasso's penalty as a share of the largest useful one.
        tol: share of the first gap at which `stop="gap"` stops.
        points: number of points of the path, 0 and then spaced geometrically up to the horizon.
        validation_fraction: share of the samples held out by `stop="validation"`.
        fit_intercept: whether to fit a constant as well, which has no part in the sparsity.
        rtol: relative tolerance of the integrator.
        random_state: draws the samples held out.

    Attributes:
        coef_: coefficients at the stop, shape (features,).
        intercept_: a float.
        path_: a `Path`, the flow on all samples up to the horizon.
        stop_index_: index of the point of the path at the stop.
        validation_losses_: of every point, with `stop="validation"`.
        n_steps_: steps of the integrator.

    Source: Woodworth et al. 2020 (implicit bias), Vaškevičius et al. 2019 (early stopping).

    >>> from ddln.sklearn import DiagonalNetworkRegressor
    >>> import numpy as np
    >>> features = np.random.default_rng(0).normal(size=(30, 60))
    >>> targets = features[:, 0] - 2 * features[:, 1]
    >>> model = DiagonalNetworkRegressor(stop="gap").fit(features, targets)
    >>> model.coef_[:3].round(2) + 0.0
    array([ 1., -2.,  0.])
    """

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any) -> "DiagonalNetworkRegressor":
        """Fit to features (samples, features) and targets (samples,).

        Raises:
            ValueError: data that are not finite numbers or do not fit each other, fewer samples
                than two or than a held-out part needs, or a parameter out of range.
            RuntimeError: the flow failed.
        """
        data: Any = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2
        )
        features, targets = data
        index = self._fit_path(features, targets.astype(np.float64))
        self.coef_ = self.path_.coef[index]
        self.intercept_ = float(self.path_.intercept[index])
        self.stop_index_ = index
        return self

    def _path(self, features: np.ndarray, targets: np.ndarray) -> Path:
        middle = features.mean(axis=0) if self.fit_intercept else np.zeros(features.shape[1])
        level = targets.mean() if self.fit_intercept else 0.0
        features, targets = features - middle, targets - level
        size, target_size = _size(features), _size(targets)
        rows = len(targets)
        if rows > features.shape[1]:  # same gradient, and the same shape whatever the rows
            rotation, features = np.linalg.qr(features)
            targets = rotation.T @ targets
        with jax.enable_x64(True):
            problem = least_squares(
                features / (size * np.sqrt(rows)),
                targets / (target_size * np.sqrt(rows)),
                normalisation="half",
            )
            times, coef, _, gap = self._flow(problem, bias=False)
        coef = coef * (target_size / size)
        return Path(times, coef, level - coef @ middle, gap * target_size**2)

    def _losses(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.mean((predictions - targets) ** 2, axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """Predicted targets, shape (samples,)."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return features @ self.coef_ + self.intercept_


class DiagonalNetworkClassifier(ClassifierMixin, _DiagonalNetwork):
    """Logistic regression of two classes with the coefficients of a diagonal linear network.

    Parameters and attributes are those of `DiagonalNetworkRegressor`, except that `coef_` has the
    shape (1, features) and `intercept_` the shape (1,); `classes_` holds the two labels in order.
    For more classes, wrap it in scikit-learn's `OneVsRestClassifier`. If a hyperplane separates the
    classes, the coefficients grow without limit and the gap falls like 1/t: stop by "validation" or
    at a moderate `tol`.

    >>> from ddln.sklearn import DiagonalNetworkClassifier
    >>> import numpy as np
    >>> features = np.random.default_rng(0).normal(size=(40, 10))
    >>> labels = np.where(features[:, 0] > 0, "up", "down")
    >>> model = DiagonalNetworkClassifier(stop="time", horizon=30).fit(features, labels)
    >>> model.classes_.tolist(), int(abs(model.coef_).argmax()), model.score(features, labels) > 0.9
    (['down', 'up'], 0, True)
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any) -> "DiagonalNetworkClassifier":
        """Fit to features (samples, features) and labels (samples,).

        Raises:
            ValueError: data that are not finite or do not fit each other, another number of classes
                than two, too few samples of a class to hold some out, or a parameter out of range.
            RuntimeError: the flow failed.
        """
        data: Any = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        features, labels = data
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{type_of_target(labels)}."
            )
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold two classes, got one class: {self.classes_[0]}.")
        index = self._fit_path(features, 2.0 * codes - 1.0, codes)
        self.coef_ = self.path_.coef[index][None]
        self.intercept_ = self.path_.intercept[[index]]
        self.stop_index_ = index
        return self

    def _path(self, features: np.ndarray, targets: np.ndarray) -> Path:
        middle = features.mean(axis=0) if self.fit_intercept else np.zeros(features.shape[1])
        size = _size(features - middle)
        columns = (features - middle) / size
        if self.fit_intercept:
            columns = np.column_stack([columns, np.ones(len(targets))])
        with jax.enable_x64(True):
            problem = logistic(columns, targets, normalisation="mean")
            times, coef, intercept, gap = self._flow(problem, bias=self.fit_intercept)
        coef = coef / size
        return Path(times, coef, intercept - coef @ middle, gap)

    def _losses(self, predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.mean(np.logaddexp(0.0, -targets * predictions), axis=1)

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-odds of the second class, shape (samples,)."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        return features @ self.coef_[0] + self.intercept_[0]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of both classes, shape (samples, 2)."""
        odds = self.decision_function(X)
        return np.exp(-np.logaddexp(0.0, np.column_stack([odds, -odds])))

    def predict(self, X: Any) -> np.ndarray:
        """Predicted labels, shape (samples,)."""
        is_second = self.decision_function(X) > 0
        return self.classes_[is_second.astype(int)]


def _size(values: np.ndarray) -> float:
    """The root mean square, or 1 if everything is 0."""
    return float(np.sqrt(np.mean(values**2))) or 1.0
