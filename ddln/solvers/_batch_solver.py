"""Solution of many gradient flows in batches that run concurrently on the available devices."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from ddln._internal.compiler_options import FASTEST, SMALL_BATCH
from ddln._internal.program_store import StoredJit
from ddln.networks.reparametrisation import Reduction
from ddln.problems import sharding
from ddln.problems.base import Problem
from ddln.solvers._batching import NetworkBatch, concurrent_devices, plan_batches, predict
from ddln.solvers._integrate import BatchSolution, integrate
from ddln.solvers._steppers import Rodas5P, Tsit5
from ddln.solvers.formulations import Reduced, Smallest, diagonal, first_step, with_decay
from ddln.solvers.status import Status
from ddln.solvers.trajectory import Trajectory, dose_at
from ddln.solvers.weight_decay import WeightDecay


class FlowInputs(NamedTuple):
    """What differs between networks, on the leading axis of every array."""

    reduction: Reduction
    times: Float[Array, "networks times"]
    rtol: Float[Array, " networks"]
    atol: Float[Array, " networks"]
    target_gap: Float[Array, " networks"] | None
    decay: WeightDecay | None


def solve_in_batches(
    problem: Problem,
    layers: Float[Array, "networks depth dim"],
    inputs: FlowInputs,
    *,
    solver: str,
    max_steps: int,
    mesh: Mesh | None,
) -> BatchSolution:
    """Solve for all networks. The saved states are the smallest layers, (networks, times, dim)."""
    horizon = inputs.times[:, -1] - inputs.times[:, 0]
    stiffness, coordinate_range = predict(problem, layers, inputs.reduction, horizon)
    if inputs.decay is not None:  # v grows with the dose, since λ shrinks
        coordinate_range = coordinate_range + dose_at(inputs.decay, horizon)
    devices = concurrent_devices(mesh)
    batches = list(
        plan_batches(
            np.asarray(stiffness),
            np.asarray(coordinate_range),
            np.asarray(inputs.rtol),
            dim=layers.shape[-1],
            solver=solver,
            concurrency=len(devices),
        )
    )
    inputs = jax.tree.map(np.asarray, inputs)
    # Run one program at a time on each device: two on the devices of a mesh could deadlock.
    idle: SimpleQueue[Any] = SimpleQueue()
    for device in devices:
        idle.put(device)

    # `with jax.enable_x64(True)` holds for its own thread only.
    is_double = jnp.result_type(float) == jnp.float64

    def solve(batch: NetworkBatch) -> BatchSolution:
        device = idle.get()
        try:
            with jax.enable_x64(is_double):
                return _solve_on(device, problem, inputs, batch, max_steps=max_steps)
        finally:
            idle.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        solutions = list(pool.map(solve, batches))
    # A network that pads its batch occurs in it more than once; any of its copies will do.
    members = np.concatenate([batch.members for batch in batches])
    order = np.empty(len(layers), int)
    order[members] = np.arange(members.size)
    return jax.tree.map(lambda *parts: jax.device_put(np.concatenate(parts)[order]), *solutions)


def _solve_on(
    device: Any, problem: Problem, inputs: FlowInputs, batch: NetworkBatch, *, max_steps: int
) -> BatchSolution:
    """Solve one batch on a device or a row of a mesh, and copy the solution to the host."""
    members = batch.members
    inputs = jax.tree.map(lambda array: array[members], inputs)
    if problem.minimum.ndim:
        problem = jax.tree.map(lambda array: array[members], problem)
    placed = _place(device, problem, inputs, np.int32(max_steps))
    solve = _solve_small_batch if inputs.reduction.start.size <= SMALL_BATCH else _solve_large_batch
    solution = jax.tree.map(np.asarray, solve((batch.stepper, batch.formulation), *placed))
    # Distribute the steps of the copies that pad the batch over its networks.
    iterations = -(-solution.loop_iterations * members.size // np.unique(members).size)
    return solution._replace(loop_iterations=iterations)


def _place(
    device: Any, problem: Problem, inputs: FlowInputs, max_steps: np.int32
) -> tuple[Any, ...]:
    """The arguments of a batch on a device, or sharded over a row of a mesh."""
    if not isinstance(device, Mesh):
        return jax.device_put((problem, *inputs, max_steps), device)
    reduction, *controls = inputs
    return (
        sharding.shard_problem(problem, device),
        sharding.shard_columns(reduction, device),
        *sharding.replicate((*controls, max_steps), device),
    )


def _solve_batch(
    method: tuple[type[Tsit5] | type[Rodas5P], type[Reduced] | type[Smallest]],
    problem: Problem,
    reduction: Reduction,
    times: Float[Array, "batch times"],
    rtol: Float[Array, " batch"],
    atol: Float[Array, " batch"],
    target_gap: Float[Array, " batch"] | None,
    decay: WeightDecay | None,
    max_steps: Int[Array, ""],
) -> BatchSolution:
    """Solve one batch: the leading axis of every input, the last axis in between."""
    stepper, formulate = method
    reduction, decay = jax.tree.map(_batch_last, (reduction, decay))
    formulation = formulate(reduction, decay=decay)
    if problem.minimum.ndim:
        problem = jax.tree.map(_batch_last, problem)
    system = _BatchedFlow(problem, formulation, target_gap)
    elapsed = (times - times[:, :1]).T
    solution = integrate(
        system,
        stepper,
        start=formulation.initial(),
        first_step=system.vmap(first_step, formulation, elapsed[-1]),
        times=elapsed,
        rtol=rtol,
        atol=formulation.tolerance(atol),
        max_steps=max_steps,
    )
    smallest = jax.vmap(lambda t, y: formulation.at(t).smallest(y))(elapsed, solution.saved)
    iterations = jnp.broadcast_to(solution.loop_iterations, solution.status.shape)
    return solution._replace(
        saved=jnp.moveaxis(smallest, -1, 0),
        status=_checked_status(system, solution, elapsed[-1]),
        loop_iterations=iterations,
    )


_solve_large_batch = StoredJit(_solve_batch, title="the flow")
_solve_small_batch = StoredJit(_solve_batch, compiler_options=FASTEST, title="the flow")


def _batch_last(array: Shaped[Array, "batch *rest"]) -> Shaped[Array, "*rest batch"]:
    """Move the batch from the first axis to the last."""
    return jnp.moveaxis(array, 0, -1)


def _checked_status(
    system: "_BatchedFlow", solution: BatchSolution, horizon: Float[Array, " batch"]
) -> Int[Array, " batch"]:
    """The status, "diverged" for a finished flow whose loss or gap is infinite or NaN.

    Flows decrease the loss, so its values at both ends suffice.
    """
    is_finite = jnp.ones(solution.status.shape, bool)
    ends = (jnp.zeros_like(horizon), system.formulation.initial()), (horizon, solution.saved[-1])
    for time, y in ends:
        theta = system.formulation.at(time).theta(y)
        is_finite &= jnp.isfinite(system.vmap(_loss, theta))
        is_finite &= jnp.isfinite(system.vmap(_gap, theta))
    finished = (Trajectory.code_of(Status.OK), Trajectory.code_of(Status.STOPPED))
    is_finished = jnp.isin(solution.status, jnp.asarray(finished))
    diverged = Trajectory.code_of(Status.DIVERGED)
    return jnp.where(is_finished & ~is_finite, diverged, solution.status)


class _BatchedFlow(eqx.Module):
    """The differential equation of a batch; the last axis of every array is the batch."""

    problem: Problem
    formulation: Reduced | Smallest
    target_gap: Float[Array, " batch"] | None

    def vmap(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Apply a function of a problem and other arguments to each network."""
        axes = None if self.problem.minimum.ndim == 0 else -1, *(-1 for _ in arguments)
        return jax.vmap(function, axes, -1)(self.problem, *arguments)

    def gradient(self, theta: Float[Array, "dim batch"]) -> Float[Array, "dim batch"]:
        """∇ℒ(θ)."""
        if self.problem.minimum.ndim == 0:
            return self.problem.gradients(theta)
        return self.vmap(lambda problem, theta: problem.gradient(theta), theta)

    def is_terminated(self, y: Float[Array, "dim batch"]) -> Bool[Array, " batch"]:
        """Which networks have reached their target gaps."""
        if self.target_gap is None:
            return jnp.zeros(y.shape[1:], bool)
        theta = self.formulation.theta(y)
        return self.vmap(_gap, theta) <= self.target_gap

    def rate(
        self, time: Float[Array, " batch"], y: Float[Array, "dim batch"]
    ) -> Float[Array, "dim batch"]:
        """dy/dt."""
        now = self.formulation.at(time)
        rate = now.rate(y, self.gradient(now.theta(y)))
        return with_decay(rate, now.shrinkage(y), self.formulation.decay, time)

    def linearised(
        self, time: Float[Array, " batch"], y: Float[Array, "dim batch"]
    ) -> tuple[
        Float[Array, "dim batch"], Float[Array, "dim dim batch"], Float[Array, "dim batch"] | None
    ]:
        """dy/dt, its Jacobian, and ∂/∂t of it under decay."""
        now = self.formulation.at(time)
        theta = now.theta(y)
        gradient = self.gradient(theta)
        hessian = self.vmap(lambda problem, theta: problem.hessian(theta), theta)
        jacobian = now.jacobian(y, gradient, hessian)
        if self.formulation.decay is None:
            return now.rate(y, gradient), jacobian, None
        rate, drift = jax.jvp(lambda time: self.rate(time, y), (time,), (jnp.ones_like(time),))
        _, slope = jax.jvp(now.shrinkage, (y,), (jnp.ones_like(y),))  # elementwise
        return rate, jacobian + diagonal(self.formulation.decay.rate(time)[None] * slope), drift


def _loss(problem: Problem, theta: Float[Array, " dim"]) -> Float[Array, ""]:
    return problem.loss(theta)


def _gap(problem: Problem, theta: Float[Array, " dim"]) -> Float[Array, ""]:
    return problem.gap(theta)
