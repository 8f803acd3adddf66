"""From the columns of a file to a problem's data: labels, held-out rows, means, scales, intercept.

Means and scales are those of the rows to train on; the held-out rows are changed alike.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddln._internal.text import count
from ddln.config._standardise import standardise
from ddln.config.data_files import DataError, DataFile, class_words

if TYPE_CHECKING:
    from ddln.config.data_schema import FileDataConfig

TWO_CLASSES = ("logistic", "exponential", "hinge")
"""Losses of labels ±1."""
MULTINOMIAL = "multinomial"
"""The loss of labels 0, …, K − 1."""
_MOST_CLASSES = 1000
_LABELS = ("must be -1 or 1", lambda y: np.abs(y) == 1)
RULES = {
    **dict.fromkeys(TWO_CLASSES, _LABELS),
    MULTINOMIAL: ("must be a class 0, 1, 2, …", lambda y: (y >= 0) & (y == np.floor(y))),
    "poisson": ("must be a whole number ≥ 0", lambda y: (y >= 0) & (y == np.floor(y))),
}
"""By loss: the condition that it imposes on each target, in words and as a test."""


class Samples(NamedTuple):
    """Samples of a problem: shapes (n, d), (n,) and, if there are any, (n,) and (n,)."""

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    exposure: np.ndarray | None

    def select(self, rows: np.ndarray) -> "Samples":
        """Some of the samples."""
        others = (None if array is None else array[rows] for array in self[2:])
        return Samples(self.features[rows], self.targets[rows], *others)


class Prepared(NamedTuple):
    """The data of a file as the problem has them."""

    names: tuple[str, ...]
    """Of the features, with those that were added."""
    train: Samples
    test: Samples | None
    labels: Mapping[str, float]
    """The label of each word or number among the targets, if they were mapped."""
    filled: int
    """The number of missing values that a mean replaced."""


@lru_cache(maxsize=4)
def prepare(file: DataFile, table: "FileDataConfig", loss: str) -> Prepared:
    """The data of a file as a problem with this loss has them.

    Args:
        file: the content of the file.
        table: the `problem.data` table.
        loss: the `kind` of the loss.

    Raises:
        DataError: words that are not labels of the loss, a column that is constant or has no value
            among the rows to train on, or a weight or an exposure that is not positive.
    """
    targets, labels = _labelled(file, table, loss)
    for key in ("weights", "exposure"):
        values = getattr(file, key)
        if values is not None:
            _refuse_nonpositive(file, getattr(table, key), values)
    held_out = _held_out(file, table)
    rows = ~held_out
    features, filled = _filled(file, rows)
    if table.standardise:
        with_targets = table.standardise != "features"
        columns = [features, targets[:, None]] if with_targets else [features]
        names = (*file.names, file.target)[: features.shape[1] + with_targets]
        exact = {j: column for j, column in file.exact.items() if not filled}
        joined = standardise(np.column_stack(columns), names, file.source, exact, rows)
        features = joined[:, : features.shape[1]]
        targets = joined[:, -1] if with_targets else targets
    if loss in RULES:
        rule, holds = RULES[loss]
        rule += " once standardised" if table.standardise in (True, "all") else ""
        file.refuse(~holds(targets), targets, rule)
    names = file.names
    if table.intercept:
        if "intercept" in names:
            raise DataError(f'{file.source}: already has a column "intercept"')
        names = (*names, "intercept")
        features = np.column_stack([features, np.ones(len(features))])
    samples = Samples(features, targets, file.weights, file.exposure)
    for array in samples:
        if array is not None:
            array.setflags(write=False)
    if not held_out.any():
        return Prepared(names, samples, None, labels, filled)
    return Prepared(names, samples.select(rows), samples.select(held_out), labels, filled)


def _labelled(
    file: DataFile, table: "FileDataConfig", loss: str
) -> tuple[np.ndarray, Mapping[str, float]]:
    """The targets, as labels if the loss needs these, and what they were mapped from."""
    is_labelled = loss in (*TWO_CLASSES, MULTINOMIAL) or table.labels is not None
    if is_labelled and table.standardise not in (True, "all"):
        given = class_words(file) if file.classes else file.targets
        if table.labels is not None:
            named = tuple(dict.fromkeys(map(_word, table.labels)))
        elif file.classes:
            named = file.classes
        elif loss == MULTINOMIAL or _is_binary(file.targets):
            fractional = file.targets != np.floor(file.targets)
            file.refuse(fractional, file.targets, "must be a word or a whole number")
            named = tuple(map(_word, np.unique(file.targets)))
        else:
            return file.targets, {}  # to be refused by row, or −1 and 1 already
        mapped = dict(zip(named, _labels_for(file, named, loss), strict=True))
        keys = [_word(value) for value in given]
        known = np.array([key in mapped for key in keys])
        file.refuse(~known, given, f"must be one of {', '.join(named)}")
        return np.array([mapped[key] for key in keys]), mapped
    if file.classes:
        file.refuse(np.ones(len(file.targets), bool), class_words(file), "must be a number")
    return file.targets, {}


def _labels_for(file: DataFile, named: tuple[str, ...], loss: str) -> tuple[float, ...]:
    """The label of each word or number that the targets can be.

    Raises:
        DataError: too few or too many of them.
    """
    most, rule, labels = 2, "two", (-1.0, 1.0)
    if loss == MULTINOMIAL:
        most, rule = _MOST_CLASSES, f"from 2 to {_MOST_CLASSES:,}"
        labels = tuple(map(float, range(len(named))))
    if not 2 <= len(named) <= most:
        raise DataError(
            f'{file.source}: column "{file.target}" must have {rule} labels, got {len(named):,}: '
            f"{', '.join(named[:5])}{', …' if len(named) > 5 else ''}"
        )
    return labels


def _word(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.17g}"


def _is_binary(targets: np.ndarray) -> bool:
    """Whether the targets are 0 and 1."""
    return bool(((targets == 0) | (targets == 1)).all() and (targets == 0).any())


def _refuse_nonpositive(file: DataFile, name: str, values: np.ndarray) -> None:
    if (values <= 0).any():
        row = int(np.argmax(values <= 0))
        where = f'{file.source}: row {file.rows[row]}, column "{name}"'
        raise DataError(f"{where}: must be > 0, got {values[row]:g}")


def _held_out(file: DataFile, table: "FileDataConfig") -> np.ndarray:
    """Whether each row is held out: a share of them, in the order of a hash of seed and row.

    Unlike a generator's, the order is the same in every version of every library.
    """
    total, held_out = len(file.targets), np.zeros(len(file.targets), bool)
    if table.test is None:
        return held_out
    size = round(table.test * total)
    if not 0 < size < total:
        raise DataError(
            f"{file.source}: test = {table.test:g} holds out {size} of {total} rows, and leaves "
            f"{total - size} to train on"
        )
    digests = [hashlib.sha256(f"{table.test_seed}:{row}".encode()).digest() for row in range(total)]
    held_out[sorted(range(total), key=digests.__getitem__)[:size]] = True
    return held_out


def _filled(file: DataFile, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """The features with each missing value replaced by its column's mean over `rows`."""
    missing = np.isnan(file.features)
    if not missing.any():
        return file.features, 0
    known = (~missing & rows[:, None]).sum(axis=0)
    if not known.all():
        name = file.names[int(np.argmin(known))]
        raise DataError(f'{file.source}: column "{name}" has no value to take the mean of')
    means = np.where(missing | ~rows[:, None], 0.0, file.features).sum(axis=0) / known
    return np.where(missing, means, file.features), int(missing.sum())


