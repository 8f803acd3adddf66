"""The tables of `[sweep]`: every form of an axis.

An axis is a list, or a table with one of the keys `FORMS`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ddln.config import _expressions
from ddln.config._table import Table

MAX_VALUES = 1_000_000


class _ZippableAxisConfig(Table):
    zip: str | None = Field(
        default=None, description="vary together with this axis, along its dimension"
    )


class ValuesAxisConfig(_ZippableAxisConfig):
    """The values themselves; without a `zip`, a plain list is the same."""

    values: tuple[int | float, ...] = Field(
        max_length=MAX_VALUES, description="the values, in this order"
    )

    @property
    def points(self) -> list[int | float]:
        """The values of the axis."""
        return list(self.values)


class LinspaceAxisConfig(_ZippableAxisConfig):
    """Evenly spaced values."""

    linspace: tuple[float, float, Annotated[int, Field(ge=1, le=MAX_VALUES)]] = Field(
        description="[first, last, number of values]"
    )

    @property
    def points(self) -> list[int | float]:
        """The values of the axis."""
        return np.linspace(*self.linspace).tolist()


class LogspaceAxisConfig(_ZippableAxisConfig):
    """Logarithmically spaced values."""

    logspace: tuple[float, float, Annotated[int, Field(ge=1, le=MAX_VALUES)]] = Field(
        description="[log10 of the first, log10 of the last, number of values]"
    )

    @property
    def points(self) -> list[int | float]:
        """The values of the axis; infinite beyond the range of float64."""
        with np.errstate(over="ignore"):
            return np.logspace(*self.logspace).tolist()


class RangeAxisConfig(_ZippableAxisConfig):
    """Consecutive whole numbers."""

    range: tuple[int, int] = Field(description="[first, one past the last]")

    @model_validator(mode="after")
    def _is_not_empty(self):
        if not 1 <= self.range[1] - self.range[0] <= MAX_VALUES:
            raise ValueError(f"needs first < end and at most {MAX_VALUES} values")
        return self

    @property
    def points(self) -> list[int | float]:
        """The values of the axis."""
        return list(range(*self.range))


class ExpressionAxisConfig(Table):
    """Arithmetic on other axes, such as `"4e-3 * scale**-10"`, along their dimension.

    An expression has numbers, + − * / **, parentheses, sqrt, exp, log (natural), and axes by their
    dotted name or the end of it.
    """

    expr: str = Field(description="the expression; all its axes lie along one dimension")

    @model_validator(mode="before")
    @classmethod
    def _has_no_zip(cls, table: Any) -> Any:
        if isinstance(table, Mapping) and "zip" in table:
            raise ValueError("varies together with the axes it depends on, and takes no `zip`")
        return table

    @field_validator("expr")
    @classmethod
    def _names_an_axis(cls, text: str) -> str:
        if not _expressions.parse(text).names:
            raise ValueError(f'must name another axis of the sweep, got "{text}"')
        return text


FORMS = {"values", "linspace", "logspace", "range", "expr"}


def axis_form(axis: Any) -> str | None:
    """The key of an axis table that is one of `FORMS`, or `list`; None of anything else."""
    if isinstance(axis, list | tuple):
        return "list"
    keys = axis if isinstance(axis, Mapping) else getattr(type(axis), "model_fields", ())
    forms = [key for key in keys if key in FORMS]
    return forms[0] if len(forms) == 1 else None


AxisConfig = Annotated[
    Annotated[Annotated[tuple[int | float, ...], Field(max_length=MAX_VALUES)], Tag("list")]
    | Annotated[ValuesAxisConfig, Tag("values")]
    | Annotated[LinspaceAxisConfig, Tag("linspace")]
    | Annotated[LogspaceAxisConfig, Tag("logspace")]
    | Annotated[RangeAxisConfig, Tag("range")]
    | Annotated[ExpressionAxisConfig, Tag("expr")],
    Discriminator(axis_form),
]
