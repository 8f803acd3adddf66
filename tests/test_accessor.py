"""`dataset.ddln`: the networks of a data set, and quantities that studies share."""

import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
import xarray as xr

import ddln
from ddln.config import datasets
from ddln.sweeps import _netcdf, accessor

SCALE, SEED, DEPTH = "network.scale", "network.init.seed", "network.depth"
TIMES = np.linspace(0.0, 3.0, 7)


def made_by(overrides, variables, coords=None):
    """A data set like that of a run, with invented numbers."""
    experiment = ddln.load("configs/figure4.toml", ["dynamics.points=7", *overrides])
    coords = {"time": TIMES, **(coords or {})}
    return xr.Dataset(variables, coords=coords, attrs={"config": experiment.to_toml()})


@pytest.fixture
def grid():
    """Two scales, each with a depth of its own, and three seeds."""
    overrides = [
        "sweep.network.scale=[1.0, 2.0]",
        "sweep.network.depth={values=[3, 4], zip='network.scale'}",
        "sweep.network.init.seed=[5, 6, 7]",
    ]
    values = np.arange(42.0).reshape(2, 3, 7)
    coords = {SCALE: [1.0, 2.0], DEPTH: (SCALE, [3, 4]), SEED: [5, 6, 7]}
    return made_by(overrides, {"loss": ((SCALE, SEED, "time"), values)}, coords)


def test_runs_are_the_points_of_the_grid_in_order(grid):
    runs = list(grid.ddln.runs())
    assert [tuple(run.point.values()) for run in runs] == [
        (scale, depth, seed) for scale, depth in ((1.0, 3), (2.0, 4)) for seed in (5, 6, 7)
    ]
    for run, losses in zip(runs, grid["loss"].values.reshape(6, 7), strict=True):
        np.testing.assert_array_equal(run.data["loss"], losses)


def test_run_has_the_layers_and_the_problem_of_its_point(grid):
    law = partial(jax.random.uniform, minval=0.5, maxval=1.2)
    for run in grid.ddln.runs():
        key, depth = jax.random.key(run.point[SEED]), run.point[DEPTH]
        expected = run.point[SCALE] * ddln.init.zero_first_layer(key, depth, 8, law=law)
        np.testing.assert_array_equal(run.layers, expected)
        assert run.problem.features.shape == (10, 8)
        assert not run.experiment.sweep


def test_selection_keeps_the_values_of_its_axes(grid):
    (run,) = grid.sel({SCALE: 2.0, SEED: 6}).ddln.runs()
    assert run.point == {SCALE: 2.0, DEPTH: 4, SEED: 6}
    assert [run.point[SEED] for run in grid.isel({SCALE: 0}).ddln.runs()] == [5, 6, 7]
    assert grid.ddln.first.point == {SCALE: 1.0, DEPTH: 3, SEED: 5}


def test_map_has_the_dimensions_of_the_grid(grid):
    numbers = grid.ddln.map(lambda run: 10 * run.point[SCALE] + run.point[SEED])
    assert numbers.dims == (SCALE, SEED)
    assert float(numbers.sel({SCALE: 2.0, SEED: 7})) == 27.0
    np.testing.assert_array_equal(numbers[DEPTH], [3, 4])
    curves = grid.ddln.map(lambda run: run.data["loss"].values, "time")
    xr.testing.assert_equal(curves, grid["loss"].drop_attrs())


def test_end_is_the_last_saved_time(grid):
    xr.testing.assert_equal(grid.ddln.end["loss"], grid["loss"][..., -1])


def test_samples_are_those_of_the_problem(grid):
    run = grid.ddln.first
    features, targets = run.samples
    np.testing.assert_array_equal(features, run.problem.features)
    np.testing.assert_array_equal(targets, run.problem.targets)


def test_gaps_below_rounding_are_nan():
    gaps = np.array([2.0, 1e-3, 3e-14, 1e-14, 0.0, np.nan, 1.0])
    found = made_by(["sweep={}"], {"gap": ("time", gaps)}).ddln.resolved_gap
    np.testing.assert_array_equal(found, np.where([1, 1, 1, 0, 0, 0, 1], gaps, np.nan))


