"""Bases of the column space of data in any units, in NumPy's float64 on the host.

A basis is a product X̃ T, with X̃ the columns of X scaled by powers of two and T from their QR
factorisation. Whatever the rounding of T, X̃ T lies in the column space of X. So only the product
must be accurate, and `product` sums it in twice the precision. A column near 2020 or 10⁹ beside a
constant column then loses no digits.

The entries of X are known to a relative rounding. A number counts as 0 if it differs from 0 by at
most `NOISE` roundings, and as nonzero beyond `SIGNAL`. In between, the data are refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

NOISE, SIGNAL = 32.0, 256.0
"""Roundings up to which a number counts as 0, and beyond which it counts as nonzero."""

_MAX_SLICES = 6
_DIGITS = 53
"""Bits of the significand of float64."""

Matrix = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class ColumnBasis:
    """An orthonormal basis Q = X̃ T of the range of X, with X̃ = X · 2^{−exponents}."""

    scaled: Float[np.ndarray, "samples dim"]
    """X̃; the largest entry of each column is in [½, 1)."""
    exponents: Int[np.ndarray, " dim"]
    pivots: Int[np.ndarray, " rank"]
    """The columns that span the range."""
    orthonormal: Float[np.ndarray, "samples rank"]
    """Q."""
    transform: Float[np.ndarray, "rank rank"]
    """T: Q = X̃[:, pivots] T."""
    others: Int[np.ndarray, " others"]
    """The other columns."""
    relations: Float[np.ndarray, "rank others"]
    """K: X̃[:, others] = X̃[:, pivots] K."""
    rounding: Float[np.ndarray, "samples rank"]
    """The uncertainty of each entry of X̃[:, pivots]."""

    @property
    def rank(self) -> int:
        return self.pivots.size

    def predictions(
        self, coefficients: Float[np.ndarray, " rank"]
    ) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, " samples"]]:
        """Q a for coefficients a, and its uncertainty due to the rounding of X."""
        weights = self.transform @ coefficients
        values = product(self.scaled[:, self.pivots], weights[:, None])[:, 0]
        return values, self.rounding @ np.abs(weights)

    def least_norm(self, coefficients: Float[np.ndarray, " rank"]) -> Float[np.ndarray, " dim"]:
        """The θ of least Euclidean norm with Xθ = Q a for coefficients a."""
        theta = np.zeros(self.exponents.size)
        own, other = self.exponents[self.pivots], self.exponents[self.others]
        wanted = np.ldexp(self.transform @ coefficients, -own)
        if other.size:
            # Minimise ‖x‖² + ‖x'‖² subject to x + K x' = b.
            across = np.ldexp(self.relations, other - own[:, None])
            stacked = np.vstack([across, np.eye(other.size)])
            theta[self.others] = least_squares(stacked, np.append(wanted, np.zeros(other.size)))
            wanted = wanted - across @ theta[self.others]
        theta[self.pivots] = wanted
        return theta


def column_basis(features: Float[np.ndarray, "samples dim"], precision: float) -> ColumnBasis:
    """An orthonormal basis of the range of X.

    A pivoted QR factorisation selects the columns that are independent beyond doubt. Each further
    column is compared with its projection in twice the precision, the most independent one first,
    and joins the basis if the remainder exceeds its rounding.

    Args:
        features: X, shape (samples, dim).
        precision: the relative rounding of its entries.

    Raises:
        ValueError: rounding hides whether a column depends linearly on the others.
    """
    import scipy.linalg

    samples, dim = features.shape
    sizes = np.max(np.abs(features), axis=0, initial=0.0)
    exponents = np.frexp(sizes)[1]
    scaled = np.ldexp(features, -exponents)
    # If X is a product of matrices, the rounding of a small entry is that of the column's typical
    # entries.
    typical = [
        np.median(column[column > 0]) if column.any() else 0.0 for column in np.abs(scaled.T)
    ]
    rounding = precision * np.maximum(np.abs(scaled), typical)
    factors: Any = scipy.linalg.qr(scaled, mode="r", pivoting=True, check_finite=False)
    triangle, order = factors
    clear = _clear_pivots(triangle[: min(samples, dim)], precision * np.sqrt(samples))
    chosen, rest = list(order[:clear]), list(order[clear:])
    orthonormal, transform = _orthonormal(scaled[:, chosen], triangle[:clear, :clear])
    while True:
        weights, remainder = _project_out(
            scaled[:, chosen], orthonormal, transform, scaled[:, rest]
        )
        uncertainty = rounding[:, chosen] @ np.abs(weights) + rounding[:, rest]
        uncertainty = np.where(uncertainty > 0, uncertainty, 1.0)
        excess = np.max(np.abs(remainder) / uncertainty, axis=0, initial=0.0)
        if not np.any(excess > NOISE):
            break
        k = int(np.argmax(excess))
        if excess[k] <= SIGNAL:
            raise ValueError(
                "`features` must have columns whose linear dependence is clear beyond rounding, "
                f"but column {rest[k]} (from 0) is within {excess[k]:.0f} roundings of a "
                "combination of others: leave it out, or centre it."
            )
        size = np.linalg.norm(remainder[:, k])
        orthonormal = np.column_stack([orthonormal, remainder[:, k] / size])
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


def _clear_pivots(triangle: Float[np.ndarray, "rank dim"], precision: float) -> int:
    """The number of leading pivots that are nonzero beyond doubt; entries of X are at most 1.

    The rounding of a pivot is amplified by the inverse of the unit triangle before it.
    """
    import scipy.linalg

    pivots = np.abs(np.diagonal(triangle))
    count = int(np.sum(pivots > precision * SIGNAL))
    if not count:
        return 0
    unit = triangle[:count, :count] / np.diagonal(triangle)[:count, None]
    terms = scipy.linalg.solve_triangular(unit, np.eye(count), unit_diagonal=True)
    clear = pivots[:count] > 2 * SIGNAL * precision * np.abs(terms).sum(axis=0)
    return int(np.argmin(clear)) if not clear.all() else count


def _orthonormal(
    columns: Float[np.ndarray, "samples rank"], triangle: Float[np.ndarray, "rank rank"]
) -> tuple[Float[np.ndarray, "samples rank"], Float[np.ndarray, "rank rank"]]:
    """Q and T with Q = columns · T, from the R of the columns' QR factorisation."""
    import scipy.linalg

    transform = scipy.linalg.solve_triangular(triangle, np.eye(triangle.shape[0]))
    for _ in range(2):
        spanning = product(columns, transform)
        triangle = np.asarray(np.linalg.qr(spanning, mode="r"))
        # The Q of this QR would have absolute errors: small rows, and zeros, would be lost.
        orthonormal = scipy.linalg.solve_triangular(triangle.T, spanning.T, lower=True).T
        transform = scipy.linalg.solve_triangular(triangle.T, transform.T, lower=True).T
    return orthonormal, transform


