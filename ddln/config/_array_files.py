"""Read files of arrays: NPZ, HDF5, Zarr, MATLAB, LIBSVM and Parquet, each by its own library."""

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddln._internal.extras import install_command
from ddln.config._raw_table import DataError, FileOptions, RawTable, first_of, refuse_size

LARGEST_ARRAYS = 2**32
"""The largest size of the arrays of a file in bytes, once unpacked."""
Arrays = dict[str, Any]


def read_arrays(path: Path, options: FileOptions, form: str) -> RawTable:
    """The columns of a file of arrays, see `table_of`."""
    wanted = (options.features_array, *_single(options), "truth")
    return table_of(path, load_arrays(path, form, wanted), options, form)


def _single(options: FileOptions) -> list[str]:
    """The names of the arrays of shape (n,)."""
    names = (options.targets_array, options.weights, options.exposure)
    return [name for name in names if name is not None]


def table_of(path: Path, arrays: Arrays, options: FileOptions, form: str = "npz") -> RawTable:
    """Columns x1 … xd of an array of features, and those of targets, weights and exposures.

    Args:
        path: of the file, for messages.
        arrays: by name.
        options: the names of the arrays.
        form: of the file.
    """
    names = _single(options)
    features = _matrix(path, arrays, options.features_array)
    columns = [_vector(path, arrays, name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if len(column) != len(features):
            shapes = f"{options.features_array} {features.shape} and {name} {column.shape}"
            raise DataError(f"{path.name}: {shapes} differ in rows")
    numbered = tuple(f"x{k + 1}" for k in range(features.shape[1]))
    return RawTable(
        (*numbered, *names),
        [*features.T, *columns],
        np.arange(1, len(features) + 1),
        f"arrays of {form.upper()}",
        _truth(path, arrays.get("truth"), features.shape[1]),
    )


def load_arrays(path: Path, form: str = "npz", wanted: Iterable[str] | None = None) -> Arrays:
    """The arrays of a file; only those of the wanted names, as far as the file has them.

    Raises:
        DataError: it is not a file of this form.
    """
    try:
        return _LOADERS[form](path, wanted)
    except (DataError, MemoryError):
        raise
    except ImportError as error:
        raise DataError(f"{path.name}: needs the package {error.name}: pip install it") from None
    except Exception as error:  # zipfile, zlib, NumPy and HDF5 raise many types for corrupt bytes
        name = {"hdf5": "HDF5", "zarr": "Zarr", "mat": "MATLAB", "npz": "NPZ"}[form]
        article = "an" if form in ("npz", "hdf5") else "a"
        raise DataError(f"{path.name}: not {article} {name} file of numbers: {error}") from None


def _load_npz(path: Path, wanted: Iterable[str] | None) -> Arrays:
    """Unpack an NPZ file.

    The header of each array is checked before unpacking, so that no array can claim more memory
    than the size of its member.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        refuse_size(path, sum(member.file_size for member in members), LARGEST_ARRAYS)
        found = {member.filename.removesuffix(".npy"): member for member in members}
        if len(found) < len(members):
            raise ValueError("two of its arrays have one name")
        chosen = [name for name in found if wanted is None or name in wanted]
        # The others keep their names, for messages.
        return found | {name: _unpack(archive, found[name]) for name in chosen}


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} claims shape {shape}, more than it contains")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _load_hdf5(path: Path, wanted: Iterable[str] | None) -> Arrays:
    import h5py

    with h5py.File(path) as file:
        found: dict[str, Any] = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item

        file.visititems(visit)
        return _taken(path, found, wanted)


def _load_zarr(path: Path, wanted: Iterable[str] | None) -> Arrays:
    import zarr

    group = zarr.open_group(path, mode="r")
    return _taken(path, dict(group.arrays()), wanted)


def _load_mat(path: Path, wanted: Iterable[str] | None) -> Arrays:
    from scipy.io import loadmat

    try:
        found = loadmat(path, mat_dtype=False)
    except NotImplementedError:  # version 7.3 is HDF5, with the axes in the order of Fortran
        return {name: array.T for name, array in _load_hdf5(path, wanted).items()}
    arrays = {name: item for name, item in found.items() if not name.startswith("__")}
    for name, item in arrays.items():
        if hasattr(item, "toarray"):
            refuse_size(path, math.prod(item.shape) * item.dtype.itemsize, LARGEST_ARRAYS)
            arrays[name] = item.toarray()
    return arrays


_LOADERS: Mapping[str, Callable[[Path, Iterable[str] | None], Arrays]] = {
    "npz": _load_npz,
    "hdf5": _load_hdf5,
    "zarr": _load_zarr,
    "mat": _load_mat,
}


def _taken(path: Path, found: Mapping[str, Any], wanted: Iterable[str] | None) -> Arrays:
    """The wanted arrays in memory; the others as they are on disk, to be named in messages."""
    chosen = found.keys() if wanted is None else found.keys() & set(wanted)
    refuse_size(path, sum(found[name].nbytes for name in chosen), LARGEST_ARRAYS)
    return {name: item[...] if name in chosen else item for name, item in found.items()}


def _matrix(path: Path, arrays: Arrays, name: str) -> np.ndarray:
    array = _numbers(path, arrays, name, "(n, d)")
    if array.ndim != 2 or array.size == 0:
        raise DataError(f'{path.name}: "{name}" must have shape (n, d), got {array.shape}')
    return array


def _vector(path: Path, arrays: Arrays, name: str) -> np.ndarray:
    """An array of shape (n,); one of shape (n, 1) or (1, n) is flattened."""
    array = _numbers(path, arrays, name, "(n,)")
    if array.size == 0 or max(array.shape, default=0) != array.size:
        raise DataError(f'{path.name}: "{name}" must have shape (n,), got {array.shape}')
    return array.reshape(-1)


def _numbers(path: Path, arrays: Arrays, name: str, shape: str) -> np.ndarray:
    if name not in arrays:
        has = first_of(arrays) or "none"
        raise DataError(f'{path.name}: no array "{name}" (it has {has})')
    array = arrays[name]
    if array.dtype.kind not in "fiub":
        raise DataError(f'{path.name}: "{name}" must hold real numbers, got {array.dtype}')
    return array


def _truth(path: Path, truth: np.ndarray | None, size: int) -> np.ndarray | None:
    """Validate θ*."""
    if truth is None:
        return None
    if truth.dtype.kind in "fiub" and truth.size == size == max(truth.shape, default=0):
        # Refused below: long doubles beyond float64, and bytes that are no number.
        with np.errstate(over="ignore", invalid="ignore"):
            truth = truth.reshape(-1).astype(np.float64)
        if np.isfinite(truth).all():
            return truth
    raise DataError(f'{path.name}: "truth" must be {size} finite numbers, one for each feature')


def read_svmlight(path: Path, options: FileOptions) -> RawTable:
    """Columns x1 … xd and the target of a file in the format of LIBSVM, by scikit-learn."""
    from sklearn.datasets import load_svmlight_file

    try:
        sparse, targets = load_svmlight_file(path)[:2]
    except Exception as error:  # of its parser, and of those of packed files
        raise DataError(f"{path.name}: not a LIBSVM file: {error}") from None
    samples, dim = sparse.shape
    refuse_size(path, 8 * samples * dim, LARGEST_ARRAYS)
    if not samples or not dim:
        raise DataError(f"{path.name}: needs at least one row and one feature")
    names = (*(f"x{k + 1}" for k in range(dim)), options.target)
    columns = [*sparse.toarray().T, targets]
    return RawTable(names, columns, np.arange(1, samples + 1), "LIBSVM")


def read_parquet(path: Path, options: FileOptions) -> RawTable:
    """The columns of a Parquet file, by Arrow."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        command = install_command("parquet")
        raise DataError(f"{path.name}: Parquet needs pyarrow: {command}") from None
    try:
        table = parquet.read_table(path)
    except Exception as error:  # Arrow raises several types for corrupt bytes
        raise DataError(f"{path.name}: not a Parquet file: {error}") from None
    refuse_size(path, table.nbytes, LARGEST_ARRAYS)
    columns = [_of_arrow(path, name, table.column(k)) for k, name in enumerate(table.column_names)]
    rows = np.arange(1, table.num_rows + 1)
    if not rows.size:
        raise DataError(f"{path.name}: needs at least one row, has 0 row(s)")
    return RawTable(tuple(table.column_names), columns, rows, "Parquet")


def _of_arrow(path: Path, name: str, column: Any) -> list[str] | np.ndarray:
    """Numbers, with NaN for null; or text, with "" for null."""
    import pyarrow as arrow

    kind = column.type
    if arrow.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if arrow.types.is_boolean(kind):
        column = column.cast(arrow.int8())
    elif arrow.types.is_decimal(kind):
        column = column.cast(arrow.float64())
    elif not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
        return ["" if cell is None else str(cell) for cell in column.to_pylist()]
    return column.to_numpy()
