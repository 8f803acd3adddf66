"""Group networks by predicted stiffness; choose a method and devices for each batch.

The networks of a batch need about the same number of steps. Batches run concurrently: one for each
CPU core, each accelerator, or each row of a mesh of accelerators.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ddln._internal.program_store import StoredJit
from ddln.networks.layers import effective_parameter, mobility
from ddln.networks.reparametrisation import Reduction
from ddln.problems import sharding
from ddln.problems.base import Problem
from ddln.solvers._steppers import Rodas5P, Tsit5
from ddln.solvers.cost_model import ASSUMED_CORES, accurate_steps, implicit_extra_cost
from ddln.solvers.formulations import Reduced, Smallest

_NARROWEST = 8
"""Fewer networks in a batch make its steps no cheaper."""
_SHORT_RANGE = 3.0
"""Up to this range of the reduced coordinate v, w = smallest layer is integrated instead: its steps
are cheaper, and it takes about as many."""


_POWER_ITERATIONS = 8
"""For the largest eigenvalue."""


@StoredJit
def predict(
    problem: Problem,
    layers: Float[Array, "networks depth dim"],
    reduction: Reduction,
    horizon: Float[Array, " networks"],
) -> tuple[Float[Array, " networks"], Float[Array, " networks"]]:
    """Stiffness and range of the reduced coordinate of each network, estimated from both ends.

    At the end, the larger layers are those of a balanced network with the minimiser as its θ: they
    have size |θ|^{1/depth}, and M = depth · |θ|^{2 − 2/depth}. The others are as at the start.
    """
    axes = None if problem.minimum.ndim == 0 else 0, 0, 0, 0
    return jax.vmap(_predict_one, axes)(problem, layers, reduction, horizon)


def _predict_one(
    problem: Problem,
    layers: Float[Array, "depth dim"],
    reduction: Reduction,
    horizon: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Stiffness and range of the reduced coordinate of one network."""
    depth, minimiser = layers.shape[0], problem.minimiser
    theta = jnp.where(jnp.isfinite(minimiser), minimiser, effective_parameter(layers))
    size = jnp.abs(theta) ** (1 / depth)
    end = jnp.where(reduction.is_open, reduction.coordinate(size), jnp.inf)
    # Without a minimiser the range is unknown.
    end = jnp.where(jnp.isfinite(minimiser), end, jnp.inf)
    coordinate_range = jnp.max(jnp.maximum(end, jnp.abs(reduction.start)))
    root_mobility = jnp.sqrt(mobility(layers) + depth * size ** (2 * depth - 2))

    def multiply(vector: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """M^{1/2} ∇²ℒ M^{1/2} times a vector."""
        _, image = jax.jvp(problem.gradient, (theta,), (root_mobility * vector,))
        return root_mobility * image

    def iterate(_: Any, vector: Float[Array, " dim"]) -> Float[Array, " dim"]:
        image = multiply(vector)
        return image / jnp.maximum(jnp.linalg.norm(image), jnp.finfo(image.dtype).tiny)

    start = root_mobility / jnp.linalg.norm(root_mobility)
    vector = jax.lax.fori_loop(0, _POWER_ITERATIONS, iterate, start)
    return horizon * jnp.linalg.norm(multiply(vector)), coordinate_range


class NetworkBatch(NamedTuple):
    """Networks that are integrated together, and how."""

    stepper: type[Tsit5] | type[Rodas5P]
    formulation: type[Reduced] | type[Smallest]
    members: Int[np.ndarray, " width"]
    """Their indices; the last is repeated to pad the batch."""


def plan_batches(
    stiffness: Float[np.ndarray, " networks"],
    coordinate_range: Float[np.ndarray, " networks"],
    rtol: Float[np.ndarray, " networks"],
    *,
    dim: int,
    solver: str,
    concurrency: int,
) -> Iterator[NetworkBatch]:
    """Divide networks into batches; for each method the stiffest come first.

    Args:
        stiffness, coordinate_range, rtol: of every network.
        dim: number of coordinates of a network.
        solver: as in `ddln.gradient_flows`.
        concurrency: number of batches that run at the same time.
    """
    steps_for_stability = np.nan_to_num(stiffness, nan=0.0) / 3
    is_stiff = steps_for_stability > accurate_steps(rtol) * implicit_extra_cost(dim)
    if solver != "auto":
        is_stiff = np.full(stiffness.shape, solver == "rodas5p")
    is_short = coordinate_range <= _SHORT_RANGE
    for stepper, suits_stepper in ((Rodas5P, is_stiff), (Tsit5, ~is_stiff)):
        for formulation, suits_formulation in ((Reduced, ~is_short), (Smallest, is_short)):
            members = np.flatnonzero(suits_stepper & suits_formulation)
            members = members[np.argsort(-stiffness[members], kind="stable")]
            width = batch_width(members.size, dim, stepper, concurrency)
            for start in range(0, members.size, width):
                some = members[start : start + width]
                padded = np.pad(some, (0, width - some.size), mode="edge")
                yield NetworkBatch(stepper, formulation, padded)


def batch_width(
    networks: int, dim: int, stepper: type[Tsit5] | type[Rodas5P], concurrency: int
) -> int:
    """Number of networks in a batch: a power of two, so that few programs are compiled."""
    is_cpu = jax.local_devices()[0].platform == "cpu"
    if not is_cpu:
        largest = min(65536, 2**31 // (8 * dim**2 if stepper is Rodas5P else 512 * dim))
    elif stepper is Rodas5P:
        largest = min(64, 1536 // dim)  # the matrices fit in the cache
    else:
        largest = min(64, 65536 // dim)
    # Enough batches for all cores of a machine, but the same number on every machine: the last
    # digits of a result depend on the width of its batch.
    share = max(
        -(-networks // (ASSUMED_CORES if is_cpu else concurrency)), min(networks, _NARROWEST)
    )
    return min(1 << max(largest, 1).bit_length() - 1, 1 << (share - 1).bit_length())


def concurrent_devices(mesh: Mesh | None) -> list[Any]:
    """The devices, or rows of a mesh, that each run a batch at a time."""
    if mesh is not None:
        return sharding.mesh_rows(mesh)
    devices = jax.local_devices()
    return [devices[k % len(devices)] for k in range(_concurrency())]


def _concurrency() -> int:
    """Number of batches that this process runs at a time."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return len(devices)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
