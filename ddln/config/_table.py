"""What every table of a configuration shares: strict validation, ranges and marks of its keys."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

NAME = r"^[a-z][a-z0-9_]*$"
WHOLE, REAL = (int, int | None), (float, float | None)
SHAPE: JsonDict = {"changes_shape": True}

Whole = Annotated[int, Field(lt=2**63)]
"""An integer of at most 64 bits."""
Seed = Annotated[int, Field(ge=0, lt=2**32, description="seed of the random numbers")]


class Table(BaseModel):
    """A TOML table: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def default_kind(kind: str) -> BeforeValidator:
    """Gives a table without a `kind` this one."""
    return BeforeValidator(
        lambda table: {"kind": kind, **table} if isinstance(table, Mapping) else table
    )
