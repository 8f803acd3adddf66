"""The axes of `[sweep]`: their values, where they lie, and what is wrong with them."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ddln.config._errors import AXIS_FORMS, hint, rule
from ddln.config._toml import plain
from ddln.config.schema import REAL, WHOLE, Axis, Linspace, Logspace, Range, Values

_HUGE = 2**1024


def dimension_of(name: str, axis: Any) -> str:
    """The dimension an axis of the sweep lies along: its own, or that of the one it is zipped to.

    >>> experiment = ddln.load("configs/figure4.toml", ["sweep={}"]).with_(
    ...     {
    ...         "sweep.network.scale": [1.0, 1.4],
    ...         "sweep.network.init.seed": {"values": [3, 4], "zip": "network.scale"},
    ...     }
    ... )
    >>> [dimension_of(name, axis) for name, axis in experiment.sweep.items()]
    ['network.scale', 'network.scale']
    """
    return getattr(axis, "zip", None) or name


def axis_values(axis: Any, leaf: FieldInfo) -> list[int] | list[float]:
    """The values of one axis of the sweep; whole numbers where its leaf wants them."""
    import numpy as np

    if isinstance(axis, Linspace):
        values = np.linspace(*axis.linspace).tolist()
    elif isinstance(axis, Logspace):
        with np.errstate(over="ignore"):  # the range of the leaf is checked by the caller
            values = np.logspace(*axis.logspace).tolist()
    else:
        listed = axis.values if isinstance(axis, Values) else axis
        values = list(range(*axis.range)) if isinstance(axis, Range) else list(listed)
    if leaf.annotation not in WHOLE:
        # A whole number may be larger than any real one: infinite, which the caller refuses.
        return [float(value) if abs(value) < _HUGE else math.inf for value in values]
    return [int(value) if value == value // 1 else value for value in values]


def faults(sweep: Any, leaves: Mapping[str, FieldInfo]) -> Iterator[str]:
    """What is wrong with a sweep that is not validated yet, but for what its types tell.

    Args:
        sweep: axes by the name of their leaf.
        leaves: what can be swept, by name.
    """
    dimensions: dict[str, str] = {}
    columns: dict[str, list[Any]] = {}
    for name, axis in sweep.items() if isinstance(sweep, Mapping) else ():
        table, _, key = name.rpartition(".")
        if table in leaves:
            yield f"sweep.{table}: {AXIS_FORMS}, got {{{key} = …}}"
            continue
        if name not in leaves:
            yield f"sweep.{name}: not a numeric key{hint(name, leaves)}"
            continue
        try:
            axis = TypeAdapter(Axis).validate_json(json.dumps(axis, default=plain), strict=True)
        except ValidationError:
            continue  # told already
        values = axis_values(axis, leaves[name])
        if not values:
            yield f"sweep.{name}: needs at least one value"
        try:
            _values_adapter(leaves[name]).validate_python(values, strict=True)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            yield f"sweep.{name}[{fault['loc'][0]}]: {rule(fault)}"
        dimensions[name], columns[name] = dimension_of(name, axis), values
    yield from _zip_problems(dimensions, columns)


def _zip_problems(
    dimensions: Mapping[str, str], columns: Mapping[str, Sequence[Any]]
) -> Iterator[str]:
    own = [name for name, dimension in dimensions.items() if name == dimension]
    for name, dimension in dimensions.items():
        if dimension not in own:
            near = hint(dimension, own)
            yield f'sweep.{name}.zip: must name an axis with a dimension, got "{dimension}"{near}'
        elif len(columns[name]) != len(columns[dimension]):
            lengths = f"{len(columns[name])} values for {len(columns[dimension])}"
            yield f"sweep.{name}: must be as long as {dimension}, got {lengths}"
    for name in own:
        steps = zip(*(columns[also] for also in columns if dimensions[also] == name), strict=False)
        if len(set(steps)) < len(columns[name]):
            yield f"sweep.{name}: values must differ from each other"


def _values_adapter(leaf: FieldInfo) -> TypeAdapter:
    finite = [Field(allow_inf_nan=False)] if leaf.annotation in REAL else []
    value: Any = Annotated[leaf.annotation, *finite, *leaf.metadata]
    return TypeAdapter(list[value])  # pyright: ignore[reportInvalidTypeForm]


def corners(sweep: Mapping[str, Any], leaves: Mapping[str, FieldInfo]) -> Iterator[dict[str, Any]]:
    """The corners of the grid, by the names of leaves: rules between two keys are orders, so that
    these speak for all of it.

    Where one must divide another, `ddln.sweeps.plan` validates what lies between them.
    """
    dimensions: dict[str, dict[str, Any]] = {}
    for name, axis in sweep.items():
        values = axis_values(axis, leaves[name])
        dimensions.setdefault(dimension_of(name, axis), {})[name] = values
    ends = [_extremes(columns) for columns in dimensions.values()]
    for corner in itertools.product(*ends) if ends else ():
        yield {name: value for step in corner for name, value in step.items()}


def _extremes(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The steps at which a key, or the difference of two, is least or largest."""
    import numpy as np

    keys = [np.asarray(values) for values in columns.values()]
    orders = [*keys, *(one - other for one, other in itertools.combinations(keys, 2))]
    steps = {int(step) for order in orders for step in (np.argmin(order), np.argmax(order))}
    return [{name: values[i] for name, values in columns.items()} for i in sorted(steps)]