@pytest.mark.parametrize("name", ["theta", "predictor"])
def test_distances_to_the_truth_are_euclidean(name):
    along = {"theta": "coordinate", "predictor": "feature"}[name]
    curve, truth = np.random.default_rng(0).normal(size=(7, 4)), np.array([1.0, 0, 0, -1.0])
    variables = {"theta": (("time", "coordinate"), curve), name: (("time", along), curve)}
    dataset = made_by(["sweep={}"], {**variables, "truth": (along, truth)})
    expected = np.linalg.norm(curve - truth, axis=1)
    np.testing.assert_allclose(dataset.ddln.distance_to_truth, expected, rtol=1e-15)


def test_relative_gap_and_distance_are_in_units_of_the_start_and_of_the_truth():
    curve, truth = np.random.default_rng(1).normal(size=(7, 4)), np.array([3.0, 0, 0, -4.0])
    gaps = np.geomspace(8.0, 1e-20, 7)
    dataset = made_by(
        ["sweep={}"],
        {
            "gap": ("time", gaps),
            "theta": (("time", "coordinate"), curve),
            "truth": ("coordinate", truth),
        },
    )
    expected = np.where(gaps > 8e-14, gaps / 8, np.nan)
    np.testing.assert_allclose(dataset.ddln.relative_gap, expected, rtol=1e-15)
    distances = np.linalg.norm(curve - truth, axis=1) / 5
    np.testing.assert_allclose(dataset.ddln.relative_distance_to_truth, distances, rtol=1e-15)


def test_errors_of_sparse_regression_match_their_definitions():
    overrides = [
        'problem.data={kind="sparse", samples=30, features=8, nonzeros=3, noise=0.5, seed=4}',
        "sweep={}",
    ]
    data = ddln.load("configs/figure4.toml", overrides).problem.data
    truth = np.asarray(datasets.truth(data))
    run = made_by(overrides, {"truth": ("coordinate", truth)}).ddln.first
    features, targets = run.samples
    support = features[:, truth != 0]
    fitted = np.linalg.solve(support.T @ support, support.T @ targets)
    error = np.linalg.norm(fitted - truth[truth != 0])
    np.testing.assert_allclose(run.support_error, error, rtol=1e-12)
    threshold = 0.5 * np.sqrt(2 * np.log(8) / 30)
    np.testing.assert_allclose(run.sparse_rate(8), 3 * threshold**2, rtol=1e-15)


@pytest.mark.parametrize("norm", [1, 2])
def test_relative_margin_is_one_for_the_best_direction_alone(norm):
    overrides = [
        'problem.data={kind="classification", samples=5, features=8, nonzeros=2, seed=0}',
        'problem.loss={kind="logistic"}',
        "sweep={}",
    ]
    dataset = made_by(overrides, {"theta": (("time", "coordinate"), np.zeros((7, 8)))})
    best = ddln.theory.max_margin(dataset.ddln.first.problem, norm=norm)
    others = np.random.default_rng(2).normal(size=(50, 8))
    directions = xr.DataArray([7 * best, *others, 0 * best], dims=("run", "coordinate"))
    shares = dataset.ddln.relative_margin(directions, norm=norm).values
    np.testing.assert_allclose(shares[0], 1.0, rtol=1e-10)
    assert (shares[1:-1] < 1).all()
    assert np.isnan(shares[-1])
    features, labels = dataset.ddln.first.samples
    margin = (labels * (features @ others[0])).min() / np.linalg.norm(others[0], ord=norm)
    np.testing.assert_allclose(shares[1], margin * np.linalg.norm(best, ord=norm), rtol=1e-9)


def test_time_average_is_exact_for_lines_and_with_derivatives_for_cubics():
    clocks = np.array([TIMES**2, 10 * TIMES])
    dataset = made_by(
        ["sweep.network.scale=[1.0, 2.0]"],
        {"flow_time": ((SCALE, "time"), clocks)},
        {SCALE: [1.0, 2.0]},
    ).drop_vars("time")
    t = dataset["flow_time"]
    later = t.isel(time=slice(1, None))
    average = dataset.ddln.time_average(2 * t + 1)
    np.testing.assert_allclose(average, later + 1, rtol=1e-13)
    cubic = dataset.ddln.time_average(t**3, 3 * t**2)
    np.testing.assert_allclose(cubic, later**3 / 4, rtol=1e-13)


