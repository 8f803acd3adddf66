"""Write netCDF files without crashing on a full disk, and open only self-contained ones.

HDF5 crashes if a write fails (on a full disk), or if it reads back other bytes than it wrote. An
HDF5 file can also refer to other files, whose contents it would read.
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
    """A file that `ddln` did not write."""


_THREAD = threading.local()


def defers_signals() -> bool:
    """Whether this thread is writing or opening a file, so that a signal handler must not raise.

    HDF5 would take the exception for a failed write, or an opened file for a broken one.
    """
    return getattr(_THREAD, "files", 0) > 0


@contextlib.contextmanager
def deferring_signals() -> Iterator[None]:
    """Let the handler of a stop signal wait until the block ends."""
    _THREAD.files = getattr(_THREAD, "files", 0) + 1
    try:
        yield
    finally:
        _THREAD.files -= 1


@contextlib.contextmanager
def hdf5_writer(path: Path) -> "Iterator[DeferredErrorFile]":
    """Open a file for HDF5 to write to; raise the first error of a write when the file is closed.

    Raises:
        OSError: a write failed.
    """
    file = DeferredErrorFile(path)
    try:
        with deferring_signals(), file:
            yield file
    finally:
        file.check()


class DeferredErrorFile(RawIOBase):
    """A file that defers the error of a failed write.

    After the first write that fails, it keeps all further writes in memory and reads them back from
    there, so that HDF5 always finds what it wrote. Call `check` now and then while writing much.
    """

    error: OSError | None = None

    def __init__(self, path: Path):
        self._file = FileIO(path, "w+")
        self._position = self._size = 0
        self._in_memory: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the error of the first write that failed; later errors follow from it."""
        if self.error is not None:
            raise self.error from None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Set and return the position, as of any file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def write(self, data: Any, /) -> int:
        """Write all data to the disk, or keep it in memory."""
        start, view = self._position, memoryview(data).cast("B")
        if self.error is None:
            try:
                self._file.seek(start)
                left = view
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._in_memory.append((start, bytes(view)))
        self._position = start + view.nbytes
        self._size = max(self._size, self._position)
        return view.nbytes

    def readinto(self, buffer: Any, /) -> int:
        """Read back what was written at the position; zeros where nothing was."""
        start, view = self._position, memoryview(buffer).cast("B")
        count = max(min(view.nbytes, self._size - start), 0)
        self._file.seek(start)
        on_disk = self._file.read(count) or b""
        view[:count] = on_disk + bytes(count - len(on_disk))
        for position, data in self._in_memory:
            first, end = max(position, start), min(position + len(data), start + count)
            if first < end:
                view[first - start : end - start] = data[first - position : end - position]
        self._position = start + count
        return count

    def truncate(self, size: int | None = None, /) -> int:
        """Set the size; after an earlier error, in memory only."""
        self._size = self._position if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.error = error
        return self._size

    def close(self) -> None:
        """Close the file; on some file systems a failed write shows only now."""
        if not self.closed:
            try:
                self._file.close()
            except OSError as error:
                self.error = self.error or error
        super().close()


def open_dataset(path: Path) -> "xr.Dataset":
    """Open the data set in a file; each variable is read when it is used, and not cached.

    Raises:
        NetCDFError: the file is not netCDF, or an array in it is compressed, virtual, or stored in
            another file, which those that `ddln` writes never are.
    """
    import h5py
    import xarray as xr

    from ddln.sweeps import accessor as accessor

    try:
        with deferring_signals():
            with h5py.File(path) as file:
                check_self_contained(file, path)
            return xr.open_dataset(path, engine="h5netcdf", cache=False)
    except NetCDFError:
        raise
    except Exception as error:
        raise NetCDFError(f"{path}: not a netCDF file of ours: {error}") from None


def check_self_contained(file: Any, path: Path) -> None:
    """Check that each array of an HDF5 file is stored plainly in it.

    Raises:
        NetCDFError: an array is compressed, virtual, incomplete or stored in another file.
    """
    import h5py

    size = path.stat().st_size
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            raise NetCDFError(f"{path}: {name!r} is not an array of this file")
        array = file[name]
        if array.external or array.is_virtual or array.id.get_create_plist().get_nfilters():
            raise NetCDFError(f"{path}: {name!r} is not stored plainly in this file")
        # Uncompressed numbers take their full size; a larger array was never written completely.
        # The exception is a dimension without coordinates, stored as an array without data.
        is_bare = array.attrs.get("NAME", b"").startswith(b"This is a netCDF dimension but not")
        if array.size * array.dtype.itemsize > size and not is_bare:
            raise NetCDFError(f"{path}: {name!r} is larger than the file")
