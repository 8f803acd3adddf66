"""Many gradient flows at once, as fast as a hand-written loop: what a sweep runs on.

Flows are integrated in reduced coordinates, in batches of lanes that are expected to need the same
work. What that is follows from the theory: near its end θ∞ a flow over the time t has

    stiffness = t · ρ,        ρ the largest eigenvalue of M^{1/2} ∇²ℒ M^{1/2} at θ∞.

An explicit method takes at least a third of that in steps to stay stable, whatever its accuracy.
Where this is many, a linearly implicit method takes its place: its steps cost more, by dim³, but
their number depends only on how the curve bends. Which of the pictures is integrated follows from
how far the smallest layers will grow. Batches run side by side, one for each core of the processor,
or each accelerator.
"""

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, as_floats
from ddln.networks.layers import effective_parameter, mobility
from ddln.networks.reparametrisation import Reduction
from ddln.problems import sharding
from ddln.problems.base import Problem
from ddln.solvers import _batching
from ddln.solvers._integrate import March, march
from ddln.solvers.formulations import Reduced, Smallest, first_step, observe
from ddln.solvers.gradient_flow import Trajectory, as_times, as_tolerances

Solver = Literal["auto", "tsit5", "rodas5p"]


class Flows(eqx.Module):
    """Gradient flows side by side; a lane is one of them.

    The smallest layers determine all else, which is computed when it is asked for.
    """

    problem: Problem
    """One for all lanes, or one for each: arrays of it with a leading axis of lanes."""
    layers: Float[Array, "lanes depth dim"]
    """Initial layers."""
    reduction: Reduction
    """Of the initial layers; its arrays have a leading axis of lanes."""
    times: Float[Array, "lanes times"]
    """Flow time."""
    smallest: Float[Array, "lanes times dim"]
    """w of the reduction; NaN from where a lane failed, at rest from where it was stopped."""
    status: Int[Array, " lanes"]
    """Index into `ddln.solvers.gradient_flow.STATUS`."""
    stats: dict[str, Int[Array, " lanes"]]
    """Steps of each lane: num_steps, num_accepted_steps, num_rejected_steps; and num_rounds, those
    computed for it, also while it waited for the others of its batch."""
    rtol: Float[Array, " lanes"]
    atol: Float[Array, " lanes"]

    @property
    def efficiency(self) -> float:
        """Steps that lanes made as a share of those that were computed, for padding too."""
        return float(jnp.sum(self.stats["num_steps"]) / jnp.sum(self.stats["num_rounds"]))

    @property
    def theta(self) -> Float[Array, "lanes times dim"]:
        return _theta(self.reduction, self.smallest)

    @property
    def loss(self) -> Float[Array, "lanes times"]:
        return _each(_loss, self.problem, self.theta)

    @property
    def gap(self) -> Float[Array, "lanes times"]:
        """ℒ(θ) − ℒ*."""
        return _each(_gap, self.problem, self.theta)

    def trajectories(self) -> Trajectory:
        """All of them as one `Trajectory`, whose arrays have a leading axis of lanes."""
        return _trajectories(self)


@jax.jit
def _theta(reduction, smallest):
    def lane(reduction, smallest):
        return jax.vmap(Smallest(reduction).theta)(smallest)

    return jax.vmap(lane)(reduction, smallest)


def _loss(problem, theta):
    return problem.loss(theta)


def _gap(problem, theta):
    return problem.gap(theta)


@eqx.filter_jit
def _each(function, problem, theta):
    """A function of problem and θ at every lane and time; apart from θ's, which would be fused."""

    def lane(problem, theta):
        return jax.vmap(lambda theta: function(problem, theta))(theta)

    return jax.vmap(lane, (_axis(problem, 0), 0))(problem, theta)


@eqx.filter_jit
def _trajectories(flows: Flows) -> Trajectory:
    def lane(problem, flows: Flows):
        picture = Smallest(flows.reduction)
        seen = jax.vmap(lambda w: observe(0.0, w, (problem, picture)))(flows.smallest)
        path, theta, velocity, loss, gap = seen
        path = path.at[0].set(flows.layers)  # as they were given, not there and back
        stats = {name: count for name, count in flows.stats.items() if name != "num_rounds"}
        return Trajectory(
            *(flows.times, path, theta, loss, gap, flows.status, stats),
            *(velocity, flows.rtol, flows.atol, picture.name),
        )

    alone = eqx.tree_at(lambda flows: flows.problem, flows, None)
    return jax.vmap(lane, (_axis(flows.problem, 0), 0))(flows.problem, alone)


def _axis(problem: Problem, axis: int) -> int | None:
    """The axis of lanes in a problem's arrays."""
    return None if problem.minimum.ndim == 0 else axis


