"""Least squares on more rows than fit in memory: what is needed of them, block by block.

    ‖Xθ − y‖² = ‖A (θ, −1)‖²,   A = [X y] = Q R,   so = ‖R (θ, −1)‖²,

and R, of d + 1 rows whatever n is, is found one block at a time: that of [R; block] takes the place
of R. As accurate as a QR decomposition of the whole; XᵀX would square the condition number.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ddln._checks import ArrayLike
from ddln.problem import LeastSquares, Normalisation, as_data

Block = tuple[ArrayLike, ArrayLike]


def least_squares_of_blocks(
    blocks: Iterable[Block], *, normalisation: Normalisation | str = "sum"
) -> LeastSquares:
    """`ddln.least_squares` of features and targets that come in blocks of rows.

    The problem that is returned has the same loss, gap, gradient and constants, on the d + 1 rows
    of R. These are no samples: there is nothing for an oracle to draw.

    Args:
        blocks: (X_i, y_i), shapes (rows, dim) and (rows,), any number of rows each; each is let go
            of before the next is asked for.
        normalisation: as of `ddln.least_squares`, n being the number of all rows.

    Raises:
        ValueError: blocks that do not fit together, values that are not finite, or no block.

    Source: sequential QR as in Golub & Van Loan; see docs/decisions.md.

    >>> blocks = (([[float(k), 1.0]], [2.0 * k + 1.0]) for k in range(100))
    >>> least_squares_of_blocks(blocks).minimiser.round(9).tolist()
    [2.0, 1.0]
    """
    core: np.ndarray | None = None
    rows = 0
    for features, targets in blocks:
        features, targets, _ = as_data(features, targets, "sum")
        block = np.column_stack([features, targets])
        if core is not None and core.shape[1] != block.shape[1]:
            raise ValueError(
                f"`blocks` must have {core.shape[1] - 1} columns each, got {block.shape[1] - 1}."
            )
        rows += len(block)
        stacked = block if core is None else np.concatenate([core, block])
        core = np.asarray(np.linalg.qr(stacked, mode="r"))
    if core is None:
        raise ValueError("`blocks` must hold at least one block.")
    features, targets, factor = as_data(core[:, :-1], core[:, -1], normalisation)
    return LeastSquares(features, targets, factor * (len(core) / rows) ** _per_row(normalisation))


def _per_row(normalisation: str) -> int:
    """1 where the factor is one over the number of rows, which R has fewer of."""
    return int(normalisation in ("mean", "half_mean"))


def row_blocks(
    features: str | Path, targets: str | Path | None = None, *, rows: int = 4096
) -> Iterator[Block]:
    """Blocks of rows from files that are not read whole.

    Args:
        features: an NPY file of shape (n, dim), which is mapped into memory; or an HDF5 file with
            `features` and `targets`.
        targets: an NPY file of shape (n,); None with HDF5.
        rows: of a block.

    Raises:
        ValueError: files of other kinds, or arrays that do not fit.
        OSError: a file that cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     names = [f"{folder}/{name}.npy" for name in ("features", "targets")]
    ...     np.save(names[0], np.eye(3))
    ...     np.save(names[1], np.arange(3.0))
    ...     problem = least_squares_of_blocks(row_blocks(*names, rows=2))
    >>> problem.minimiser.round(9).tolist()
    [0.0, 1.0, 2.0]
    """
    if rows < 1:
        raise ValueError(f"`rows` must be ≥ 1, got {rows}.")
    if targets is not None:
        inputs, outputs = (
            np.load(path, mmap_mode="r", allow_pickle=False) for path in (features, targets)
        )
        yield from _cut(inputs, outputs, rows)
        return
    if Path(features).suffix not in (".h5", ".hdf5", ".nc"):
        raise ValueError(f"`targets` must be given with an NPY file, got None with {features}.")
    import h5py

    with h5py.File(features) as file:
        for name in ("features", "targets"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise ValueError(f"{features}: no array {name!r}.")
        yield from _cut(file["features"], file["targets"], rows)


def _cut(features, targets, rows: int) -> Iterator[Block]:
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            "`features` and `targets` must have shapes (n, dim) and (n,), "
            f"got {features.shape} and {targets.shape}."
        )
    for first in range(0, len(features), rows):
        yield features[first : first + rows], targets[first : first + rows]
