"""Experiments: from a TOML file and its overrides to a validated object.

`load` reads a file into a document, merges the overrides and validates the result into an immutable
`Experiment`, whose tables are in `ddln.config.schema`. One `ConfigError` lists every problem.

Every numeric key, or *leaf*, has a dotted name such as `network.scale`, which sets it on the
command line and in `Experiment.with_`, and names its axis in `[sweep]`.
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
from ddln.config._table import NAME, REAL, WHOLE, Table
from ddln.config._toml import ConfigError as ConfigError
from ddln.config._toml import add_source as add_source
from ddln.config._toml import (
    as_json,
    as_toml,
    parse_document,
    parse_override,
    read_document,
    resolve_data_path,
    set_path,
)
from ddln.config.axis_schema import AxisConfig
from ddln.config.data_files import content_files
from ddln.config.data_schema import FileDataConfig
from ddln.config.dynamics_schema import OF_DEPTH_2, DescentConfig, DynamicsConfig
from ddln.config.schema import (
    NOT_DIFFERENTIABLE,
    DevicesConfig,
    ExplicitInitConfig,
    NetworkConfig,
    ProblemConfig,
)

_SWEPT = ("problem", "network", "dynamics")
"""The tables whose numbers can be swept; the other keys are about the machine."""


class Experiment(Table):
    """One experiment: a problem, a network, its dynamics and the axes of a sweep.

    >>> experiment = load("configs/figure4.toml", ["network.depth=4"])
    >>> experiment.network.depth, experiment.with_({"network.scale": 2}).network.scale
    (4, 2.0)
    """

    study: str = Field(pattern=NAME, description="name of the study: experiments/<study>.py")
    problem: ProblemConfig
    network: NetworkConfig
    dynamics: DynamicsConfig
    memory: float = Field(
        default=2.0, gt=0, description="most GB for the networks computed together"
    )
    devices: DevicesConfig | None = Field(
        default=None,
        description="devices to compute on; by default, networks are distributed over all devices",
    )
    sweep: dict[str, AxisConfig] = Field(
        default={}, description="axes, by the dotted name of a numeric key"
    )

    @model_validator(mode="after")
    def _tables_are_consistent(self):
        if problems := list(_consistency_problems(self)):
            raise ValueError("\n".join(problems))
        return self

    @property
    def features(self) -> int:
        """Columns of X."""
        return datasets.shape_of(self.problem.data)[1]

    @property
    def outputs(self) -> int:
        """Coordinates of the predictor for each feature: K for multinomial loss, else 1."""
        return datasets.outputs(self.problem.data, self.problem.loss.kind)

    @property
    def parameters(self) -> int:
        """Coordinates of the predictor."""
        return self.features * self.outputs

    @property
    def width(self) -> int:
        """Coordinates of the network: those of the predictor, twice in a signed network."""
        return self.parameters * (2 if self.network.signed else 1)

    def with_(self, changes: Mapping[str, Any]) -> "Experiment":
        """The experiment with some values replaced, validated.

        Args:
            changes: values by dotted name, `{"network.depth": 8, "sweep.network.scale": [1, 2]}`. A
                value can be a whole table or the whole sweep, and arrays are lists.

        Raises:
            ConfigError: lists every problem.
        """
        document = self._document()
        for name, value in changes.items():
            # A later change may be inside this table, which belongs to the caller.
            set_path(document, name, copy.deepcopy(value))
        return _validate(document)

    def to_toml(self) -> str:
        """The experiment as TOML text, including every default."""
        return as_toml(self._document())

    def digest(self) -> str:
        """A hash of the experiment and the content of its data file, ten hexadecimal digits."""
        document = self._document()
        if isinstance(self.problem.data, FileDataConfig):
            files = content_files(Path(self.problem.data.path))
            content = b"".join(file.read_bytes() for file in files)
            document["problem"]["data"]["path"] = hashlib.sha256(content).hexdigest()
        # The order of the axes is that of the grid's dimensions; other keys have no order.
        document["sweep"] = list(document["sweep"].items())
        canonical = json.dumps(document, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]

    def _document(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


def _consistency_problems(experiment: Experiment) -> Iterator[str]:
    """The problems between tables that are valid by themselves."""
    yield from _layer_problems(experiment)
    if isinstance(experiment.dynamics, DescentConfig):
        samples, _ = datasets.shape_of(experiment.problem.data)
        yield from _batch_problems(experiment.dynamics, samples)
    depth, of_two = experiment.network.depth, OF_DEPTH_2 & set(experiment.dynamics.measure)
    if of_two and depth != 2:
        yield f"dynamics.measure: {min(of_two)} requires depth 2, got depth {depth}"
    loss = experiment.problem.loss.kind
    if loss in NOT_DIFFERENTIABLE and not isinstance(experiment.dynamics, DescentConfig):
        rule = "a flow needs a differentiable loss, and so do the theorems"
        yield f'dynamics.kind: {rule}, got {loss} loss: train with kind = "descent"'
    sampling = getattr(experiment.dynamics, "sampling", None)
    if loss == "multinomial" and getattr(sampling, "label_noise", None) is not None:
        yield "dynamics.sampling.label_noise: not for multinomial loss, whose labels are classes"
    held_out = getattr(experiment.problem.data, "test", None)
    if experiment.dynamics.uses_held_out and held_out is None:
        key = "measure" if experiment.dynamics.patience is None else "patience"
        yield f"dynamics.{key}: needs held-out rows, problem.data.test"
    parts = 1 if experiment.devices is None else experiment.devices.features
    if experiment.features % parts:
        columns = f"{experiment.features}, the number of columns of X"
        yield f"devices.features: must divide {columns}, got {parts}"


def _layer_problems(experiment: Experiment) -> Iterator[str]:
    network, key = experiment.network, "network.init.layers"
    if not isinstance(network.init, ExplicitInitConfig):
        return
    rows = network.init.layers
    if len(rows) != network.depth:
        yield f"{key}: {len(rows)} rows for depth {network.depth}"
    for j, row in enumerate(rows):
        if len(row) != experiment.width:
            sides = "2 × " if network.signed else ""
            classes = f" × {experiment.outputs} classes" if experiment.outputs > 1 else ""
            features = f"{sides}{experiment.features} features{classes}"
            yield f"{key}[{j}]: {len(row)} weights for {features}"


def _batch_problems(descent: DescentConfig, samples: int) -> Iterator[str]:
    for name in ("batch", "noisy"):
        size = getattr(descent.sampling, name, None) or 0
        if size > samples:
            key = f"dynamics.sampling.{name}"
            yield f"{key}: must be ≤ {samples}, the number of samples, got {size}"
    batch = getattr(descent.sampling, "batch", None) or samples
    group = getattr(descent.sharpness_aware, "group", None) or batch
    if batch % group:
        yield f"dynamics.sharpness_aware.group: must divide the batch of {batch}, got {group}"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a TOML file.

    Args:
        path: the file. A relative `problem.data.path` is relative to its folder.
        overrides: such as `network.depth=8` or `sweep.network.scale=[1,2]`. The value is TOML, and
            a bare word is text. Relative paths are relative to the working folder.

    Raises:
        ConfigError: the file cannot be read; otherwise lists every problem of its content.

    >>> load("configs/figure4.toml", ["sweep.network.scale=[1, 2]"]).sweep
    {'network.scale': (1, 2)}
    """
    path = Path(path)
    document = read_document(path)
    resolve_data_path(document, path.parent)
    problems = _merge(document, overrides)
    resolve_data_path(document, Path())
    with add_source(path):
        return _validate(document, problems)