def gradient_flows(
    problem: Problem,
    layers: ArrayLike,
    times: ArrayLike,
    *,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    solver: Solver | str = "auto",
    max_steps: int = 100_000,
    target_gap: ArrayLike | None = None,
    mesh: Mesh | None = None,
) -> Flows:
    """Gradient flow from many initialisations, or on many problems: `gradient_flow` for sweeps.

    The numbers of lane k are those of `gradient_flow(problem, layers[k], times)`, within the
    tolerances. It decides on the host how to batch them, so it is not to be called under `jit` or
    `vmap`, and it is not differentiable: for these there is `gradient_flow`.

    Args:
        problem: the loss of all lanes; or one for each, of the same shape, from `jax.vmap`: its
            arrays have a leading axis of lanes.
        layers: initial layers, shape (lanes, depth, dim).
        times: flow times to save at, strictly increasing; the first is the start. Shape (times,),
            or (lanes, times).
        rtol, atol: tolerances on the positions, shape () or (lanes,); defaults as in
            `gradient_flow`.
        solver: "tsit5" (Tsitouras 2011), "rodas5p" (Steinebach 2023), or "auto": for each lane the
            one that is predicted to cost less.
        max_steps: budget of steps of a lane.
        target_gap: a lane ends with the first step at which ℒ(θ) − ℒ* is no larger, shape () or
            (lanes,); `None` lets all go on. Below β/2 times the square of the error in θ that
            `rtol` allows a gap says nothing.
        mesh: devices, from `ddln.problems.sharding.mesh_of`: each of its rows has batches of its
            own, and cuts their coordinates among its devices; `None` is every device here by
            itself.

    Returns:
        `Flows`. A lane that fails has a `status` other than 0 and is NaN from there on; it does
        not touch the others. One that reached its target is at rest from there on, and "stopped".

    Raises:
        ValueError: shapes, times or tolerances that make no sense.

    Source: reduced form and stiffness as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> scales = jnp.array([0.5, 1.0, 2.0])
    >>> layers = scales[:, None, None] * jnp.array([[[0.0], [1.0]]])
    >>> flows = ddln.gradient_flows(problem, layers, [0.0, 1.0, 20.0])
    >>> flows.theta[:, -1, 0].round(8).tolist()
    [2.0, 2.0, 2.0]
    """
    drop_programs()
    layers = as_floats("layers", layers, 3)
    lanes, depth, dim = layers.shape
    width = problem.minimiser.shape[-1]
    if lanes < 1 or depth < 2 or dim != width:
        raise ValueError(
            f"`layers` must have shape (lanes, depth, {width}) with lanes ≥ 1 and "
            f"depth ≥ 2, got {layers.shape}."
        )
    if problem.minimum.shape not in ((), (lanes,)):
        raise ValueError(
            f"`problem` must be one problem or {lanes} of them, one for each lane, "
            f"got {problem.minimum.shape}."
        )
    dtype = jnp.promote_types(layers.dtype, problem.minimum.dtype)
    layers = layers.astype(dtype)
    times = as_times(as_floats("times", times, 2 if np.ndim(times) == 2 else 1).astype(dtype))
    if times.ndim == 2 and times.shape[0] != lanes:
        raise ValueError(
            f"`times` must have shape (times,) or ({lanes}, times), got {times.shape}."
        )
    times = jnp.broadcast_to(times, (lanes, times.shape[-1]))
    rtol, atol = as_tolerances(rtol, atol, 1e-9, dtype, (lanes,))
    if solver not in get_args(Solver):
        names = ", ".join(map(repr, get_args(Solver)))
        raise ValueError(f"`solver` must be one of {names}, got {solver!r}.")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be ≥ 1, got {max_steps}.")
    if target_gap is not None:
        target_gap = as_floats("target_gap", target_gap, np.ndim(target_gap)).astype(dtype)
        if target_gap.shape not in ((), (lanes,)):
            raise ValueError(f"`target_gap` must have shape ({lanes},), got {target_gap.shape}.")
        target_gap = jnp.broadcast_to(target_gap, (lanes,))

    reduction = _reductions(layers)
    by_lane = reduction, times, rtol, atol, target_gap
    run = _in_batches(problem, layers, by_lane, str(solver), max_steps, mesh)
    stats = {
        "num_steps": run.accepted + run.rejected,
        "num_accepted_steps": run.accepted,
        "num_rejected_steps": run.rejected,
        "num_rounds": run.rounds,
    }
    return Flows(problem, layers, reduction, times, run.saved, run.status, stats, rtol, atol)


