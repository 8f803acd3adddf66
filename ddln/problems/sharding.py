"""One problem on many devices: what has coordinates is cut along them.

θ and the layers are elementwise; only Xθ is a sum over coordinates. So the flow or descent of a
problem whose features, and of layers whose columns, lie on a mesh of devices is computed there as
it stands: the compiler adds the sum. The numbers are those of one device but for the order of sums.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ddln._internal.validation import ArrayLike, as_layers
from ddln.problems.base import LeastSquares, Normalisation, Problem, as_data, spectrum

LANES, COORDINATES = "lanes", "coordinates"
"""The axes of a mesh: rows of devices have lanes of their own, columns coordinates."""
_HAS_COORDINATES = {
    *("features", "core", "minimiser"),  # of problems
    *("start", "radius", "side", "gaps", "sign", "order"),  # of reductions
}
"""Fields whose last axis is that of the coordinates."""


def mesh_of(devices: Sequence[Any] | None = None, *, lanes: int = 1) -> Mesh:
    """A mesh of devices to cut coordinates over.

    Args:
        devices: `None` is `jax.devices()`: those of all processes, after
            `jax.distributed.initialize()`.
        lanes: rows of devices, for a sweep whose lanes are shared out among them.

    Raises:
        ValueError: a number of devices that `lanes` does not divide.

    >>> mesh_of(jax.devices()[:1]).size
    1
    """
    given = np.array(jax.devices() if devices is None else devices)
    if lanes < 1 or given.size % lanes:
        raise ValueError(f"`lanes` must divide {given.size}, the number of devices, got {lanes}.")
    return Mesh(given.reshape(lanes, -1), (LANES, COORDINATES))


def rows(mesh: Mesh) -> list[Mesh]:
    """Each row of a mesh by itself."""
    return [Mesh(row[None], mesh.axis_names) for row in mesh.devices]


def place(tree: Any, mesh: Mesh, *, lanes: bool = False) -> Any:
    """Problems, reductions and what goes with them, cut along the coordinates of what has any.

    Args:
        tree: an array whose last axis is that of the coordinates; or fields, known by their names.
        mesh: from `mesh_of`.
        lanes: whether the first axis of what has coordinates is one of lanes, cut too where the
            mesh's rows divide it.
    """

    def put(path, leaf):
        axes: list[str | None] = [None] * jnp.ndim(leaf)
        if not path or getattr(path[-1], "name", "") in _HAS_COORDINATES:
            axes[-1] = COORDINATES
            if lanes and leaf.shape[0] % mesh.shape[LANES] == 0:
                axes[0] = LANES
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree_util.tree_map_with_path(put, tree)


def shard(problem: Problem, layers: ArrayLike, mesh: Mesh) -> tuple[Problem, Array]:
    """A problem and layers cut along the coordinates, to be used as any others.

    Each of the b devices holds 1/b of the columns of X and of the layers, and all of what has no
    coordinates. A problem that no device can hold is made by `sharded_least_squares`.

    Args:
        problem: one on features.
        layers: shape (depth, dim).
        mesh: from `mesh_of`.

    Returns:
        The problem and the layers.

    Raises:
        ValueError: shapes that do not fit, or a number of devices that does not divide the columns.

    >>> given = ddln.least_squares([[1.0]], [2.0]), [[0.0], [1.0]]
    >>> run = ddln.gradient_flow(*shard(*given, mesh_of(jax.devices()[:1])), [0.0, 20.0])
    >>> round(float(run.theta[-1, 0]), 8)
    2.0
    """
    layers = as_layers(layers, problem.dim)
    _check(layers.shape[1], mesh.shape[COORDINATES])
    return place(problem, mesh), place(layers, mesh)


def sharded_least_squares(
    features: Float[Array, "samples dim"],
    targets: ArrayLike,
    *,
    normalisation: Normalisation | str = "sum",
) -> LeastSquares:
    """`ddln.least_squares` of features that lie on a mesh, of which no device ever has all.

    What it must know of X comes from a QR decomposition in two steps: of each device's columns,
    X_i = (Q_i R_i)ᵀ, and of all R_i one below the other. With R = U S Vᵀ then X = V S (QU)ᵀ. Tall
    features are not reduced to fewer rows, as those of `ddln.least_squares` are.

    Args:
        features: X, shape (samples, dim), on a mesh from `mesh_of`, cut along its columns;
            `jax.make_array_from_callback` reads each device's part by itself.
        targets: y, shape (samples,).
        normalisation: as of `ddln.least_squares`.

    Raises:
        ValueError: features that are not cut so; else as `ddln.least_squares`.

    Source: the two steps are the TSQR of Demmel et al. 2012.

    >>> cut = column_sharding(mesh_of(jax.devices()[:1]))
    >>> features = jax.device_put(jnp.array([[1.0, 1.0]]), cut)
    >>> sharded_least_squares(features, [2.0]).minimiser.round(12).tolist()
    [1.0, 1.0]
    """
    mesh = getattr(features.sharding, "mesh", None)
    if not isinstance(mesh, Mesh) or not features.sharding.is_equivalent_to(
        column_sharding(mesh), 2
    ):
        raise ValueError(
            f"`features` must lie on a mesh, cut along {COORDINATES}, got {features.sharding}."
        )
    features, targets, factor = as_data(features, targets, normalisation)
    whole = NamedSharding(mesh, PartitionSpec())
    targets = jnp.asarray(jax.device_put(targets, whole))
    return LeastSquares(features, targets, factor, solve=partial(_solve, mesh))


def column_sharding(mesh: Mesh) -> NamedSharding:
    """That of features and layers, (rows, dim)."""
    return NamedSharding(mesh, PartitionSpec(None, COORDINATES))


def _check(columns: int, devices: int) -> None:
    if columns % devices:
        raise ValueError(
            f"`mesh` must have a number of devices that divides {columns}, the number of columns, "
            f"got {devices}."
        )


@partial(jax.jit, static_argnums=0)
def _solve(mesh: Mesh, features, targets, factor) -> dict[str, Array]:
    columns, entries, whole = (
        PartitionSpec(None, COORDINATES),
        PartitionSpec(COORDINATES),
        PartitionSpec(),
    )

    def part(own, targets):
        first, factor_of_own = jnp.linalg.qr(own.T)
        stacked = jax.lax.all_gather(factor_of_own, COORDINATES, tiled=True)
        second, core = jnp.linalg.qr(stacked)
        mine = jax.lax.axis_index(COORDINATES) * factor_of_own.shape[0]
        second = jax.lax.dynamic_slice_in_dim(second, mine, factor_of_own.shape[0])
        right, singular, left = jnp.linalg.svd(core, full_matrices=False)
        found, weights = spectrum(features.shape, singular, left @ targets, factor)
        fitted = left.T @ weights
        return found, fitted, first @ (second @ (right @ (weights / found["scale"])))

    found, fitted, minimiser = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(columns, whole),
        out_specs=(whole, whole, entries),
        check_vma=False,  # all devices decompose the same core
    )(features, targets)
    found.pop("scale")
    return found | {
        "fitted": fitted,
        "core": features,
        "core_fitted": fitted,
        "minimum": factor * jnp.sum((targets - fitted) ** 2),
        "minimiser": minimiser,
    }
