"""Write and open the files of many chunks of one shape, of which netCDF sees only the first.

The data sets of such chunks differ in numbers only. So do their files: they hold plain arrays at
the same places. To write the others takes a twentieth of the time, and to open them a seventh.
"""

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from ddln.sweeps._netcdf import (
    NetCDFError,
    check_self_contained,
    deferring_signals,
    hdf5_writer,
    open_dataset,
)
from ddln.sweeps.derived import complete
from ddln.sweeps.plan import Chunk

_NUMBERS = "biuf"
"""The kinds of dtypes whose arrays lie plainly in a file."""


class _Layout(NamedTuple):
    """A file without its numbers."""

    structure: Any
    dtypes: dict[str, np.dtype]
    """Of the arrays, in the order in which they lie in the file."""
    between: list[bytes]
    """What lies before each array, and behind the last."""


class ChunkWriter:
    """Writes data sets to netCDF files, quickly if one is like the last."""

    def __init__(self) -> None:
        self._layout: _Layout | None = None

    def write(self, dataset: xr.Dataset, path: Path) -> None:
        """Write a data set to a new file.

        Raises:
            OSError: a write failed.
        """
        structure, layout = _structure(dataset), self._layout
        if layout is None or layout.structure != structure:
            with hdf5_writer(path) as file:
                dataset.to_netcdf(file, engine="h5netcdf")
            self._layout = _layout(path, structure)
            return
        *before, behind = layout.between
        with path.open("wb") as file:
            for head, (name, dtype) in zip(before, layout.dtypes.items(), strict=True):
                file.write(head)
                file.write(np.ascontiguousarray(dataset[name].values, dtype).data)
            file.write(behind)


def _structure(dataset: xr.Dataset) -> Any:
    """What data sets have in common whose files differ in numbers only."""
    variables = [
        (name, each.dims, each.shape, each.dtype, repr(each.attrs), _words(each))
        for name, each in dataset.variables.items()
    ]
    return variables, repr(dataset.attrs)


def _words(variable: xr.Variable) -> list[str]:
    return [] if variable.dtype.kind in _NUMBERS else variable.values.ravel().tolist()


def _layout(path: Path, structure: Any) -> _Layout:
    """The layout of a file just written."""
    with h5py.File(path) as file:
        arrays = [
            (offset, name, array.id.get_storage_size(), array.dtype)
            for name, array in file.items()
            if array.dtype.kind in _NUMBERS and (offset := array.id.get_offset()) is not None
        ]
    between, end = [], 0
    with path.open("rb") as file:
        for offset, _, size, _ in sorted(arrays):
            file.seek(end)
            between.append(file.read(offset - end))
            end = offset + size
        file.seek(end)
        between.append(file.read())
    return _Layout(structure, {name: dtype for _, name, _, dtype in sorted(arrays)}, between)


class ChunkReader:
    """Opens the files of a plan's chunks, quickly if one of the same shape was opened before."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], xr.Dataset] = {}

    def open(self, chunk: Chunk, path: Path) -> xr.Dataset:
        """A chunk's lanes with every saved variable, each read or derived when it is used.

        Raises:
            NetCDFError: it is not a netCDF file of ours, or not of this shape.
        """
        shape = id(chunk.experiment), chunk.lanes.size
        if shape in self._first:
            return complete(open_like(path, self._first[shape]), chunk.experiment)
        stored = self._first[shape] = open_dataset(path)
        return complete(stored, chunk.experiment)


def open_like(path: Path, like: xr.Dataset) -> xr.Dataset:
    """The data set in a file that differs from `like` in numbers only."""
    try:
        with deferring_signals(), h5py.File(path) as file:
            check_self_contained(file, path)
            arrays: Any = file
            shapes = {name: arrays[name].shape for name in like.variables}
    except (OSError, KeyError) as error:
        raise NetCDFError(f"{path}: not a netCDF file of ours: {error}") from None
    numbers = {}
    for name, variable in like.variables.items():
        if shapes[name] != variable.shape:
            raise NetCDFError(
                f"{path}: {name!r} must have the shape {variable.shape}, got {shapes[name]}"
            )
        if variable.dtype.kind in _NUMBERS:
            array = indexing.LazilyIndexedArray(_PlainArray(path, str(name), variable))
            numbers[name] = xr.Variable(variable.dims, array, variable.attrs)
    return like.assign(numbers)


class _PlainArray(BackendArray):
    """An array in a file, which is open only while entries are read."""

    def __init__(self, path: Path, name: str, like: xr.Variable):
        self._path, self._name = path, name
        self.shape, self.dtype = like.shape, like.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        with h5py.File(self._path) as file:
            array: Any = file[self._name]
            return np.asarray(array[key]).astype(self.dtype, copy=False)
