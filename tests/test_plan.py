"""Plans: every lane of the grid exactly once, in chunks of one shape."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddln.config.experiment import ConfigError, load
from ddln.sweeps.dataset_schema import working_bytes
from ddln.sweeps.plan import estimate, is_solved_again, make_plan

FIGURE4 = load(Path(__file__).parent.parent / "configs" / "figure4.toml")
PLAIN = FIGURE4.with_({"sweep": {}})


def test_no_sweep_is_one_lane():
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
def test_chunks_cover_the_grid_once_with_the_values_of_their_lanes(sizes, order, chunk_lanes):
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


def test_the_chunks_of_one_shape_share_a_width():
    seeds = {"sweep.network.init.seed": {"range": [0, 700]}, "memory": 100}
    plan = make_plan(PLAIN.with_(seeds))
    assert [chunk.lanes.size for chunk in plan.chunks] == [234, 234, 232]
    assert {chunk.width for chunk in plan.chunks} == {234}


def test_zipped_axes_are_one_dimension_and_their_values_walk_in_step():
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


def test_a_chunk_has_no_more_lanes_than_memory_takes_and_the_config_alone_decides():
    seeds = {"sweep.network.init.seed": {"range": [0, 700]}}
    for memory in (0.02, 0.05, 0.15):
        plan = make_plan(PLAIN.with_({**seeds, "memory": memory}))
        assert plan.peak_bytes <= memory * 1e9
        wider = -(-700 // (len(plan.chunks) - 1))
        assert wider * working_bytes(PLAIN) > memory * 1e9
    assert make_plan(PLAIN.with_({**seeds, "memory": 1e-6})).chunks[0].width == 1


def test_one_of_fifty_chunks_is_solved_again_and_a_first_one_that_is_quick():
    many = make_plan(PLAIN.with_({"sweep.network.init.seed": {"range": [0, 200]}}), 1)
    again = [chunk.index for chunk in many.chunks if is_solved_again(chunk)]
    assert again == [0, 49, 99, 149, 199]
    assert not is_solved_again(make_plan(PLAIN.with_({"dynamics.points": 10**6})).chunks[0])


@pytest.mark.parametrize(
    "init",
    [
        {"kind": "constant", "value": 0.8},
        {"kind": "normal"},
        {"kind": "imbalanced", "smallest": 0.1, "imbalance": 0.5},
        {"kind": "balanced", "law": {"kind": "uniform", "low": 0.5, "high": 1.2}},
    ],
    ids=lambda init: init["kind"],
)
def test_the_estimate_grows_with_lanes_and_with_what_makes_the_flow_fast(init):
    network = PLAIN.with_({"network.init": init, "dynamics.solver": "tsit5"})
    scales = {"sweep.network.scale": {"linspace": [1, 2, 100]}}
    hundred, all_alike = (
        estimate(make_plan(network.with_(scales))),
        100 * estimate(make_plan(network)),
    )
    assert all_alike < hundred < 100 * estimate(make_plan(network.with_({"network.scale": 2})))
    implicit = network.with_({"dynamics.solver": "kvaerno5", "network.scale": 3})
    assert estimate(make_plan(implicit)) < estimate(make_plan(network.with_({"network.scale": 3})))
    capped = network.with_({"network.scale": 1e30})
    assert estimate(make_plan(capped)) < 100_000 * 1e-5


def test_the_estimate_of_a_stiff_flow_knows_that_auto_goes_over_to_implicit_steps():
    stiff, wide = PLAIN.with_({"network.scale": 3}), {"problem.data.features": 1000}
    implicit = estimate(make_plan(stiff.with_({"dynamics.solver": "rodas5p"})))
    assert estimate(make_plan(stiff)) == implicit
    assert estimate(make_plan(stiff.with_({"dynamics.solver": "tsit5"}))) > 50 * implicit
    explicit = estimate(make_plan(stiff.with_({**wide, "dynamics.solver": "tsit5"})))
    assert estimate(make_plan(stiff.with_(wide))) == explicit


def test_the_estimate_of_a_descent_is_about_what_was_measured():
    data = {"problem.data.samples": 200, "problem.data.features": 500, "network.depth": 2}
    plain = {"kind": "descent", "steps": 1000, "optimiser": {"kind": "sgd", "learning_rate": 1e-4}}
    steps = PLAIN.with_({**data, "dynamics": plain, "dynamics.points": 41})
    lanes = {"sweep.network.scale": {"linspace": [0.5, 1, 16]}}
    measured = 1000 * 218e-6 + 16 * 0.17
    assert measured / 3 < estimate(make_plan(steps.with_(lanes))) < 3 * measured
    drawn = {"dynamics.sampling": {"batch": 1}, "problem.data.features": 30}
    assert 5e-3 / 3 < estimate(make_plan(steps.with_(drawn))) < 3 * 5e-3


def test_an_axis_keeps_its_leafs_type():
    plan = make_plan(PLAIN.with_({"sweep": {"network.init.seed": [1, 2], "network.scale": [1, 2]}}))
    assert [axis.values.dtype.kind for axis in plan.axes] == ["i", "f"]


def test_a_large_sweep_is_planned_fast_and_a_huge_one_refused():
    large = {"network.init.seed": {"range": [0, 1000]}, "network.scale": {"linspace": [1, 2, 100]}}
    plan = make_plan(PLAIN.with_({"sweep": large}))
    assert len(plan.chunks) == 391
    huge = {**large, "dynamics.until": {"linspace": [1, 2, 101]}}
    with pytest.raises(ConfigError, match="sweep: 10,100,000 lanes, more than 10,000,000"):
        make_plan(PLAIN.with_({"sweep": huge}))


@pytest.mark.parametrize("save", ["loss", "theta", "all"])
def test_the_size_of_a_lane_grows_with_what_is_kept_of_it(save):
    lane = make_plan(PLAIN.with_({"dynamics.save": save})).nbytes
    in_time = 6 + {"loss": 0, "theta": 2 * 8, "all": (6 + 2) * 8}[save]
    assert 0 < lane - 8 * 301 * in_time < 400
    assert make_plan(FIGURE4.with_({"dynamics.save": save})).nbytes == 3 * lane


def test_values_outside_a_leafs_range_never_reach_a_plan():
    with pytest.raises(ConfigError, match=r"sweep.network.scale\[0\]: must be > 0, got 0.0"):
        PLAIN.with_({"sweep": {"network.scale": [0, 1]}})
