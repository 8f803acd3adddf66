"""Runners of a chunk, one for each solver, and the cache of their compiled programs.

`BatchedFlowRunner` integrates flows in batches of similar stiffness, `DiffraxFlowRunner` integrates
them by diffrax, and `DescentRunner` trains step by step.
"""

from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddln._internal.files import digest_of
from ddln._internal.program_store import StoredJit
from ddln.config.data_files import content_files
from ddln.config.data_schema import FileDataConfig
from ddln.config.dynamics_schema import DescentConfig, FlowConfig
from ddln.config.experiment import (
    Experiment,
    changes_shape,
    numeric_leaves,
    substitute,
    value_of,
)
from ddln.problems.base import Problem
from ddln.solvers import batched_flow, gradient_descent
from ddln.solvers.batched_flow import Flows
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.trajectory import Trajectory
from ddln.sweeps import build
from ddln.sweeps._runner_base import (
    Claims,
    DescentControls,
    FlowControls,
    Inputs,
    ReportShare,
    Runner,
    Runs,
    common_variables,
)
from ddln.sweeps.dataset_schema import FINER
from ddln.sweeps.plan import Chunk
from ddln.verification import certify, error_estimate

if TYPE_CHECKING:
    import diffrax

MAX_COMPILED_SHAPES = 16
"""Chunk shapes whose compiled programs are kept; chunks of one shape follow each other."""


class _FlowRunner(Runner):
    """What both runners of flows share."""

    def __init__(self, experiment: Experiment, swept: tuple[str, ...], width: int, key: str = ""):
        super().__init__(experiment, swept, width, key)
        self.dynamics = cast(FlowConfig, experiment.dynamics)

    def recompute(self, inputs: Inputs) -> Float[Array, "networks times dim"]:
        finest = jnp.finfo(inputs.layers.dtype).eps
        controls: FlowControls = inputs.controls
        target = controls.target_gap
        finer = FlowControls(
            times=controls.times,
            rtol=jnp.maximum(controls.rtol / FINER, finest),
            atol=jnp.maximum(controls.atol / FINER, finest),
            target_gap=None if target is None else jnp.zeros_like(target),
            target_norm=None,
            weight_decay=controls.weight_decay,
        )
        runs, _ = self.integrate(inputs._replace(controls=finer))
        return runs.theta

    def _controls(self, experiment: Experiment) -> tuple[FlowControls, None]:
        flow = cast(FlowConfig, experiment.dynamics)
        rtol, atol = jnp.asarray(flow.rtol, float), jnp.asarray(flow.atol, float)
        times, decay = build.saved_times(flow), build.build_weight_decay(flow)
        return FlowControls(times, rtol, atol, flow.target_gap, flow.target_norm, decay), None

    def _certify_one(
        self,
        problem: Problem,
        layers: Float[Array, "depth dim"],
        run: Trajectory,
        finer_theta: Float[Array, "times dim"],
    ) -> tuple[dict[str, Array], Claims]:
        certified = certify.certify(problem, run, start=layers)
        predictions = certified.predictions
        numbers = {
            "velocity": run.velocity,
            "bound": predictions.exponential_bound,
            "posterior_bound": predictions.posterior_bound,
            "divergence_bound": predictions.divergence_bound,
            "divergence": predictions.divergence_bound[-1] * (run.times[-1] - run.times[0]),
            "rate_bound": predictions.rate_bound,
            "asymptotic_rate": certified["asymptotic rate"].predicted,
            "discrepancy": error_estimate.discrepancy(run, finer_theta),
        }
        if run.decay is not None:
            numbers["dose"] = run.decay.dose
        return numbers | common_variables(problem, run, certified.claims), certified.claims


