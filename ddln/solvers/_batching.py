"""Which lanes are integrated together, in what way, and where.

Lanes of about equal stiffness are a batch. Batches run side by side, one for each core of the
processor, each accelerator, or each row of a mesh of them.
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ddln.problems import sharding
from ddln.solvers._steppers import Rodas5P, Tsit5
from ddln.solvers.cost_model import CORES, accurate_steps, surcharge
from ddln.solvers.formulations import Reduced, Smallest

_NARROWEST = 8
"""Lanes of a batch below which its steps cost no less."""
_NEAR = 3.0
"""Positions within which the smallest layers themselves, that take less to move, move as well."""


def cut(
    stiffness: np.ndarray,
    reach: np.ndarray,
    rtol: np.ndarray,
    dim: int,
    solver: str,
    places: int,
) -> Iterator[tuple[tuple[type, type], np.ndarray]]:
    """Ways and lanes of all batches, of each way the longest first; a last lane may be repeated.

    Args:
        stiffness, reach, rtol: of every lane.
        dim: the width of a network.
        solver: as of `ddln.gradient_flows`.
        places: how many run side by side.
    """
    for_stability = np.nan_to_num(stiffness, nan=0.0) / 3
    implicit = for_stability > accurate_steps(rtol) * surcharge(dim)
    if solver != "auto":
        implicit = np.full(stiffness.shape, solver == "rodas5p")
    is_near = reach <= _NEAR
    for stepper, uses in ((Rodas5P, implicit), (Tsit5, ~implicit)):
        for picture, members in ((Reduced, uses & ~is_near), (Smallest, uses & is_near)):
            lanes = np.flatnonzero(members)
            lanes = lanes[np.argsort(-stiffness[lanes], kind="stable")]
            width = width_of(lanes.size, dim, stepper, places)
            for start in range(0, lanes.size, width):
                part = lanes[start : start + width]
                yield (stepper, picture), np.pad(part, (0, width - part.size), mode="edge")


def width_of(lanes: int, dim: int, stepper: type, places: int) -> int:
    """Lanes in a batch: a power of two, that few programs are compiled."""
    is_cpu = jax.local_devices()[0].platform == "cpu"
    if not is_cpu:
        most = min(65536, 2**31 // (8 * dim**2 if stepper is Rodas5P else 512 * dim))
    elif stepper is Rodas5P:
        most = min(64, 1536 // dim)  # their matrices stay in the cache
    else:
        most = min(64, 65536 // dim)
    # As many batches as keep a machine's cores busy, but the same on every machine: the last digits
    # of a lane depend on how wide its batch is.
    share = max(-(-lanes // (CORES if is_cpu else places)), min(lanes, _NARROWEST))
    return min(1 << max(most, 1).bit_length() - 1, 1 << (share - 1).bit_length())


def places_of(mesh: Mesh | None) -> list[Any]:
    """Where batches run side by side: devices, or rows of a mesh."""
    if mesh is not None:
        return sharding.rows(mesh)
    devices = jax.local_devices()
    return [devices[k % len(devices)] for k in range(workers())]


def workers() -> int:
    """Batches that this process runs side by side."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        return len(devices)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
