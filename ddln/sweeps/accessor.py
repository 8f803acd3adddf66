"""`dataset.ddln`: the networks of a data set, and quantities that most studies need.

Importing this module registers the accessor with xarray. Modules that make, open or draw data sets
import it, and `studies.find` does before it imports a study.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ddln.config import datasets
from ddln.config.experiment import Experiment, at_point, parse

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ddln.problems.base import Problem

ROUNDING = 1e-14
"""A gap below this share of the first one is rounding error."""


@dataclass(frozen=True, eq=False)
class NetworkRun:
    """One network of a data set.

    Attributes:
        point: the value of every swept axis, by dotted name.
        data: its recorded numbers, without the dimensions of the sweep.
        experiment: its configuration, without a sweep.
    """

    point: dict[str, int | float]
    data: xr.Dataset
    experiment: Experiment

    @cached_property
    def problem(self) -> "Problem":
        """The loss it was trained on, a signed problem if the network is signed."""
        from ddln.sweeps import build

        return build.build_problem(self.experiment)

    @cached_property
    def layers(self) -> "Float[Array, 'depth width']":
        """Its initial layers."""
        from ddln.sweeps import build

        return build.build_layers(self.experiment)

    @property
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Features (samples, features) and targets (samples,)."""
        problem = self.experiment.problem
        features, targets = datasets.draw(problem.data, problem.loss.kind)
        return np.asarray(features), np.asarray(targets)

    @property
    def support_error(self) -> float:
        """‖ŵ − w*‖ of the least-squares solution ŵ on the support of the truth w*."""
        features, targets = self.samples
        truth = self.data["truth"].values
        support = truth != 0
        fitted = np.linalg.lstsq(features[:, support], targets, rcond=None)[0]
        return float(np.linalg.norm(fitted - truth[support]))

    def sparse_rate(self, count: int | float) -> float:
        """2kσ² ln(count)/n: each of k entries is off by σ√(2 ln(count)/n).

        The data are n samples of a truth with k nonzero entries, with noise of deviation σ; the
        largest of `count` normal errors is about σ√(2 ln(count)/n). With d features, the count d
        gives the minimax rate of ‖w − w*‖², and 2k the parametric one.
        """
        data: Any = self.experiment.problem.data
        return 2 * data.nonzeros * data.noise**2 / data.samples * float(np.log(count))


