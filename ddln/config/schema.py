"""The tables of a configuration: every key with its range and its meaning.

Validation is strict: text is not a number, and unknown keys are errors. A key that determines the
shape of an array is marked `SHAPE`; a sweep over it compiles one program per value. The tables
of `[dynamics]` are in `ddln.config.dynamics`, those of `[sweep]` in `ddln.config.axis_kinds`.

To add a loss, an initialiser or a data set, define its table here with a new `kind`, add the table
to `LossConfig`, `InitConfig` or `DataConfig`, and give the kind its constructor in
`ddln.sweeps.build` or, for data, in `ddln.config.datasets`.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from ddln.config import datasets

NAME = r"^[a-z][a-z0-9_]*$"
WHOLE, REAL = (int, int | None), (float, float | None)
SHAPE: JsonDict = {"changes_shape": True}

Whole = Annotated[int, Field(lt=2**63)]
"""An integer of at most 64 bits."""
Seed = Annotated[int, Field(ge=0, lt=2**32, description="seed of the random numbers")]


class Table(BaseModel):
    """A TOML table: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class UniformLawConfig(Table):
    """Uniform distribution on [low, high)."""

    kind: Literal["uniform"]
    low: float = Field(description="lower end")
    high: float = Field(description="upper end")

    @model_validator(mode="after")
    def _ends_are_ordered(self):
        if not self.low < self.high:
            raise ValueError(f"low must be < high, got {self.low} and {self.high}")
        return self


class NormalLawConfig(Table):
    """Normal distribution."""

    kind: Literal["normal"]
    mean: float = Field(default=0.0, description="mean")
    std: float = Field(default=1.0, ge=0, description="standard deviation")


class ConstantLawConfig(Table):
    """A single value, without randomness."""

    kind: Literal["constant"]
    value: float = Field(description="the value")


LawConfig = UniformLawConfig | NormalLawConfig | ConstantLawConfig
Law = Annotated[LawConfig, Field(discriminator="kind")]


class ConstantInitConfig(ConstantLawConfig):
    """Every weight of every layer has the same value."""


class BalancedInitConfig(Table):
    """All layers are equal: one draw, repeated."""

    kind: Literal["balanced"]
    law: Law = Field(description="distribution of the weights of one layer")
    seed: Seed = 0


class UniformInitConfig(UniformLawConfig):
    """Independent weights, uniform on [low, high)."""

    seed: Seed = 0


class NormalInitConfig(NormalLawConfig):
    """Independent normal weights."""

    seed: Seed = 0


class ZeroFirstLayerInitConfig(Table):
    """First layer zero, the others independent: θ(0) = 0 at every scale."""

    kind: Literal["zero_first_layer"]
    law: Law = Field(description="distribution of the weights of the other layers")
    seed: Seed = 0


class ImbalancedInitConfig(Table):
    """A smallest first layer; the others are equal, and larger by a given conserved imbalance."""

    kind: Literal["imbalanced"]
    smallest: float = Field(description="the weights of the first layer")
    imbalance: float = Field(ge=0, description="(u^j)² − (u^1)² of every other layer j")


class ExplicitInitConfig(Table):
    """The weights themselves."""

    kind: Literal["explicit"]
    layers: tuple[tuple[float, ...], ...] = Field(
        description="one row per layer; in a signed network, the columns of u and then those of v"
    )


InitConfig = (
    ConstantInitConfig
    | BalancedInitConfig
    | UniformInitConfig
    | NormalInitConfig
    | ZeroFirstLayerInitConfig
    | ImbalancedInitConfig
    | ExplicitInitConfig
)


class _RandomDataConfig(Table):
    samples: Whole = Field(ge=1, description="rows of X", json_schema_extra=SHAPE)
    features: Whole = Field(
        ge=1, description="columns of X: the width of the network", json_schema_extra=SHAPE
    )
    design: Literal["normal", "rademacher"] = Field(
        default="normal",
        description="distribution of the entries of X: N(0, 1), or ±1 with equal probability",
    )
    seed: Seed = 0


class GaussianDataConfig(_RandomDataConfig):
    """Independent features, distributed by `design`; independent standard normal targets."""

    kind: Literal["gaussian"]


class _PlantedDataConfig(_RandomDataConfig):
    nonzeros: Whole = Field(ge=0, description="nonzero entries of θ*")

    @model_validator(mode="after")
    def _nonzeros_fit(self):
        if self.nonzeros > self.features:
            raise ValueError(
                f"nonzeros must be ≤ features, got {self.nonzeros} and {self.features}"
            )
        return self


class SparseDataConfig(_PlantedDataConfig):
    """Independent features; targets Xθ* + noise · N(0, 1), with θ* = ±1 on a few entries."""

    kind: Literal["sparse"]
    noise: float = Field(default=0.0, ge=0, description="standard deviation of the noise")


class ClassificationDataConfig(_PlantedDataConfig):
    """Independent features; labels ±1, the signs of Xθ* + noise · N(0, 1)."""

    kind: Literal["classification"]
    noise: float = Field(default=0.0, ge=0, description="standard deviation of the noise")