def parse(text: str) -> Experiment:
    """The experiment in complete TOML text, such as the attribute `config` of a data set.

    Raises:
        ConfigError: lists every problem.

    >>> parse(load("configs/figure4.toml").to_toml()) == load("configs/figure4.toml")
    True
    """
    try:
        document = parse_document(text)
    except ValueError as error:
        raise ConfigError([f"config: {error}"]) from None
    return _validate(document)


def _merge(document: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply overrides to a document; returns the problems of those that cannot be applied."""
    problems = []
    for override in overrides:
        try:
            name, value = parse_override(override)
            sweep = document.get("sweep")
            if isinstance(sweep, dict) and name in sweep:
                raise ConfigError([f"{name}: is swept; set `sweep.{name}`, or `sweep={{}}` first"])
            set_path(document, name, value)
        except ConfigError as error:
            problems.extend(error.problems)
    return problems


def _validate(document: dict[str, Any], problems: Sequence[str] = ()) -> Experiment:
    """The experiment of a document; `problems` are known already.

    Raises:
        ConfigError: lists every problem.
    """
    experiment, faults = None, {}
    try:
        # Strict validation accepts a list for a tuple in JSON only.
        experiment = Experiment.model_validate_json(json.dumps(document, default=as_json))
    except ValidationError as error:
        # A value that fits no member of a union has several faults: keep one per key.
        faults = dict(explain(fault, document, Experiment) for fault in error.errors())
    found = [
        f"{key}: {line}" if key else line
        for key, text in faults.items()
        for line in text.split("\n")
    ]
    found += sweep_axes.sweep_problems(
        document.get("sweep", {}), dict(_leaves(Experiment, document))
    )
    if experiment is not None and not found:
        found += _corner_problems(experiment)
    if problems or found or experiment is None:
        raise ConfigError(list(dict.fromkeys([*problems, *found])))
    return experiment


def _corner_problems(experiment: Experiment) -> Sequence[str]:
    """The problems of the first invalid corner of the grid."""
    try:
        for corner in sweep_axes.corners(experiment.sweep, numeric_leaves(experiment)):
            at_point(experiment, corner)
    except ConfigError as error:
        return error.problems
    return ()


def substitute(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment with some leaves replaced by arrays, possibly traced, without validation.

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


def at_point(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The experiment without its sweep, at one point of the grid.

    Raises:
        ConfigError: lists every problem at this point.

    >>> at_point(load("configs/figure4.toml"), {"network.scale": 1.4}).network.scale
    1.4
    """
    try:
        return experiment.with_({**values, "sweep": {}})
    except ConfigError as error:
        point = ", ".join(f"{name} = {value}" for name, value in values.items())
        suffix = f" (swept to {point})" if values else ""
        raise ConfigError([line + suffix for line in error.problems]) from None


def numeric_leaves(experiment: Experiment) -> dict[str, FieldInfo]:
    """The numeric leaves, which can be swept, by dotted name.

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
    """Whether a leaf determines the shape of an array."""
    return bool(_extra(leaf, "changes_shape", False))


def units_of(leaf: FieldInfo) -> str:
    """The units of a leaf; 1 if it has none."""
    return str(_extra(leaf, "units", "1"))


def _extra(leaf: FieldInfo, key: str, default: Any) -> Any:
    extra = leaf.json_schema_extra
    return extra.get(key, default) if isinstance(extra, dict) else default


def _leaves(table: type[BaseModel], raw: Any, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, leaf in table.model_fields.items():
        if not prefix and name not in _SWEPT:
            continue
        below = raw.get(name) if isinstance(raw, Mapping) else None
        if below is None and type(None) in get_args(leaf.annotation):
            continue  # an absent table has no numbers
        if leaf.annotation in (*WHOLE, *REAL):
            yield prefix + name, leaf
        for member in members_of(leaf.annotation, below):
            yield from _leaves(member, below, f"{prefix}{name}.")
