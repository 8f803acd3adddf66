"""The tables of a configuration: every key with its range and its meaning.

Validation is strict: text is not a number, and unknown keys are errors. A key that determines the
shape of an array is marked `SHAPE`; a sweep over it compiles one program per value. The tables
of `[dynamics]` are in `dynamics_schema`, those of `[sweep]` in `axis_schema`.

To add a loss, an initialiser or a data set, define its table here, for data in
`ddln.config.data_schema`, with a new `kind`, add the table to `LossConfig`, `InitConfig` or
`DataConfig`, and give the kind its constructor in `ddln.sweeps.build` or, for data, in
`ddln.config.datasets`.
"""

from typing import Annotated, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from ddln.config import datasets
from ddln.config._table import SHAPE, Seed, Table, Whole, default_kind
from ddln.config.data_schema import DataConfig


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


class MultinomialLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c Σ_i [log Σ_k exp(z_ik) − z_{i,y_i}], z = XW, for labels y_i of K classes, words or
    whole numbers of a file. θ holds W row by row: K coordinates for each feature."""

    kind: Literal["multinomial"]


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


class HingeLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c Σ_i max(0, 1 − y_i x_iᵀθ), y_i = ±1. Not differentiable: for a descent only."""

    kind: Literal["hinge"]


class QuantileLossConfig(_ScaledLossConfig):
    """ℒ(θ) = c Σ_i φ(y_i − x_iᵀθ), with φ(r) = τ r for r > 0 and (τ − 1) r below. Not
    differentiable: for a descent only."""

    kind: Literal["quantile"]
    level: float = Field(default=0.5, gt=0, lt=1, description="τ, the quantile")


NOT_DIFFERENTIABLE = ("hinge", "quantile")

LossConfig = (
    LeastSquaresLossConfig
    | LogisticLossConfig
    | MultinomialLossConfig
    | ExponentialLossConfig
    | PoissonLossConfig
    | HuberLossConfig
    | HingeLossConfig
    | QuantileLossConfig
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

    depth: Whole = Field(ge=1, description="number of layers", json_schema_extra=SHAPE)
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
