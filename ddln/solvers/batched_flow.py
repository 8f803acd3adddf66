"""Many gradient flows at once, as fast as a hand-written loop: the solver of sweeps.

The flows are integrated in reduced coordinates, in batches of networks that are expected to need
the same number of steps. The theory predicts it: near its end θ∞ a flow over the time t has

    stiffness = t · ρ,        ρ the largest eigenvalue of M^{1/2} ∇²ℒ M^{1/2} at θ∞.

For stability an explicit method needs at least a third as many steps, whatever the tolerances. If
these are more than accuracy requires, a linearly implicit method replaces it: a step costs more, by
dim³, but the number of steps does not depend on the stiffness. How far the smallest layers will
grow decides which formulation is integrated.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.program_store import StoredJit
from ddln._internal.validation import ArrayLike, as_floats
from ddln.networks.reparametrisation import Reduction
from ddln.problems.base import Problem, refuse_kinks
from ddln.solvers._batch_solver import FlowInputs, solve_in_batches
from ddln.solvers.formulations import Smallest, observe
from ddln.solvers.trajectory import (
    Trajectory,
    applied,
    as_times,
    as_tolerances,
    as_weight_decay,
)
from ddln.solvers.weight_decay import WeightDecay

Solver = Literal["auto", "tsit5", "rodas5p"]


class Flows(eqx.Module):
    """Gradient flows of many networks.

    Only the smallest layers are stored. All other quantities are computed from them on access.
    """

    problem: Problem
    """Shared by all networks; or one for each, with a leading axis on every array."""
    layers: Float[Array, "networks depth dim"]
    """Initial layers."""
    reduction: Reduction
    """Of the initial layers, with a leading axis on every array."""
    times: Float[Array, "networks times"]
    """Flow time."""
    smallest: Float[Array, "networks times dim"]
    """w of the reduction; NaN from where a network failed, constant from where it stopped."""
    status: Int[Array, " networks"]
    """Codes as in `Trajectory.status`."""
    stats: dict[str, Int[Array, " networks"]]
    """Steps of each network: num_steps, num_accepted_steps, num_rejected_steps; and num_rounds,
    which includes the steps computed while it waited for the others of its batch."""
    rtol: Float[Array, " networks"]
    atol: Float[Array, " networks"]
    decay: WeightDecay | None
    """The schedule of each network's weight decay since its start; `None` without."""

    @property
    def efficiency(self) -> float:
        """Steps that the networks took, as a fraction of all steps computed, padding included."""
        return float(jnp.sum(self.stats["num_steps"]) / jnp.sum(self.stats["num_rounds"]))

    @property
    def theta(self) -> Float[Array, "networks times dim"]:
        """θ."""
        return _theta(self.reduction, self.decay, self.times, self.smallest)

    @property
    def loss(self) -> Float[Array, "networks times"]:
        """ℒ(θ)."""
        return _evaluate(_loss, self.problem, self.theta)

    @property
    def gap(self) -> Float[Array, "networks times"]:
        """ℒ(θ) − ℒ*."""
        return _evaluate(_gap, self.problem, self.theta)

    def __getitem__(self, networks: slice | Int[np.ndarray, " some"]) -> "Flows":
        """The flows of some networks."""

        def some(tree: Any) -> Any:
            return jax.tree.map(lambda array: array[networks], tree)

        selected = some(eqx.tree_at(lambda flows: flows.problem, self, None))
        problem = self.problem if _axis(self.problem) is None else some(self.problem)
        return eqx.tree_at(
            lambda flows: flows.problem, selected, problem, is_leaf=lambda leaf: leaf is None
        )

    def trajectories(self) -> Trajectory:
        """All flows as one `Trajectory`, with a leading axis on every array."""
        return _trajectories(self)


@StoredJit
def _reductions(layers: Float[Array, "networks depth dim"]) -> Reduction:
    return jax.vmap(Reduction)(layers)


@jax.jit
def _theta(
    reduction: Reduction,
    decay: WeightDecay | None,
    times: Float[Array, "networks times"],
    smallest: Float[Array, "networks times dim"],
) -> Float[Array, "networks times dim"]:
    def of_network(
        reduction: Reduction,
        decay: WeightDecay | None,
        times: Float[Array, " times"],
        smallest: Float[Array, "times dim"],
    ) -> Float[Array, "times dim"]:
        formulation = Smallest(reduction, decay=decay)
        return jax.vmap(lambda t, w: formulation.at(t).theta(w))(times - times[0], smallest)

    return jax.vmap(of_network)(reduction, decay, times, smallest)


