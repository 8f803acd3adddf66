"""One problem on many devices: a mesh shards every axis that runs over coordinates.

θ and the layers are elementwise; only Xθ is a sum over coordinates. So the same flow or descent
runs on a problem and layers whose columns lie on a mesh of devices: the compiler adds the sum. The
numbers are those of one device up to the order of summation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from ddln._internal.validation import ArrayLike, as_layers
from ddln.problems.base import Normalisation, Problem, as_data
from ddln.problems.least_squares import LeastSquares, Solution, solve_spectrum

BATCH, COORDINATES = "batch", "coordinates"
"""The axes of a mesh: its rows share a batch of networks, its columns the coordinates of each."""

_Tree = TypeVar("_Tree")


def make_mesh(devices: Sequence[Any] | None = None, *, batch: int = 1) -> Mesh:
    """A mesh of devices that shards coordinates, and batches of networks if it has several rows.

    Args:
        devices: `None` is `jax.devices()`: those of all processes, after
            `jax.distributed.initialize()`.
        batch: the number of rows, among which a sweep distributes its networks.

    Raises:
        ValueError: `batch` does not divide the number of devices.

    >>> make_mesh(jax.devices()[:1]).size
    1
    """
    given = np.array(jax.devices() if devices is None else devices)
    if batch < 1 or given.size % batch:
        raise ValueError(f"`batch` must divide {given.size}, the number of devices, got {batch}.")
    return Mesh(given.reshape(batch, -1), (BATCH, COORDINATES))


def mesh_rows(mesh: Mesh) -> list[Mesh]:
    """Each row of a mesh as a mesh of its own."""
    return [Mesh(row[None], mesh.axis_names) for row in mesh.devices]


def column_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of features and layers, shape (rows, dim), along their columns."""
    return NamedSharding(mesh, PartitionSpec(None, COORDINATES))


