"""netCDF files on a full disk: HDF5 reads back what it wrote, and the error follows at the end."""

import errno
import io
import os

import h5netcdf
import numpy as np
import pytest
import xarray as xr

from ddln.sweeps import _netcdf

DISK = 4096  # bytes


class FullDisk(io.FileIO):
    """A file on a disk with space for `room` bytes."""

    room = DISK

    def write(self, data, /):
        fits = max(self.room - self.tell(), 0)
        if not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(data)[:fits])


def step(rng, file):
    """Make one of the calls that HDF5 makes, and return the file's answers."""
    place, size = int(rng.integers(3 * DISK)), int(rng.integers(1, DISK))
    match rng.integers(4):
        case 0:
            return file.seek(place), file.write(rng.bytes(size))
        case 1:
            buffer = bytearray(size)
            return file.seek(place), file.readinto(buffer), bytes(buffer)
        case 2:
            return file.seek(0, os.SEEK_END), file.tell()
    # HDF5 only lets a file grow, so cutting it off is not tested.
    file.seek(0, os.SEEK_END)
    return file.truncate(file.tell() + size % 64) if file.tell() < place else 0


@pytest.mark.parametrize("seed", range(20))
def test_file_on_a_full_disk_reads_back_what_was_written(tmp_path, monkeypatch, seed):
    """Compare with a file in memory, call by call; the error is raised once, at the end."""
    monkeypatch.setattr(_netcdf, "FileIO", FullDisk)
    ours, model = np.random.default_rng(seed), np.random.default_rng(seed)
    expected = Memory()

    def write():
        with _netcdf.hdf5_writer(tmp_path / "file") as file:
            for _ in range(100):
                assert step(ours, file) == step(model, expected)

    with pytest.raises(OSError, match="No space left on device"):
        write()
    assert (tmp_path / "file").stat().st_size <= 4 * DISK


class Memory(io.BytesIO):
    """A file in memory that `truncate` can make longer."""

    def truncate(self, size=None, /):
        size = self.tell() if size is None else size
        self.write(bytes(size - self.seek(0, os.SEEK_END)))
        return size


def test_data_set_reads_back_from_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(_netcdf, "FileIO", FullDisk)
    dataset = xr.Dataset(
        {
            f"v{i}": (("lane", "time"), np.random.default_rng(i).normal(size=(8, 20)))
            for i in range(9)
        },
        coords={"certificate": ["a", "bound"]},
        attrs={"statement": "ℒ" * 5000},
    )

    def write():
        with _netcdf.hdf5_writer(tmp_path / "a.nc") as file:
            dataset.to_netcdf(file, engine="h5netcdf")
            assert isinstance(file.error, OSError)
            with h5netcdf.File(file, "r") as again:
                for name, variable in dataset.data_vars.items():
                    np.testing.assert_array_equal(again[name][...], variable.values)

    with pytest.raises(OSError, match="No space left on device"):
        write()


def test_file_without_errors_is_on_the_disk(tmp_path):
    with _netcdf.hdf5_writer(tmp_path / "file") as file:
        file.write(b"abc")
        file.seek(1)
        file.write(b"X")
    assert (tmp_path / "file").read_bytes() == b"aXc"
