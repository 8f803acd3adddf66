"""One experiment as data: a TOML file, its overrides, and one error for all that is wrong.

A document becomes a frozen `Experiment`, whose tables are in `ddln.config.schema`. Every numeric
leaf has a dotted name, `network.scale`; the same name sets it on the command line, in
`Experiment.with_` and as an axis of `[sweep]`.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ddln.config import datasets, sweep_axes
from ddln.config._errors import explain, members_of
from ddln.config._toml import ConfigError as ConfigError
from ddln.config._toml import (
    as_toml,
    flatten,
    parse_override,
    parse_toml,
    place,
    plain,
    read_toml,
    resolve,
)
from ddln.config._toml import told_of as told_of
from ddln.config.dynamics import OF_DEPTH_2, Descent, Dynamics
from ddln.config.schema import (
    NAME,
    REAL,
    WHOLE,
    Axis,
    Devices,
    Explicit,
    File,
    Network,
    Problem,
    Table,
)

_SWEPT = ("problem", "network", "dynamics")
"""The tables whose numbers can be swept; what else there is, is about the machine."""


class Experiment(Table):
    """One experiment: problem, network, dynamics, and the axes it is swept over.

    >>> experiment = load("configs/figure4.toml", ["network.depth=4"])
    >>> experiment.network.depth, experiment.with_({"network.scale": 2}).network.scale
    (4, 2.0)
    """

    study: str = Field(pattern=NAME, description="experiments/<study>.py claims and draws")
    problem: Problem
    network: Network
    dynamics: Dynamics
    memory: float = Field(
        default=2.0, gt=0, description="GB that the lanes computed side by side may take"
    )
    devices: Devices | None = Field(
        default=None, description="to compute on; by default, batches of lanes go to all there are"
    )
    sweep: dict[str, Axis] = Field(
        default={}, description="axes: the dotted name of a numeric leaf"
    )

    @model_validator(mode="after")
    def _layers_fit(self):
        if isinstance(self.network.init, Explicit):
            rows, where = self.network.init.layers, "network.init.layers"
            if len(rows) != self.network.depth:
                raise ValueError(f"{where}: {len(rows)} rows for depth {self.network.depth}")
            for j, row in enumerate(rows):
                if len(row) != self.width:
                    sides = "2 × " if self.network.signed else ""
                    raise ValueError(
                        f"{where}[{j}]: {len(row)} weights for {sides}{self.features} features"
                    )
        return self

    @model_validator(mode="after")
    def _batch_fits(self):
        dynamics = self.dynamics
        if not isinstance(dynamics, Descent):
            return self
        samples = datasets.shape_of(self.problem.data)[0]
        for name in ("batch", "noisy"):
            size = getattr(dynamics.sampling, name, None) or 0
            if size > samples:
                where = f"dynamics.sampling.{name}"
                raise ValueError(f"{where}: must be ≤ {samples}, the number of samples, got {size}")
        batch = getattr(dynamics.sampling, "batch", None) or samples
        group = getattr(dynamics.sharpness_aware, "group", None) or batch
        if batch % group:
            where = "dynamics.sharpness_aware.group"
            raise ValueError(f"{where}: must divide the batch of {batch}, got {group}")
        return self

    @model_validator(mode="after")
    def _measures_fit(self):
        depth, of_two = self.network.depth, OF_DEPTH_2 & set(self.dynamics.measure)
        if of_two and depth != 2:
            raise ValueError(f"dynamics.measure: {min(of_two)} is of depth 2, got depth {depth}")
        return self

    @model_validator(mode="after")
    def _columns_fit(self):
        parts = 1 if self.devices is None else self.devices.features
        if self.features % parts:
            where, columns = "devices.features", "the number of columns of X"
            raise ValueError(f"{where}: must divide {self.features}, {columns}, got {parts}")
        return self

    @property
    def features(self) -> int:
        """Columns of X."""
        return datasets.shape_of(self.problem.data)[1]

    @property
    def width(self) -> int:
        """Coordinates of the network: the features, twice in a signed one."""
        return self.features * (2 if self.network.signed else 1)

    def with_(self, changes: Mapping[str, Any]) -> "Experiment":
        """The experiment with other values, by dotted name, validated.

        Args:
            changes: `{"network.depth": 8, "sweep.network.scale": [1, 2]}`; a whole table or the
                whole sweep can be replaced too. Arrays become lists.

        Raises:
            ConfigError: all that is wrong.
        """
        document = self._document()
        for name, value in changes.items():
            # A copy: the next change may be within this table, which is the caller's.
            place(document, name, copy.deepcopy(value))
        return _validated(document)

    def to_toml(self) -> str:
        """The experiment as TOML text, every default written out."""
        return as_toml(self._document())

    def digest(self) -> str:
        """Ten hexadecimal digits that name this experiment and the content of its data file."""
        document = self._document()
        if isinstance(self.problem.data, File):
            content = Path(self.problem.data.path).read_bytes()
            document["problem"]["data"]["path"] = hashlib.sha256(content).hexdigest()
        # Axes are a grid in the order written, so their order counts; that of other keys does not.
        document["sweep"] = list(document["sweep"].items())
        canonical = json.dumps(document, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]

    def _document(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a TOML file.

    Args:
        path: the file; a relative `problem.data.path` in it is relative to its folder.
        overrides: `network.depth=8`, `sweep.network.scale=[1,2]`: the value is TOML, a bare word
            is text. Paths in overrides are relative to the working folder.

    Raises:
        ConfigError: the file cannot be read, or all that is wrong with what it says.

    >>> load("configs/figure4.toml", ["sweep.network.scale=[1, 2]"]).sweep
    {'network.scale': (1, 2)}
    """
    path = Path(path)
    document = read_toml(path)
    resolve(document, path.parent)
    problems = []
    for override in overrides:
        try:
            name, value = parse_override(override)
            document["sweep"] = flatten(document.get("sweep", {}))
            if isinstance(document["sweep"], dict) and name in document["sweep"]:
                raise ConfigError([f"{name}: is swept; set `sweep.{name}`, or `sweep={{}}` first"])
            place(document, name, value)
        except ConfigError as error:
            problems.extend(error.problems)
    document["sweep"] = flatten(document.get("sweep", {}))
    resolve(document, Path())
    try:
        experiment = _validated(document)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems], str(path)) from None
    if problems:
        raise ConfigError(problems, str(path))
    return experiment