class CountsDataConfig(_PlantedDataConfig):
    """Independent features; Poisson targets with mean exp(strength · Xθ*)."""

    kind: Literal["counts"]
    strength: float = Field(default=0.5, description="factor of Xθ*")


class FileDataConfig(Table):
    """A CSV file with a header, or an NPZ file with arrays `features` and `targets` and,
    optionally, the true parameter θ* as `truth`."""

    kind: Literal["file"]
    path: str = Field(description="path, relative to the configuration file")
    target: str = Field(default="target", description="the CSV column to fit")
    features: tuple[str, ...] | None = Field(
        default=None, description="columns to fit with; by default, all others"
    )
    standardise: bool = Field(
        default=False,
        description="scale columns and target to mean 0 and standard deviation 1",
    )


class DiabetesDataConfig(Table):
    """The diabetes data of scikit-learn: 442 patients, 10 measurements."""

    kind: Literal["diabetes"]
    quadratic: bool = Field(
        default=False,
        description="add products and squares of the measurements, 64 columns in all; the square "
        "of `sex`, a binary variable, is left out",
    )
    standardise: bool = Field(
        default=True,
        description="scale columns and target to mean 0 and standard deviation 1",
    )


Digit = Annotated[int, Field(ge=0, le=9)]


class DigitsDataConfig(Table):
    """Two of scikit-learn's handwritten digits: 64 pixels from 0 to 1, labels ±1."""

    kind: Literal["digits"]
    positive: Digit = Field(description="the digit with label 1", json_schema_extra=SHAPE)
    negative: Digit = Field(description="the digit with label −1", json_schema_extra=SHAPE)

    @model_validator(mode="after")
    def _digits_differ(self):
        if self.positive == self.negative:
            raise ValueError(f"positive and negative must differ, got {self.positive} twice")
        return self


DataConfig = (
    GaussianDataConfig
    | SparseDataConfig
    | ClassificationDataConfig
    | CountsDataConfig
    | FileDataConfig
    | DiabetesDataConfig
    | DigitsDataConfig
)


class _ScaledLossConfig(Table):
    normalisation: Literal["sum", "half", "mean", "half_mean"] = Field(
        default="sum", description="c = 1 (the paper's), 1/2, 1/n, 1/(2n)"
    )


class LeastSquaresLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c ‖Xθ − y‖²."""

    kind: Literal["least_squares"] = "least_squares"


class LogisticLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c Σ_i log(1 + exp(−y_i x_iᵀθ)), y_i = ±1."""

    kind: Literal["logistic"]


class ExponentialLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c Σ_i exp(−y_i x_iᵀθ), y_i = ±1."""

    kind: Literal["exponential"]


class PoissonLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c Σ_i [exp(x_iᵀθ) − y_i x_iᵀθ], y_i = 0, 1, 2, …"""

    kind: Literal["poisson"]


class HuberLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c Σ_i φ(x_iᵀθ − y_i), with φ(r) = r²/2 for |r| ≤ δ and linear beyond."""

    kind: Literal["huber"]
    delta: float = Field(default=1.0, gt=0, description="threshold δ")


LossConfig = (
    LeastSquaresLossConfig
    | LogisticLossConfig
    | ExponentialLossConfig
    | PoissonLossConfig
    | HuberLossConfig
)


def default_kind(kind: str) -> BeforeValidator:
    """Gives a table without a `kind` this one."""
    return BeforeValidator(
        lambda table: {"kind": kind, **table} if isinstance(table, Mapping) else table
    )


class ProblemConfig(Table):
    """The data and the loss."""

    data: Annotated[DataConfig, Field(discriminator="kind")]
    loss: Annotated[LossConfig, Field(discriminator="kind"), default_kind("least_squares")] = (
        LeastSquaresLossConfig()
    )

    @field_validator("data")
    @classmethod
    def _data_can_be_read(cls, data: DataConfig) -> DataConfig:
        datasets.shape_of(data)
        return data

    @model_validator(mode="after")
    def _targets_suit_the_loss(self):
        datasets.validate(self.data, self.loss.kind)
        return self


class NetworkConfig(Table):
    """The initial layers."""

    depth: Whole = Field(ge=2, description="number of layers", json_schema_extra=SHAPE)
    init: Annotated[InitConfig, Field(discriminator="kind")]
    scale: float = Field(default=1.0, gt=0, description="factor of every layer")
    signed: bool = Field(
        default=False,
        description="θ = ∏u − ∏v, with v = u at the start (explicit layers hold the columns of u, "
        "then those of v)",
    )


class DevicesConfig(Table):
    """The devices that compute a chunk, arranged as lanes × features. Each process of a cluster
    has its own devices."""

    lanes: int = Field(
        default=1, ge=1, description="groups of devices; each computes its share of the networks"
    )
    features: int = Field(
        default=1, ge=1, description="devices per group; each holds its share of the columns of X"
    )
