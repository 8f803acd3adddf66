"""The protocol that the runners of a chunk share: build, integrate, recompute, certify, measure.

A `Runner` holds the compiled programs of one chunk shape: the networks of such chunks differ in
numbers only, and all numbers are arguments of the programs.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddln._internal.compiler_options import options_of_chunk
from ddln._internal.program_store import StoredJit
from ddln._internal.validation import largest
from ddln.config.experiment import Experiment, substitute
from ddln.networks.layers import effective_parameter, mobility
from ddln.problems import sharding
from ddln.problems.base import AnyArray, Problem
from ddln.solvers.batched_flow import Flows
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.gradient_estimators import GradientEstimator
from ddln.solvers.optimisers import Optimiser
from ddln.solvers.result import stop_at
from ddln.solvers.trajectory import Trajectory
from ddln.solvers.weight_decay import WeightDecay
from ddln.sweeps import build
from ddln.sweeps.dataset_schema import stored_variables
from ddln.theory.assumptions import DECAY_STATEMENTS, STATEMENTS, check_hypotheses
from ddln.verification import certificates, diagnostics

CERTIFIED_TOGETHER = 16
"""Networks that a CPU certifies at a time: their arrays stay in its cache, and in memory that the
process has already."""

Runs = Trajectory | Descent
"""The runs of several networks as one object; its arrays have a leading axis of networks."""
Run = TypeVar("Run", Trajectory, Descent)
Solved = Runs | Flows
"""What `Runner.integrate` returns, of all networks of a chunk."""
Claims = tuple[certificates.Claim, ...]
ReportShare = Callable[[float], None]
"""A callback that receives the completed share of the steps of a descent."""

_LAPACK = threading.Lock()
"""Held by a program that factorises matrices: two of them at once can deadlock
(docs/decisions.md)."""


class FlowControls(NamedTuple):
    """The saved times, tolerances, targets and weight decay of a flow."""

    times: Float[Array, "*networks times"]
    rtol: Float[Array, "*networks"]
    atol: Float[Array, "*networks"]
    target_gap: Float[Array, "*networks"] | float | None
    target_norm: Float[Array, "*networks"] | float | None
    weight_decay: WeightDecay | None


class DescentControls(NamedTuple):
    """The optimiser, gradient estimator and targets of a descent."""

    optimiser: Optimiser
    estimator: GradientEstimator
    target_gap: Float[Array, "*networks"] | float | None
    target_norm: Float[Array, "*networks"] | float | None


class Start(NamedTuple):
    """The size of a network's start: what must be finite for it to run."""

    theta: Float[Array, "*networks"]
    """The largest |θ_k|."""
    loss: Float[Array, "*networks"]
    mobility: Float[Array, "*networks"]
    """The largest M_k; nothing moves if it is 0."""


def start_of(problem: Problem, layers: Float[Array, "depth dim"]) -> Start:
    """The size of the start of a network."""
    theta, metric = effective_parameter(layers), mobility(layers)
    return Start(largest(jnp.abs(theta)), problem.loss(theta), largest(metric))


class Inputs(NamedTuple):
    """Everything the networks of a chunk start from; also the axes of these for `jax.vmap`."""

    truth: Any
    """θ* that the data were made with, or None."""
    start: Any
    """`Start`."""
    problem: Any
    """One problem for all networks, or one for each if an axis sweeps the problem."""
    layers: Any
    """Initial layers, shape (networks, depth, dim)."""
    controls: Any
    """`FlowControls` or `DescentControls`."""
    key: Any
    """The random key of a descent that samples, or None; one for each network if its seed is
    swept."""


