"""Column spaces of data in any units, in NumPy's float64 on the host.

A basis is the product X T with T from a QR factorisation of the columns scaled by powers of two.
Whatever the rounding of T, X T spans columns of X alone, so that only the product has to be exact:
it is summed in twice the precision. A column near 2020 or 10⁹ beside a constant then loses nothing.

Entries are taken to be known to a relative rounding. What differs from 0 by up to `NOISE` of them
is 0, what differs by more than `SIGNAL` is not, and between the two the data are refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

NOISE, SIGNAL = 32.0, 256.0
"""Roundings up to which a number counts as 0, and from which on it does not."""

_MOST_SLICES = 6


@dataclass(frozen=True)
class ColumnBasis:
    """An orthonormal basis Q = X̃ T of the range of X, with X̃ = X · 2^{−exponents}."""

    scaled: np.ndarray
    """X̃, shape (samples, dim), each column's largest entry in [½, 1)."""
    exponents: np.ndarray
    pivots: np.ndarray
    """Columns that span the range, shape (rank,)."""
    orthonormal: np.ndarray
    """Q, shape (samples, rank)."""
    transform: np.ndarray
    """T, of the pivot columns, shape (rank, rank)."""
    others: np.ndarray
    relations: np.ndarray
    """The other columns are X̃[:, pivots] relations, shape (rank, others)."""
    rounding: np.ndarray
    """What is uncertain of each entry of X̃[:, pivots], shape (samples, rank)."""

    @property
    def rank(self) -> int:
        return self.pivots.size

    def predictions(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Q a and how far the rounding of X leaves it open; shape (samples,) each."""
        weights = self.transform @ place
        values = product(self.scaled[:, self.pivots], weights[:, None])[:, 0]
        return values, self.rounding @ np.abs(weights)

    def least_norm(self, place: np.ndarray) -> np.ndarray:
        """The θ of least Euclidean norm with Xθ = Q a, shape (dim,)."""
        theta = np.zeros(self.exponents.size)
        own, other = self.exponents[self.pivots], self.exponents[self.others]
        wanted = np.ldexp(self.transform @ place, -own)
        if other.size:
            # x + K x' = b with ‖x‖² + ‖x'‖² least.
            across = np.ldexp(self.relations, other - own[:, None])
            stacked = np.vstack([across, np.eye(other.size)])
            theta[self.others] = least_squares(stacked, np.append(wanted, np.zeros(other.size)))
            wanted = wanted - across @ theta[self.others]
        theta[self.pivots] = wanted
        return theta


def column_basis(features: np.ndarray, precision: float) -> ColumnBasis:
    """An orthonormal basis of the range of X, of shape (samples, dim).

    Args:
        features: X.
        precision: the relative rounding to which its entries are known.

    Raises:
        ValueError: a column is neither clearly a combination of others nor clearly none.
    """
    samples, dim = features.shape
    sizes = np.max(np.abs(features), axis=0, initial=0.0)
    exponents = np.frexp(sizes)[1]
    scaled = np.ldexp(features, -exponents)
    # Products of matrices round to a part of their terms, so that a small entry can be as uncertain
    # as the column's usual ones.
    usual = [np.median(column[column > 0]) if column.any() else 0.0 for column in np.abs(scaled.T)]
    rounding = precision * np.maximum(np.abs(scaled), usual)
    factors: Any = scipy.linalg.qr(scaled, mode="r", pivoting=True, check_finite=False)
    triangle, order = factors
    clear = _clear_pivots(triangle[: min(samples, dim)], precision * np.sqrt(samples))
    chosen, rest = list(order[:clear]), list(order[clear:])
    orthonormal, transform = _orthonormal(scaled[:, chosen], triangle[:clear, :clear])
    while True:
        weights, left = _remove(scaled[:, chosen], orthonormal, transform, scaled[:, rest])
        room = rounding[:, chosen] @ np.abs(weights) + rounding[:, rest]
        excess = np.max(np.abs(left) / np.where(room > 0, room, 1.0), axis=0, initial=0.0)
        if not np.any(excess > NOISE):
            break
        k = int(np.argmax(excess))
        if excess[k] <= SIGNAL:
            raise ValueError(
                "`features` must have columns whose dependence their rounding does not hide, but "
                f"column {rest[k]} (from 0) is within {excess[k]:.0f} roundings of a combination "
                "of others: leave it out, or give it centred."
            )
        size = np.linalg.norm(left[:, k])
        orthonormal = np.column_stack([orthonormal, left[:, k] / size])
        transform = np.block([[transform, -weights[:, [k]]], [np.zeros((1, len(chosen))), 1.0]])
        transform[:, -1] /= size
        chosen.append(rest.pop(k))
    return ColumnBasis(
        scaled=scaled,
        exponents=exponents,
        pivots=np.array(chosen, int),
        orthonormal=orthonormal,
        transform=transform,
        others=np.array(rest, int),
        relations=np.where(np.abs(weights) > NOISE * precision, weights, 0.0),
        rounding=rounding[:, chosen],
    )


def _clear_pivots(triangle, precision):
    """How many leading pivots are beyond all doubt, with entries of up to 1 in each column."""
    pivots = np.abs(np.diagonal(triangle))
    count = int(np.sum(pivots > precision * SIGNAL))
    if not count:
        return 0
    unit = triangle[:count, :count] / np.diagonal(triangle)[:count, None]
    terms = scipy.linalg.solve_triangular(unit, np.eye(count), unit_diagonal=True)
    clear = pivots[:count] > 2 * SIGNAL * precision * np.abs(terms).sum(axis=0)
    return int(np.argmin(clear)) if not clear.all() else count


def _orthonormal(columns, triangle):
    """Q and T with Q = columns · T, from the R of the columns' QR factorisation."""
    transform = scipy.linalg.solve_triangular(triangle, np.eye(triangle.shape[0]))
    for _ in range(2):
        spanning = product(columns, transform)
        triangle = np.asarray(np.linalg.qr(spanning, mode="r"))
        # Not the Q of this QR: its rows would round to a part of the largest, and zeros to others.
        orthonormal = scipy.linalg.solve_triangular(triangle.T, spanning.T, lower=True).T
        transform = scipy.linalg.solve_triangular(triangle.T, transform.T, lower=True).T
    return orthonormal, transform


def _remove(columns, orthonormal, transform, others):
    """W and what is left of the others: others − columns · W, orthogonal to the columns."""
    weights, left = np.zeros((columns.shape[1], others.shape[1])), others
    for _ in range(3 if others.size and columns.size else 0):
        weights = weights + transform @ (orthonormal.T @ left)
        stacked = np.vstack([-weights, np.eye(others.shape[1])])
        left = product(np.hstack([columns, others]), stacked)
    return weights, left


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A B, summed in about twice the precision of float64 and then rounded.

    The factors are cut into slices of so few bits that products of slices are exact (Ozaki et al.,
    Numerical Algorithms 59, 2012).
    """
    bits = (53 - int(np.ceil(np.log2(max(left.shape[1], 1))))) // 2
    first, second = _slices(left, bits, 1), _slices(right, bits, 0)
    total = low = np.zeros((left.shape[0], right.shape[1]))
    for k in range(_MOST_SLICES):
        for i in range(max(0, k + 1 - len(second)), min(k + 1, len(first))):
            part = first[i] @ second[k - i]
            above = total + part
            carried = above - total
            low = low + ((total - (above - carried)) + (part - carried))
            total = above
    return total + low


def _slices(matrix, bits, axis):
    slices = []
    while len(slices) < _MOST_SLICES and matrix.any():
        exponent = np.frexp(np.max(np.abs(matrix), axis=axis, keepdims=True))[1]
        anchor = np.ldexp(1.5, exponent + 52 - bits)
        slices.append((matrix + anchor) - anchor)
        matrix = matrix - slices[-1]
    return slices


def least_squares(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """argmin ‖A x − b‖ for A of full column rank whose rows may differ in size by any factor.

    Rows from the largest down and pivoted columns keep the rounding of each row its own (Cox and
    Higham, BIT 38, 1998).
    """
    order = np.argsort(-np.max(np.abs(matrix), axis=1, initial=0.0), kind="stable")
    factors: Any = scipy.linalg.qr(
        matrix[order], mode="economic", pivoting=True, check_finite=False
    )
    turn, triangle, columns = factors
    solution = np.empty(matrix.shape[1])
    solution[columns] = scipy.linalg.solve_triangular(
        triangle, turn.T @ values[order], check_finite=False
    )
    return solution