def _loss(problem: Problem, theta: Float[Array, " dim"]) -> Float[Array, ""]:
    return problem.loss(theta)


def _gap(problem: Problem, theta: Float[Array, " dim"]) -> Float[Array, ""]:
    return problem.gap(theta)


@eqx.filter_jit
def _evaluate(
    function: Callable[[Problem, Float[Array, " dim"]], Float[Array, ""]],
    problem: Problem,
    theta: Float[Array, "networks times dim"],
) -> Float[Array, "networks times"]:
    """A function of problem and θ, for every network and time.

    Its program is separate from that of θ, because XLA would fuse the two.
    """

    def of_network(problem: Problem, theta: Float[Array, "times dim"]) -> Float[Array, " times"]:
        return jax.vmap(partial(function, problem))(theta)

    return jax.vmap(of_network, (_axis(problem), 0))(problem, theta)


@StoredJit
def _trajectories(flows: Flows) -> Trajectory:
    def of_network(problem: Problem, flows: Flows) -> Trajectory:
        formulation = Smallest(flows.reduction, decay=flows.decay)
        elapsed = flows.times - flows.times[0]
        path = jax.vmap(lambda t, w: observe(t, w, (problem, formulation)))(elapsed, flows.smallest)
        counts = {name: count for name, count in flows.stats.items() if name != "num_rounds"}
        return Trajectory(
            times=flows.times,
            layers=path.layers.at[0].set(flows.layers),  # as given, without rounding
            theta=path.theta,
            loss=path.loss,
            gap=path.gap,
            status=flows.status,
            stats=counts,
            velocity=path.velocity,
            rtol=flows.rtol,
            atol=flows.atol,
            coordinates=formulation.name,
            decay=applied(flows.decay, elapsed),
        )

    without_problem = eqx.tree_at(lambda flows: flows.problem, flows, None)
    return jax.vmap(of_network, (_axis(flows.problem), 0))(flows.problem, without_problem)


def trajectories_like(
    problem: Problem,
    layers: Float[Array, "networks depth dim"],
    times: Float[Array, "networks times"],
    weight_decay: WeightDecay | None = None,
) -> Trajectory:
    """`gradient_flows(problem, layers, times, …).trajectories()`, compiled but not computed.

    Returns:
        The trajectories, with a `jax.ShapeDtypeStruct` in place of each array.
    """

    def flows_like(
        problem: Problem,
        layers: Float[Array, "networks depth dim"],
        times: Float[Array, "networks times"],
        decay: WeightDecay | None,
    ) -> Flows:
        networks, _, dim = layers.shape
        counts = ("num_steps", "num_accepted_steps", "num_rejected_steps", "num_rounds")
        count = jnp.zeros(networks, int)
        return Flows(
            problem=problem,
            layers=layers,
            reduction=jax.vmap(Reduction)(layers),
            times=times,
            smallest=jnp.zeros((networks, times.shape[-1], dim), layers.dtype),
            status=count,
            stats=dict.fromkeys(counts, count),
            rtol=jnp.zeros(networks, layers.dtype),
            atol=jnp.zeros(networks, layers.dtype),
            decay=decay,
        )

    flows = eqx.filter_eval_shape(flows_like, problem, layers, times, weight_decay)
    return _trajectories.prepare(flows)


def _axis(problem: Problem) -> int | None:
    """The axis of networks in a problem's arrays, None if all networks share the problem."""
    return None if problem.minimum.ndim == 0 else 0