def _in_batches(problem, layers, by_lane, solver: str, max_steps: int, mesh) -> March:
    """All lanes integrated; what is saved are the smallest layers, (lanes, times, dim)."""
    reduction, times, rtol, *_ = by_lane
    stiffness, reach = _expect(problem, layers, reduction, times[:, -1] - times[:, 0])
    stiffness, reach, dim = np.asarray(stiffness), np.asarray(reach), layers.shape[-1]
    places = _batching.places_of(mesh)
    parts = list(_batching.cut(stiffness, reach, np.asarray(rtol), dim, solver, len(places)))
    budget = np.int32(max_steps)
    by_lane = jax.tree.map(np.asarray, by_lane)
    free: SimpleQueue[Any] = SimpleQueue()
    for place in places:
        free.put(place)

    def integrate(number: int) -> March:
        way, lanes = parts[number]
        given = jax.tree.map(lambda array: array[lanes], by_lane)
        alone = problem
        if problem.minimum.ndim:
            alone = jax.tree.map(lambda array: array[lanes], problem)
        # Of two programs on the same devices of a mesh each could wait for the other's.
        place = free.get()
        try:
            put = sharding.place if isinstance(place, Mesh) else jax.device_put
            run = jax.tree.map(np.asarray, _march(way, *put((alone, *given, budget), place)))
        finally:
            free.put(place)
        # Lanes share what was computed for the copies that pad their batch.
        return run._replace(rounds=-(-run.rounds * lanes.size // np.unique(lanes).size))

    with ThreadPoolExecutor(len(places)) as pool:
        marches = list(pool.map(integrate, range(len(parts))))
    # A lane that pads a batch is there more than once; either will do.
    order, lanes = np.empty(len(layers), int), np.concatenate([lanes for _, lanes in parts])
    order[lanes] = np.arange(lanes.size)
    return jax.tree.map(lambda *runs: jnp.asarray(np.concatenate(runs)[order]), *marches)


@jax.jit
def _reductions(layers) -> Reduction:
    return jax.vmap(Reduction)(layers)


@eqx.filter_jit
def _march(way, problem, reduction, times, rtol, atol, target_gap, max_steps) -> March:
    """One batch. Lanes come and go as the leading axis, and are the last one in between."""
    stepper, picture = way
    picture = picture(jax.tree.map(_lanes_last, reduction))
    if problem.minimum.ndim:
        problem = jax.tree.map(_lanes_last, problem)
    system = _Lanes(problem, picture, target_gap)
    elapsed = (times - times[:, :1]).T  # the flow does not know the time
    first = system.by_lane(first_step, picture, elapsed[-1])
    tolerances = rtol, picture.tolerance(atol)
    run = march(system, stepper, picture.initial(), first, elapsed, *tolerances, max_steps)
    smallest = jnp.moveaxis(jax.vmap(picture.smallest)(run.saved), -1, 0)
    return run._replace(saved=smallest, rounds=jnp.broadcast_to(run.rounds, run.status.shape))


def _lanes_last(array):
    return jnp.moveaxis(array, 0, -1)


class _Lanes(eqx.Module):
    """The reduced flows, the last axis of every array being that of lanes."""

    problem: Problem
    picture: Reduced | Smallest
    target_gap: Float[Array, " lanes"] | None

    def by_lane(self, function, *arrays):
        axes = _axis(self.problem, -1), *(-1 for _ in arrays)
        return jax.vmap(function, axes, -1)(self.problem, *arrays)

    def gradient(self, theta):
        if self.problem.minimum.ndim == 0:
            return self.problem.gradients(theta)
        return self.by_lane(lambda problem, theta: problem.gradient(theta), theta)

    def arrived(self, y):
        if self.target_gap is None:
            return jnp.zeros(y.shape[1:], bool)
        gap = self.by_lane(lambda problem, theta: problem.gap(theta), self.picture.theta(y))
        return gap <= self.target_gap

    def rate(self, y):
        return self.picture.rate(y, self.gradient(self.picture.theta(y)))

    def linearised(self, y):
        theta = self.picture.theta(y)
        gradient = self.gradient(theta)
        hessian = self.by_lane(lambda problem, theta: problem.hessian(theta), theta)
        return self.picture.rate(y, gradient), self.picture.jacobian(y, gradient, hessian)


@eqx.filter_jit
def _expect(
    problem, layers, reduction, horizon
) -> tuple[Float[Array, " lanes"], Float[Array, " lanes"]]:
    """The stiffness of each lane, and how far its positions go, guessed from both ends.

    Where the layers outgrow their start, they are those of a balanced network of the same θ: of
    size |θ|^{1/depth}, and M is depth · |θ|^{2 − 2/depth}; where they do not, those of the start.
    """

    def lane(problem, layers, reduction, horizon):
        depth, minimiser = layers.shape[0], problem.minimiser
        theta = jnp.where(jnp.isfinite(minimiser), minimiser, effective_parameter(layers))
        size = jnp.abs(theta) ** (1 / depth)
        reach = jnp.where(reduction.is_open, reduction.coordinate(size), jnp.inf)
        # Without a minimiser there is no telling.
        reach = jnp.where(jnp.isfinite(minimiser), reach, jnp.inf)
        reach = jnp.max(jnp.maximum(reach, jnp.abs(reduction.start)))
        root = jnp.sqrt(mobility(layers) + depth * size ** (2 * depth - 2))

        def power(_, vector):
            _, image = jax.jvp(problem.gradient, (theta,), (root * vector,))
            image = root * image
            return image / jnp.maximum(jnp.linalg.norm(image), jnp.finfo(image.dtype).tiny)

        start = root / jnp.linalg.norm(root)
        vector = jax.lax.fori_loop(0, 8, power, start)
        _, image = jax.jvp(problem.gradient, (theta,), (root * vector,))
        return horizon * jnp.linalg.norm(root * image), reach

    return jax.vmap(lane, (_axis(problem, 0), 0, 0, 0))(problem, layers, reduction, horizon)