class Runner(ABC):
    """The compiled programs of one chunk shape.

    Args:
        experiment: without a sweep; only what determines array shapes is read from it.
        swept: the dotted names of the axes along which the networks of a chunk differ.
        width: how many networks run side by side.
        key: names the shape among those whose programs are stored.
    """

    def __init__(self, experiment: Experiment, swept: tuple[str, ...], width: int, key: str = ""):
        self.mesh = build.make_mesh(experiment.devices)
        problem_axis = 0 if any(name.startswith("problem.") for name in swept) else None
        key_axis = 0 if "dynamics.sampling.seed" in swept else None
        self.axes = Inputs(
            truth=0, start=0, problem=problem_axis, layers=0, controls=0, key=key_axis
        )
        options = options_of_chunk(width)

        def build_one(varying: dict[str, Array], shared: dict[str, Array]) -> Inputs:
            return self._build_one(substitute(experiment, {**shared, **varying}))

        held_out = build.held_out_samples(experiment)

        def measure_one(problem: Problem, run: Runs) -> dict[str, Array]:
            return _diagnostics(experiment.dynamics.measure, problem, run, held_out)

        def stop_one(problem: Problem, run: Runs, target_norm: Any) -> Runs:
            patience = experiment.dynamics.patience
            is_end = jnp.zeros(run.gap.shape, bool)
            if target_norm is not None:
                norms = jnp.sum(jnp.abs(problem.predictor(run.theta)), axis=1)
                is_end = norms >= target_norm
            if patience is not None:
                losses = diagnostics.held_out_loss(problem, run, *held_out)
                is_end = is_end | _has_stalled(losses, patience)
            return stop_at(run, is_end)

        dynamics = experiment.dynamics
        self._stops = dynamics.target_norm is not None or dynamics.patience is not None
        self._stop = jax.jit(jax.vmap(stop_one, (problem_axis, 0, 0)), compiler_options=options)
        stored = stored_variables(experiment)

        def certify_one(
            problem: Problem, layers: Array, run: Runs, finer_theta: Array
        ) -> tuple[dict[str, Array], Claims]:
            found, checked = self._certify_one(problem, layers, run, finer_theta)
            return {name: found[name] for name in stored if name in found}, checked

        self._build = StoredJit(
            jax.vmap(build_one, (0, None), self.axes, axis_size=width), key, options, "the problem"
        )
        self._certify = StoredJit(
            jax.vmap(certify_one, (problem_axis, 0, 0, 0)), key, options, "the certificates"
        )
        self._is_prepared, self._width = False, width
        self._measure = StoredJit(jax.vmap(measure_one, (problem_axis, 0)), key, options)

    def build(self, varying: Mapping[str, np.ndarray], shared: Mapping[str, np.ndarray]) -> Inputs:
        """Build the problems, initial layers and controls of all networks.

        Args:
            varying: values by dotted name, shape (networks,) each.
            shared: values by dotted name that are the same for all networks.
        """
        with _LAPACK:
            return jax.block_until_ready(self._build(varying, shared))

    @abstractmethod
    def integrate(
        self, inputs: Inputs, report: ReportShare | None = None
    ) -> tuple[Solved, Int[Array, " networks"]]:
        """Integrate or train all networks.

        Returns:
            Their runs, and for each network how many loop iterations were computed for it,
            including those in which it waited for slower networks.
        """

    @abstractmethod
    def recompute(self, inputs: Inputs) -> Float[Array, "networks times dim"] | None:
        """Integrate again at tolerances `FINER` times finer; None for a descent.

        Returns:
            θ of the finer runs.
        """

    def prepare(self, inputs: Inputs) -> None:
        """Compile the certificates, if the types of the runs are known before the runs are."""
        if self._is_prepared or self.mesh is not None:
            return
        self._is_prepared = True
        networks = next(self._parts())
        layers, controls, problem = jax.tree.map(
            _on_host, (inputs.layers, inputs.controls, inputs.problem)
        )
        part = inputs._replace(
            layers=layers[networks],
            controls=jax.tree.map(lambda array: array[networks], controls),
            problem=self._problem_of(problem, networks),
        )
        if (runs := self._runs_like(part)) is not None:
            self._certify.prepare(part.problem, part.layers, runs, runs.theta)

    def certify(
        self,
        inputs: Inputs,
        solved: Solved,
        finer_theta: Float[Array, "networks times dim"] | None,
    ) -> tuple[dict[str, np.ndarray], Claims]:
        """Check every run against the theorems, and compute what `dynamics.measure` asks for.

        Returns:
            The data set's variables by name, and the claims.
        """
        norms = inputs.controls.target_norm
        given: tuple[Any, ...] = inputs.problem, inputs.layers, solved, finer_theta, norms
        parts = list(self._parts())
        if len(parts) > 1:
            given = jax.tree.map(_on_host, given)
        found, checked = zip(
            *(self._certify_part(networks, *given) for networks in parts), strict=True
        )
        variables = {
            name: np.concatenate([part[name] for part in found])[: self._width] for name in found[0]
        }
        if isinstance(solved, Flows):
            variables["smallest"] = np.asarray(solved.smallest)
        return variables | {"initial_layers": np.asarray(inputs.layers)}, checked[0]

    def _stopped(self, problem: Problem, runs: Runs, target_norm: Any) -> Runs:
        """The runs, constant from the saved point on at which `target_norm` or `patience` stops
        them."""
        return self._stop(problem, runs, target_norm) if self._stops else runs

    def _parts(self) -> Iterator[slice | np.ndarray]:
        """The networks that are certified together, the last repeated to fill the last part."""
        is_cpu = jax.local_devices()[0].platform == "cpu"
        size = min(self._width, CERTIFIED_TOGETHER) if is_cpu else self._width
        for start in range(0, self._width, size):
            if start + size <= self._width:
                yield slice(start, start + size)
            else:
                yield np.minimum(np.arange(start, start + size), self._width - 1)

    def _certify_part(
        self,
        networks: slice | np.ndarray,
        problem: Problem,
        layers: Float[AnyArray, "networks depth dim"],
        solved: Solved,
        finer_theta: Float[AnyArray, "networks times dim"] | None,
        target_norm: Float[AnyArray, " networks"] | None,
    ) -> tuple[dict[str, np.ndarray], Claims]:
        problem = self._problem_of(problem, networks)
        norms = None if target_norm is None else target_norm[networks]
        runs = self._stopped(problem, self.runs_of(solved, networks), norms)
        finer = np.full_like(runs.theta, np.nan) if finer_theta is None else finer_theta[networks]
        with _LAPACK:
            found, checked = self._certify(problem, layers[networks], runs, finer)
            variables = {name: np.asarray(value) for name, value in found.items()}
            measured = self._measure(problem, runs)
            return variables | {
                name: np.asarray(value) for name, value in measured.items()
            }, checked

    def _problem_of(self, problem: Problem, networks: slice | np.ndarray) -> Problem:
        if self.axes.problem is None:
            return problem
        return jax.tree.map(lambda array: array[networks], problem)

    @abstractmethod
    def runs_of(self, solved: Any, networks: slice | np.ndarray) -> Runs:
        """The runs of some networks."""

    def _runs_like(self, inputs: Inputs) -> Runs | None:
        """The runs, with a `jax.ShapeDtypeStruct` in place of each array; None if not known."""
        return None

    def _build_one(self, experiment: Experiment) -> Inputs:
        controls, key = self._controls(experiment)
        problem, layers = build.build_problem(experiment), build.build_layers(experiment)
        return Inputs(
            truth=build.true_parameter(experiment),
            start=start_of(problem, layers),
            problem=problem,
            layers=layers,
            controls=controls,
            key=key,
        )

    @abstractmethod
    def _controls(
        self, experiment: Experiment
    ) -> tuple[FlowControls | DescentControls, Array | None]: ...

    @abstractmethod
    def _certify_one(
        self,
        problem: Problem,
        layers: Float[Array, "depth dim"],
        run: Any,
        finer_theta: Float[Array, "times dim"],
    ) -> tuple[dict[str, Array], Claims]: ...

    def _on_mesh(
        self, integrate: Callable[[Inputs], tuple[Run, Array]], inputs: Inputs
    ) -> tuple[Run, Array]:
        """Run `integrate` on the devices of the mesh, if any, and gather on its first device."""
        if self.mesh is None:
            return integrate(inputs)
        problem = inputs.problem
        placed = inputs._replace(
            problem=sharding.shard_problem(problem, self.mesh, batched=problem.minimum.ndim > 0),
            layers=sharding.shard_columns(inputs.layers, self.mesh, batched=True),
        )
        return jax.device_put(integrate(placed), self.mesh.devices.flat[0])


