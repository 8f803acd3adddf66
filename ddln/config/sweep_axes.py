"""The axes of `[sweep]`: their values, where they lie, and what is wrong with them."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ddln.config import _expressions
from ddln.config._errors import AXIS_FORMS, hint, rule
from ddln.config._expressions import ExpressionError
from ddln.config._toml import plain
from ddln.config.schema import REAL, WHOLE, Axis, Expr, Linspace, Logspace, Range, Values

_HUGE = 2**1024


class Column(NamedTuple):
    """An axis of the sweep as values along a dimension of the grid."""

    dimension: str
    """The axis's own name, or that of the axis it is in step with."""
    values: list[int | float]


def columns(sweep: Mapping[str, Any], leaves: Mapping[str, FieldInfo]) -> dict[str, Column]:
    """The axes of a sweep, in its order.

    Args:
        sweep: validated axes by the name of their leaf.
        leaves: what can be swept, by name.

    Raises:
        ExpressionError: an axis given by an expression that cannot be evaluated.

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
        if not isinstance(axis, Expr)
    }
    return {
        name: _evaluated(axis.expr, found, leaves[name]) if isinstance(axis, Expr) else found[name]
        for name, axis in sweep.items()
    }


def _evaluated(text: str, others: Mapping[str, Column], leaf: FieldInfo) -> Column:
    """The column of an expression, from those of the axes that are none."""
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
    """The dimension of an axis of the sweep that is no expression.

    >>> axis_dimension("network.init.seed", Range(range=(0, 2), zip="network.scale"))
    'network.scale'
    """
    return getattr(axis, "zip", None) or name


def axis_values(axis: Any, leaf: FieldInfo) -> list[int | float]:
    """The values of an axis that is no expression; integers if its leaf is an integer."""
    import numpy as np

    if isinstance(axis, Linspace):
        values = np.linspace(*axis.linspace).tolist()
    elif isinstance(axis, Logspace):
        with np.errstate(over="ignore"):  # the range of the leaf is checked by the caller
            values = np.logspace(*axis.logspace).tolist()
    else:
        listed = axis.values if isinstance(axis, Values) else axis
        values = list(range(*axis.range)) if isinstance(axis, Range) else list(listed)
    return _typed(values, leaf)


def _typed(values: Sequence[int | float], leaf: FieldInfo) -> list[int | float]:
    """Floats for a real leaf, integers where they are whole for another."""
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
            axis = TypeAdapter(Axis).validate_json(json.dumps(axis, default=plain), strict=True)
        except ValidationError:
            broken.add(name)
            continue  # reported already
        if isinstance(axis, Expr):
            expressions[name] = axis.expr
            continue
        known[name] = Column(axis_dimension(name, axis), axis_values(axis, leaves[name]))
        if not known[name].values:
            yield f"sweep.{name}: needs at least one value"
        yield from _value_faults(name, known[name], leaves[name])
    computed = {}
    for name, text in ({} if broken else expressions).items():
        try:
            computed[name] = _evaluated(text, known, leaves[name])
        except ExpressionError as error:
            yield f"sweep.{name}.expr: {error}"
        else:
            yield from _value_faults(name, computed[name], leaves[name])
    yield from _zip_problems({**known, **computed})


def _value_faults(name: str, column: Column, leaf: FieldInfo) -> Iterator[str]:
    """The first value that is out of its leaf's range."""
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
    return TypeAdapter(list[value])  # pyright: ignore[reportInvalidTypeForm]


def corners(sweep: Mapping[str, Any], leaves: Mapping[str, FieldInfo]) -> Iterator[dict[str, Any]]:
    """The corners of the grid, by the names of leaves: rules between two keys are orders, so that
    these speak for all of it.

    Where one must divide another, `ddln.sweeps.plan` validates what lies between them.
    """
    dimensions: dict[str, dict[str, Any]] = {}
    for name, (dimension, values) in columns(sweep, leaves).items():
        dimensions.setdefault(dimension, {})[name] = values
    ends = [_extremes(together) for together in dimensions.values()]
    for corner in itertools.product(*ends) if ends else ():
        yield {name: value for step in corner for name, value in step.items()}


def _extremes(together: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The steps at which a key, or the difference of two, is least or largest."""
    import numpy as np

    keys = [np.asarray(values) for values in together.values()]
    orders = [*keys, *(one - other for one, other in itertools.combinations(keys, 2))]
    steps = {int(step) for order in orders for step in (np.argmin(order), np.argmax(order))}
    return [{name: values[i] for name, values in together.items()} for i in sorted(steps)]
