"""The table `[dynamics]` of a configuration: a flow, or discrete training.

Both save a number of points of their trajectory; the other keys depend on `kind`.
"""

from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, Strict, model_validator

from ddln.config._table import SHAPE, Seed, Table, Whole, default_kind
from ddln.config.weight_decay_schema import ConstantDecayConfig, CosineDecayConfig, DecayConfig

OF_DEPTH_2 = {"gain", "effective_initialisation"}
"""Measures that are defined for two layers only."""

# `default_kind` hands on what was read from JSON, where a tuple is a list.
_LISTED = Strict(False)
Measure = Literal["sharpness", "gain", "effective_initialisation", "held_out_loss"]
Drop = Annotated[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]], _LISTED]


class _TrajectoryConfig(Table):
    points: Whole = Field(
        default=301,
        ge=5,
        description="saved points of the trajectory, the initial one among them; in a descent, at "
        "most one per step",
        json_schema_extra=SHAPE,
    )
    spacing: Literal["linear", "log"] = Field(
        default="linear", description="spacing of the saved points"
    )
    save: Literal["loss", "theta", "all"] = Field(
        default="all",
        description="variables to save: `loss` keeps loss, gap and bounds; `theta` adds θ and its "
        "velocity; `all` adds the layers",
    )
    measure: Annotated[tuple[Measure, ...], _LISTED] = Field(
        default=(),
        description="further quantities of `ddln.diagnostics` to save; `held_out_loss` is that of "
        "the rows that `problem.data.test` holds out",
    )
    target_gap: float | None = Field(
        default=None,
        gt=0,
        description="stop once the gap is at most this; a descent checks it at its saved points",
    )
    target_norm: float | None = Field(
        default=None, gt=0, description="stop at the first saved point with ‖θ‖₁ at least this"
    )
    patience: Whole | None = Field(
        default=None,
        ge=1,
        description="stop once the held-out loss has not fallen below its least value for so many "
        "saved points",
        json_schema_extra=SHAPE,
    )

    @property
    def saved(self) -> int:
        """Number of saved points."""
        return self.points

    @property
    def uses_held_out(self) -> bool:
        """Whether the run needs held-out samples."""
        return self.patience is not None or "held_out_loss" in self.measure


class FlowConfig(_TrajectoryConfig):
    """A flow, and how to integrate it."""

    kind: Literal["gradient_flow", "mirror_flow"] = "gradient_flow"
    until: float = Field(
        gt=0,
        description="final flow time; k steps of size η reach kη",
        json_schema_extra={"units": "flow time"},
    )
    times: Annotated[tuple[float, ...], _LISTED] | None = Field(
        default=None,
        min_length=3,
        description="saved flow times between 0 and `until`, which are saved too, instead of "
        "`points` and `spacing`",
    )
    decades: float = Field(
        default=8.0,
        gt=0,
        le=100,
        description="powers of ten of time that a logarithmic spacing covers; it is linear before "
        "them",
    )
    coordinates: Literal["reduced", "layers"] = Field(
        default="reduced",
        description="integrate one number per coordinate, or all layers",
    )
    weight_decay: DecayConfig = Field(
        default=None,
        description="weight decay −ω(t) u in the flow of each layer u: a number, or a schedule",
    )
    solver: Literal["auto", "tsit5", "rodas5p", "dopri8", "kvaerno5"] = Field(
        default="auto",
        description="explicit (tsit5, dopri8) or implicit (rodas5p, kvaerno5) steps; auto chooses "
        "for each network: rodas5p if its flow is stiff, tsit5 otherwise",
    )
    rtol: float = Field(default=1e-9, gt=0, lt=1, description="relative tolerance")
    atol: float = Field(default=1e-12, gt=0, lt=1, description="absolute tolerance")
    max_steps: Whole = Field(
        default=100_000, ge=1, description="most steps per network", json_schema_extra=SHAPE
    )

    @model_validator(mode="after")
    def _times_increase(self):
        if self.times is not None:
            _check_marks("times", self.times, self.until)
        return self

    @model_validator(mode="after")
    def _solver_fits(self):
        if self.solver == "rodas5p" and not self.is_reduced:
            raise ValueError("solver: rodas5p is for the gradient flow in reduced coordinates")
        if self.target_gap is not None and not self.is_batched:
            raise ValueError(
                "target_gap: is for the gradient flow in reduced coordinates, with the solver "
                "auto, tsit5 or rodas5p"
            )
        return self

    @model_validator(mode="after")
    def _decay_fits(self):
        decay = self.weight_decay
        for name in ("target_gap", "target_norm", "patience"):
            if decay is not None and getattr(self, name) is not None:
                raise ValueError(f"{name}: a flow with weight_decay does not stop early")
        if decay is None or isinstance(decay, ConstantDecayConfig):
            return self
        end = decay.until if isinstance(decay, CosineDecayConfig) else decay.until[-1]
        if end < self.until:
            raise ValueError(
                f"weight_decay.until: the schedule must not end before the flow, at {self.until:g},"
                f" got {end:g}"
            )
        return self

    @property
    def saved(self) -> int:
        """Number of saved points."""
        return self.points if self.times is None else len(self.times) + 2

    @property
    def summary(self) -> str:
        """The flow in a few words."""
        return f"{self.kind} to time {self.until:g}"

    @property
    def method(self) -> str:
        """The name of the flow."""
        return self.kind if self.weight_decay is None else f"{self.kind}_with_decay"

    @property
    def is_reduced(self) -> bool:
        """Whether the state is one number per coordinate."""
        return self.kind == "gradient_flow" and self.coordinates == "reduced"

    @property
    def is_batched(self) -> bool:
        """Whether `ddln.solvers.batched_flow` integrates it."""
        return self.is_reduced and self.solver in ("auto", "tsit5", "rodas5p")


