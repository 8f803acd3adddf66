"""Files of chunks against those that xarray writes and opens."""

import numpy as np
import pytest
import xarray as xr

from ddln.sweeps._chunk_files import ChunkWriter, open_like
from ddln.sweeps._netcdf import NetCDFError, open_dataset


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


def test_opened_chunk_has_its_own_numbers(tmp_path):
    first, second = tmp_path / "first.nc", tmp_path / "second.nc"
    for path, seed in ((first, 0), (second, 1)):
        ChunkWriter().write(chunk_data(seed), path)
    with open_dataset(first) as like:
        opened = open_like(second, like)
        xr.testing.assert_identical(opened.load(), chunk_data(1))
        assert open_like(second, like)["gap"][1, ::2].values.tolist() == (
            chunk_data(1)["gap"][1, ::2].values.tolist()
        )


def test_chunk_of_another_shape_is_refused(tmp_path):
    first, second = tmp_path / "first.nc", tmp_path / "second.nc"
    ChunkWriter().write(chunk_data(0), first)
    ChunkWriter().write(chunk_data(0, lanes=2), second)
    with (
        open_dataset(first) as like,
        pytest.raises(NetCDFError, match=r"must have the shape \(3, 4\), got \(2, 4\)"),
    ):
        open_like(second, like)
