"""The table `[dynamics.weight_decay]` of a configuration: a schedule ω(t), or a number for ω."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from ddln.config._table import Table, default_kind


class ConstantDecayConfig(Table):
    """Constant ω; 0 from the time `until` on, if there is one."""

    kind: Literal["constant"] = "constant"
    rate: float = Field(ge=0, description="ω, per unit of flow time")
    until: float | None = Field(
        default=None, gt=0, description="flow time from which on there is no decay"
    )


class PiecewiseDecayConfig(Table):
    """Piecewise constant ω: `rates[i]` up to the flow time `until[i]`."""

    kind: Literal["piecewise"]
    rates: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Strict(False)] = Field(
        min_length=1, description="ω of each piece"
    )
    until: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Strict(False)] = Field(
        description="flow times at which the pieces end; the last must not precede the flow's"
    )

    @model_validator(mode="after")
    def _pieces_follow_each_other(self):
        if len(self.until) != len(self.rates) or any(a >= b for a, b in pairwise(self.until)):
            raise ValueError(
                f"until: must increase and have {len(self.rates)} numbers, one for each rate, got "
                f"{list(self.until)}"
            )
        return self


class CosineDecayConfig(Table):
    """ω(t) = ω₁ + (ω₀ − ω₁)(1 + cos πt/T)/2 up to the flow time T."""

    kind: Literal["cosine"]
    rate: float = Field(ge=0, description="ω₀, at time 0")
    final: float = Field(default=0.0, ge=0, description="ω₁, at time T")
    until: float = Field(gt=0, description="T, which must not precede the end of the flow")


def _as_table(decay: object) -> object:
    """A number as the table of constant decay."""
    is_number = isinstance(decay, int | float) and not isinstance(decay, bool)
    return {"rate": decay} if is_number else decay


# `default_kind` hands on what was read from JSON, where a tuple is a list.
DecayConfig = Annotated[
    ConstantDecayConfig | PiecewiseDecayConfig | CosineDecayConfig | None,
    Field(discriminator="kind"),
    default_kind("constant"),
    BeforeValidator(_as_table),
]