def _project_out(
    columns: Float[np.ndarray, "samples rank"],
    orthonormal: Float[np.ndarray, "samples rank"],
    transform: Float[np.ndarray, "rank rank"],
    others: Float[np.ndarray, "samples others"],
) -> tuple[Float[np.ndarray, "rank others"], Float[np.ndarray, "samples others"]]:
    """W and the remainder others − columns · W, orthogonal to the columns."""
    weights, remainder = np.zeros((columns.shape[1], others.shape[1])), others
    for _ in range(3 if others.size and columns.size else 0):
        weights = weights + transform @ (orthonormal.T @ remainder)
        stacked = np.vstack([-weights, np.eye(others.shape[1])])
        remainder = product(np.hstack([columns, others]), stacked)
    return weights, remainder


def product(
    left: Float[np.ndarray, "rows inner"], right: Float[np.ndarray, "inner columns"]
) -> Matrix:
    """A B, summed in about twice the precision of float64 and then rounded.

    Each factor is split into slices of so few bits that the products of slices are exact (Ozaki et
    al., Numerical Algorithms 59, 2012).
    """
    bits = (_DIGITS - int(np.ceil(np.log2(max(left.shape[1], 1))))) // 2
    first, second = _slices(left, bits, 1), _slices(right, bits, 0)
    total = low = np.zeros((left.shape[0], right.shape[1]))
    for k in range(_MAX_SLICES):
        for i in range(max(0, k + 1 - len(second)), min(k + 1, len(first))):
            # Knuth's two-sum: `low` collects the rounding errors of `total`.
            part = first[i] @ second[k - i]
            rounded = total + part
            added = rounded - total
            low = low + ((total - (rounded - added)) + (part - added))
            total = rounded
    return total + low


def _slices(matrix: Matrix, bits: int, axis: int) -> list[Matrix]:
    """Matrices of `bits` bits per entry, relative to each row or column, that sum to the matrix."""
    slices = []
    while len(slices) < _MAX_SLICES and matrix.any():
        exponent = np.frexp(np.max(np.abs(matrix), axis=axis, keepdims=True))[1]
        anchor = np.ldexp(1.5, exponent + _DIGITS - 1 - bits)
        slices.append((matrix + anchor) - anchor)
        matrix = matrix - slices[-1]
    return slices


def least_squares(
    matrix: Float[np.ndarray, "rows columns"], values: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " columns"]:
    """argmin ‖A x − b‖ for A of full column rank, with rows of any sizes.

    With rows sorted by size and column pivoting, the backward error of each row is relative to that
    row (Cox and Higham, BIT 38, 1998).
    """
    import scipy.linalg

    order = np.argsort(-np.max(np.abs(matrix), axis=1, initial=0.0), kind="stable")
    factors: Any = scipy.linalg.qr(
        matrix[order], mode="economic", pivoting=True, check_finite=False
    )
    q, r, columns = factors
    solution = np.empty(matrix.shape[1])
    solution[columns] = scipy.linalg.solve_triangular(r, q.T @ values[order], check_finite=False)
    return solution
