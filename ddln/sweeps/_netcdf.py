"""netCDF files that neither take the process with them nor reach out of themselves.

HDF5 crashes where a write fails (a full disk), and a file of its can name others to read from.
"""

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr


class NetCDFError(ValueError):
    """A file that is not as ours are."""


_HERE = threading.local()


def is_writing() -> bool:
    """Whether this thread is amid a file: what a signal raises there, HDF5 takes for a fault."""
    return getattr(_HERE, "files", 0) > 0


@contextlib.contextmanager
def written(path: Path) -> "Iterator[Forgiving]":
    """An open file for HDF5 to write to, which is told that every write went well.

    Raises:
        OSError: the first that did not, at the end.
    """
    file = Forgiving(path, "w+")
    _HERE.files = getattr(_HERE, "files", 0) + 1
    try:
        with file:
            yield file
    finally:
        _HERE.files -= 1
        file.check()


class Forgiving(io.FileIO):
    """A file that keeps the error of its first write that failed, and writes no more."""

    error: OSError | None = None

    def check(self) -> None:
        """Raises that error: whatever went wrong since went wrong because of it."""
        if self.error is not None:
            raise self.error from None

    def write(self, data: Any, /) -> int:
        """Writes all of it."""
        left = memoryview(data).cast("B")
        while left and self.error is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None, /) -> int:
        """Of an earlier error, it is nothing more to worry about."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def opened(path: Path) -> "xr.Dataset":
    """The data set in a file, each variable read when it is used, and not kept.

    Raises:
        NetCDFError: it is no such file, or its numbers are not as plain as what ours hold: stored
            in another file, made of others, or packed.
    """
    import h5py
    import xarray as xr

    try:
        with h5py.File(path) as file:
            _vet(file, path)
        return xr.open_dataset(path, engine="h5netcdf", cache=False)
    except NetCDFError:
        raise
    except Exception as error:
        raise NetCDFError(f"{path}: not a netCDF file of ours: {error}") from None


def _vet(file: Any, path: Path) -> None:
    import h5py

    size = path.stat().st_size
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            raise NetCDFError(f"{path}: {name!r} is not an array of this file")
        array = file[name]
        if array.external or array.is_virtual or array.id.get_create_plist().get_nfilters():
            raise NetCDFError(f"{path}: {name!r} is not stored plainly in this file")
        # Without packing, numbers that are there take their room; what is not there is of no use.
        # A dimension without numbers of its own is stored as an array that has none.
        is_bare = array.attrs.get("NAME", b"").startswith(b"This is a netCDF dimension but not")
        if array.size * array.dtype.itemsize > size and not is_bare:
            raise NetCDFError(f"{path}: {name!r} is larger than the file")