def gradient_flows(
    problem: Problem,
    layers: ArrayLike,
    times: ArrayLike,
    *,
    weight_decay: WeightDecay | ArrayLike | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    solver: Solver | str = "auto",
    max_steps: int = 100_000,
    target_gap: ArrayLike | None = None,
    mesh: Mesh | None = None,
) -> Flows:
    """Gradient flow from many initialisations, or on many problems: `gradient_flow` for sweeps.

    The result for network k is that of `gradient_flow(problem, layers[k], times)`, within the
    tolerances. Batches are formed on the host, so this function does not work under `jit` or `vmap`
    and is not differentiable: use `gradient_flow` there.

    Args:
        problem: a loss for all networks; or one of the same shape for each, from `jax.vmap`, with a
            leading axis on every array.
        layers: initial layers, shape (networks, depth, dim).
        times: flow times to save at, strictly increasing; the first is the start. Shape (times,)
            or (networks, times).
        weight_decay: as in `gradient_flow`, for all networks or one for each: numbers of shape
            (networks,), or a schedule from `jax.vmap`.
        rtol, atol: tolerances on the reduced coordinates, shape () or (networks,); defaults as in
            `gradient_flow`.
        solver: "tsit5" (Tsitouras 2011), "rodas5p" (Steinebach 2023), or "auto": for each network
            the one with the lower predicted cost.
        max_steps: budget of steps of a network.
        target_gap: a network stops after the first step with ℒ(θ) − ℒ* at most this, shape () or
            (networks,); `None` never stops. Targets below β/2 times the square of the error in θ
            that `rtol` allows have no meaning.
        mesh: devices, from `ddln.problems.sharding.make_mesh`: each row integrates its own batches,
            and its devices share their coordinates; `None` uses every local device separately.

    Returns:
        `Flows`. A network that fails has another `status` than 0 and is NaN from there on; the
        others are not affected. One that reaches its target is constant from there on, and its
        status is "stopped".

    Raises:
        ValueError: invalid shapes, times, tolerances or weight decay, as in `gradient_flow`; or a
            target gap under weight decay.

    Source: reduced form and stiffness as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> scales = jnp.array([0.5, 1.0, 2.0])
    >>> layers = scales[:, None, None] * jnp.array([[[0.0], [1.0]]])
    >>> flows = ddln.gradient_flows(problem, layers, [0.0, 1.0, 20.0])
    >>> flows.theta[:, -1, 0].round(8).tolist()
    [2.0, 2.0, 2.0]
    """
    drop_programs()
    refuse_kinks(problem)
    if solver not in get_args(Solver):
        names = ", ".join(map(repr, get_args(Solver)))
        raise ValueError(f"`solver` must be one of {names}, got {solver!r}.")
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be ≥ 1, got {max_steps}.")
    layers = _as_networks(layers, problem)
    networks, dtype = len(layers), layers.dtype
    times = as_times(as_floats("times", times, 2 if np.ndim(times) == 2 else 1).astype(dtype))
    if times.ndim == 2 and times.shape[0] != networks:
        raise ValueError(
            f"`times` must have shape (times,) or ({networks}, times), got {times.shape}."
        )
    times = jnp.broadcast_to(times, (networks, times.shape[-1]))
    rtol, atol = as_tolerances(rtol, atol, 1e-9, dtype, (networks,))
    if target_gap is not None:
        target_gap = as_floats("target_gap", target_gap, np.ndim(target_gap)).astype(dtype)
        if target_gap.shape not in ((), (networks,)):
            raise ValueError(f"`target_gap` must have shape ({networks},), got {target_gap.shape}.")
        target_gap = jnp.broadcast_to(target_gap, (networks,))
    if weight_decay is not None:
        if target_gap is not None:
            raise ValueError("`target_gap` must be None under weight decay: a flow does not stop.")
        weight_decay = as_weight_decay(weight_decay, times, is_reduced=True)
    reduction = _reductions(layers)
    solution = solve_in_batches(
        problem,
        layers,
        FlowInputs(reduction, times, rtol, atol, target_gap, weight_decay),
        solver=str(solver),
        max_steps=max_steps,
        mesh=mesh,
    )
    stats = {
        "num_steps": solution.accepted + solution.rejected,
        "num_accepted_steps": solution.accepted,
        "num_rejected_steps": solution.rejected,
        "num_rounds": solution.loop_iterations,
    }
    return Flows(
        problem=problem,
        layers=layers,
        reduction=reduction,
        times=times,
        smallest=solution.saved,
        status=solution.status,
        stats=stats,
        rtol=rtol,
        atol=atol,
        decay=weight_decay,
    )


def _as_networks(layers: ArrayLike, problem: Problem) -> Float[Array, "networks depth dim"]:
    """Check the initial layers of all networks, and that there is a problem for them."""
    layers = as_floats("layers", layers, 3)
    networks, depth, dim = layers.shape
    width = problem.minimiser.shape[-1]
    if networks < 1 or depth < 1 or dim != width:
        raise ValueError(
            f"`layers` must have shape (networks, depth, {width}) with networks ≥ 1 and "
            f"depth ≥ 1, got {layers.shape}."
        )
    if problem.minimum.shape not in ((), (networks,)):
        raise ValueError(
            f"`problem` must be one problem or {networks} of them, one for each network, "
            f"got {problem.minimum.shape}."
        )
    return layers.astype(jnp.promote_types(layers.dtype, problem.minimum.dtype))
