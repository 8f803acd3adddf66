"""The table `[dynamics]` of a configuration: a flow, or training step by step.

Both keep a number of points of their curve; what else there is to say depends on `kind`.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, Strict, model_validator

from ddln.config.schema import SHAPE, Seed, Table, Whole, default_kind

OF_DEPTH_2 = {"gain", "effective_initialisation"}
"""What can be measured of two layers only."""

_LISTED = Strict(False)  # a default `kind` is put into what was read of JSON: a list, not a tuple
Measure = Literal["sharpness", "gain", "effective_initialisation"]
Drop = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]], _LISTED]


class _Curve(Table):
    points: Whole = Field(
        default=301,
        ge=5,
        description="saved points of the curve, the first is the start; of a descent at most one "
        "a step",
        json_schema_extra=SHAPE,
    )
    spacing: Literal["linear", "log"] = Field(default="linear", description="of the saved points")
    save: Literal["loss", "theta", "all"] = Field(
        default="all",
        description="what is kept: loss, gap and bounds; θ and its velocity too; the layers too",
    )
    measure: Annotated[tuple[Measure, ...], _LISTED] = Field(
        default=(), description="what else is measured of the curve, by `ddln.diagnostics`"
    )

    target_gap: float | None = Field(
        default=None,
        gt=0,
        description="a lane ends once its gap is no larger (of a descent, a saved one)",
    )

    @property
    def saved(self) -> int:
        """How many points of the curve are saved."""
        return self.points


class Flow(_Curve):
    """A flow and how it is integrated."""

    kind: Literal["gradient_flow", "mirror_flow"] = "gradient_flow"
    until: float = Field(
        gt=0,
        description="flow time at the end; k steps of size η reach kη",
        json_schema_extra={"units": "flow time"},
    )
    decades: float = Field(
        default=8.0,
        gt=0,
        le=100,
        description="powers of ten of time that a logarithmic spacing spreads the points over; "
        "before them it is linear",
    )
    coordinates: Literal["reduced", "layers"] = Field(
        default="reduced", description="one number per coordinate, or all layers"
    )
    solver: Literal["auto", "tsit5", "rodas5p", "dopri8", "kvaerno5"] = Field(
        default="auto",
        description="of the steps: explicit (tsit5, dopri8) or implicit (rodas5p, kvaerno5); auto "
        "takes for each lane tsit5 or, where it is stiff, rodas5p",
    )
    rtol: float = Field(default=1e-9, gt=0, lt=1, description="relative tolerance")
    atol: float = Field(default=1e-12, gt=0, lt=1, description="absolute tolerance")
    max_steps: Whole = Field(
        default=100_000, ge=1, description="step budget of a lane", json_schema_extra=SHAPE
    )

    @model_validator(mode="after")
    def _solver_fits(self):
        if self.solver == "rodas5p" and not self.is_reduced:
            raise ValueError("solver: rodas5p is for the gradient flow in reduced coordinates")
        if self.target_gap is not None and not self.is_batched:
            raise ValueError(
                "target_gap: must not be given but for the gradient flow in reduced coordinates, "
                "by auto, tsit5 or rodas5p"
            )
        return self

    @property
    def summary(self) -> str:
        """In a few words."""
        return f"{self.kind} to time {self.until:g}"

    @property
    def is_reduced(self) -> bool:
        """Whether one position per coordinate is integrated."""
        return self.kind == "gradient_flow" and self.coordinates == "reduced"

    @property
    def is_batched(self) -> bool:
        """Whether the engine of sweeps integrates it."""
        return self.is_reduced and self.solver in ("auto", "tsit5", "rodas5p")


class _Rule(Table):
    weight_decay: float | None = Field(
        default=None, ge=0, description="ω: adds ω u to the gradient in the layers u"
    )
    drops: Annotated[tuple[Drop, ...], _LISTED] = Field(
        default=(), description="[step, factor]: from the step on, γ is multiplied by the factor"
    )


class Plain(_Rule):
    """u ← u − γ g, or γ sign g."""

    kind: Literal["sgd", "sign"]
    learning_rate: float = Field(gt=0, description="step size γ")


class Momentum(_Rule):
    """u ← u − γ g + β (u − u_before), or Nesterov's form of it."""

    kind: Literal["heavy_ball", "nesterov"]
    learning_rate: float | None = Field(default=None, gt=0, description="step size γ")
    intrinsic_step: float | None = Field(
        default=None, gt=0, description="λ = γ / (1 − β)², in place of γ (Papazov et al. 2024)"
    )
    momentum: float = Field(ge=0, lt=1, description="β")

    @model_validator(mode="after")
    def _one_step_size(self):
        if (self.learning_rate is None) == (self.intrinsic_step is None):
            given = "neither" if self.learning_rate is None else "both"
            raise ValueError(f"needs one of learning_rate and intrinsic_step, got {given}")
        return self