def _on_host(array: Any) -> Any:
    """The array in NumPy, which slices it without compiling; random keys stay in JAX."""
    return array if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else np.asarray(array)


def _has_stalled(losses: Float[Array, " points"], patience: int) -> Bool[Array, " points"]:
    """Whether the least loss so far is `patience` points old."""
    points = jnp.arange(losses.size)
    least_before = jnp.concatenate([jnp.array([jnp.inf]), jax.lax.cummin(losses)[:-1]])
    last_improvement = jax.lax.cummax(jnp.where(losses < least_before, points, 0))
    return points - last_improvement >= patience


def _diagnostics(
    names: tuple[str, ...], problem: Problem, run: Runs, held_out: tuple[Any, ...]
) -> dict[str, Array]:
    """Compute the named diagnostics of one run."""
    known: dict[str, Callable[[], Array]] = {
        "sharpness": lambda: diagnostics.sharpness(problem, run),
        "held_out_loss": lambda: diagnostics.held_out_loss(problem, run, *held_out),
        "gain": lambda: diagnostics.gain(run),
        "effective_initialisation": lambda: diagnostics.effective_initialisation(run),
    }
    return {name: known[name]() for name in names}


def common_variables(problem: Problem, run: Runs, checked: Claims) -> dict[str, Array]:
    """The variables that flows and descents have in common."""
    assumed, names = check_hypotheses(problem, run), [*STATEMENTS, *DECAY_STATEMENTS]
    numbers = {
        "flow_time": run.times,
        "loss": run.loss,
        "gap": run.gap,
        "theta": run.theta,
        "predictor": problem.predictor(run.theta),
        "layers": run.layers,
        "status": run.status,
        "steps": run.stats["num_steps"].astype(int),
        "hypothesis_holds": jnp.stack([assumed[name] for name in names if name in assumed]),
    }
    certificates = {
        f"certificate_{name}": jnp.stack([jnp.asarray(getattr(claim, name)) for claim in checked])
        for name in ("measured", "predicted", "tolerance", "applies", "holds")
    }
    return numbers | certificates
