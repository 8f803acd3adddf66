"""Plans: every network of the grid exactly once, in chunks of one shape."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddln
from ddln.config.experiment import ConfigError, load
from ddln.sweeps import dataset_schema
from ddln.sweeps.dataset_schema import working_bytes
from ddln.sweeps.plan import is_long, is_recomputed, make_plan

ROOT = Path(__file__).parent.parent
FIGURE4 = load(ROOT / "configs" / "figure4.toml")
PLAIN = FIGURE4.with_({"sweep": {}})
RECOMPUTED = {
    *("architecture", "depth_scale", "escape_times", "explore", "figure3", "figure4"),
    "single_datum",
}


def test_empty_sweep_is_one_network():
    plan = make_plan(PLAIN)
    assert (plan.shape, plan.lanes, len(plan.chunks)) == ((), 1, 1)
    assert plan.chunks[0].lanes.tolist() == [0]
    assert plan.chunks[0].values == {}
    assert plan.chunks[0].experiment == PLAIN


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    order=st.permutations(["network.depth", "network.scale", "network.init.seed"]),
    chunk_lanes=st.integers(1, 7),
)
def test_chunks_cover_the_grid_once_with_the_right_values(sizes, order, chunk_lanes):
    values = {name: [2 + i for i in range(n)] for name, n in zip(order, sizes, strict=True)}
    plan = make_plan(PLAIN.with_({"sweep": values}), chunk_lanes=chunk_lanes)
    assert plan.shape == sizes
    assert sorted(np.concatenate([chunk.lanes for chunk in plan.chunks])) == list(range(plan.lanes))
    assert len(plan.programs) == len(values["network.depth"])
    for chunk in plan.chunks:
        assert 1 <= chunk.lanes.size <= chunk.width <= chunk_lanes
        place = dict(zip(order, np.unravel_index(chunk.lanes, plan.shape), strict=True))
        assert set(chunk.values) == {"network.scale", "network.init.seed"}
        for name, along in chunk.values.items():
            assert along.tolist() == [values[name][i] for i in place[name]]
        depths = {values["network.depth"][i] for i in place["network.depth"]}
        assert depths == {chunk.experiment.network.depth}
        assert not chunk.experiment.sweep


def test_chunks_of_one_shape_share_a_width():
    seeds = {"sweep.network.init.seed": {"range": [0, 700]}, "memory": 100}
    plan = make_plan(PLAIN.with_(seeds))
    assert [chunk.lanes.size for chunk in plan.chunks] == [234, 234, 232]
    assert {chunk.width for chunk in plan.chunks} == {234}


def test_zipped_axes_share_one_dimension_of_the_grid():
    sweep = {
        "network.depth": [2, 3, 2],
        "network.init.seed": [5, 6],
        "network.scale": {"values": [1.0, 1.5, 2.0], "zip": "network.depth"},
    }
    plan = make_plan(PLAIN.with_({"sweep": sweep}))
    assert plan.sizes == {"network.depth": 3, "network.init.seed": 2}
    by_depth = {chunk.experiment.network.depth: chunk for chunk in plan.chunks}
    assert len(plan.chunks) == 2
    assert by_depth[2].lanes.tolist() == [0, 1, 4, 5]
    assert by_depth[2].values["network.scale"].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert by_depth[2].values["network.init.seed"].tolist() == [5, 6, 5, 6]
    assert by_depth[3].values["network.scale"].tolist() == [1.5, 1.5]


def test_memory_limits_the_width_of_chunks():
    seeds = {"sweep.network.init.seed": {"range": [0, 700]}}
    for memory in (0.02, 0.05, 0.15):
        plan = make_plan(PLAIN.with_({**seeds, "memory": memory}))
        assert plan.peak_bytes <= memory * 1e9
        wider = -(-700 // (len(plan.chunks) - 1))
        assert wider * working_bytes(PLAIN) > memory * 1e9
    small = PLAIN.with_({**seeds, "memory": 1e-6})
    assert make_plan(small).chunks[0].width == 1
    with pytest.raises(ConfigError, match="cannot have fewer networks, more than memory = 1e-06"):
        ddln.run(small)


def test_every_fiftieth_chunk_and_a_small_first_one_are_recomputed():
    many = make_plan(PLAIN.with_({"sweep.network.init.seed": {"range": [0, 200]}}), 1)
    again = [chunk.index for chunk in many.chunks if is_recomputed(chunk)]
    assert again == [0, 49, 99, 149, 199]
    assert not is_recomputed(make_plan(PLAIN.with_({"dynamics.points": 10**6})).chunks[0])


def test_only_a_long_descent_reports_its_progress():
    rule = {"kind": "sgd", "learning_rate": 1e-4}
    training = {"kind": "descent", "steps": 1000, "points": 41, "optimiser": rule}
    short = PLAIN.with_({"dynamics": training})
    wide = {"problem.data.samples": 500, "problem.data.features": 2000}
    seeds = {"sweep.network.init.seed": {"range": [0, 20]}}
    for changes, expected in (
        ({}, False),
        ({"dynamics.steps": 10**6}, True),
        ({**wide, **seeds}, True),
        ({**wide, **seeds, "dynamics.sampling": {"batch": 1}}, False),
    ):
        assert is_long(make_plan(short.with_(changes)).chunks[0]) == expected
    assert not is_long(make_plan(PLAIN.with_({"dynamics.max_steps": 10**7})).chunks[0])


def test_first_chunk_of_small_studies_is_recomputed():
    """A change of this set would change the published data sets of the studies."""
    configs = (load(path) for path in sorted((ROOT / "configs").glob("*.toml")))
    flows = [config for config in configs if config.dynamics.kind != "descent"]
    first = {config.study: make_plan(config).chunks[0] for config in flows}
    assert {study for study, chunk in first.items() if is_recomputed(chunk)} == RECOMPUTED


def test_axis_has_the_type_of_its_leaf():
    plan = make_plan(PLAIN.with_({"sweep": {"network.init.seed": [1, 2], "network.scale": [1, 2]}}))
    assert [axis.values.dtype.kind for axis in plan.axes] == ["i", "f"]


def test_large_sweep_is_planned_and_huge_one_refused():
    large = {"network.init.seed": {"range": [0, 1000]}, "network.scale": {"linspace": [1, 2, 100]}}
    plan = make_plan(PLAIN.with_({"sweep": large}))
    assert len(plan.chunks) == 98
    huge = {**large, "dynamics.until": {"linspace": [1, 2, 101]}}
    with pytest.raises(ConfigError, match="sweep: 10,100,000 networks, more than 10,000,000"):
        make_plan(PLAIN.with_({"sweep": huge}))


@pytest.mark.parametrize("save", ["loss", "theta", "all"])
def test_bytes_of_a_network_match_its_saved_variables(save):
    lane = make_plan(PLAIN.with_({"dynamics.save": save})).nbytes
    in_time = 3 + {"loss": 0, "theta": 2 * 8, "all": 2 * 8}[save]
    certificates, hypotheses, scalars = 14 * (3 * 8 + 2), 5, 7 * 8
    start = 8 * 6 * 8 if save == "all" else 0
    header = dataset_schema.HEADER_BYTES
    assert lane == 8 * 301 * in_time + certificates + hypotheses + scalars + start + header
    three = make_plan(FIGURE4.with_({"dynamics.save": save})).nbytes
    assert three - header == 3 * (lane - header)


def test_swept_values_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"sweep.network.scale\[0\]: must be > 0, got 0.0"):
        PLAIN.with_({"sweep": {"network.scale": [0, 1]}})