def describe(file: DataFile, table: Any, loss: str) -> dict[str, str]:
    """What was understood of a file, in words, by topic."""
    data = prepare(file, table, loss)
    held_out = 0 if data.test is None else len(data.test.targets)
    rows = [f"{len(data.train.targets):,} to train on"]
    rows += [f"{held_out:,} held out"] if held_out else []
    rows += [f"{file.dropped:,} dropped for a missing value"] if file.dropped else []
    rows += [f"{count(data.filled, 'missing value')} replaced by means"] if data.filled else []
    columns = f"{_listed(data.names)}; target {file.target}"
    for key in ("weights", "exposure"):
        columns += f"; {key} {getattr(table, key)}" if getattr(table, key) else ""
    columns += f"; words in {_listed(file.categories)}" if file.categories else ""
    columns += f"; ignored: {_listed(file.ignored)}" if file.ignored else ""
    counters = [
        name
        for name, column in zip(file.names, file.features.T, strict=True)
        if len(column) > 2 and (np.diff(column) == 1).all()
    ]
    columns += f"; {_listed(counters)} counts the rows: is it an index?" if counters else ""
    signs = {word: f"{'−' * (label < 0)}{abs(label):g}" for word, label in data.labels.items()}
    labels = ", ".join(f"{word} → {sign}" for word, sign in signs.items())
    sizes = np.abs(data.train.features).max(axis=0)
    small, large = int(sizes.argmin()), int(sizes.argmax())
    scales = f"largest entries from {sizes[small]:.3g} ({data.names[small]}) to "
    scales += f"{sizes[large]:.3g} ({data.names[large]})"
    if table.standardise:
        scales += f", standardised with{'out' * (table.standardise == 'features')} the target"
    lines = {"data": f"{file.source}: {file.form}", "rows": ", ".join(rows), "columns": columns}
    return lines | {"scales": scales} | ({"labels": labels} if labels else {})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
