"""Plan a sweep: its grid of networks, cut into chunks of one array shape each.

The networks are numbered with the last dimension fastest; files call this number `lane`. Zipped
axes share a dimension. Axes that change the shape of arrays are looped over, with one compiled
program for each of their values; along all other axes, networks run side by side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ddln.config.datasets import shape_of
from ddln.config.dynamics_schema import DescentConfig
from ddln.config.experiment import (
    ConfigError,
    Experiment,
    at_point,
    changes_shape,
    numeric_leaves,
    units_of,
)
from ddln.config.sweep_axes import columns
from ddln.sweeps.dataset_schema import HEADER_BYTES, network_bytes, portable_bytes, working_bytes

MAX_LANES = 10_000_000
MAX_PROGRAMS = 5_000
MIN_CHUNK, MAX_CHUNK, CHUNKS = 256, 1024, 64
"""Bounds on the networks of a chunk, and how many chunks are enough to show progress."""
PORTABLE = 100_000_000
"""Up to so many bytes `ddln run` writes a data set as one file too; `ddln export` writes others."""
PROCESS_BYTES, CURVES_READ = 900_000_000, 8
"""Memory of the libraries and compiled programs, and how many curves of each network a study has in
memory at once."""
RECOMPUTED_EVERY = 50
"""One chunk in so many is recomputed at finer tolerances."""
SMALL = 50_000
"""The first chunk is recomputed if its curves and data hold at most so many numbers."""
LONG_STEPS, LONG_OPERATIONS = 10**6, 10**10
"""A descent of so many steps, or a chunk of so many multiplications, reports its progress in parts:
it takes several seconds, so that compiling the parts is worth it."""


@dataclass(frozen=True)
class GridAxis:
    """One axis of the grid.

    Attributes:
        name: the dotted name of the swept leaf.
        values: shape (n,), integers or floats like the leaf.
        shape_changing: whether each value needs its own compiled program.
        dimension: the name of the axis it is zipped to, or else its own name.
        units: of the values; 1 if they are dimensionless.
    """

    name: str
    values: np.ndarray
    shape_changing: bool
    dimension: str
    units: str

    @property
    def span(self) -> str:
        """The number of values, the first and the last.

        >>> from ddln.config.experiment import load
        >>> make_plan(load("configs/figure4.toml")).axes[0].span
        '3 values, 1 … 1.8'
        """
        first, last = (f"{value:.6g}" for value in (self.values[0], self.values[-1]))
        if self.values.size == 1:
            return f"1 value, {first}"
        return f"{self.values.size:,} values, {first} … {last}"


@dataclass(frozen=True)
class Chunk:
    """Networks that run as one compiled program and are stored as one file.

    Attributes:
        index: position among the plan's chunks.
        experiment: the experiment with its shape-changing axes set, and without a sweep.
        lanes: the numbers of the networks in the grid, shape (n,).
        values: the values of every other axis by name, shape (n,) each.
        width: the largest n of all chunks of this shape; smaller chunks are padded to it, so that
            all run as one compiled program.
    """

    index: int
    experiment: Experiment
    lanes: np.ndarray
    values: Mapping[str, np.ndarray]
    width: int


@dataclass(frozen=True)
class Plan:
    """A grid of networks and the chunks that cover it, each network once.

    Attributes:
        experiment: the experiment, with its sweep.
        axes: in the order of the config.
        sizes: the sizes of the grid's dimensions by name; without a sweep it is empty, and the grid
            is one network.
        chunks: in the order they run.
    """

    experiment: Experiment
    axes: tuple[GridAxis, ...]
    sizes: Mapping[str, int]
    chunks: tuple[Chunk, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the grid."""
        return tuple(self.sizes.values())

    @property
    def lanes(self) -> int:
        """The number of networks."""
        return math.prod(self.shape)

    @property
    def programs(self) -> tuple[Chunk, ...]:
        """The first chunk of each shape; each shape has one compiled program."""
        first: dict[int, Chunk] = {}
        for chunk in self.chunks:
            first.setdefault(id(chunk.experiment), chunk)
        return tuple(first.values())

    @property
    def nbytes(self) -> int:
        """Estimate of the bytes of the chunks' files."""
        own_times = any(name.startswith("dynamics.") for name in self.chunks[0].values)
        of_network = {
            id(chunk.experiment): network_bytes(chunk.experiment, own_times=own_times)
            for chunk in self.programs
        }
        headers = HEADER_BYTES * len(self.chunks)
        return headers + sum(
            chunk.lanes.size * of_network[id(chunk.experiment)] for chunk in self.chunks
        )

    @property
    def portable_nbytes(self) -> int:
        """Bytes of the data set in one file: every saved variable of all lanes."""
        return self.lanes * max(portable_bytes(chunk.experiment) for chunk in self.programs)

    @property
    def is_portable(self) -> bool:
        """Whether the data set is small enough to be written as one file beside the chunks."""
        return self.portable_nbytes <= PORTABLE

    @property
    def peak_bytes(self) -> int:
        """Estimate of the bytes of memory that the largest chunk takes."""
        return max(chunk.width * working_bytes(chunk.experiment) for chunk in self.programs)

    @property
    def process_bytes(self) -> int:
        """Estimate of the memory that a run takes: its programs, and the curves that a study reads.

        Measured on 4,000 and 8,000 networks of Figure 4: 0.95 to 1.2 GB.
        """
        curve = max(8 * chunk.experiment.dynamics.saved for chunk in self.programs)
        return PROCESS_BYTES + CURVES_READ * self.lanes * curve

    def check_memory(self) -> None:
        """Check that every chunk fits into the `memory` of the experiment.

        Raises:
            ConfigError: a chunk does not fit, even with as few networks as possible.
        """
        if self.peak_bytes > self.experiment.memory * 1e9:
            raise ConfigError(
                [
                    f"memory: a chunk takes about {self.peak_bytes / 1e9:,.2g} GB and cannot have "
                    f"fewer networks, more than memory = {self.experiment.memory:g}; fewer "
                    "samples, features or dynamics.points take less"
                ]
            )


