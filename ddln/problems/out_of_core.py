"""Least squares on more rows than fit in memory, reduced block by block.

With the QR factorisation A = [X y] = Q R,

    ‖Xθ − y‖² = ‖A (θ, −1)‖² = ‖R (θ, −1)‖²,

and R has at most d + 1 rows, whatever n is. One block at a time, the R of [R; block] replaces R.
This is as accurate as a QR factorisation of all rows; XᵀX would square the condition number. A step
of stochastic training reads its samples from the file.
"""

import contextlib
import math
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ddln._internal.extras import needed_for
from ddln._internal.validation import ArrayLike, as_numpy_floats, refuse_infinite
from ddln.problems.base import AnyArray, Normalisation, as_data
from ddln.problems.least_squares import LeastSquares

Block = tuple[ArrayLike, ArrayLike]


def least_squares_of_blocks(
    blocks: Iterable[Block], *, normalisation: Normalisation | str = "sum"
) -> LeastSquares:
    """`ddln.least_squares` of features and targets that arrive in blocks of rows.

    The problem has the same loss, gap, gradient and constants, on the d + 1 rows of R. These rows
    are not samples, so gradient estimators that draw samples need `stored_least_squares`.

    Args:
        blocks: (X_i, y_i), shapes (rows, dim) and (rows,), with any number of rows each; only one
            block is in memory at a time.
        normalisation: as in `ddln.least_squares`, with n the total number of rows.

    Raises:
        ValueError: blocks with different numbers of columns, values that are not finite, no block,
            or an ℒ* or minimiser that overflows.

    Source: sequential QR as in Golub & Van Loan; see docs/decisions.md.

    >>> blocks = (([[float(k), 1.0]], [2.0 * k + 1.0]) for k in range(100))
    >>> least_squares_of_blocks(blocks).minimiser.round(9).tolist()
    [2.0, 1.0]
    """
    return LeastSquares(*_triangular_factor(blocks, normalisation))


def _triangular_factor(
    blocks: Iterable[Block], normalisation: Normalisation | str
) -> tuple[Float[Array, "core dim"], Float[Array, " core"], float]:
    """The R of [X y] as features and targets, and the factor c of the loss."""
    core: np.ndarray | None = None
    rows = 0
    for features, targets in blocks:
        features = as_numpy_floats("features", features)
        targets = as_numpy_floats("targets", targets)
        for name, array in (("features", features), ("targets", targets)):
            refuse_infinite(name, array, (rows, *(0 for _ in array.shape[1:])))
        features, targets, _ = as_data(features, targets, "sum")
        block = np.column_stack([features, targets])
        if core is not None and core.shape[1] != block.shape[1]:
            raise ValueError(
                f"`blocks` must have {core.shape[1] - 1} columns each, got {block.shape[1] - 1}."
            )
        rows += len(block)
        stacked = block if core is None else np.concatenate([core, block])
        core = np.asarray(np.linalg.qr(stacked, mode="r"))
        if not np.isfinite(core).all():
            raise ValueError(
                "`blocks` must have a QR factorisation that is finite in "
                f"{core.dtype}, got one that is not at row {rows}."
            )
    if core is None:
        raise ValueError("`blocks` must hold at least one block.")
    features, targets, factor = as_data(core[:, :-1], core[:, -1], normalisation)
    if normalisation in ("mean", "half_mean"):  # by the rows of the data, not those of R
        factor *= len(core) / rows
    return features, targets, factor