class BatchedFlowRunner(_FlowRunner):
    """Gradient flows by `ddln.solvers.batched_flow`, which batches them by predicted stiffness."""

    def integrate(
        self, inputs: Inputs, report: ReportShare | None = None
    ) -> tuple[Flows, Int[Array, " networks"]]:
        controls: FlowControls = inputs.controls
        flows = batched_flow.gradient_flows(
            inputs.problem,
            inputs.layers,
            controls.times,
            rtol=controls.rtol,
            atol=controls.atol,
            target_gap=controls.target_gap,
            weight_decay=controls.weight_decay,
            max_steps=self.dynamics.max_steps,
            solver=self.dynamics.solver,
            mesh=self.mesh,
        )
        return flows, flows.stats["num_rounds"]

    def runs_of(self, solved: Flows, networks: slice | np.ndarray) -> Trajectory:
        return solved[networks].trajectories()

    def _runs_like(self, inputs: Inputs) -> Trajectory:
        controls: FlowControls = inputs.controls
        return batched_flow.trajectories_like(
            inputs.problem, inputs.layers, controls.times, controls.weight_decay
        )


class DiffraxFlowRunner(_FlowRunner):
    """Gradient or mirror flows by diffrax, under `jax.vmap`."""

    def __init__(self, experiment: Experiment, swept: tuple[str, ...], width: int, key: str = ""):
        from ddln.solvers import gradient_flow  # loads diffrax

        super().__init__(experiment, swept, width, key)
        flow = self.dynamics
        solve = gradient_flow.mirror_flow
        if flow.kind == "gradient_flow":
            solve = partial(gradient_flow.gradient_flow, coordinates=flow.coordinates)
        solver = _diffrax_solver(flow.solver)

        def integrate_one(problem: Problem, layers: Array, controls: FlowControls) -> Trajectory:
            return solve(
                problem,
                layers,
                controls.times,
                rtol=controls.rtol,
                atol=controls.atol,
                weight_decay=controls.weight_decay,
                solver=solver,
                max_steps=flow.max_steps,
                throw=False,
            )

        self._integrate = StoredJit(jax.vmap(integrate_one, (self.axes.problem, 0, 0)), key)

    def integrate(
        self, inputs: Inputs, report: ReportShare | None = None
    ) -> tuple[Trajectory, Int[Array, " networks"]]:
        def integrate(inputs: Inputs) -> tuple[Trajectory, Array]:
            runs = self._integrate(inputs.problem, inputs.layers, inputs.controls)
            return runs, _loop_iterations(runs)

        return self._on_mesh(integrate, inputs)

    def runs_of(self, solved: Trajectory, networks: slice | np.ndarray) -> Trajectory:
        return jax.tree.map(lambda array: array[networks], solved)


def _diffrax_solver(name: str) -> "diffrax.AbstractSolver":
    import diffrax
    import optimistix

    if name == "kvaerno5":
        # With its own root finder half the steps are rejected (docs/decisions.md).
        return diffrax.Kvaerno5(root_finder=optimistix.Newton(rtol=1e-9, atol=1e-12))
    return {"auto": diffrax.Tsit5, "tsit5": diffrax.Tsit5, "dopri8": diffrax.Dopri8}[name]()