def make_plan(experiment: Experiment, chunk_lanes: int | None = None) -> Plan:
    """Plan an experiment: chunks of as many networks as fit into its `memory` side by side.

    The plan depends on the experiment only, so that a resumed run has the chunks it began with.

    Args:
        experiment: with its sweep.
        chunk_lanes: the largest number of networks in a chunk; `None` is a 64th of them all, but
            at least 256 and at most 1024.

    Raises:
        ConfigError: the grid has more than `MAX_LANES` networks, or these have more shapes than
            `MAX_PROGRAMS`; or a combination of shape-changing values is invalid.

    >>> from ddln.config.experiment import load
    >>> plan = make_plan(load("configs/figure4.toml"))
    >>> plan.shape, len(plan.chunks), plan.chunks[0].values["network.scale"].tolist()
    ((3,), 1, [1.0, 1.4, 1.8])
    """
    axes = _axes(experiment)
    sizes = {axis.name: axis.values.size for axis in axes if axis.name == axis.dimension}
    size = math.prod(sizes.values())
    if size > MAX_LANES:
        raise ConfigError([f"sweep: {size:,} networks, more than {MAX_LANES:,}"])
    if chunk_lanes is None:
        chunk_lanes = min(max(size // CHUNKS, MIN_CHUNK), MAX_CHUNK)
    indices = np.unravel_index(np.arange(size), tuple(sizes.values())) if sizes else ()
    index_along = dict(zip(sizes, indices, strict=True))
    looped = [axis for axis in axes if axis.shape_changing]
    group = np.zeros(size, int)
    for axis in looped:
        # By value, not by index: an axis that is zipped to another may repeat a value.
        group = group * axis.values.size + _first(axis.values)[index_along[axis.dimension]]
    if (shapes := np.unique(group).size) > MAX_PROGRAMS:
        names = ", ".join(axis.name for axis in looped)
        found = f"{shapes:,} shapes by {names}, each compiled alone"
        raise ConfigError([f"sweep: {found}, more than {MAX_PROGRAMS:,}"])
    chunks: list[Chunk] = []
    order = np.argsort(group, kind="stable")
    for lanes in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        values = {axis.name: axis.values[index_along[axis.dimension][lanes]] for axis in axes}
        program = at_point(experiment, {axis.name: values[axis.name][0].item() for axis in looped})
        width = _width(program, lanes.size, chunk_lanes)
        varying = [axis.name for axis in axes if not axis.shape_changing]
        for start in range(0, lanes.size, width):
            part = slice(start, start + width)
            of_part = {name: values[name][part] for name in varying}
            chunks.append(Chunk(len(chunks), program, lanes[part], of_part, width))
    return Plan(experiment, axes, sizes, tuple(chunks))


def _axes(experiment: Experiment) -> tuple[GridAxis, ...]:
    leaves = numeric_leaves(experiment)
    return tuple(
        GridAxis(
            name,
            np.array(values),
            changes_shape(leaves[name]),
            dimension,
            units_of(leaves[name]),
        )
        for name, (dimension, values) in columns(experiment.sweep, leaves).items()
    )


def _width(program: Experiment, lanes: int, chunk_lanes: int) -> int:
    """The number of networks in each chunk of a shape that `lanes` networks have."""
    fitting = int(program.memory * 1e9) // working_bytes(program)
    most = min(chunk_lanes, max(fitting, 1))
    width = math.ceil(lanes / math.ceil(lanes / most))
    if program.devices is not None:  # every group of devices takes equally many networks
        width = math.ceil(width / program.devices.lanes) * program.devices.lanes
    return width


def is_recomputed(chunk: Chunk) -> bool:
    """Whether the flows of a chunk are solved a second time at finer tolerances.

    `ddln.verification.error_estimate` compares both solutions. Every `RECOMPUTED_EVERY`-th chunk
    is recomputed, at a few hundredths of the time in all; so is the first chunk if it holds at
    most `SMALL` numbers.

    >>> from ddln.config.experiment import load
    >>> is_recomputed(make_plan(load("configs/figure4.toml")).chunks[0])
    True
    """
    if chunk.index == 0:
        experiment = chunk.experiment
        samples, _ = shape_of(experiment.problem.data)
        curve = experiment.dynamics.saved * experiment.width
        return chunk.lanes.size * (curve + samples * experiment.parameters) <= SMALL
    return chunk.index % RECOMPUTED_EVERY == RECOMPUTED_EVERY - 1


def is_long(chunk: Chunk) -> bool:
    """Whether a chunk is a descent that is long enough to report its progress in parts."""
    descent, experiment = chunk.experiment.dynamics, chunk.experiment
    if not isinstance(descent, DescentConfig):
        return False
    samples, _ = shape_of(experiment.problem.data)
    sampling = descent.sampling
    rows = samples if sampling is None or sampling.batch is None else sampling.batch
    products = rows * experiment.parameters + experiment.network.depth * experiment.width
    operations = descent.steps * chunk.lanes.size * products
    return descent.steps >= LONG_STEPS or operations >= LONG_OPERATIONS


def _first(values: np.ndarray) -> np.ndarray:
    """For each value, the index of its first occurrence."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]