class Adam(_Rule):
    """u ← u − γ m̂ / (√v̂ + ε), m̂ and v̂ running means of g and g²."""

    kind: Literal["adam"]
    learning_rate: float = Field(gt=0, description="step size γ")
    b1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of g")
    b2: float = Field(default=0.999, ge=0, lt=1, description="decay of the mean of g²")
    eps: float = Field(default=1e-8, gt=0, description="ε")


class Sampling(Table):
    """What each step sees of the data; without this table, all of it."""

    batch: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="samples of a step; all by default",
        json_schema_extra=SHAPE,
    )
    replacement: bool = Field(
        default=True, description="whether every step draws from all samples, or passes share them"
    )
    label_noise: float | None = Field(
        default=None, ge=0, description="standard deviation of fresh noise on the targets"
    )
    noisy: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="targets of a step that the noise falls on; all by default",
        json_schema_extra=SHAPE,
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _noise_fits(self):
        if self.noisy is not None and self.label_noise is None:
            raise ValueError("noisy needs label_noise")
        if self.noisy is not None and self.batch is not None and self.noisy > self.batch:
            raise ValueError(f"noisy must be ≤ batch, got {self.noisy} and {self.batch}")
        return self


class SharpnessAware(Table):
    """The gradient uphill, at u + ρ ∂ℓ/∂u."""

    rho: float = Field(ge=0, description="ρ: how far")
    group: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="m: how many samples climb together (m-SAM); all of a batch by default",
        json_schema_extra=SHAPE,
    )
    normalised: bool = Field(default=False, description="whether the climb has length ρ")


class Descent(_Curve):
    """Training step by step, and by which rule."""

    kind: Literal["descent"]
    steps: int = Field(ge=1, lt=2**31, description="how many", json_schema_extra=SHAPE)
    optimiser: Annotated[Plain | Momentum | Adam, Field(discriminator="kind")]
    sampling: Sampling | None = Field(
        default=None, description="what a step sees of the data; all of it by default"
    )
    sharpness_aware: SharpnessAware | None = Field(
        default=None, description="where a step sees its gradient; at the layers by default"
    )

    @property
    def summary(self) -> str:
        """In a few words."""
        return f"{self.kind} by {self.optimiser.kind}, {self.steps:,} steps"

    @property
    def saved(self) -> int:
        """How many points of the curve are saved."""
        return min(self.points, self.steps + 1)

    @property
    def records(self) -> np.ndarray:
        """The steps that are saved, from 0 to the last one, each once."""
        if self.spacing == "linear":
            return np.rint(np.linspace(0, self.steps, self.saved)).astype(int)
        # Where whole numbers are farther apart than the spacing asks, each of them.
        spread = np.floor(np.geomspace(1, self.steps, self.saved - 1) + 0.5)
        return np.append(0, np.maximum(spread, np.arange(1, self.saved))).astype(int)


Dynamics = Annotated[Flow | Descent, Field(discriminator="kind"), default_kind("gradient_flow")]
