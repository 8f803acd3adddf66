"""Files of chunks against those that xarray writes and opens."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from ddln.sweeps._chunk_files import ChunkReader, ChunkWriter
from ddln.sweeps._netcdf import NetCDFError


def chunk_data(seed, lanes=3, title="a"):
    rng = np.random.default_rng(seed)
    return xr.Dataset(
        {
            "gap": (("lane", "time"), rng.normal(size=(lanes, 4)), {"units": "1"}),
            "status": ("lane", rng.integers(0, 3, lanes), {"flag_values": np.arange(3)}),
            "holds": (("lane", "certificate"), rng.random((lanes, 2)) < 0.5),
            "smallest": (("lane", "time", "coordinate"), rng.normal(size=(lanes, 4, 2))),
        },
        coords={"lane": np.arange(lanes) + seed, "certificate": ["sign", "dual path"]},
        attrs={"title": title},
    )


@pytest.mark.parametrize("change", [{}, {"lanes": 2}, {"title": "b"}])
def test_file_has_the_bytes_that_xarray_writes(tmp_path, change):
    writer, second = ChunkWriter(), chunk_data(1, **change)
    writer.write(chunk_data(0), tmp_path / "first.nc")
    writer.write(second, tmp_path / "second.nc")
    ChunkWriter().write(second, tmp_path / "alone.nc")
    assert (tmp_path / "second.nc").read_bytes() == (tmp_path / "alone.nc").read_bytes()
    with xr.open_dataset(tmp_path / "second.nc", engine="h5netcdf") as read:
        xr.testing.assert_identical(read.load(), second)


def test_words_of_a_chunk_are_its_own(tmp_path):
    writer = ChunkWriter()
    for words in (["sign", "dual path"], ["sign", "clock"]):
        path = tmp_path / f"{words[1]}.nc"
        writer.write(chunk_data(0).assign_coords(certificate=words), path)
        with xr.open_dataset(path, engine="h5netcdf") as read:
            assert read["certificate"].values.tolist() == words