@dataclass(frozen=True, eq=False)
class _StoredArray:
    """One array of a file."""

    name: str
    path: Path
    array: Any

    def __post_init__(self):
        with _errors_name(self.path):
            if self.array.dtype.kind not in "fiub":
                raise ValueError(f"`{self.name}` must hold real numbers, got {self.array.dtype}.")
            for name in ("scale_factor", "add_offset"):  # conventions of netCDF
                if name in getattr(self.array, "attrs", ()):
                    raise ValueError(f"`{self.name}` must not be packed, got a {name}.")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape or ())  # HDF5 has arrays without a shape

    def read(self, rows: slice | Int[np.ndarray, " rows"]) -> np.ndarray:
        """The given rows as floating-point numbers."""
        try:
            # HDF5 and Zarr need increasing indices; Zarr takes them through `oindex` only.
            part = getattr(self.array, "oindex", self.array)[rows]
        except Exception as error:  # filters and codecs raise many types
            raise OSError(f"{self.path}: `{self.name}` cannot be read: {error}") from None
        with _errors_name(self.path):
            return as_numpy_floats(self.name, part)

    def read_block(self, first: int, rows: int) -> np.ndarray:
        """Consecutive rows; a missing or infinite entry is an error."""
        part = self.read(slice(first, first + rows))
        for name in ("_FillValue", "missing_value"):
            fill = np.asarray(getattr(self.array, "attrs", {}).get(name, np.nan))
            if fill.dtype.kind in "fiu" and not np.isnan(fill).all():
                with np.errstate(over="ignore"):  # a fill value outside the range of the numbers
                    part = np.where(np.isin(part, fill.astype(part.dtype)), np.nan, part)
        with _errors_name(self.path):
            refuse_infinite(self.name, part, (first, *(0 for _ in part.shape[1:])))
        return part


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Raise a ValueError with the path for any error except a missing or unreadable file."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # zipfile, NumPy, HDF5 and Zarr raise many types
        raise ValueError(f"{path}: {error}") from None


class StoredRows:
    """Features and targets that stay in their file; a few rows at a time are read.

    Args:
        features: an NPY file of shape (n, dim); or a file or folder with arrays `features` and
            `targets`: NPZ (not compressed), HDF5 or Zarr (needs the package `zarr`).
        targets: an NPY file of shape (n,) if `features` is an NPY file; otherwise None.

    Raises:
        ValueError: files of other kinds, or arrays whose shapes do not match, that do not contain
            real numbers or that are packed (`scale_factor`, `add_offset`).
        OSError: a file that cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", features=np.eye(3), targets=np.arange(3.0))
    ...     problem = least_squares_of_blocks(StoredRows(f"{folder}/data.npz").blocks(rows=2))
    >>> problem.minimiser.round(9).tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(self, features: str | Path, targets: str | Path | None = None):
        path = Path(features)
        if targets is None:
            with _errors_name(path):
                arrays = _arrays(path)
        else:
            arrays = _mapped_file(path), _mapped_file(Path(targets))
        self._features = _StoredArray("features", path, arrays[0])
        self._targets = _StoredArray(
            "targets", path if targets is None else Path(targets), arrays[1]
        )
        shape = self._features.shape
        if len(shape) != 2 or self._targets.shape != shape[:1]:
            raise ValueError(
                f"{path}: `features` and `targets` must have shapes (n, dim) and (n,), "
                f"got {shape} and {self._targets.shape}."
            )
        self.shape: tuple[int, int] = shape
        """(n, dim)."""

    def blocks(self, rows: int = 4096) -> Iterator[Block]:
        """All rows in order, `rows` at a time, as floating-point numbers.

        Raises:
            ValueError: rows < 1, or an entry that is not finite or is missing (equal to netCDF's
                `_FillValue` or `missing_value`).
            OSError: rows that cannot be read.
        """
        if rows < 1:
            raise ValueError(f"`rows` must be ≥ 1, got {rows}.")
        for first in range(0, self.shape[0], rows):
            yield self._features.read_block(first, rows), self._targets.read_block(first, rows)

    def take(self, rows: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The given rows.

        Args:
            rows: their indices, in any order, of any shape.

        Returns:
            Features (*shape, dim) and targets (*shape), as floating-point numbers.

        Raises:
            OSError: rows that cannot be read.
        """
        chosen, inverse = np.unique(np.asarray(rows), return_inverse=True)
        features, targets = self._features.read(chosen), self._targets.read(chosen)
        inverse = inverse.reshape(np.shape(rows))
        return features[inverse], targets[inverse]


