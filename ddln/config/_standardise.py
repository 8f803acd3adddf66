"""Columns of mean 0 and deviation 1, in any units and with any offset."""

from collections.abc import Mapping, Sequence

import numpy as np

from ddln.config.data_files import DataError

_CONSTANT_SPREAD = 4 * np.finfo(np.float64).eps
"""The largest spread, with entries of size 1, of a column that counts as constant."""


def standardise(
    table: np.ndarray,
    names: Sequence[str],
    source: str,
    exact: Mapping[int, np.ndarray] | None = None,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Standardise columns to mean 0 and deviation 1, in any units and with any offset.

    Args:
        table: the columns, shape (n, columns).
        names: their names.
        source: the name of the data, for errors.
        exact: columns of large integers, as in `DataFile`.
        rows: whether mean and deviation are to include each row, shape (n,); all by default.
    """
    exact, standardised = exact or {}, np.empty_like(table)
    chosen = slice(None) if rows is None or rows.all() else rows
    for j, name in enumerate(names):
        change = _shifted(exact.get(j, table[:, j]))
        if np.ptp(change[chosen]) == 0:
            raise DataError(f'{source}: column "{name}" is constant, it cannot be standardised')
        change = _scaled(change)
        change -= change[chosen].mean()
        standardised[:, j] = change / change[chosen].std()
    return standardised


def _shifted(column: np.ndarray) -> np.ndarray:
    """The column minus its smallest entry, in arbitrary units; 0 if that is only rounding."""
    if column.dtype.kind in "iu":
        # Modulo 2^64 the difference of 64-bit integers is exact, whatever their signs.
        wrapped = column.astype(np.uint64)
        return (wrapped - wrapped[column.argmin()]).astype(np.float64)
    column = _scaled(column)
    change = column - column.min()
    return change if change.max() > _CONSTANT_SPREAD else np.zeros_like(change)


def _scaled(column: np.ndarray) -> np.ndarray:
    """The column times the power of two that brings its largest entry into [1/2, 1), exactly."""
    return np.ldexp(column, -np.frexp(np.abs(column).max())[1])
