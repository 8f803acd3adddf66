"""Variables that a chunk does not store are those of the solver and the theorems, to rounding."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.config.experiment import load
from ddln.sweeps import compute
from ddln.sweeps.dataset_schema import saved_variables, stored_variables
from ddln.sweeps.derived import complete
from ddln.sweeps.plan import make_plan

ROUNDING = 1e-13
FLOWS = load(
    Path(__file__).parent.parent / "configs" / "figure4.toml",
    [
        *("dynamics.points=11", "network.depth=3", "sweep={}", "sweep.network.scale=[1.4, 1.0]"),
        'network.init.law={kind="normal", std=1.0}',  # with negative layers
    ],
)


@pytest.fixture(scope="module")
def chunk_and_part():
    (chunk,) = make_plan(FLOWS).chunks
    return chunk, compute.compute(chunk)


@pytest.mark.slow
def test_stored_flow_has_every_saved_variable(chunk_and_part):
    chunk, part = chunk_and_part
    assert {*part.data_vars} == {*stored_variables(chunk.experiment)}
    assert {"layers", "theta", "bound", "divergence_bound"}.isdisjoint(part.data_vars)
    assert tuple(complete(part, chunk.experiment).data_vars) == saved_variables(chunk.experiment)


def test_derived_layers_and_theta_are_those_of_the_solver(chunk_and_part):
    chunk, part = chunk_and_part
    whole = complete(part, chunk.experiment)
    for lane in range(2):
        point = {"network.scale": float(chunk.values["network.scale"][lane])}
        run = FLOWS.with_({"sweep": {}} | point)
        problem, layers = compute.build.build_problem(run), compute.build.build_layers(run)
        flow = ddln.gradient_flow(problem, layers, whole["flow_time"].values[lane], rtol=1e-12)
        derived = whole.isel(lane=lane)
        np.testing.assert_allclose(derived["layers"], flow.layers, atol=1e-7)
        np.testing.assert_allclose(derived["theta"], flow.theta, atol=1e-7)
        product = derived["layers"].prod("layer")
        np.testing.assert_allclose(derived["theta"], product, rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_allclose(derived["layers"][0], layers, rtol=ROUNDING)


def test_derived_bounds_are_those_of_theorem_2(chunk_and_part):
    chunk, part = chunk_and_part
    whole = complete(part, chunk.experiment).isel(lane=1)
    run = FLOWS.with_({"sweep": {}, "network.scale": 1.0})
    problem, layers = compute.build.build_problem(run), compute.build.build_layers(run)
    times = jnp.asarray(whole["flow_time"].values)
    for name, bound in {
        "bound": ddln.theory.exponential_bound,
        "divergence_bound": ddln.theory.divergence_bound,
    }.items():
        np.testing.assert_allclose(whole[name], bound(problem, layers, times), rtol=1e-11)


@pytest.mark.parametrize(
    "key",
    [
        {"lane": 1, "time": -1},
        {"time": slice(None, None, 3), "layer": [2, 0]},
        {"lane": [1, 0], "coordinate": 4},
        {"layer": 1, "time": np.array([5, 2, 2])},
    ],
    ids=str,
)
def test_selected_entries_are_those_of_the_whole_array(chunk_and_part, key):
    chunk, part = chunk_and_part
    layers = complete(part, chunk.experiment)["layers"]
    np.testing.assert_array_equal(layers.isel(key).values, layers.copy().load().isel(key).values)
