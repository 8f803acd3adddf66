"""Sweeps end to end: every kind of axis gives the results of single runs, with labels."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

import ddln
from ddln.config import datasets
from ddln.config.dynamics_schema import DescentConfig
from ddln.config.experiment import substitute
from ddln.solvers import _batching, _descent_loop
from ddln.solvers._steppers import Rodas5P
from ddln.sweeps import _runner_base, build, compute, plan, progress
from ddln.sweeps.dataset_schema import count_recomputed, network_bytes, stored_variables
from ddln.sweeps.derived import complete
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import status_counts
from ddln.verification import diagnostics

ROOT = Path(__file__).parent.parent
SMALL = ddln.load(ROOT / "configs" / "figure4.toml", ["sweep={}"]).with_(
    {
        "network.depth": 2,
        "problem.data.samples": 3,
        "problem.data.features": 2,
        "dynamics.points": 5,
        "dynamics.until": 0.5,
        "dynamics.max_steps": 2000,
    }
)
PLAIN = {"kind": "sgd", "learning_rate": 0.01}
AXES = {
    "network.init.seed": [3, 4],
    "network.scale": {"values": [0.5, 1.5], "zip": "network.init.seed"},
    "problem.data.seed": [0, 4],
    "dynamics.rtol": [1e-9, 1e-4],
    "dynamics.until": [0.5, 0.7],
    "network.init.law.low": [0.5, 0.1],
}
LANES = 1e-9  # rtol of the integrator: networks side by side round differently from one alone


@pytest.fixture(scope="module")
def grid():
    return ddln.sweep(SMALL, over=AXES)


def assert_same_lane(lane, alone):
    for name in ("gap", "layers"):
        np.testing.assert_allclose(lane[name], alone[name], rtol=LANES, atol=LANES)


def test_measured_variables_equal_diagnostics_of_the_run():
    names = ("sharpness", "gain", "effective_initialisation")
    problem = {"problem.data": {"kind": "gaussian", "samples": 3, "features": 2}}
    measured = {"dynamics.measure": list(names), "sweep.network.scale": [0.5, 1.0]}
    training = {"kind": "descent", "steps": 8, "points": 5, "optimiser": dict(PLAIN)}
    experiment = SMALL.with_(problem | {"dynamics": training} | measured)
    dataset = ddln.run(experiment)
    for i, scale in enumerate([0.5, 1.0]):
        alone = substitute(experiment, {"network.scale": scale})
        loss, layers = build.build_problem(alone), build.build_layers(alone)
        assert isinstance(alone.dynamics, DescentConfig)
        rule = build.build_optimiser(alone.dynamics)
        run = ddln.descend(loss, layers, rule, steps=8, record_every=2)
        expected = {name: jax.jit(getattr(diagnostics, name)) for name in names}
        lane = dataset.isel({"network.scale": i})
        np.testing.assert_allclose(lane["sharpness"], expected["sharpness"](loss, run), rtol=LANES)
        for name in names[1:]:
            np.testing.assert_allclose(lane[name], expected[name](run), rtol=LANES, atol=LANES)
    assert not set(names) & set(ddln.run(SMALL.with_({"dynamics": training})))


@pytest.mark.parametrize(
    "name", ["problem.data.seed", "dynamics.rtol", "dynamics.until", "network.init.law.low"]
)
def test_numeric_axis_equals_single_runs(grid, name):
    first = grid.isel(dict.fromkeys(grid["status"].dims, 0))
    swept = grid.isel(dict.fromkeys(set(grid["status"].dims) - {name}, 0))
    lane = swept.sel({name: AXES[name][1]})
    start = {"network.init.seed": 3, "network.scale": 0.5}
    assert_same_lane(lane, ddln.run(SMALL.with_({**start, name: AXES[name][1]})))
    assert not np.array_equal(lane["layers"], first["layers"])


def test_zipped_axes_are_coordinates_along_one_dimension(grid):
    assert "network.scale" not in grid.dims
    assert grid["network.scale"].dims == ("network.init.seed",)
    lane = grid.isel(dict.fromkeys(set(grid["status"].dims) - {"network.init.seed"}, 0))
    corner = ddln.run(SMALL.with_({"network.scale": 1.5, "network.init.seed": 4}))
    assert_same_lane(lane.sel({"network.init.seed": 4}), corner)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dimension"),
    [("network.depth", "layer"), ("problem.data.features", "coordinate")],
)
def test_shape_changing_axis_is_padded_with_nan(name, dimension):
    swept = ddln.sweep(SMALL, over={name: [2, 3]})
    assert swept.sizes[dimension] == 3
    for value in (2, 3):
        layers = swept.sel({name: value})["layers"]
        alone = ddln.run(SMALL.with_({name: value}))["layers"]
        inside = layers.isel({dimension: slice(value)})
        np.testing.assert_allclose(inside, alone, rtol=LANES, atol=LANES)
        assert np.isnan(layers.isel({dimension: slice(value, None)})).all()


def test_failed_networks_are_counted_and_do_not_affect_others(grid):
    scales = {"values": [0.5, 1e30], "zip": "network.init.seed"}
    spoilt = ddln.sweep(SMALL, over=AXES | {"network.scale": scales})
    half = grid["status"].size // 2
    assert status_counts(grid) == {"ok": 2 * half}
    assert status_counts(spoilt)["ok"] == half
    assert np.isnan(spoilt["loss"].isel({"network.init.seed": 1, "time": -1})).all()
    assert_same_lane(*(run.isel({"network.init.seed": 0}) for run in (spoilt, grid)))


@pytest.mark.parametrize("save", ["loss", "theta", "all"])
def test_chunk_of_flows_has_the_saved_variables_and_planned_size(save):
    experiment = SMALL.with_({"dynamics.save": save})
    (chunk,) = make_plan(experiment).chunks
    part = compute.compute(chunk)
    assert {*part.data_vars} == {*stored_variables(experiment)}
    whole = complete(part, experiment)
    assert ("theta" in whole, "layers" in whole) == (save != "loss", save == "all")
    assert {"loss", "gap", "bound", "certificate_holds", "status"} <= whole.keys()
    assert bytes_of_networks(part) == network_bytes(experiment)


def bytes_of_networks(part):
    """Bytes of the variables that each network of a chunk has for itself."""
    return sum(part[name].nbytes for name in part.data_vars if "lane" in part[name].dims)


ALONE = SMALL.with_({"dynamics.rtol": 1e-6})
OPTIMISM = 1e-5  # the share of each error that the estimate reports


def optimistic(monkeypatch):
    """Make the integrator underestimate its errors."""

    class Optimist(Rodas5P):
        @staticmethod
        def step(*given):
            step = Rodas5P.step(*given)
            return step._replace(error=OPTIMISM * step.error)

    monkeypatch.setattr(_batching, "Rodas5P", Optimist)


def test_overconfident_solver_is_flagged(monkeypatch):
    assert count_recomputed(ddln.run(ALONE)) == (1, 0)
    optimistic(monkeypatch)
    flagged = ddln.run(ALONE)
    assert flagged["status"] == 0
    assert count_recomputed(flagged) == (1, 1)


def test_recomputing_changes_no_other_variable(monkeypatch):
    twice = ddln.run(ALONE)
    monkeypatch.setattr(plan, "SMALL", 0)
    once = ddln.run(ALONE)
    assert count_recomputed(once) == (0, 0)
    for name in twice.data_vars.keys() - {"discrepancy"}:
        assert twice[name].values.tobytes() == once[name].values.tobytes(), name


DESCENT = SMALL.with_(
    {
        "dynamics": {
            "kind": "descent",
            "steps": 40,
            "points": 5,
            "optimiser": {"kind": "heavy_ball", "learning_rate": 0.02, "momentum": 0.5},
        }
    }
)
RATE, BETA = "dynamics.optimiser.learning_rate", "dynamics.optimiser.momentum"
RATES = {RATE: [0.01, 0.02], BETA: [0.0, 0.5, 0.8]}
NOISY = DESCENT.with_({"dynamics.sampling": {"batch": 2, "label_noise": 0.1}})


@pytest.fixture(scope="module")
def trained():
    return ddln.sweep(DESCENT, over=RATES)


def heavy_ball(experiment, layers, rate, beta):
    """Losses at the saved steps, by a loop in NumPy on the same data."""
    features, targets = map(np.asarray, datasets.draw(experiment.problem.data))
    before, losses = layers, []
    for _ in range(experiment.dynamics.steps + 1):
        residual = features @ layers.prod(axis=0) - targets
        losses.append(residual @ residual)
        gradient = 2 * (features.T @ residual) * layers[::-1]
        layers, before = layers - rate * gradient + beta * (layers - before), layers
    return np.array(losses)[experiment.dynamics.records]


def test_descents_equal_a_numpy_loop(trained):
    assert trained["loss"].dims == (RATE, BETA, "time")
    for rate, beta in itertools.product(trained[RATE].values, trained[BETA].values):
        lane = trained.sel({RATE: rate, BETA: beta})
        expected = heavy_ball(DESCENT, lane["layers"][0].values, rate, beta)
        np.testing.assert_allclose(lane["loss"], expected, rtol=LANES)


def test_descent_has_step_and_flow_time_but_no_flow_variables(trained):
    assert trained["step"].dims == ("time",)
    assert trained["step"].values.tolist() == [0, 10, 20, 30, 40]
    reached = trained["step"] * trained[RATE] / (1 - trained[BETA])
    xr.testing.assert_allclose(trained["flow_time"], reached.transpose(RATE, BETA, "time"))
    assert trained["flow_time"].attrs["units"] == "flow time"
    assert not {"velocity", "bound", "rate_bound", "predictor"} & trained.keys()
    assert trained["status"].attrs["flag_meanings"] == "ok stopped diverged"
    assert (trained["steps"] == 40).all()
    assert trained["certificate_holds"].all()
    assert "descent lemma" in trained["certificate"]


def test_intrinsic_step_sets_the_learning_rate(trained):
    rule = {"kind": "heavy_ball", "intrinsic_step": 0.08, "momentum": 0.5}
    alone = ddln.run(DESCENT.with_({"dynamics.optimiser": rule}))
    lane = trained.sel({RATE: 0.02, BETA: 0.5})
    np.testing.assert_allclose(alone["loss"], lane["loss"], rtol=LANES)


def test_changing_numbers_of_a_descent_does_not_retrace(trained, monkeypatch):
    traced = []

    def counted(function):
        return lambda *given: traced.append(function) or function(*given)

    called_when_traced = (
        (_runner_base, "substitute"),
        (_runner_base, "check_hypotheses"),
        (_descent_loop, "take_step"),
    )
    for module, name in called_when_traced:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    other = DESCENT.with_({"network.scale": 0.9, "network.init.seed": 5, "problem.data.seed": 3})
    again = ddln.sweep(other, over={RATE: [0.01, 0.03], BETA: [0.0, 0.3, 0.7]})
    assert not np.array_equal(again["loss"], trained["loss"])
    assert traced == []


def test_swept_descents_sample_like_descend():
    noise, seed = "dynamics.sampling.label_noise", "dynamics.sampling.seed"
    drawn = ddln.sweep(NOISY, over={seed: [0, 7], noise: [0.0, 0.3]})
    assert isinstance(NOISY.dynamics, DescentConfig)
    problem = ddln.least_squares(*datasets.draw(NOISY.problem.data))
    rule = ddln.optimiser("heavy_ball", learning_rate=0.02, momentum=0.5)
    for k, sigma in itertools.product([0, 7], [0.0, 0.3]):
        lane = drawn.sel({seed: k, noise: sigma})
        alone = ddln.descend(
            problem,
            lane["layers"][0].values,
            rule,
            steps=40,
            record_at=NOISY.dynamics.records,
            oracle=ddln.Sampling(batch=2, label_noise=sigma),
            key=jax.random.key(k),
        )
        np.testing.assert_allclose(lane["loss"], alone.loss, rtol=LANES)
    assert np.unique(drawn["loss"].isel(time=-1)).size == 4


def test_swept_number_of_steps_is_padded():
    swept = ddln.sweep(DESCENT, over={"dynamics.steps": [3, 40]})
    assert swept["step"].values.tolist() == [[0, 1, 2, 3, -1], [0, 10, 20, 30, 40]]
    assert np.isnan(swept["gap"][0, -1])


def test_descent_stopped_at_its_target_is_no_failure():
    experiment = DESCENT.with_({"dynamics.target_gap": 1.0, "sweep": {RATE: [1e-6, 0.02]}})
    dataset = ddln.run(experiment)
    assert status_counts(dataset) == {"ok": 1, "stopped": 1}
    assert (dataset["steps"].values < [41, 40]).all()
    done = progress.Progress(make_plan(experiment), {}, 0)
    done.add({"ok": 1, "stopped": 1, "diverged": 2})
    assert done.failed == 2


@pytest.mark.slow
def test_flow_stopped_at_its_target_is_certified_up_to_there():
    plain = SMALL.with_({"dynamics.points": 61, "sweep": {"network.scale": [0.5, 1.5]}})
    larger = substitute(plain, {"network.scale": 1.5})
    start = np.prod(build.build_layers(larger), axis=0)
    target = 1e-3 * float(build.build_problem(larger).gap(start))
    dataset = ddln.run(plain.with_({"dynamics.target_gap": target}))
    assert dataset["status"].attrs["flag_meanings"].split()[3] == "stopped"
    assert dataset["status"].values.tolist() == [0, 3]
    gap = dataset["gap"][1].values
    assert gap[0] > target >= gap[-1]
    assert count_recomputed(dataset) == (2, 0)  # the part at rest is not compared
    held = dataset.isel({"network.scale": 1})
    assert held["certificate_holds"].all()
    applies = held["certificate_applies"].to_series()
    assert applies[
        ["dual path", "exponential bound", "a-posteriori bound", "mirror identity"]
    ].all()


@pytest.mark.parametrize("save", ["loss", "all"])
def test_chunk_of_descents_has_the_planned_size(save):
    experiment = DESCENT.with_({"dynamics.save": save})
    part = compute.compute(make_plan(experiment).chunks[0])
    assert bytes_of_networks(part) == network_bytes(experiment)


def test_reporting_progress_does_not_change_a_long_descent(trained, monkeypatch):
    monkeypatch.setattr(plan, "LONG_STEPS", 0)
    (chunk,) = make_plan(DESCENT.with_({"sweep": RATES})).chunks
    events = []
    part = compute.compute(chunk, lambda *event: events.append(event))
    assert events == [(chunk, share) for share in (0.25, 0.5, 0.75, 1.0)]
    np.testing.assert_array_equal(part["loss"], compute.compute(chunk)["loss"])
    assert part["loss"].dims == ("lane", "time")
