"""What an experiment's sweep comes to: a grid of lanes, cut into chunks of one array shape each.

A *lane* is one network; lanes are numbered along the grid, the last dimension fastest. Zipped axes
share a dimension. Axes that change the shape of arrays are looped over, one compiled program for
each of their values; the others run side by side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddln.config.datasets import shape_of
from ddln.config.dynamics import Descent, Flow
from ddln.config.experiment import (
    ConfigError,
    Experiment,
    changes_shape,
    numeric_leaves,
    substitute,
    swept_to,
    units_of,
)
from ddln.config.sweep_axes import columns
from ddln.solvers.cost_model import accurate_steps, implicit_extra_cost
from ddln.sweeps.dataset_schema import lane_bytes, working_bytes

MAX_LANES = 10_000_000
MAX_PROGRAMS = 5_000
MAX_CHUNK = 256
SAMPLED = 50
"""Of so many chunks one is solved again."""
QUICK = 0.02
"""Seconds that the first may take to be solved again, too."""
_ESTIMATED = 500
"""Chunks that stand for all in the estimate, where there are more."""
_PRODUCT, _COORDINATE, _CERTIFIED, _SINGLY = 6e-11, 1.6e-8, 3e-7, 10
"""Seconds of a multiplication and addition in a product with X, of a coordinate in a stage of a
step, of one that is certified; and how much slower what the engine of sweeps does not run is. As
measured, with two cores in use."""


@dataclass(frozen=True)
class Axis:
    """One axis of the grid.

    Attributes:
        name: the dotted name of the leaf it sweeps.
        values: shape (n,), integers or floats as the leaf is.
        shape_changing: whether every value needs a program of its own.
        dimension: the axis it is zipped to, and lies along; its own name where it is not.
        units: of the values; 1 where they have none.
    """

    name: str
    values: np.ndarray
    shape_changing: bool
    dimension: str
    units: str

    @property
    def span(self) -> str:
        """How many values, from the first to the last.

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
        sizes: of the grid's dimensions, by name; empty without a sweep, which is one lane.
        chunks: in the order they run.
    """

    experiment: Experiment
    axes: tuple[Axis, ...]
    sizes: Mapping[str, int]
    chunks: tuple[Chunk, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return tuple(self.sizes.values())

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
        """Bytes of the chunks' files: the numbers that are kept of every lane."""
        of_lane = {id(chunk.experiment): lane_bytes(chunk.experiment) for chunk in self.programs}
        return sum(chunk.lanes.size * of_lane[id(chunk.experiment)] for chunk in self.chunks)

    @property
    def peak_bytes(self) -> int:
        """Bytes that the largest chunk takes while it is computed, about."""
        return max(chunk.width * working_bytes(chunk.experiment) for chunk in self.programs)

    def check_memory(self) -> None:
        """See to it that every chunk fits into the `memory` of the experiment.

        Raises:
            ConfigError: one does not, though its lanes are as few as they can be.
        """
        if self.peak_bytes > self.experiment.memory * 1e9:
            raise ConfigError(
                [
                    f"memory: a chunk takes about {self.peak_bytes / 1e9:,.2g} GB and cannot have "
                    f"fewer lanes, more than memory = {self.experiment.memory:g}; fewer samples, "
                    "features or dynamics.points take less"
                ]
            )


def make_plan(experiment: Experiment, chunk_lanes: int = MAX_CHUNK) -> Plan:
    """The plan of an experiment: chunks of as many lanes as its `memory` takes side by side.

    It depends on nothing but the experiment, so that a run that goes on has the chunks it had.

    Args:
        experiment: with its sweep.
        chunk_lanes: lanes per chunk, at most.

    Raises:
        ConfigError: the grid has more than `MAX_LANES` lanes, or they have more shapes than
            `MAX_PROGRAMS`; or a shape that does not fit, between the ends of its axes.

    >>> from ddln.config.experiment import load
    >>> plan = make_plan(load("configs/figure4.toml"))
    >>> plan.shape, len(plan.chunks), plan.chunks[0].values["network.scale"].tolist()
    ((3,), 1, [1.0, 1.4, 1.8])
    """
    leaves = numeric_leaves(experiment)
    axes = tuple(
        Axis(
            name,
            np.array(values),
            changes_shape(leaves[name]),
            dimension,
            units_of(leaves[name]),
        )
        for name, (dimension, values) in columns(experiment.sweep, leaves).items()
    )
    sizes = {axis.name: axis.values.size for axis in axes if axis.name == axis.dimension}
    size = math.prod(sizes.values())
    if size > MAX_LANES:
        raise ConfigError([f"sweep: {size:,} lanes, more than {MAX_LANES:,}"])
    steps = np.unravel_index(np.arange(size), tuple(sizes.values())) if sizes else ()
    along = dict(zip(sizes, steps, strict=True))
    looped = [axis for axis in axes if axis.shape_changing]
    group = np.zeros(size, int)
    for axis in looped:
        # Not the step but the value: zipped axes may come back to one.
        group = group * axis.values.size + _first(axis.values)[along[axis.dimension]]
    if (shapes := np.unique(group).size) > MAX_PROGRAMS:
        names = ", ".join(axis.name for axis in looped)
        told = f"{shapes:,} shapes by {names}, each compiled alone"
        raise ConfigError([f"sweep: {told}, more than {MAX_PROGRAMS:,}"])
    chunks: list[Chunk] = []
    order = np.argsort(group, kind="stable")
    for lanes in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        first = {axis.name: axis.values[along[axis.dimension][lanes[0]]].item() for axis in looped}
        program = swept_to(experiment, first)
        room = int(experiment.memory * 1e9) // working_bytes(program)
        most = min(chunk_lanes, max(room, 1))
        width = math.ceil(lanes.size / math.ceil(lanes.size / most))
        if experiment.devices is not None:  # whose groups have as many lanes each
            width = math.ceil(width / experiment.devices.lanes) * experiment.devices.lanes
        for start in range(0, lanes.size, width):
            part = lanes[start : start + width]
            values = {
                axis.name: axis.values[along[axis.dimension][part]]
                for axis in axes
                if not axis.shape_changing
            }
            chunks.append(Chunk(len(chunks), program, part, values, width))
    return Plan(experiment, axes, sizes, tuple(chunks))


