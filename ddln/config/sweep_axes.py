"""Axes of a sweep: their values and dimensions, and the problems of invalid axes."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from types import GenericAlias
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ddln.config import _expressions
from ddln.config._errors import AXIS_FORMS, hint, rule
from ddln.config._expressions import ExpressionError
from ddln.config._table import REAL, WHOLE
from ddln.config._toml import as_json
from ddln.config.axis_schema import AxisConfig, ExpressionAxisConfig

_FLOAT_LIMIT = 2**1024


class Column(NamedTuple):
    """The values of an axis along a dimension of the grid.

    Attributes:
        dimension: the name of the axis itself, or of the axis that it varies with.
        values: one for each index of the dimension.
    """

    dimension: str
    values: list[int | float]


def columns(sweep: Mapping[str, Any], leaves: Mapping[str, FieldInfo]) -> dict[str, Column]:
    """The axes of a validated sweep as columns, in the same order.

    Args:
        sweep: axes by the name of their leaf.
        leaves: all numeric leaves by name.

    Raises:
        ExpressionError: the expression of an axis cannot be evaluated.

    >>> from ddln.config.experiment import numeric_leaves
    >>> experiment = ddln.load("configs/figure4.toml", ["sweep={}"]).with_(
    ...     {
    ...         "sweep.network.scale": [1.0, 2.0],
    ...         "sweep.network.init.seed": {"values": [3, 4], "zip": "network.scale"},
    ...         "sweep.dynamics.until": {"expr": "3 * scale**-10"},
    ...     }
    ... )
    >>> found = columns(experiment.sweep, numeric_leaves(experiment))
    >>> found["dynamics.until"].values, {column.dimension for column in found.values()}
    ([3.0, 0.0029296875], {'network.scale'})
    """
    found = {
        name: Column(axis_dimension(name, axis), axis_values(axis, leaves[name]))
        for name, axis in sweep.items()
        if not isinstance(axis, ExpressionAxisConfig)
    }
    return {
        name: found[name] if name in found else _evaluate(axis.expr, found, leaves[name])
        for name, axis in sweep.items()
    }


def _evaluate(text: str, others: Mapping[str, Column], leaf: FieldInfo) -> Column:
    """The column of an expression; `others` are the axes without expressions."""
    expression = _expressions.parse(text)
    axes = {name: others[_expressions.resolve(name, others)] for name in expression.names}
    dimensions = list(dict.fromkeys(column.dimension for column in axes.values()))
    if len(dimensions) != 1:
        raise ExpressionError(
            f"must depend on axes along one dimension, got {' and '.join(dimensions)}; zip one of "
            "these to the other"
        )
    points = zip(*(column.values for column in axes.values()), strict=False)
    values = [expression(dict(zip(axes, point, strict=True))) for point in points]
    return Column(dimensions[0], _typed(values, leaf))


def axis_dimension(name: str, axis: Any) -> str:
    """The dimension of an axis without an expression.

    >>> from ddln.config.axis_schema import RangeAxisConfig
    >>> axis_dimension("network.init.seed", RangeAxisConfig(range=(0, 2), zip="network.scale"))
    'network.scale'
    """
    return getattr(axis, "zip", None) or name


def axis_values(axis: Any, leaf: FieldInfo) -> list[int | float]:
    """The values of an axis without an expression; integers if its leaf is an integer."""
    return _typed(list(axis) if isinstance(axis, tuple) else axis.points, leaf)


def _typed(values: Sequence[int | float], leaf: FieldInfo) -> list[int | float]:
    """The values as floats for a real leaf, and as integers, if whole, for an integer leaf."""
    if leaf.annotation not in WHOLE:
        # An integer can exceed every float: infinite, which is out of the range of every leaf.
        return [float(value) if abs(value) < _FLOAT_LIMIT else math.inf for value in values]
    return [int(value) if value == value // 1 else value for value in values]


def sweep_problems(sweep: Any, leaves: Mapping[str, FieldInfo]) -> Iterator[str]:
    """The problems of a raw sweep that the validation of `AxisConfig` does not find.

    Args:
        sweep: axes by the name of their leaf, not validated.
        leaves: all numeric leaves by name.
    """
    known: dict[str, Column] = {}
    expressions: dict[str, str] = {}
    broken: set[str] = set()
    for name, axis in sweep.items() if isinstance(sweep, Mapping) else ():
        table, _, key = name.rpartition(".")
        if table in leaves:
            yield f"sweep.{table}: {AXIS_FORMS}, got {{{key} = …}}"
            continue
        if name not in leaves:
            yield f"sweep.{name}: not a numeric key{hint(name, leaves)}"
            continue
        try:
            text = json.dumps(axis, default=as_json)
            axis = TypeAdapter(AxisConfig).validate_json(text, strict=True)
        except ValidationError:
            broken.add(name)
            continue  # reported already
        if isinstance(axis, ExpressionAxisConfig):
            expressions[name] = axis.expr
            continue
        known[name] = Column(axis_dimension(name, axis), axis_values(axis, leaves[name]))
        if not known[name].values:
            yield f"sweep.{name}: needs at least one value"
        yield from _range_problems(name, known[name], leaves[name])
    computed = {}
    for name, text in ({} if broken else expressions).items():
        try:
            computed[name] = _evaluate(text, known, leaves[name])
        except ExpressionError as error:
            yield f"sweep.{name}.expr: {error}"
        else:
            yield from _range_problems(name, computed[name], leaves[name])
    yield from _zip_problems({**known, **computed})


def _range_problems(name: str, column: Column, leaf: FieldInfo) -> Iterator[str]:
    """The problem of the first value out of the range of its leaf."""
    try:
        _values_adapter(leaf).validate_python(column.values, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        yield f"sweep.{name}[{fault['loc'][0]}]: {rule(fault)}"


def _zip_problems(found: Mapping[str, Column]) -> Iterator[str]:
    own = [name for name, column in found.items() if name == column.dimension]
    for name, (dimension, values) in found.items():
        if dimension not in own:
            near = hint(dimension, own)
            yield f'sweep.{name}.zip: must name an axis with a dimension, got "{dimension}"{near}'
        elif len(values) != len(found[dimension].values):
            lengths = f"{len(values)} values for {len(found[dimension].values)}"
            yield f"sweep.{name}: must be as long as {dimension}, got {lengths}"
    for name in own:
        together = [column.values for column in found.values() if column.dimension == name]
        if len(set(zip(*together, strict=False))) < len(found[name].values):
            yield f"sweep.{name}: values must differ from each other"


def _values_adapter(leaf: FieldInfo) -> TypeAdapter:
    finite = [Field(allow_inf_nan=False)] if leaf.annotation in REAL else []
    value: Any = Annotated[leaf.annotation, *finite, *leaf.metadata]
    values: Any = GenericAlias(list, (value,))
    return TypeAdapter(values)


def corners(sweep: Mapping[str, Any], leaves: Mapping[str, FieldInfo]) -> Iterator[dict[str, Any]]:
    """The corners of the grid, as values by the name of their leaf.

    Most rules between two keys are inequalities, so they hold on the whole grid if they hold at its
    corners. `ddln.sweeps.plan` validates every shape, for rules such as divisibility.
    """
    dimensions: dict[str, dict[str, Any]] = {}
    for name, (dimension, values) in columns(sweep, leaves).items():
        dimensions.setdefault(dimension, {})[name] = values
    ends = [_extremes(together) for together in dimensions.values()]
    for corner in itertools.product(*ends) if ends else ():
        yield {name: value for point in corner for name, value in point.items()}


def _extremes(together: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The points at which a key, or the difference of two keys, is least or largest."""
    keys = [np.asarray(values) for values in together.values()]
    orders = [*keys, *(one - other for one, other in itertools.combinations(keys, 2))]
    indices = {int(i) for order in orders for i in (np.argmin(order), np.argmax(order))}
    return [{name: values[i] for name, values in together.items()} for i in sorted(indices)]
