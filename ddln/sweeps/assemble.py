"""Assemble the chunks of a sweep on its grid: in memory, into a file, or lazily where they are.

Networks of missing chunks are NaN (status −1, False): axes never shrink. Files are written with one
chunk in memory at a time, so that a data set may be larger than memory.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from ddln.config import datasets
from ddln.sweeps import _netcdf
from ddln.sweeps import accessor as accessor
from ddln.sweeps.dataset_schema import sizes
from ddln.sweeps.plan import Chunk, Plan

_SHARED_COORDINATES = {"flow_time": "time", "step": "step"}
"""Variables that become coordinates along `time` if all networks share them: their new names."""
_CHUNK_ATTRIBUTES = {"lanes_at_once"}
Load = Callable[[Chunk], xr.Dataset | None]
"""A function that returns the networks of a chunk, from `ddln.sweeps.compute`; None if missing."""


def assemble(plan: Plan, load: Load) -> xr.Dataset:
    """Assemble the data set of a sweep in memory.

    Args:
        plan: the grid.
        load: returns the networks of a chunk; at least one chunk must be there.

    Raises:
        ValueError: every chunk is missing.
    """
    empty, forms = _layout(plan, load)
    arrays = {
        name: np.full(shape, _missing(dtype), dtype) for name, (_, shape, dtype, _) in forms.items()
    }
    _fill(arrays, forms, plan, load)
    return empty.assign(
        {
            name: (dimensions, arrays[name], attrs)
            for name, (dimensions, _, _, attrs) in forms.items()
        }
    )


def view(plan: Plan, load: Load) -> xr.Dataset:
    """The data set of a sweep, each entry read from its chunk when it is used.

    Args:
        plan: the grid.
        load: returns the lanes of a chunk, lazily; every chunk must be there.
    """
    empty, forms = _layout(plan, load)
    chunk_of, row_of = np.empty(plan.lanes, int), np.empty(plan.lanes, int)
    for chunk in plan.chunks:
        chunk_of[chunk.lanes], row_of[chunk.lanes] = chunk.index, np.arange(chunk.lanes.size)
    places = np.stack([chunk_of, row_of], axis=-1).reshape(*plan.shape, 2)

    def variable(name: str) -> xr.Variable:
        dimensions, shape, dtype, attrs = forms[name]
        array = _ArrayInChunks(
            lambda index: _required(load, plan.chunks[index])[name].variable, places, shape, dtype
        )
        return xr.Variable(dimensions, indexing.LazilyIndexedArray(array), attrs)

    return empty.assign({name: variable(name) for name in forms})


def _required(load: Load, chunk: Chunk) -> xr.Dataset:
    part = load(chunk)
    if part is None:
        raise ValueError(f"chunk {chunk.index} is missing")
    return part


class _ArrayInChunks(BackendArray):
    """A variable on the grid of a sweep, read from the chunks that hold it.

    Args:
        part_of: returns the variable of a chunk, by the chunk's index.
        places: the chunk of each lane and its row there, shape (*grid, 2).
        shape: of the variable, first along the grid.
        dtype: of the variable.
    """

    def __init__(
        self,
        part_of: Callable[[int], xr.Variable],
        places: np.ndarray,
        shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        self._part_of, self._places = part_of, places
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        axes = self._places.ndim - 1
        places = self._places
        for axis in reversed(range(axes)):
            places = places[(slice(None),) * axis + (key[axis],)]
        inner = [np.arange(n)[k] for n, k in zip(self.shape[axes:], key[axes:], strict=True)]
        shape = tuple(index.size for index in inner)
        flat = places.reshape(-1, 2)
        values = np.full((len(flat), *shape), _missing(self.dtype), self.dtype)
        for chunk in np.unique(flat[:, 0]).tolist():
            lanes = np.flatnonzero(flat[:, 0] == chunk)
            rows = flat[lanes, 1]
            part = self._part_of(chunk)
            # A chunk with fewer layers than others has no numbers for the rest.
            kept = [
                np.flatnonzero(i < n)
                for i, n in zip(map(np.ravel, inner), part.shape[1:], strict=True)
            ]
            wanted = [_as_slice(i.ravel()[k]) for i, k in zip(inner, kept, strict=True)]
            part = part.isel(dict(zip(part.dims, (_as_slice(rows), *wanted), strict=True)))
            values[np.ix_(lanes, *kept)] = part.values
        return values.reshape((*places.shape[:-1], *(n for i in inner for n in i.shape)))


def _as_slice(indices: np.ndarray) -> slice | np.ndarray:
    """The same indices as a slice, if they follow each other."""
    if indices.size and np.array_equal(indices, np.arange(indices[0], indices[0] + indices.size)):
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def write(plan: Plan, load: Load, path: Path) -> None:
    """Assemble the data set of a sweep in a netCDF file.

    Args:
        plan: the grid.
        load: returns the networks of a chunk; at least one chunk must be there.
        path: the file, made or overwritten.

    Raises:
        ValueError: every chunk is missing.
        OSError: a write failed.
    """
    empty, forms = _layout(plan, load)
    with _netcdf.hdf5_writer(path) as target:
        empty.to_netcdf(target, engine="h5netcdf")
        target.check()
        with h5netcdf.File(target, "r+") as file:
            _fill(_declare(file, forms), forms, plan, _checked(load, target.check))


def _checked(load: Load, check: Callable[[], None]) -> Load:
    """Raise before loading a chunk if a write has failed: failed writes accumulate in memory."""

    def load_next(chunk: Chunk) -> xr.Dataset | None:
        check()
        return load(chunk)

    return load_next


def _declare(file: h5netcdf.File, forms: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Create the variables, without their values."""
    variables = {}
    for name, (dimensions, shape, dtype, attrs) in forms.items():
        for dimension, size in zip(dimensions, shape, strict=True):
            if dimension not in file.dimensions:
                file.dimensions[dimension] = size
        flag = dtype.kind == "b"  # netCDF has no booleans; this is how xarray stores them
        variables[name] = file.create_variable(
            name,
            dimensions,
            np.dtype("i1") if flag else dtype,
            fillvalue=np.nan if dtype.kind == "f" else None,
        )
        variables[name].attrs.update(attrs | ({"dtype": "bool"} if flag else {}))
    return variables