def estimate(plan: Plan) -> float:
    """Seconds that two cores take for a plan, to about a factor of three; compiling is extra.

    A step of the integrator costs its products with X, certifying its points on the curve, and
    an explicit step is no longer than the fastest rate of the flow allows: the largest eigenvalue
    of the Hessian of ℒ, for random features (√n + √d)², times the mobility M ≈ w^(2(L−1)). A
    descent takes the steps that it is told to.

    >>> from ddln.config.experiment import load
    >>> 1e-3 < estimate(make_plan(load("configs/figure4.toml"))) < 0.1
    True
    """
    some = plan.chunks[:: max(len(plan.chunks) // _ESTIMATED, 1)]
    share = sum(chunk.lanes.size for chunk in some) / plan.lanes
    return sum(map(seconds, some)) / share


def seconds(chunk: Chunk) -> float:
    """The same of one chunk."""
    experiment = substitute(chunk.experiment, chunk.values)
    if isinstance(experiment.dynamics, Descent):
        return _descent_seconds(experiment, experiment.dynamics, chunk.width)
    points, (samples, features) = experiment.dynamics.points, shape_of(experiment.problem.data)
    step = 7 * (_PRODUCT * 4 * samples * features + _COORDINATE * experiment.width)
    if not experiment.dynamics.is_batched:
        step = _SINGLY * step
    certify = _CERTIFIED * points * experiment.width
    steps = _steps(experiment, experiment.dynamics, samples)
    return float(np.sum(np.broadcast_to(steps * step + certify, chunk.lanes.shape)))


def is_solved_again(chunk: Chunk) -> bool:
    """Whether a chunk of flows is of the sample that is solved twice, see
    `ddln.verification.error_estimate`.

    One of fifty is, for a few hundredths of the time; and the first, where that takes none.

    >>> from ddln.config.experiment import load
    >>> is_solved_again(make_plan(load("configs/figure4.toml")).chunks[0])
    True
    """
    return chunk.index % SAMPLED == SAMPLED - 1 or (chunk.index == 0 and seconds(chunk) < QUICK)


def _descent_seconds(experiment: Experiment, descent: Descent, lanes: int) -> float:
    """Of a chunk: every number as measured, with 1 to 64 lanes of 30 and 16 of 500 coordinates."""
    samples, features = shape_of(experiment.problem.data)
    sampling, climb = descent.sampling, descent.sharpness_aware
    weights = experiment.network.depth * experiment.width
    rows = samples if sampling is None or sampling.batch is None else sampling.batch
    product, entry, alone, certify = 7e-11 * 2 * rows * features, 1e-9 * weights, 1e-6, 0.0
    if climb is not None:
        product, entry = 2 * product, 2 * entry * (rows / climb.group if climb.group else 1)
    if sampling is not None:
        entry, alone = entry + 2e-7, alone + 4e-6
    elif climb is None and descent.optimiser.kind == "sgd":
        certify = 18 * 8e-6 * weights  # sharpness at nine steps, before and after
    return descent.steps * (alone + lanes * (product + entry)) + lanes * certify


def _steps(experiment: Experiment, flow: Flow, samples: int) -> Any:
    """Steps of the integrator, in explicit ones; of as many lanes as the leaves have values."""
    depth = experiment.network.depth
    if flow.solver == "kvaerno5":
        return 350  # implicit: seen between 285 and 378
    accurate = accurate_steps(flow.rtol)
    implicit = accurate * (1 + implicit_extra_cost(experiment.width))
    if flow.solver == "rodas5p":
        return implicit
    factor = {"sum": 2, "half": 1, "mean": 2 / samples, "half_mean": 1 / samples}
    curvature = (
        factor[experiment.problem.loss.normalisation]
        * (math.sqrt(samples) + math.sqrt(experiment.features)) ** 2
    )
    with np.errstate(over="ignore"):
        weight = experiment.network.scale * _size(experiment.network.init)
        # The layers end as large as θ asks: of order 1, were they smaller before.
        mobility = np.maximum(np.power(weight, 2.0 * (depth - 1)), depth)
        stable = curvature * mobility * flow.until / 3
    explicit = np.minimum(accurate + stable, flow.max_steps)
    chooses = flow.solver == "auto" and flow.is_reduced
    return np.minimum(explicit, implicit) if chooses else explicit


def _size(init: Any) -> Any:
    """Root mean square of a layer's weights."""
    match init.kind:
        case "balanced" | "zero_first_layer":
            return _size(init.law)
        case "uniform":
            return np.hypot((init.low + init.high) / 2, (init.high - init.low) / math.sqrt(12))
        case "normal":
            return np.hypot(init.mean, init.std)
        case "imbalanced":
            return np.hypot(init.smallest, np.sqrt(init.imbalance))
        case "explicit":
            return np.sqrt(np.mean(np.square(init.layers)))
    return abs(init.value)


def _first(values: np.ndarray) -> np.ndarray:
    """For each value, where it first stands."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]
