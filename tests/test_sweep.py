"""Sweeps end to end: every kind of axis gives what single runs give, on labelled dimensions."""

from pathlib import Path

import numpy as np
import pytest

import ddln
from ddln import lanes
from ddln.plan import make_plan
from ddln.store import status_counts
from ddln.variables import lane_bytes

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
AXES = {
    "network.init.seed": [3, 4],
    "network.scale": {"values": [0.5, 1.5], "zip": "network.init.seed"},
    "problem.data.seed": [0, 4],
    "dynamics.rtol": [1e-9, 1e-4],
    "dynamics.until": [0.5, 0.7],
    "network.init.law.low": [0.5, 0.1],
}
LANES = 1e-9  # rtol of the integrator: lanes side by side round otherwise than one alone


@pytest.fixture(scope="module")
def grid():
    return ddln.sweep(SMALL, over=AXES)


def assert_same_lane(lane, alone):
    for name in ("gap", "layers"):
        np.testing.assert_allclose(lane[name], alone[name], rtol=LANES, atol=LANES)


@pytest.mark.parametrize(
    "name", ["problem.data.seed", "dynamics.rtol", "dynamics.until", "network.init.law.low"]
)
def test_a_numeric_axis_gives_what_a_single_run_gives(grid, name):
    first = grid.isel(dict.fromkeys(grid["status"].dims, 0))
    swept = grid.isel(dict.fromkeys(set(grid["status"].dims) - {name}, 0))
    lane = swept.sel({name: AXES[name][1]})
    start = {"network.init.seed": 3, "network.scale": 0.5}
    assert_same_lane(lane, ddln.run(SMALL.with_({**start, name: AXES[name][1]})))
    assert not np.array_equal(lane["layers"], first["layers"])


def test_zipped_axes_share_a_dimension_and_are_coordinates_along_it(grid):
    assert "network.scale" not in grid.dims
    assert grid["network.scale"].dims == ("network.init.seed",)
    lane = grid.isel(dict.fromkeys(set(grid["status"].dims) - {"network.init.seed"}, 0))
    corner = ddln.run(SMALL.with_({"network.scale": 1.5, "network.init.seed": 4}))
    assert_same_lane(lane.sel({"network.init.seed": 4}), corner)


@pytest.mark.parametrize(
    ("name", "dimension"), [("network.depth", "layer"), ("problem.data.features", "coordinate")]
)
def test_an_axis_that_changes_shapes_is_padded_with_nan(name, dimension):
    swept = ddln.sweep(SMALL, over={name: [2, 3]})
    assert swept.sizes[dimension] == 3
    for value in (2, 3):
        layers = swept.sel({name: value})["layers"]
        alone = ddln.run(SMALL.with_({name: value}))["layers"]
        inside = layers.isel({dimension: slice(value)})
        np.testing.assert_allclose(inside, alone, rtol=LANES, atol=LANES)
        assert np.isnan(layers.isel({dimension: slice(value, None)})).all()


def test_a_lane_that_fails_leaves_the_others_alone_and_is_counted():
    good, bad = (
        ddln.sweep(SMALL, over={"network.scale": [1.0, middle, 1.4]}) for middle in (1.2, 1e30)
    )
    assert status_counts(good) == {"ok": 3}
    assert status_counts(bad)["ok"] == 2
    assert np.isnan(bad["loss"].isel({"network.scale": 1, "time": -1}))
    for lane in (0, 2):
        assert_same_lane(*(run.isel({"network.scale": lane}) for run in (bad, good)))


@pytest.mark.parametrize("save", ["loss", "theta", "all"])
def test_a_chunk_holds_what_is_to_be_saved_and_as_many_bytes_as_planned(save):
    experiment = SMALL.with_({"dynamics.save": save})
    (chunk,) = make_plan(experiment).chunks
    part = lanes.compute(chunk)
    assert ("theta" in part, "layers" in part) == (save != "loss", save == "all")
    assert {"loss", "gap", "bound", "certificate_holds", "status"} <= part.keys()
    assert sum(part[name].nbytes for name in part.data_vars) == lane_bytes(experiment)
