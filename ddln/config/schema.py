"""The tables of a configuration: every key, its range and what it means (`[dynamics]`: `dynamics`).

Strict: no text for a number, no unknown key. A leaf that decides the shape of an array says so, so
that a sweep over it compiles one program per value.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from ddln.config import _expressions

NAME = r"^[a-z][a-z0-9_]*$"
MAX_VALUES = 1_000_000
WHOLE, REAL = (int, int | None), (float, float | None)
SHAPE: JsonDict = {"changes_shape": True}

Whole = Annotated[int, Field(lt=2**63)]
"""No longer than a machine's own."""
Seed = Annotated[int, Field(ge=0, lt=2**32, description="of the random numbers")]


class Table(BaseModel):
    """A TOML table: strict, frozen, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(Table):
    """Uniform on [low, high)."""

    kind: Literal["uniform"]
    low: float = Field(description="lower end")
    high: float = Field(description="upper end")

    @model_validator(mode="after")
    def _ordered(self):
        if not self.low < self.high:
            raise ValueError(f"low must be < high, got {self.low} and {self.high}")
        return self


class NormalLaw(Table):
    """Normal."""

    kind: Literal["normal"]
    mean: float = Field(default=0.0, description="mean")
    std: float = Field(default=1.0, ge=0, description="standard deviation")


class ConstantLaw(Table):
    """One value."""

    kind: Literal["constant"]
    value: float = Field(description="the value")


Law = Annotated[Interval | NormalLaw | ConstantLaw, Field(discriminator="kind")]


class Constant(ConstantLaw):
    """Every weight of every layer equal."""


class Balanced(Table):
    """All layers equal to one draw."""

    kind: Literal["balanced"]
    law: Law = Field(description="of the weights of that one layer")
    seed: Seed = 0


class Uniform(Interval):
    """Independent weights, uniform on [low, high)."""

    seed: Seed = 0


class Normal(NormalLaw):
    """Independent normal weights."""

    seed: Seed = 0


class ZeroFirstLayer(Table):
    """First layer zero, the others independent: θ(0) = 0 at every scale."""

    kind: Literal["zero_first_layer"]
    law: Law = Field(description="of the weights of the other layers")
    seed: Seed = 0


class Imbalanced(Table):
    """One smallest layer, the others equal and larger by a given conserved imbalance."""

    kind: Literal["imbalanced"]
    smallest: float = Field(description="the weights of the first layer")
    imbalance: float = Field(ge=0, description="(u^j)² − (u^1)² of the other layers")


class Explicit(Table):
    """The weights themselves."""

    kind: Literal["explicit"]
    layers: tuple[tuple[float, ...], ...] = Field(
        description="one row per layer; of twice the width in a signed network"
    )


class _Drawn(Table):
    samples: Whole = Field(ge=1, description="rows of X", json_schema_extra=SHAPE)
    features: Whole = Field(ge=1, description="columns of X: the width", json_schema_extra=SHAPE)
    design: Literal["normal", "rademacher"] = Field(
        default="normal", description="law of the entries of X: N(0, 1), or ±1 alike"
    )
    seed: Seed = 0


class Gaussian(_Drawn):
    """Independent features, of the law `design`; targets independent standard normal."""

    kind: Literal["gaussian"]


class _Planted(_Drawn):
    nonzeros: Whole = Field(ge=0, description="entries of θ* that are not zero")

    @model_validator(mode="after")
    def _fits(self):
        if self.nonzeros > self.features:
            raise ValueError(
                f"nonzeros must be ≤ features, got {self.nonzeros} and {self.features}"
            )
        return self


class Sparse(_Planted):
    """Independent features; targets Xθ* + noise · N(0, 1), θ* = ±1 on few entries."""

    kind: Literal["sparse"]
    noise: float = Field(default=0.0, ge=0, description="standard deviation of the noise")


class Classification(_Planted):
    """Independent features; labels ±1, the sign of Xθ* + noise · N(0, 1)."""

    kind: Literal["classification"]
    noise: float = Field(default=0.0, ge=0, description="standard deviation of the noise")


class Counts(_Planted):
    """Independent features; targets Poisson of mean exp(strength · Xθ*)."""

    kind: Literal["counts"]
    strength: float = Field(default=0.5, description="multiplies Xθ*")


class File(Table):
    """A CSV file with a header, or an NPZ file with arrays `features` and `targets`, and perhaps
    the `truth` θ* behind them."""

    kind: Literal["file"]
    path: str = Field(description="relative to the configuration file")
    target: str = Field(default="target", description="the CSV column to be fitted")
    features: tuple[str, ...] | None = Field(
        default=None, description="columns; all others by default"
    )
    standardise: bool = Field(
        default=False, description="columns and target to mean 0 and deviation 1"
    )


class Diabetes(Table):
    """The diabetes data of scikit-learn: 442 patients, 10 measurements."""

    kind: Literal["diabetes"]
    quadratic: bool = Field(
        default=False,
        description="with products and squares, 64 columns: that of the sex would be the sex again",
    )
    standardise: bool = Field(
        default=True, description="columns and target to mean 0 and deviation 1"
    )


Digit = Annotated[int, Field(ge=0, le=9)]


class Digits(Table):
    """Two of scikit-learn's handwritten digits: 64 pixels from 0 to 1, labels ±1."""

    kind: Literal["digits"]
    positive: Digit = Field(description="the digit whose label is 1", json_schema_extra=SHAPE)
    negative: Digit = Field(description="the digit whose label is −1", json_schema_extra=SHAPE)

    @model_validator(mode="after")
    def _two(self):
        if self.positive == self.negative:
            raise ValueError(f"positive and negative must differ, got {self.positive} twice")
        return self