def replicate(tree: _Tree, mesh: Mesh) -> _Tree:
    """A copy of every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_columns(tree: _Tree, mesh: Mesh, *, batched: bool = False) -> _Tree:
    """Shard every array of a tree along its last axis, that of the coordinates.

    Args:
        tree: arrays of shape (..., dim).
        mesh: from `make_mesh`.
        batched: whether the first axis runs over networks. It is sharded too if the number of rows
            of the mesh divides it.
    """
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, _last_axis_sharding(leaf, mesh, batched)), tree
    )


def shard_problem(problem: Problem, mesh: Mesh, *, batched: bool = False) -> Problem:
    """Shard the `coordinate_arrays` of a problem as `shard_columns` does; replicate the others."""
    arrays = problem.coordinate_arrays()
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Shaped[Array, "..."]) -> Array:
        has_coordinates = any(leaf is array for array in arrays)
        return jax.device_put(
            leaf, _last_axis_sharding(leaf, mesh, batched) if has_coordinates else replicated
        )

    return jax.tree.map(place, problem)


def _last_axis_sharding(array: Shaped[Array, "..."], mesh: Mesh, batched: bool) -> NamedSharding:
    axes: list[str | None] = [None] * jnp.ndim(array)
    axes[-1] = COORDINATES
    if batched and array.shape[0] % mesh.shape[BATCH] == 0:
        axes[0] = BATCH
    return NamedSharding(mesh, PartitionSpec(*axes))


def shard(problem: Problem, layers: ArrayLike, mesh: Mesh) -> tuple[Problem, Array]:
    """A problem and layers sharded along the coordinates, for use as any others.

    Each of the b devices holds 1/b of the columns of X and of the layers, and a copy of every array
    without coordinates. `sharded_least_squares` makes a problem that no single device can hold.

    Args:
        problem: the problem.
        layers: shape (depth, dim).
        mesh: from `make_mesh`.

    Returns:
        The problem and the layers.

    Raises:
        ValueError: shapes that do not match, or a number of devices that does not divide the
            columns.

    >>> given = ddln.least_squares([[1.0]], [2.0]), [[0.0], [1.0]]
    >>> run = ddln.gradient_flow(*shard(*given, make_mesh(jax.devices()[:1])), [0.0, 20.0])
    >>> round(float(run.theta[-1, 0]), 8)
    2.0
    """
    layers = as_layers(layers, problem.dim)
    for array in (layers, *problem.coordinate_arrays()):
        _refuse_uneven(array.shape[-1], mesh.shape[COORDINATES])
    return shard_problem(problem, mesh), shard_columns(layers, mesh)


def _refuse_uneven(columns: int, devices: int) -> None:
    if columns % devices:
        raise ValueError(
            f"`mesh` must have a number of devices that divides {columns}, the number of columns, "
            f"got {devices}."
        )


def sharded_least_squares(
    features: Float[Array, "samples dim"],
    targets: ArrayLike,
    *,
    normalisation: Normalisation | str = "sum",
) -> LeastSquares:
    """`ddln.least_squares` of features on a mesh; no device ever holds all of them.

    The solution comes from two QR factorisations: of each device's columns, X_i = (Q_i R_i)ᵀ, and
    of all the R_i stacked. With R = U S Vᵀ the result is X = V S (QU)ᵀ. Tall features keep all
    their rows, unlike those of `ddln.least_squares`.

    Args:
        features: X, shape (samples, dim), on a mesh from `make_mesh`, sharded along its columns;
            `jax.make_array_from_callback` lets each device read its own part.
        targets: y, shape (samples,).
        normalisation: as in `ddln.least_squares`.

    Raises:
        ValueError: features with another sharding; otherwise as `ddln.least_squares`.

    Source: the two steps are the TSQR of Demmel et al. 2012.

    >>> columns = column_sharding(make_mesh(jax.devices()[:1]))
    >>> features = jax.device_put(jnp.array([[1.0, 1.0]]), columns)
    >>> sharded_least_squares(features, [2.0]).minimiser.round(12).tolist()
    [1.0, 1.0]
    """
    mesh = getattr(features.sharding, "mesh", None)
    if not isinstance(mesh, Mesh) or not features.sharding.is_equivalent_to(
        column_sharding(mesh), 2
    ):
        raise ValueError(
            f"`features` must lie on a mesh, sharded along {COORDINATES}, got {features.sharding}."
        )
    features, targets, factor = as_data(features, targets, normalisation)
    targets = jnp.asarray(replicate(targets, mesh))
    return LeastSquares(features, targets, factor, _solve(mesh, features, targets, factor))


@partial(jax.jit, static_argnums=0)
def _solve(
    mesh: Mesh,
    features: Float[Array, "samples dim"],
    targets: Float[Array, " samples"],
    factor: float | Float[Array, ""],
) -> Solution:
    """The solution by TSQR: every device factors its own columns, then all the same small core."""
    samples, dim = features.shape

    def solve_block(block: Float[Array, "samples columns"], targets: Float[Array, " samples"]):
        q_local, r_local = jnp.linalg.qr(block.T)
        stacked = jax.lax.all_gather(r_local, COORDINATES, tiled=True)
        q_stacked, r = jnp.linalg.qr(stacked)
        first_row = jax.lax.axis_index(COORDINATES) * r_local.shape[0]
        q_own = jax.lax.dynamic_slice_in_dim(q_stacked, first_row, r_local.shape[0])
        right, singular, left = jnp.linalg.svd(r, full_matrices=False)
        spectrum = solve_spectrum((samples, dim), singular, left @ targets, factor)
        minimiser = q_local @ (q_own @ (right @ spectrum.solution))
        return left.T @ spectrum.projected, minimiser, spectrum.pl_constant, spectrum.smoothness

    everywhere, coordinates = PartitionSpec(), PartitionSpec(COORDINATES)
    fitted, minimiser, pl_constant, smoothness = jax.shard_map(
        solve_block,
        mesh=mesh,
        in_specs=(PartitionSpec(None, COORDINATES), everywhere),
        out_specs=(everywhere, coordinates, everywhere, everywhere),
        check_vma=False,  # all devices factor the same core
    )(features, targets)
    return Solution(
        minimum=factor * jnp.sum((targets - fitted) ** 2),
        minimiser=minimiser,
        fitted=fitted,
        core=features,
        core_fitted=fitted,
        pl_constant=pl_constant,
        smoothness=smoothness,
    )
