"""Assembling: each network is at its place, in memory and in files; missing chunks stay NaN."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from ddln.config.experiment import load
from ddln.sweeps import assemble
from ddln.sweeps.plan import make_plan

PLAIN = load(Path(__file__).parent.parent / "configs" / "figure4.toml", ["sweep={}"])
AXES = {"network.scale": [1.0, 2.0, 3.0], "network.depth": [2, 4], "network.init.seed": [7, 8]}


def part_of(chunk, until=0.0):
    """A chunk whose layers all equal the number of the network."""
    count, depth = chunk.lanes.size, chunk.experiment.network.depth
    number = chunk.lanes[:, None, None, None]
    return xr.Dataset(
        {
            "flow_time": (("lane", "time"), np.arange(301.0) * np.ones((count, 1)) + until),
            "layers": (
                ("lane", "time", "layer", "coordinate"),
                number * np.ones((1, 301, depth, 8)),
            ),
            "status": ("lane", np.zeros(count, np.int32)),
            "certificate_holds": (("lane", "certificate"), np.ones((count, 1), bool)),
        },
        coords={"lane": chunk.lanes, "certificate": ["c"], "hypothesis": ["h"]},
    )


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(list(AXES)), chunk_lanes=st.integers(1, 7))
def test_every_network_is_assembled_at_its_place_in_the_grid(order, chunk_lanes):
    plan = make_plan(PLAIN.with_({"sweep": {name: AXES[name] for name in order}}), chunk_lanes)
    layers = assemble.assemble(plan, part_of)["layers"]
    assert layers.dims == (*order, "time", "layer", "coordinate")
    numbers = layers.isel(time=0, layer=0, coordinate=0).values
    np.testing.assert_array_equal(numbers.ravel(), np.arange(12))
    beyond = layers.sel({"network.depth": 2}).isel(layer=slice(2, None))
    assert np.isnan(beyond).all()


@pytest.mark.parametrize("lost", [None, 0, 1])
def test_file_equals_data_set_in_memory_even_with_missing_chunks(lost, tmp_path):
    plan = make_plan(PLAIN.with_({"sweep": AXES}), 5)

    def load(chunk):
        return None if chunk.index == lost else part_of(chunk)

    whole = assemble.assemble(plan, load)
    assemble.write(plan, load, tmp_path / "a.nc")
    assemble.write(plan, load, tmp_path / "b.nc")
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf"), whole)
    holes = [] if lost is None else plan.chunks[lost].lanes
    assert whole.sizes["layer"] == 4
    np.testing.assert_array_equal(np.flatnonzero(whole["status"] == -1), holes)
    np.testing.assert_array_equal(np.flatnonzero(~whole["certificate_holds"]), holes)
    np.testing.assert_array_equal(
        np.flatnonzero(np.isnan(whole["layers"].isel(time=0, layer=0, coordinate=0))), holes
    )


SOME = st.one_of(
    st.integers(0, 1),
    st.builds(slice, st.none(), st.none(), st.sampled_from([1, 2, -1])),
    st.lists(st.integers(0, 1), min_size=1, max_size=3),
)


@settings(max_examples=25, deadline=None)
@given(
    chunk_lanes=st.integers(1, 7),
    key=st.dictionaries(st.sampled_from([*AXES, "time", "layer", "coordinate"]), SOME),
)
def test_view_of_chunks_has_the_entries_of_the_assembled_data_set(chunk_lanes, key):
    plan = make_plan(PLAIN.with_({"sweep": AXES}), chunk_lanes)
    whole, seen = assemble.assemble(plan, part_of), assemble.view(plan, part_of)
    assert not seen["layers"].variable._in_memory
    layers = seen["layers"].isel(key)
    xr.testing.assert_identical(layers.load(), whole["layers"].isel(key))


def test_view_of_chunks_equals_the_assembled_data_set():
    plan = make_plan(PLAIN.with_({"sweep": AXES}), 5)
    whole, seen = assemble.assemble(plan, part_of), assemble.view(plan, part_of)
    one = dict.fromkeys(AXES, 1)
    xr.testing.assert_identical(seen["status"].isel(one).load(), whole["status"].isel(one))
    xr.testing.assert_identical(seen, whole)


def test_flow_time_is_a_coordinate_only_if_all_networks_share_it():
    plan = make_plan(PLAIN.with_({"sweep": AXES}), 5)
    shared = assemble.assemble(plan, part_of)
    assert shared["time"].values[-1] == 300
    assert "flow_time" not in shared
    own = assemble.assemble(plan, lambda chunk: part_of(chunk, float(chunk.index)))
    assert "time" not in own.coords
    assert own["flow_time"].dims == (*AXES, "time")


def test_axes_have_units():
    plan = make_plan(PLAIN.with_({"sweep": {"dynamics.until": [1, 2], "network.scale": [1, 2]}}))
    axes = assemble.assemble(plan, part_of).coords
    units = [axes[name].attrs["units"] for name in ("dynamics.until", "network.scale")]
    assert units == ["flow time", "1"]