class DescentRunner(Runner):
    """Training by `ddln.descend` under `jax.vmap`.

    `descend` compiles its own loop, with the steps between records as arguments; it is not compiled
    again as a whole.
    """

    def __init__(self, experiment: Experiment, swept: tuple[str, ...], width: int, key: str = ""):
        super().__init__(experiment, swept, width, key)
        self.dynamics = cast(DescentConfig, experiment.dynamics)

    def integrate(
        self, inputs: Inputs, report: ReportShare | None = None
    ) -> tuple[Descent, Int[Array, " networks"]]:
        steps = self.dynamics.steps
        progress = None if report is None else partial(_report_part, report, steps)

        def train_one(
            problem: Problem, layers: Array, controls: DescentControls, key: Array | None
        ) -> Descent:
            return gradient_descent.descend(
                problem,
                layers,
                controls.optimiser,
                steps=steps,
                record_at=self.dynamics.records,
                oracle=controls.estimator,
                key=key,
                target_gap=controls.target_gap,
                progress=progress,
                throw=False,
            )

        def train(inputs: Inputs) -> tuple[Descent, Array]:
            runs = jax.vmap(train_one, self.axes[2:])(*inputs[2:])
            return runs, _loop_iterations(runs)

        return self._on_mesh(train, inputs)

    def runs_of(self, solved: Descent, networks: slice | np.ndarray) -> Descent:
        return jax.tree.map(lambda array: array[networks], solved)

    def recompute(self, inputs: Inputs) -> None:
        return None

    def _controls(self, experiment: Experiment) -> tuple[DescentControls, Array | None]:
        descent = cast(DescentConfig, experiment.dynamics)
        controls = DescentControls(
            build.build_optimiser(descent),
            build.build_gradient_estimator(descent),
            descent.target_gap,
            descent.target_norm,
        )
        return controls, build.sampling_key(descent)

    def _certify_one(
        self,
        problem: Problem,
        layers: Float[Array, "depth dim"],
        run: Descent,
        finer_theta: Float[Array, "times dim"],
    ) -> tuple[dict[str, Array], Claims]:
        certified = certify.certify(problem, run, start=layers)
        numbers = {"step": run.steps.astype(int)}
        return numbers | common_variables(problem, run, certified.claims), certified.claims


def _report_part(report: ReportShare, steps: int, part: Descent) -> None:
    # All networks share the step count, so it is concrete even under `vmap`; reading it waits for
    # the part to finish.
    report(int(part.state.step) / steps)


def _loop_iterations(runs: Runs) -> Int[Array, " networks"]:
    """Networks under `vmap` are computed until the last of them ends."""
    steps = runs.stats["num_steps"].astype(int)
    return jnp.broadcast_to(jnp.max(steps), steps.shape)


@dataclass(frozen=True)
class _Shape:
    """What determines the compiled programs of a chunk."""

    form: str
    """The experiment as JSON, with zeros in place of the numbers that are arguments."""
    swept: tuple[str, ...]
    width: int
    dtype: str
    experiment: Experiment = field(compare=False)

    @property
    def key(self) -> str:
        """Names the shape in every process: a data file by its content."""
        data = self.experiment.problem.data
        files = content_files(Path(data.path)) if isinstance(data, FileDataConfig) else []
        content = " ".join(map(digest_of, files))
        return f"{self.form} {self.swept} {self.width} {content}"


def runner_of(chunk: Chunk) -> Runner:
    """The runner of a chunk, shared by the chunks of its shape."""
    experiment, swept = chunk.experiment, tuple(chunk.values)
    zeros = dict.fromkeys([*swept, *shared_numbers(experiment, swept)], 0)
    form = substitute(experiment, zeros).model_dump_json()
    dtype = str(jnp.result_type(float))
    return make_runner(_Shape(form, swept, chunk.width, dtype, experiment))


@lru_cache(maxsize=MAX_COMPILED_SHAPES)
def make_runner(shape: _Shape) -> Runner:
    """Make the runner of a chunk shape; least recently used ones are dropped."""
    dynamics = shape.experiment.dynamics
    if isinstance(dynamics, DescentConfig):
        kind = DescentRunner
    else:
        kind = BatchedFlowRunner if dynamics.is_batched else DiffraxFlowRunner
    return kind(shape.experiment, shape.swept, shape.width, shape.key)


def shared_numbers(experiment: Experiment, swept: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The numbers of an experiment that change no shape and are the same for all networks.

    Args:
        experiment: without a sweep.
        swept: the dotted names along which the networks differ.
    """
    leaves = {
        name: leaf for name, leaf in numeric_leaves(experiment).items() if not changes_shape(leaf)
    }
    return {name: np.asarray(value_of(experiment, name)) for name in leaves if name not in swept}
