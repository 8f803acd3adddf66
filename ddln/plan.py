"""What an experiment's sweep comes to: a grid of lanes, cut into chunks of one array shape each.

A *lane* is one network; lanes are numbered along the grid, the last axis fastest. Axes that change
the shape of arrays are looped over, one compiled program each; the others run side by side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ddln.config import Experiment, axis_values, changes_shape, numeric_leaves

MAX_LANES = 10_000_000


@dataclass(frozen=True)
class Axis:
    """One axis of the grid.

    Attributes:
        name: the dotted name of the leaf it sweeps.
        values: shape (n,), integers or floats as the leaf is.
        shape_changing: whether every value needs a program of its own.
    """

    name: str
    values: np.ndarray
    shape_changing: bool


@dataclass(frozen=True)
class Chunk:
    """Lanes that run as one compiled program and are stored as one file.

    Attributes:
        index: place among the plan's chunks.
        experiment: the experiment with its shape-changing axes set and no sweep.
        lanes: numbers of the lanes in the grid, shape (n,).
        values: of every other axis, shape (n,) each.
        width: n of the fullest chunk of this shape: padded to it, all run as one program.
    """

    index: int
    experiment: Experiment
    lanes: np.ndarray
    values: Mapping[str, np.ndarray]
    width: int


@dataclass(frozen=True)
class Plan:
    """A grid of lanes and the chunks that cover it, each lane once.

    Attributes:
        experiment: what is planned.
        axes: in the order written.
        shape: of the grid; () without a sweep, which is one lane.
        chunks: in the order they run.
    """

    experiment: Experiment
    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def lanes(self) -> int:
        """How many networks."""
        return math.prod(self.shape)

    @property
    def programs(self) -> tuple[Chunk, ...]:
        """The first chunk of every shape: one compiled program each."""
        first: dict[int, Chunk] = {}
        for chunk in self.chunks:
            first.setdefault(id(chunk.experiment), chunk)
        return tuple(first.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the data set in float64: θ, velocity, layers, loss, gap and bounds in time."""
        experiments = [chunk.experiment for chunk in self.programs]
        points = max(experiment.dynamics.points for experiment in experiments)
        depth = max(experiment.network.depth for experiment in experiments)
        width = max(experiment.width for experiment in experiments)
        return 8 * self.lanes * points * ((depth + 2) * width + 5)


def make_plan(experiment: Experiment, *, chunk_lanes: int = 256) -> Plan:
    """The plan of an experiment.

    Args:
        experiment: with its sweep.
        chunk_lanes: lanes per chunk, at most.

    Raises:
        ValueError: the grid has more than `MAX_LANES` lanes.

    >>> from ddln.config import load
    >>> plan = make_plan(load("configs/figure4.toml"))
    >>> plan.shape, len(plan.chunks), plan.chunks[0].values["network.scale"].tolist()
    ((3,), 1, [1.0, 1.4, 1.8])
    """
    leaves = numeric_leaves(experiment)
    axes = tuple(
        Axis(name, np.array(axis_values(axis, leaves[name])), changes_shape(leaves[name]))
        for name, axis in experiment.sweep.items()
    )
    shape = tuple(axis.values.size for axis in axes)
    size = math.prod(shape)
    if size > MAX_LANES:
        raise ValueError(f"sweep: {size:,} lanes, more than {MAX_LANES:,}")
    places = np.unravel_index(np.arange(size), shape) if axes else ()
    looped = [i for i, axis in enumerate(axes) if axis.shape_changing]
    group = np.zeros(size, int)
    for i in looped:
        group = group * shape[i] + places[i]
    chunks: list[Chunk] = []
    order = np.argsort(group, kind="stable")
    for lanes in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        first = {axes[i].name: axes[i].values[places[i][lanes[0]]].item() for i in looped}
        program = experiment.with_({**first, "sweep": {}})
        width = math.ceil(lanes.size / math.ceil(lanes.size / chunk_lanes))
        for start in range(0, lanes.size, width):
            part = lanes[start : start + width]
            values = {
                axis.name: axis.values[place[part]]
                for axis, place in zip(axes, places, strict=True)
                if not axis.shape_changing
            }
            chunks.append(Chunk(len(chunks), program, part, values, width))
    return Plan(experiment, axes, shape, tuple(chunks))