def parse(text: str) -> Experiment:
    """The experiment in TOML text that is complete, as in a dataset's attribute `config`.

    Raises:
        ConfigError: all that is wrong with it.

    >>> parse(load("configs/figure4.toml").to_toml()) == load("configs/figure4.toml")
    True
    """
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise ConfigError([f"config: {error}"]) from None
    document["sweep"] = flatten(document.get("sweep", {}))
    return _validated(document)


def substitute(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with other leaves, not validated: the leaves may be traced.

    >>> substitute(load("configs/figure4.toml"), {"network.scale": 3.0}).network.scale
    3.0
    """
    for name, value in values.items():
        experiment = _substitute(experiment, name.split("."), value)
    return experiment


def _substitute(table: Any, path: Sequence[str], value: Any) -> Any:
    head, *rest = path
    inner = _substitute(getattr(table, head), rest, value) if rest else value
    return table.model_copy(update={head: inner})


def swept_to(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment without its sweep, at one place of it.

    Raises:
        ConfigError: what is wrong there.

    >>> swept_to(load("configs/figure4.toml"), {"network.scale": 1.4}).network.scale
    1.4
    """
    try:
        return experiment.with_({**values, "sweep": {}})
    except ConfigError as error:
        at = ", ".join(f"{name} = {value}" for name, value in values.items())
        told = f" (swept to {at})" if values else ""
        raise ConfigError([line + told for line in error.problems]) from None


def numeric_leaves(experiment: Experiment) -> dict[str, FieldInfo]:
    """The leaves that can be swept, by dotted name.

    >>> leaves = numeric_leaves(load("configs/figure4.toml"))
    >>> "network.init.law.low" in leaves, changes_shape(leaves["network.depth"])
    (True, True)
    """
    return dict(_leaves(Experiment, experiment._document()))


def value_of(experiment: Experiment, name: str) -> Any:
    """The value at a dotted name.

    >>> value_of(load("configs/figure4.toml"), "network.depth")
    6
    """
    return reduce(getattr, name.split("."), experiment)


def changes_shape(leaf: FieldInfo) -> bool:
    """Whether a leaf decides the shape of an array."""
    return bool(_extra(leaf, "changes_shape", False))


def units_of(leaf: FieldInfo) -> str:
    """The units of a leaf's values; those that have none are 1."""
    return str(_extra(leaf, "units", "1"))


def _extra(leaf: FieldInfo, key: str, default: Any) -> Any:
    extra = leaf.json_schema_extra
    return extra.get(key, default) if isinstance(extra, dict) else default


def _validated(document: dict[str, Any]) -> Experiment:
    experiment, problems = None, {}
    try:
        # Strict mode takes a list for a tuple only in JSON.
        experiment = Experiment.model_validate_json(json.dumps(document, default=plain))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # Keyed by place: a value that fits no member of a union is told once.
        problems = dict(
            explain(fault, document, Experiment) for fault in faults if not _is_of_a_file(fault)
        )
    told = [f"{where}: {what}" if where else what for where, what in problems.items()]
    told += _data_problems(document)
    told += sweep_axes.faults(document.get("sweep", {}), dict(_leaves(Experiment, document)))
    if experiment is None or told:
        raise ConfigError(list(dict.fromkeys(told)))
    for corner in sweep_axes.corners(experiment.sweep, numeric_leaves(experiment)):
        swept_to(experiment, corner)
    return experiment


def _is_of_a_file(fault: Any) -> bool:
    """Whether `_data_problems` tells it."""
    return isinstance(fault.get("ctx", {}).get("error"), datasets.DataError)


def _data_problems(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with the data themselves, also where other tables are wrong."""
    problem = document.get("problem")
    if not isinstance(problem, Mapping):
        return []
    loss = problem.get("loss")
    kind = loss.get("kind") if isinstance(loss, Mapping) else None
    try:
        alone = json.dumps({"data": problem.get("data")}, default=plain)
        datasets.validate(Problem.model_validate_json(alone).data, str(kind))
    except datasets.DataError as error:
        return [f"problem.data: {line}" for line in str(error).splitlines()]
    except ValidationError:
        return []  # told already
    return []


def _leaves(table: type[BaseModel], raw: Any, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, leaf in table.model_fields.items():
        if not prefix and name not in _SWEPT:
            continue
        below = raw.get(name) if isinstance(raw, Mapping) else None
        if below is None and type(None) in get_args(leaf.annotation):
            continue  # what is not there has no numbers
        if leaf.annotation in (*WHOLE, *REAL):
            yield prefix + name, leaf
        for member in members_of(leaf.annotation, below):
            yield from _leaves(member, below, f"{prefix}{name}.")