@xr.register_dataset_accessor("ddln")
class Accessor:
    """A data set from `ddln.run`, or a part of it that still has the coordinates of the sweep.

    >>> dataset = xr.Dataset(
    ...     {"gap": (("network.scale", "time"), [[1.0, 0.1], [1.0, 1e-20]])},
    ...     coords={"network.scale": [1.0, 2.0], "time": [0.0, 4.0]},
    ...     attrs={"config": ddln.load("configs/figure4.toml").to_toml()},
    ... )
    >>> [(run.point, run.layers.shape) for run in dataset.ddln.runs()]
    [({'network.scale': 1.0}, (6, 8)), ({'network.scale': 2.0}, (6, 8))]
    """

    def __init__(self, dataset: xr.Dataset):
        self._dataset = dataset

    @cached_property
    def experiment(self) -> Experiment:
        """The configuration it was made with."""
        return parse(self._dataset.attrs["config"])

    @property
    def _grid(self) -> dict[str, int]:
        """The sizes of the sweep's dimensions that are left."""
        sizes = self._dataset.sizes
        return {name: sizes[name] for name in self.experiment.sweep if name in sizes}

    def runs(self) -> Iterator[NetworkRun]:
        """The networks, in the order of the grid, the last dimension fastest."""
        grid = self._grid
        for place in np.ndindex(*grid.values()):
            data = self._dataset.isel(dict(zip(grid, place, strict=True)))
            point = {name: data[name].values.item() for name in self.experiment.sweep}
            yield NetworkRun(point, data, at_point(self.experiment, point))

    @cached_property
    def first(self) -> NetworkRun:
        """The first network, for what all of them share, such as the problem."""
        return next(self.runs())

    def map(self, function: Callable[[NetworkRun], Any], *dims: str) -> xr.DataArray:
        """A quantity of every network, on the grid of the sweep.

        Args:
            function: gives a number, or an array along `dims`, of one network.
            dims: names of the array's own dimensions.
        """
        grid, values = self._grid, np.array([function(run) for run in self.runs()])
        found = xr.DataArray(values.reshape(*grid.values(), *values.shape[1:]), dims=(*grid, *dims))
        kept = {*self.experiment.sweep, *dims} & set(self._dataset.coords)
        return found.assign_coords({name: self._dataset[name] for name in kept})

    @property
    def end(self) -> xr.Dataset:
        """The data set at the last saved time."""
        return self._dataset.isel(time=-1)

    @property
    def flow_time(self) -> xr.DataArray:
        """Flow time of every saved point, also where networks were saved at times of their own."""
        return self._dataset["flow_time" if "flow_time" in self._dataset else "time"]

    @property
    def resolved_gap(self) -> xr.DataArray:
        """The gap, NaN where it is lost in rounding."""
        gap = self._dataset["gap"]
        return gap.where(gap > ROUNDING * gap.isel(time=0))

    @property
    def relative_gap(self) -> xr.DataArray:
        """The resolved gap over its value at the start."""
        gap = self.resolved_gap
        return gap / gap.isel(time=0)

    @property
    def distance_to_truth(self) -> xr.DataArray:
        """‖θ − θ*‖ along each run, of the linear predictor if the network is signed."""
        away = self._predictor - self._dataset["truth"]
        return (away**2).sum(self._along) ** 0.5

    @property
    def relative_distance_to_truth(self) -> xr.DataArray:
        """‖θ − θ*‖ / ‖θ*‖ along each run."""
        return self.distance_to_truth / (self._dataset["truth"] ** 2).sum(self._along) ** 0.5

    @property
    def _predictor(self) -> xr.DataArray:
        """The linear predictor: θ, or w if the network is signed."""
        return self._dataset["predictor" if "predictor" in self._dataset else "theta"]

    @property
    def _along(self) -> str:
        """The dimension of the linear predictor."""
        return "feature" if "predictor" in self._dataset else "coordinate"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the NPZ file that the data are from, such as data to test on."""
        return datasets.arrays_of(self._dataset)

    @property
    def test_residuals(self) -> xr.DataArray:
        """X_test (θ − θ*) along each run, X_test being `test_features` of the NPZ file."""
        unseen = xr.DataArray(self.arrays["test_features"], dims=("sample", self._along))
        return xr.dot(unseen, self._predictor - self._dataset["truth"], dim=self._along)

    def relative_margin(self, theta: xr.DataArray, *, norm: int) -> xr.DataArray:
        """The margin min_i y_i x_iᵀθ / ‖θ‖ over the largest margin of any direction.

        Args:
            theta: linear predictors along "feature" if the network is signed, else "coordinate".
            norm: 1 or 2, for ‖θ‖₁ or ‖θ‖₂.

        Returns:
            The ratios; NaN for θ = 0.

        Raises:
            ValueError: the labels are not ±1, or no θ separates them.
        """
        from ddln import theory

        features, labels = self.first.samples
        signed = xr.DataArray(labels[:, None] * features, dims=("sample", self._along))
        problem = self.first.problem
        best = theory.max_margin(getattr(problem, "unsigned", problem), norm=norm)

        def margin(theta: xr.DataArray) -> xr.DataArray:
            size = (abs(theta) ** norm).sum(self._along) ** (1 / norm)
            return xr.dot(signed, theta, dim=self._along).min("sample") / size.where(size > 0)

        return margin(theta) / margin(xr.DataArray(best, dims=self._along))

    def time_average(
        self, values: xr.DataArray, derivative: xr.DataArray | None = None
    ) -> xr.DataArray:
        """(1/t) ∫₀ᵗ of a quantity along each run, from the second saved time on.

        Args:
            values: along `time`, and other dimensions.
            derivative: in flow time. With it the integral is that of the cubic Hermite interpolant
                instead of the trapezoidal rule.
        """
        clock = self.flow_time
        step = clock - clock.shift(time=1)
        pieces = step / 2 * (values + values.shift(time=1))
        if derivative is not None:
            pieces = pieces + step**2 / 12 * (derivative.shift(time=1) - derivative)
        later = {"time": slice(1, None)}
        return pieces.isel(later).cumsum("time", skipna=False) / clock.isel(later)

    def powers(self, values: xr.DataArray, over: str) -> xr.DataArray:
        """d log values / d log `over`, from each value of a swept axis to the next."""
        top, bottom = (xr.apply_ufunc(np.log, x) for x in (values, self._dataset[over]))
        return top.diff(over) / bottom.diff(over)

    def first_crossing(
        self, values: xr.DataArray, level: float, clock: xr.DataArray | None = None
    ) -> xr.DataArray:
        """When a quantity first crosses a level, by linear interpolation between saved points.

        Args:
            values: along `time`, and other dimensions.
            level: to be crossed, from below or from above.
            clock: along `time`; flow time by default.

        Returns:
            The clock at the crossing, without `time`; NaN where there is none.
        """
        clock = self.flow_time if clock is None else clock
        height = (values - level).drop_vars("time", errors="ignore")
        crossed = height * np.sign(height.isel(time=0)) <= 0
        after = crossed.argmax("time")
        ends = {"time": after - 1}, {"time": after}
        h0, h1 = (height.isel(end) for end in ends)
        t0, t1 = (clock.drop_vars("time", errors="ignore").isel(end) for end in ends)
        return (t0 + (t1 - t0) * h0 / (h0 - h1)).where(crossed.any("time"))
