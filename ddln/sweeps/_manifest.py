"""What a run folder tells of itself: the manifest, a receipt beside each chunk, rows of claims.

Manifest and receipts are JSON under a seal, the SHA-256 of all else they say, so that one that was
cut short or altered is found out; and strict tables, so that a name in one leads nowhere outside
its folder. Every receipt says what the run was begun with: a manifest that is lost is made again.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ddln._internal.files import read_limited
from ddln.config._errors import rule
from ddln.config.experiment import numeric_leaves, value_of
from ddln.config.schema import NAME, Table
from ddln.sweeps.plan import Plan

FORMAT = 2
FIGURE = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_LARGEST = 2**26
"""Bytes of a record that is read."""

Sum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[
    str, Field(pattern=rf"^(dataset\.nc|claims\.json|report\.html|figures/{FIGURE})$")
]


class RecordError(ValueError):
    """A record that this version did not write, or that says what none can."""


class Begun(Table):
    """What a run was begun with."""

    format: Literal[2] = FORMAT
    study: str = Field(pattern=NAME)
    digest: str = Field(pattern=r"^[0-9a-f]{10}$")
    plan: Sum
    """Of the shape of the grid and the lanes of each chunk."""
    seeds: dict[str, int | str]
    versions: dict[str, str] = Field(default={})
    device: str = ""
    dtype: str = ""
    settings: dict[str, str] = Field(default={})
    """Of jax and XLA, those that change numbers and are not as they come."""


class Manifest(Begun):
    """What a run was begun with, and what was made of its chunks."""

    files: dict[FileName, Sum] = Field(default={})
    complete: bool = False
    study_sha256: Sum | Literal[""] = ""
    """Of the study that made the claims."""


class Receipt(Table):
    """A chunk that was finished."""

    run: Begun
    chunk: int
    sha256: Sum
    lanes: int
    status: dict[str, int]
    """How many of them ended in which way."""
    steps: int
    rounds: int
    solved_again: int = 0
    """How many of them were, more exactly."""
    inexact: int = 0
    """How many of these were off by more than their tolerances let expect."""
    lanes_at_once: int | None = None
    """Where memory ran out: with how many it did not."""


class Row(Table):
    """A claim and how it came out, over how many lanes."""

    model_config = ConfigDict(allow_inf_nan=True)

    name: str
    applies: bool
    holds: bool
    source: str = ""
    statement: str = ""
    relation: Literal["=", "<="] = "<="
    reason: str = ""
    measured: float = math.nan
    predicted: float = math.nan
    tolerance: float = math.nan
    lanes: int | None = None
    lanes_applicable: int | None = None
    lanes_holding: int | None = None


_ROWS = TypeAdapter(dict[str, list[Row]])
Record = TypeVar("Record", Manifest, Receipt)


def begun_with(plan: Plan, provenance: Mapping[str, Any] | None = None) -> Begun:
    """What a run of this plan is begun with.

    Args:
        plan: of the run.
        provenance: versions, device, dtype, settings.
    """
    experiment = plan.experiment
    lanes = [*plan.shape, *(int(chunk.lanes.size) for chunk in plan.chunks)]
    seeds = [name for name in numeric_leaves(experiment) if name.endswith("seed")]
    swept = dict.fromkeys(experiment.sweep, "swept")
    return Begun(
        study=experiment.study,
        digest=experiment.digest(),
        plan=hashlib.sha256(json.dumps(lanes).encode()).hexdigest(),
        seeds={name: swept.get(name) or value_of(experiment, name) for name in seeds},
        **(provenance or {}),
    )


def changes(begun: Begun, here: Begun) -> list[str]:
    """What of the ground is another one than at the beginning; what is not told here is not."""
    told = {"versions", "device", "dtype", "settings"}
    return [
        *(["its lanes in other chunks"] if begun.plan != here.plan else []),
        *differences(begun.model_dump(include=told), here.model_dump(include=told)),
    ]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the ground is another one, by name.

    Args:
        then: versions, device, dtype and settings, as `ddln.sweeps.environment.provenance` gives
        them. now: the same; without versions nothing is known, and what is empty is not told.

    >>> differences({"settings": {"XLA_FLAGS": "--fast"}}, {"versions": {"jax": "1"}})
    ['jax None, now 1', 'XLA_FLAGS --fast, now as it comes']
    """
    if not now.get("versions"):
        return []
    was, here = (
        {**told.get("versions", {}), "device": told.get("device"), "dtype": told.get("dtype")}
        for told in (then, now)
    )
    facts = [(name, was.get(name), value) for name, value in here.items() if value]
    was, here = then.get("settings", {}), now.get("settings", {})
    facts += [
        (name, was.get(name, "as it comes"), here.get(name, "as it comes"))
        for name in sorted({*was, *here})
    ]
    return [f"{name} {before}, now {value}" for name, before, value in facts if before != value]


def sealed(record: Manifest | Receipt) -> str:
    """The text of a record, with its seal."""
    facts = record.model_dump(mode="json")
    return json.dumps({**facts, "seal": _seal(facts)}, indent=1, ensure_ascii=False) + "\n"


def unsealed(path: Path, kind: type[Record]) -> Record | None:
    """The record in a file; None where there is none that is whole.

    Raises:
        RecordError: it was written in another format, or is too large, or not as ours are.
    """
    try:
        facts = json.loads(read_limited(path, _LARGEST))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(facts, dict):
        return None
    told, begun = facts.pop("seal", None), facts.get("run", facts)
    if told is not None and told != _seal(facts):
        return None
    written = begun.get("format") if isinstance(begun, dict) else None
    if told is None or written != FORMAT:
        raise RecordError(
            f"{path.name}: written in format {written}, this is {FORMAT}; move the folder away to"
            " run again"
        )
    try:
        return kind.model_validate_json(json.dumps(facts))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise RecordError(f"{path.name}: {where}: {rule(fault)}") from None


def rows_of(text: str) -> dict[str, list[dict[str, Any]]]:
    """The tables of claims in a JSON text, where null is a number that is not finite.

    Raises:
        RecordError: it is no such text.
    """
    try:
        tables = _ROWS.validate_python(json.loads(text, object_hook=_with_nans))
    except (ValueError, RecursionError):
        raise RecordError("not tables of claims") from None
    return {
        title: [row.model_dump(exclude_none=True) for row in rows] for title, rows in tables.items()
    }


def finite(value: Any) -> Any:
    """Plain values for JSON, which has no word for a number that is not finite: null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nans(table: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in table.items()}


def _seal(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