Data = Gaussian | Sparse | Classification | Counts | File | Diabetes | Digits
Init = Constant | Balanced | Uniform | Normal | ZeroFirstLayer | Imbalanced | Explicit


class _Loss(Table):
    normalisation: Literal["sum", "half", "mean", "half_mean"] = Field(
        default="sum", description="c = 1 (the paper's), 1/2, 1/n, 1/(2n)"
    )


class LeastSquares(_Loss):
    """ℒ(θ) = c ‖Xθ − y‖²."""

    kind: Literal["least_squares"] = "least_squares"


class Logistic(_Loss):
    """ℒ(θ) = c Σ_i log(1 + exp(−y_i x_iᵀθ)), y_i = ±1."""

    kind: Literal["logistic"]


class Exponential(_Loss):
    """ℒ(θ) = c Σ_i exp(−y_i x_iᵀθ), y_i = ±1."""

    kind: Literal["exponential"]


class Poisson(_Loss):
    """ℒ(θ) = c Σ_i [exp(x_iᵀθ) − y_i x_iᵀθ], y_i = 0, 1, 2, …"""

    kind: Literal["poisson"]


class Huber(_Loss):
    """ℒ(θ) = c Σ_i φ(x_iᵀθ − y_i), φ(r) = r²/2 up to |r| = δ and linear from there."""

    kind: Literal["huber"]
    delta: float = Field(default=1.0, gt=0, description="threshold δ")


Loss = LeastSquares | Logistic | Exponential | Poisson | Huber


def default_kind(kind: str) -> BeforeValidator:
    """A table without a `kind` is of this one."""
    return BeforeValidator(
        lambda table: {"kind": kind, **table} if isinstance(table, Mapping) else table
    )


class Problem(Table):
    """What is fitted."""

    data: Annotated[Data, Field(discriminator="kind")]
    loss: Annotated[Loss, Field(discriminator="kind"), default_kind("least_squares")] = (
        LeastSquares()
    )


class Network(Table):
    """The initial layers."""

    depth: Whole = Field(ge=2, description="number of layers", json_schema_extra=SHAPE)
    init: Annotated[Init, Field(discriminator="kind")]
    scale: float = Field(default=1.0, gt=0, description="multiplies every layer")
    signed: bool = Field(
        default=False,
        description="∏u − ∏v, u and v starting equal (explicit layers: u's columns, then v's)",
    )


class Devices(Table):
    """The devices that a chunk is integrated or trained on, lanes × features of them; each process
    of a cluster has its own."""

    lanes: int = Field(default=1, ge=1, description="groups of devices; each has lanes of its own")
    features: int = Field(
        default=1, ge=1, description="devices of a group; each has columns of its own of X, of θ"
    )


class _Form(Table):
    zip: str | None = Field(default=None, description="the axis it is walked in step with")


class Values(_Form):
    """The values themselves; without a `zip`, a plain list says the same."""

    values: tuple[int | float, ...] = Field(max_length=MAX_VALUES, description="in this order")


class Linspace(_Form):
    """Evenly spaced values."""

    linspace: tuple[float, float, Annotated[int, Field(ge=1, le=MAX_VALUES)]] = Field(
        description="[first, last, how many]"
    )


class Logspace(_Form):
    """Evenly spaced powers of ten."""

    logspace: tuple[float, float, Annotated[int, Field(ge=1, le=MAX_VALUES)]] = Field(
        description="[log10 first, log10 last, how many]"
    )


class Range(_Form):
    """Whole numbers."""

    range: tuple[int, int] = Field(description="[first, one past the last]")

    @model_validator(mode="after")
    def _some(self):
        if not 1 <= self.range[1] - self.range[0] <= MAX_VALUES:
            raise ValueError(f"needs first < end and at most {MAX_VALUES} values")
        return self


class Expr(Table):
    """Arithmetic on other axes of the sweep, along the dimension of these: `"4e-3 * scale**-10"`.

    Numbers, + − * / **, parentheses, sqrt, exp, log (natural), and axes by their dotted name or the
    end of it.
    """

    expr: str = Field(description="the expression; all axes in it lie along one dimension")

    @model_validator(mode="before")
    @classmethod
    def _has_no_zip(cls, table: Any) -> Any:
        if isinstance(table, Mapping) and "zip" in table:
            raise ValueError("is in step with the axes it depends on, and takes no `zip`")
        return table

    @field_validator("expr")
    @classmethod
    def _parses(cls, text: str) -> str:
        if not _expressions.parse(text).names:
            raise ValueError(f'must name another axis of the sweep, got "{text}"')
        return text


FORMS = {"values", "linspace", "logspace", "range", "expr"}


def _axis_kind(axis: Any) -> str | None:
    if isinstance(axis, Mapping):
        named = [key for key in axis if key in FORMS]
        return named[0] if len(named) == 1 else None
    if isinstance(axis, Table):
        return type(axis).__name__.lower()
    return "list" if isinstance(axis, list | tuple) else None


Axis = Annotated[
    Annotated[Annotated[tuple[int | float, ...], Field(max_length=MAX_VALUES)], Tag("list")]
    | Annotated[Values, Tag("values")]
    | Annotated[Linspace, Tag("linspace")]
    | Annotated[Logspace, Tag("logspace")]
    | Annotated[Range, Tag("range")]
    | Annotated[Expr, Tag("expr")],
    Discriminator(_axis_kind),
]