class StoredLeastSquares(LeastSquares):
    """Least squares on rows in a file: R is in memory, and each step reads its samples."""

    stored: StoredRows = eqx.field(static=True)

    def __init__(self, stored: StoredRows, normalisation: Normalisation | str):
        self.stored = stored
        super().__init__(*_triangular_factor(stored.blocks(), normalisation))

    @property
    def samples(self) -> int:
        return self.stored.shape[0]

    def batch(
        self, rows: Int[AnyArray, "*batch"] | None
    ) -> tuple[Float[Array, "*batch dim"], Float[Array, "*batch"]]:
        if rows is None:
            raise ValueError("`batch` must be given if the samples are in a file.")
        dtype, shape = self.core.dtype, rows.shape
        found = (
            jax.ShapeDtypeStruct((*shape, self.dim), dtype),
            jax.ShapeDtypeStruct(shape, dtype),
        )

        def read(rows: AnyArray) -> tuple[np.ndarray, ...]:
            return tuple(part.astype(dtype) for part in self.stored.take(rows))

        return jax.pure_callback(read, found, rows, vmap_method="broadcast_all")


def stored_least_squares(
    stored: StoredRows, *, normalisation: Normalisation | str = "sum"
) -> StoredLeastSquares:
    """`ddln.least_squares` of rows that stay in their file, for training in batches.

    Loss, gap and constants come from the R of [X y], as in `least_squares_of_blocks`. A gradient
    estimator reads the rows of each batch from the file. The same key draws the same rows as for a
    problem in memory, so `ddln.descend` gives the same numbers.

    Args:
        stored: the rows.
        normalisation: as in `ddln.least_squares`.

    Raises:
        ValueError: values that are not finite; on use, an estimator that needs all samples at once.

    >>> import tempfile
    >>> rule, oracle = ddln.optimiser("sgd", learning_rate=0.1), ddln.Sampling(batch=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", features=np.eye(3), targets=np.ones(3))
    ...     problem = stored_least_squares(StoredRows(f"{folder}/data.npz"))
    ...     layers, key = jnp.full((2, 3), 0.5), jax.random.key(0)
    ...     run = ddln.descend(problem, layers, rule, steps=200, oracle=oracle, key=key)
    >>> run.theta[-1].round(6).tolist()
    [1.0, 1.0, 1.0]
    """
    return StoredLeastSquares(stored, normalisation)


def _arrays(path: Path) -> tuple[Any, Any]:
    match path.suffix:
        case ".npz":
            return _mapped_member(path, "features"), _mapped_member(path, "targets")
        case ".h5" | ".hdf5" | ".nc":
            with needed_for("HDF5 files", "run"):
                import h5py
            return _members(h5py.File(path), h5py.Dataset)
        case ".zarr":
            try:
                import zarr
            except ImportError:
                raise ValueError("needs the package zarr: pip install zarr") from None
            return _members(zarr.open_group(path, mode="r"), zarr.Array)
    raise ValueError("`targets` must be given with an NPY file, got None.")


def _members(group: Any, kind: type) -> tuple[Any, Any]:
    found = [group.get(name) for name in ("features", "targets")]
    for name, array in zip(("features", "targets"), found, strict=True):
        if not isinstance(array, kind):
            raise ValueError(f"no array {name!r}.")
    return found[0], found[1]


def _mapped_file(path: Path) -> np.ndarray:
    """The array of an NPY file."""
    with _errors_name(path):
        return np.lib.format.open_memmap(path, mode="r")


def _mapped_member(path: Path, name: str) -> np.ndarray:
    """An array of an NPZ file, mapped at its offset in the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise ValueError(f"no array {name!r}.") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"not an NPZ file: {error}") from None
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("must not be compressed (np.savez), to be read in parts.")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        # The member's local header contains the lengths of the name and the field that follow it.
        file.seek(sum(struct.unpack("<26x2H", file.read(30))), 1)
        first = file.tell()
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, is_fortran, dtype = (
            read if version == (1, 0) else np.lib.format.read_array_header_2_0
        )(file)
        if dtype.hasobject:
            raise ValueError(f"{name!r} must hold real numbers, got {dtype}.")
        if file.tell() - first + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{name!r} claims shape {shape} but has another size.")
        order = "F" if is_fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)
