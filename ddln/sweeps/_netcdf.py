"""netCDF files that neither take the process with them nor reach out of themselves.

HDF5 crashes where a write fails (a full disk), or where it reads back other bytes than it wrote;
and a file of its can name others to read from.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from io import FileIO, RawIOBase
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
    """An open file for HDF5 to write to, which finds all that it wrote, however full the disk.

    Raises:
        OSError: the first that did not, at the end.
    """
    file = Forgiving(path)
    _HERE.files = getattr(_HERE, "files", 0) + 1
    try:
        with file:
            yield file
    finally:
        _HERE.files -= 1
        file.check()


class Forgiving(RawIOBase):
    """A file that is whole to whoever writes to it, however full the disk.

    From the first write that fails on, nothing more is written to the disk: what comes is held in
    memory, and read back from there. HDF5 crashes where a write fails, and where it does not find
    what it wrote. Whoever writes much must `check` now and then.
    """

    error: OSError | None = None

    def __init__(self, path: Path):
        self._file = FileIO(path, "w+")
        self._place = self._size = 0
        self._held: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raises the error of the first write that failed; what went wrong since is due to it."""
        if self.error is not None:
            raise self.error from None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As of any file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def write(self, data: Any, /) -> int:
        """Writes all of it, or holds it."""
        start, view = self._place, memoryview(data).cast("B")
        if self.error is None:
            try:
                self._file.seek(start)
                left = view
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._held.append((start, bytes(view)))
        self._place = start + view.nbytes
        self._size = max(self._size, self._place)
        return view.nbytes

    def readinto(self, buffer: Any, /) -> int:
        """What was written at the place, wherever it is; 0 where nothing was."""
        start, view = self._place, memoryview(buffer).cast("B")
        count = max(min(view.nbytes, self._size - start), 0)
        self._file.seek(start)
        on_disk = self._file.read(count) or b""
        view[:count] = on_disk + bytes(count - len(on_disk))
        for place, data in self._held:
            first, end = max(place, start), min(place + len(data), start + count)
            if first < end:
                view[first - start : end - start] = data[first - place : end - place]
        self._place = start + count
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """Sets the size; of an earlier error it is nothing more to worry about."""
        self._size = self._place if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.error = error
        return self._size

    def close(self) -> None:
        """Closes it, which on some disks is when a write fails."""
        if not self.closed:
            try:
                self._file.close()
            except OSError as error:
                self.error = self.error or error
        super().close()


def opened(path: Path) -> "xr.Dataset":
    """The data set in a file, each variable read when it is used, and not kept.

    Raises:
        NetCDFError: it is no such file, or its numbers are not as plain as what ours hold: stored
            in another file, made of others, or packed.
    """
    import h5py
    import xarray as xr

    from ddln.sweeps import accessor as accessor

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