def test_time_average_of_a_failed_run_is_nan_from_where_it_stopped():
    values = xr.DataArray(np.where(TIMES < 1.5, 1.0, np.nan), dims="time")
    average = made_by(["sweep={}"], {}).ddln.time_average(values)
    np.testing.assert_array_equal(average, [1.0, 1.0, np.nan, np.nan, np.nan, np.nan])


def test_test_residuals_use_the_test_features_of_the_file(tmp_path):
    rng = np.random.default_rng(3)
    unseen, theta, truth = rng.normal(size=(5, 4)), rng.normal(size=(7, 4)), rng.normal(size=4)
    features, targets = rng.normal(size=(6, 4)), rng.normal(size=6)
    np.savez(tmp_path / "file.npz", features=features, targets=targets, test_features=unseen)
    data = f'problem.data={{kind="file", path="{tmp_path}/file.npz"}}'
    variables = {"theta": (("time", "coordinate"), theta), "truth": ("coordinate", truth)}
    residuals = made_by([data, "sweep={}"], variables).ddln.test_residuals
    expected = (theta - truth) @ unseen.T
    np.testing.assert_allclose(residuals.transpose("time", "sample"), expected, rtol=1e-13)


def test_fitted_power_is_the_slope_of_the_logarithms(grid):
    values = 5.0 * grid[SCALE] ** -3 * grid[SEED] ** 2
    powers = grid.ddln.powers(values, SCALE)
    assert powers.sizes == {SCALE: 1, SEED: 3}
    np.testing.assert_allclose(powers, -3.0, rtol=1e-14)
    np.testing.assert_allclose(grid.ddln.powers(values, SEED), 2.0, rtol=1e-13)


def test_crossings_match_numpy_interpolation():
    rising, falling = np.sqrt(TIMES), 4.0 - TIMES**2
    values = xr.DataArray([rising, falling, 0 * TIMES], dims=("run", "time"))
    found = made_by(["sweep={}"], {}).ddln.first_crossing(values, 1.3)
    expected = np.interp(1.3, rising, TIMES), np.interp(-1.3, -falling, TIMES), np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert found.dims == ("run",)


def test_crossings_use_the_flow_time_of_each_run():
    clocks = np.array([TIMES, 10 * TIMES])
    dataset = made_by(
        ["sweep.network.scale=[1.0, 2.0]"],
        {"flow_time": ((SCALE, "time"), clocks), "loss": ((SCALE, "time"), 3.0 - clocks[[0, 0]])},
        {SCALE: [1.0, 2.0]},
    ).drop_vars("time")
    crossing = dataset.ddln.first_crossing(dataset["loss"], 1.75)
    np.testing.assert_allclose(crossing, [1.25, 12.5])
    step = xr.DataArray(100 * np.arange(7), dims="time")
    np.testing.assert_allclose(dataset.ddln.first_crossing(dataset["loss"], 1.75, step), 250.0)


def test_first_of_several_crossings_is_returned():
    values = xr.DataArray(np.sin(4 * TIMES), dims="time")
    crossing = float(made_by(["sweep={}"], {}).ddln.first_crossing(values, 0.5))
    assert 0.0 < crossing <= TIMES[1]


@pytest.mark.parametrize(
    "imports", ["from ddln.sweeps import assemble", "from ddln import figures"]
)
def test_modules_that_return_or_draw_data_sets_register_the_accessor(imports):
    code = f"import xarray as xr, ddln; {imports}; xr.Dataset().ddln.runs"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_opened_data_set_has_the_accessor(grid, tmp_path):
    grid.to_netcdf(tmp_path / "dataset.nc", engine="h5netcdf")
    with _netcdf.open_dataset(tmp_path / "dataset.nc") as dataset:
        assert isinstance(dataset.ddln, accessor.Accessor)
        assert len(list(dataset.ddln.runs())) == 6