def _check_marks(name: str, marks: tuple[float | int, ...], end: float | int) -> None:
    """Refuse saved times or steps that do not increase between 0 and the end."""
    if not all(one < other for one, other in pairwise((0, *marks, end))):
        raise ValueError(f"{name}: must increase, from above 0 to below {end:g}, got {list(marks)}")


class ScheduleConfig(Table):
    """The factor of the step size γ: from 0 to 1 over the warm-up, then as `kind` says until the
    last step. For steps of γ at chosen times see `drops`."""

    kind: Literal["constant", "linear", "cosine"]
    warm_up: Whole = Field(
        default=0, ge=0, description="steps of linear warm-up", json_schema_extra=SHAPE
    )
    final: float = Field(default=0.0, ge=0, description="the factor at the end; 1 if constant")


class _StepConfig(Table):
    schedule: ScheduleConfig | None = Field(
        default=None, description="of the step size; constant by default"
    )
    clip: float | None = Field(
        default=None, gt=0, description="largest norm of the gradient in all layers together"
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="ω: adds ω u to the gradient in each layer u"
    )
    decoupled: bool | None = Field(
        default=None,
        description="apply weight_decay beside the rule, as AdamW does: −γω u / (1 − β)",
    )
    drops: Annotated[tuple[Drop, ...], _LISTED] = Field(
        default=(), description="[step, factor] pairs: from that step on, γ is multiplied by factor"
    )

    @model_validator(mode="after")
    def _decay_can_be_decoupled(self):
        if self.decoupled and (self.weight_decay is None or isinstance(self, AdamWOptimiserConfig)):
            raise ValueError("decoupled: needs a weight_decay that is not the rule's own")
        return self


class PlainOptimiserConfig(_StepConfig):
    """u ← u − γ g (`sgd`), or u ← u − γ sign g (`sign`)."""

    kind: Literal["sgd", "sign"]
    learning_rate: float = Field(gt=0, description="step size γ")


class MomentumOptimiserConfig(_StepConfig):
    """u ← u − γ g + β (u − u_previous) (`heavy_ball`), or Nesterov's variant (`nesterov`)."""

    kind: Literal["heavy_ball", "nesterov"]
    learning_rate: float | None = Field(default=None, gt=0, description="step size γ")
    intrinsic_step: float | None = Field(
        default=None, gt=0, description="λ = γ / (1 − β)², instead of γ (Papazov et al. 2024)"
    )
    momentum: float = Field(ge=0, lt=1, description="momentum β")

    @model_validator(mode="after")
    def _one_step_size(self):
        if (self.learning_rate is None) == (self.intrinsic_step is None):
            given = "neither" if self.learning_rate is None else "both"
            raise ValueError(f"needs one of learning_rate and intrinsic_step, got {given}")
        return self