def _layout(plan: Plan, load: Load) -> tuple[xr.Dataset, dict[str, tuple[Any, ...]]]:
    """The data set without variables, and the dimensions, shape, dtype and attributes of each."""
    known: dict[str, int] = {}
    for chunk in plan.programs:
        for name, size in sizes(chunk.experiment).items():
            known[name] = max(size, known.get(name, 0))
    first, shared = _first_and_shared(plan, load)
    known |= {name: first.sizes[name] for name in ("certificate", "hypothesis")}
    grid = tuple(plan.sizes)
    forms = {}
    for name, variable in first.data_vars.items():
        inner = variable.dims[1:]
        shape = (*plan.shape, *(known[str(dimension)] for dimension in inner))
        forms[name] = ((*grid, *inner), shape, variable.dtype, variable.attrs)
    coords: dict[str, Any] = {
        axis.name: (axis.dimension, axis.values, {"units": axis.units}) for axis in plan.axes
    }
    for name in ("certificate", "hypothesis"):
        coords[name] = first[name].values
    for name in ("layer", "coordinate", *["feature"] * plan.experiment.network.signed):
        coords[name] = (name, np.arange(1, known[name] + 1), {"units": "1"})
    if columns := _column_names(plan):
        dimension = "feature" if plan.experiment.network.signed else "coordinate"
        coords["column"] = (dimension, columns, {"long_name": "column of the data file"})
    for name, values in shared.items():
        coords[_SHARED_COORDINATES[name]] = ("time", values, first[name].attrs)
        del forms[name]
    attrs = {
        "title": plan.experiment.study,
        "study": plan.experiment.study,
        "config": plan.experiment.to_toml(),
        **{name: value for name, value in first.attrs.items() if name not in _CHUNK_ATTRIBUTES},
    }
    return xr.Dataset(coords=coords, attrs=attrs), forms


def _column_names(plan: Plan) -> list[str]:
    """The name of each feature, if all networks have the same ones and they have names."""
    problem = plan.experiment.problem
    names = datasets.column_names(problem.data, problem.loss.kind)
    is_varied = any(axis.name.startswith("problem.data") for axis in plan.axes)
    return [] if is_varied or len(names) != plan.experiment.parameters else list(names)


def _first_and_shared(plan: Plan, load: Load) -> tuple[xr.Dataset, dict[str, np.ndarray]]:
    """The first chunk, and the values of `_SHARED_COORDINATES` that are equal for all networks."""
    first, shared = None, {}
    for chunk in plan.chunks:
        part = load(chunk)
        if part is None:
            continue
        with part:
            here = {name: part[name].values for name in _SHARED_COORDINATES if name in part}
        if first is None:
            first, shared = part, {name: values[0] for name, values in here.items()}
        shared = {
            name: values
            for name, values in shared.items()
            if here[name].shape[1:] == values.shape and bool((here[name] == values).all())
        }
    if first is None:
        raise ValueError("`load` must give at least one chunk, got none.")
    return first, shared


def _fill(targets: Mapping[str, Any], forms: Mapping[str, Any], plan: Plan, load: Load) -> None:
    for chunk in plan.chunks:
        part = load(chunk)
        boxes = list(_boxes(chunk.lanes, plan.shape))
        if part is None:
            for name, (_, _, dtype, _) in forms.items():
                for box, _ in boxes:
                    targets[name][box] = _missing(dtype)
            continue
        with part:
            for name, target in targets.items():
                values = part[name].values
                inner = tuple(slice(size) for size in values.shape[1:])
                for box, lanes in boxes:
                    target[(*box, *inner)] = values[lanes]


def _boxes(
    lanes: np.ndarray, shape: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Split some networks into boxes of the grid.

    Args:
        lanes: numbers along the grid, increasing.
        shape: of the grid.

    Yields:
        A box as slices of the grid, and the indices into `lanes` of the networks in it.

    >>> [(box, indices.tolist()) for box, indices in _boxes(np.array([1, 3, 5]), (3, 2))]
    [((slice(0, 3, None), slice(1, 2, None)), [[0], [1], [2]])]
    """
    if not shape:
        yield (), np.zeros((), int)
        return
    rows, inner = np.divmod(lanes, math.prod(shape[1:]))
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    parts = np.split(inner, starts[1:])
    i = 0
    while i < starts.size:
        j = i + 1
        while j < starts.size and rows[starts[j]] == rows[starts[j - 1]] + 1:
            if not np.array_equal(parts[j], parts[i]):
                break
            j += 1
        rows_here = slice(int(rows[starts[i]]), int(rows[starts[j - 1]]) + 1)
        for box, within in _boxes(parts[i], shape[1:]):
            yield (rows_here, *box), np.add.outer(starts[i:j], within)
        i = j


def _missing(dtype: np.dtype) -> Any:
    return {"f": np.nan, "b": False}.get(dtype.kind, -1)
