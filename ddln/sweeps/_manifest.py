"""Records of a run folder: the manifest, a record beside each chunk, and rows of claims.

The manifest and the chunk records are JSON with a checksum, the SHA-256 of all other fields, so
that a truncated or altered record is detected. They are strict tables, so that no file name in
them leads outside the folder. Every chunk record repeats the provenance of the run: a lost manifest
can be rebuilt.
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
from ddln.config._table import NAME, Table
from ddln.config.experiment import numeric_leaves, value_of
from ddln.sweeps.plan import Plan

FORMAT = 2
FIGURE = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
LARGEST_FILE = 2**26
"""The largest record, claims.json, config or figure of a run that is read, in bytes."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[
    str, Field(pattern=rf"^(dataset\.nc|claims\.json|report\.html|figures/{FIGURE})$")
]


class RecordError(ValueError):
    """A record in another format, or with impossible values."""


class RunProvenance(Table):
    """The experiment, plan, versions and settings that a run began with."""

    format: Literal[2] = FORMAT
    study: str = Field(pattern=NAME)
    digest: str = Field(pattern=r"^[0-9a-f]{10}$")
    plan: Sha256
    """SHA-256 of the shape of the grid and the number of networks in each chunk."""
    seeds: dict[str, int | str]
    versions: dict[str, str] = Field(default={})
    device: str = ""
    dtype: str = ""
    settings: dict[str, str] = Field(default={})
    """Settings of jax and XLA that change numbers and differ from their defaults."""


class Manifest(RunProvenance):
    """The provenance of a run, and checksums of the files made from its chunks."""

    files: dict[FileName, Sha256] = Field(default={})
    complete: bool = False
    study_sha256: Sha256 | Literal[""] = ""
    """SHA-256 of the study that made the claims."""


class ChunkRecord(Table):
    """A finished chunk."""

    run: RunProvenance
    chunk: int
    sha256: Sha256
    lanes: int
    status: dict[str, int]
    """The number of networks for each status name."""
    steps: int
    rounds: int
    solved_again: int = 0
    """How many networks were recomputed at finer tolerances."""
    inexact: int = 0
    """How many of these differ by more than the error to be expected of their tolerances."""
    lanes_at_once: int | None = None
    """The number of networks that fit into memory, if a larger number did not."""


class ClaimRow(Table):
    """A claim, its outcome, and the number of networks it was checked on."""

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


_ROWS = TypeAdapter(dict[str, list[ClaimRow]])
Record = TypeVar("Record", Manifest, ChunkRecord)


def run_provenance(plan: Plan, process: Mapping[str, Any] | None = None) -> RunProvenance:
    """The provenance of a run of this plan.

    Args:
        plan: of the run.
        process: versions, device, dtype and settings of the process that computes it.
    """
    experiment = plan.experiment
    lanes = [*plan.shape, *(int(chunk.lanes.size) for chunk in plan.chunks)]
    seeds = [name for name in numeric_leaves(experiment) if name.endswith("seed")]
    swept = dict.fromkeys(experiment.sweep, "swept")
    return RunProvenance(
        study=experiment.study,
        digest=experiment.digest(),
        plan=hashlib.sha256(json.dumps(lanes).encode()).hexdigest(),
        seeds={name: swept.get(name) or value_of(experiment, name) for name in seeds},
        **(process or {}),
    )


def provenance_changes(then: RunProvenance, now: RunProvenance) -> list[str]:
    """Describe what has changed since the run began, except for fields that are empty now."""
    fields = {"versions", "device", "dtype", "settings"}
    return [
        *(["its networks in other chunks"] if then.plan != now.plan else []),
        *differences(then.model_dump(include=fields), now.model_dump(include=fields)),
    ]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each difference between two provenances of a process.

    Args:
        then: versions, device, dtype and settings, from `ddln.sweeps.environment.provenance`.
        now: the same; without versions nothing is compared, and empty fields are skipped.

    >>> differences({"settings": {"XLA_FLAGS": "--fast"}}, {"versions": {"jax": "1"}})
    ['jax None, now 1', 'XLA_FLAGS --fast, now as it comes']
    """
    if not now.get("versions"):
        return []
    before, after = (
        {**each.get("versions", {}), "device": each.get("device"), "dtype": each.get("dtype")}
        for each in (then, now)
    )
    # A package that an older run did not record says nothing.
    known = then.get("versions") or after
    facts = [
        (name, before.get(name), value)
        for name, value in after.items()
        if value and (name in known or name in ("device", "dtype"))
    ]
    before, after = then.get("settings", {}), now.get("settings", {})
    facts += [
        (name, before.get(name, "as it comes"), after.get(name, "as it comes"))
        for name in sorted({*before, *after})
    ]
    return [f"{name} {old}, now {new}" for name, old, new in facts if old != new]


def with_checksum(record: Manifest | ChunkRecord) -> str:
    """The JSON text of a record, with its checksum in the field `seal`."""
    facts = record.model_dump(mode="json")
    return json.dumps({**facts, "seal": checksum(facts)}, indent=1, ensure_ascii=False) + "\n"


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Read a record; None if the file is missing, or its checksum does not match.

    Raises:
        RecordError: the record has another format, is too large, or has impossible values.
    """
    try:
        facts = json.loads(read_limited(path, LARGEST_FILE))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(facts, dict):
        return None
    expected, run = facts.pop("seal", None), facts.get("run", facts)
    if expected is not None and expected != checksum(facts):
        return None
    written = run.get("format") if isinstance(run, dict) else None
    if expected is None or written != FORMAT:
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


def parse_claims(text: str) -> dict[str, list[dict[str, Any]]]:
    """Parse tables of claims from JSON, where null stands for a number that is not finite.

    Raises:
        RecordError: the text is something else.
    """
    try:
        tables = _ROWS.validate_python(json.loads(text, object_hook=_with_nans))
    except (ValueError, RecursionError):
        raise RecordError("not tables of claims") from None
    return {
        title: [row.model_dump(exclude_none=True) for row in rows] for title, rows in tables.items()
    }


def finite(value: Any) -> Any:
    """Convert to plain values for JSON: arrays to lists, numbers that are not finite to null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nans(table: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in table.items()}


def checksum(facts: dict[str, Any]) -> str:
    """SHA-256 of the JSON of a record's fields."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