class _AdamConfig(_StepConfig):
    learning_rate: float = Field(gt=0, description="step size γ")
    b1: float = Field(default=0.9, ge=0, lt=1, description="decay of the mean of g")
    b2: float = Field(default=0.999, ge=0, lt=1, description="decay of the mean of g²")
    eps: float = Field(default=1e-8, gt=0, description="ε, added to √v̂")


class AdamOptimiserConfig(_AdamConfig):
    """u ← u − γ m̂ / (√v̂ + ε), with m̂ and v̂ the bias-corrected running means of g and g²."""

    kind: Literal["adam"]


class AdamWOptimiserConfig(_AdamConfig):
    """Adam's u ← u − γ [m̂ / (√v̂ + ε) + ω u]: weight decay apart from the gradient."""

    kind: Literal["adamw"]
    weight_decay: float | None = Field(default=1e-4, ge=0, description="ω")


OptimiserConfig = (
    PlainOptimiserConfig | MomentumOptimiserConfig | AdamOptimiserConfig | AdamWOptimiserConfig
)


class SamplingConfig(Table):
    """How each step samples the data. Without this table, every step uses all samples."""

    batch: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="samples per step; all by default",
        json_schema_extra=SHAPE,
    )
    replacement: bool = Field(
        default=True,
        description="draw each batch from all samples; if false, go through the samples in random "
        "order, pass by pass",
    )
    label_noise: float | None = Field(
        default=None,
        ge=0,
        description="standard deviation of the noise that each step adds to its targets",
    )
    noisy: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="noisy targets per step; all by default",
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


class SharpnessAwareConfig(Table):
    """Sharpness-aware minimisation: each step uses the gradient at u + ρ ∂ℓ/∂u."""

    rho: float = Field(ge=0, description="size ρ of the ascent step")
    group: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="samples m that share an ascent step (m-SAM); the whole batch by default",
        json_schema_extra=SHAPE,
    )
    normalised: bool = Field(default=False, description="scale the ascent step to length ρ")


class DescentConfig(_TrajectoryConfig):
    """Discrete training with an optimiser."""

    kind: Literal["descent"]
    steps: int = Field(ge=1, lt=2**31, description="number of steps", json_schema_extra=SHAPE)
    optimiser: Annotated[OptimiserConfig, Field(discriminator="kind")]
    times: Annotated[tuple[int, ...], _LISTED] | None = Field(
        default=None,
        min_length=3,
        description="saved steps between 0 and `steps`, which are saved too, instead of `points` "
        "and `spacing`",
    )
    sampling: SamplingConfig | None = Field(
        default=None, description="how steps sample the data; by default, every step uses all of it"
    )
    sharpness_aware: SharpnessAwareConfig | None = Field(
        default=None, description="sharpness-aware gradient; by default, the gradient at the layers"
    )

    @model_validator(mode="after")
    def _marks_fit(self):
        if self.times is not None:
            _check_marks("times", self.times, self.steps)
        schedule = self.optimiser.schedule
        if schedule is not None:
            if schedule.warm_up >= self.steps:
                raise ValueError(
                    f"optimiser.schedule.warm_up: must be < steps, got {schedule.warm_up} and "
                    f"{self.steps}"
                )
            if self.optimiser.drops:
                raise ValueError("optimiser: takes `schedule` or `drops`, got both")
        return self

    @property
    def summary(self) -> str:
        """The descent in a few words."""
        return f"{self.kind} by {self.optimiser.kind}, {self.steps:,} steps"

    @property
    def method(self) -> str:
        """The name of the optimiser."""
        return self.optimiser.kind

    @property
    def saved(self) -> int:
        """Number of saved points."""
        return len(self.records) if self.times else min(self.points, self.steps + 1)

    @property
    def records(self) -> np.ndarray:
        """The saved steps, increasing from 0 to the last one."""
        if self.times is not None:
            return np.array([0, *self.times, self.steps])
        if self.spacing == "linear":
            return np.rint(np.linspace(0, self.steps, self.saved)).astype(int)
        # Where the spacing is below one step, every step is saved.
        spread = np.floor(np.geomspace(1, self.steps, self.saved - 1) + 0.5)
        return np.append(0, np.maximum(spread, np.arange(1, self.saved))).astype(int)


DynamicsConfig = Annotated[
    FlowConfig | DescentConfig, Field(discriminator="kind"), default_kind("gradient_flow")
]
