"""Compute an experiment: all networks of a chunk together, then its chunks as one data set.

`ddln.run` and `ddln.sweep` work in memory; run folders call `compute` chunk by chunk. The runners
in `ddln.sweeps._runners` build, integrate and certify the networks; `ddln.sweeps.assemble` joins
the chunks.
"""

import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import xarray as xr

from ddln._internal import program_store
from ddln._internal.compiled_programs import drop_programs
from ddln._internal.random import fixed_generator
from ddln._internal.validation import ArrayLike
from ddln.config.datasets import is_tame
from ddln.config.dynamics_schema import DescentConfig
from ddln.config.experiment import ConfigError, Experiment, substitute
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.trajectory import Trajectory
from ddln.sweeps import build
from ddln.sweeps._runner_base import Claims, Inputs, start_of
from ddln.sweeps._runners import runner_of, shared_numbers
from ddln.sweeps.assemble import assemble
from ddln.sweeps.dataset_schema import SHARED_TIMES, VARIABLES, dims, stored_variables
from ddln.sweeps.derived import complete
from ddln.sweeps.plan import Chunk, is_long, is_recomputed, make_plan
from ddln.theory.assumptions import DECAY_STATEMENTS, STATEMENTS
from ddln.verification import certificates

Report = Callable[[Chunk, float], None]
"""A callback that receives a chunk and the completed share of its steps."""

_INTEGRATION = threading.Lock()
"""Held while a chunk is integrated, which uses every core; another one is certified meanwhile."""


def run(experiment: Experiment) -> xr.Dataset:
    """Compute an experiment, in memory.

    Args:
        experiment: from `ddln.load`, with its sweep.

    Returns:
        A dataset with one dimension for each axis of the sweep, named by its dotted name (an axis
        that is zipped to another is a coordinate along that one's dimension), then `time` (flow
        time; for a descent `step` lies along it too), `layer`, `coordinate` and `certificate`. A
        network that fails is NaN from there on, and its `status` says why.

    Raises:
        ValueError: the data and the network do not fit together, or a chunk does not fit into the
            experiment's `memory`.

    >>> small = ["network.depth=2", "dynamics.points=11"]
    >>> experiment = ddln.load("configs/figure4.toml", small)
    >>> dict(ddln.run(experiment)["gap"].sizes)
    {'network.scale': 3, 'time': 11}
    """
    plan = make_plan(experiment)
    plan.check_memory()
    for chunk in plan.programs:
        validate(chunk)
    computed = {chunk.index: compute(chunk) for chunk in plan.chunks}
    return assemble(plan, lambda chunk: complete(computed[chunk.index], chunk.experiment))


def sweep(experiment: Experiment, over: Mapping[str, ArrayLike | Mapping[str, Any]]) -> xr.Dataset:
    """Compute an experiment over a grid of values, in memory.

    Args:
        experiment: from `ddln.load`; axes of its own sweep that are not in `over` are kept.
        over: dotted names of numeric leaves and their values, shape (n,) each, or a table as in a
            config: `{"values": seeds, "zip": "network.scale"}` pairs each seed with a scale, along
            the dimension of the scales.

    Returns:
        A dataset as from `ddln.run`.

    Raises:
        ValueError: a name is not that of a numeric leaf, or a value is out of range.

    >>> small = ["network.depth=2", "dynamics.points=11"]
    >>> experiment = ddln.load("configs/figure4.toml", small)
    >>> dict(ddln.sweep(experiment, over={"network.scale": [0.5, 1.0, 2.0]})["gap"].sizes)
    {'network.scale': 3, 'time': 11}
    """
    axes = {
        f"sweep.{name}": values if isinstance(values, Mapping) else np.asarray(values).tolist()
        for name, values in over.items()
    }
    return run(experiment.with_(axes))


@fixed_generator()
def validate(chunk: Chunk) -> None:
    """Build a chunk's first problem and network, to find what is wrong with them early.

    Raises:
        ConfigError: they do not fit together, or a number is not finite.
    """
    drop_programs()
    first = {name: values[0] for name, values in chunk.values.items()}
    experiment = substitute(chunk.experiment, first)
    if is_tame(experiment.problem.data, experiment.problem.loss.kind):
        # By the program that builds the chunk: operation by operation takes four times as long.
        start = jax.tree.map(lambda each: np.asarray(each)[0], _build(chunk).start)
    else:
        # Outside of a program, an error says what is wrong with the data.
        start = start_of(build.build_problem(experiment), build.build_layers(experiment))
    for quantity, value in {
        "θ": start.theta,
        "the loss": start.loss,
        "the mobility M": start.mobility,
    }.items():
        if not np.isfinite(value):
            raise ConfigError(
                [f"network.scale: {quantity} must be finite at the start, got {value}"]
            )
    if not start.mobility > 0:
        raise ConfigError(
            [
                "network.init: every coordinate is frozen, so that nothing would move: its "
                "smallest layers are all 0, or network.scale is so small that their products are"
            ]
        )


def _build(chunk: Chunk) -> Inputs:
    """Build the problems, layers and controls of a chunk's networks."""
    # The last chunk of a shape is padded with copies of a network, to run as the same program.
    padded = {
        name: np.pad(values, (0, chunk.width - values.size), mode="edge")
        for name, values in chunk.values.items()
    }
    return runner_of(chunk).build(padded, shared_numbers(chunk.experiment, tuple(padded)))


@fixed_generator()
def compute(
    chunk: Chunk, report: Report | None = None, *, recompute: bool | None = None
) -> xr.Dataset:
    """Run a chunk's networks; when out of memory, split the chunk in half and retry.

    Args:
        chunk: of a plan.
        report: called with the chunk and the completed share of its steps, about twenty times in a
            long descent.
        recompute: whether flows are solved a second time at finer tolerances, see
            `ddln.verification.error_estimate`; `None` follows `ddln.sweeps.plan.is_recomputed`.

    Returns:
        The stored variables over `lane`, whose coordinate holds the networks' numbers in the grid;
        `ddln.sweeps.derived.complete` adds the others. If memory ran out, its attribute
        `lanes_at_once` is the number of networks that did fit: the last digits depend on it.

    Raises:
        MemoryError: memory does not suffice for a single network.
    """
    is_wanted = is_recomputed(chunk) if recompute is None else recompute
    try:
        return _compute_at_once(chunk, report, is_wanted)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the `except` clause: the traceback of the error holds all intermediate arrays.
    if chunk.width == 1:
        raise MemoryError(
            f"chunk {chunk.index}: out of memory with a single network; lower "
            "dynamics.points, samples or features"
        )
    width = (chunk.width + 1) // 2
    warnings.warn(
        f"chunk {chunk.index}: out of memory with {chunk.width} networks at once, continuing "
        f"with {width}; set a lower `memory` to plan for it",
        ResourceWarning,
        stacklevel=2,
    )
    halves = [compute(half, report, recompute=recompute) for half in _split(chunk, width)]
    dataset = xr.concat(
        halves, "lane", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    return dataset.assign_attrs(
        lanes_at_once=min(half.attrs.get("lanes_at_once", width) for half in halves)
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _split(chunk: Chunk, width: int) -> list[Chunk]:
    """Split a chunk into chunks of at most `width` networks."""
    return [
        replace(
            chunk,
            lanes=chunk.lanes[start : start + width],
            values={name: values[start : start + width] for name, values in chunk.values.items()},
            width=width,
        )
        for start in range(0, chunk.lanes.size, width)
    ]


def _compute_at_once(chunk: Chunk, report: Report | None, recompute: bool) -> xr.Dataset:
    drop_programs()
    runner, inputs = runner_of(chunk), _build(chunk)
    report_share = partial(report, chunk) if report is not None and is_long(chunk) else None
    with _INTEGRATION, ThreadPoolExecutor(max_workers=1) as pool:
        # Where jax's settings are those of the process, as they are for the command line, another
        # thread can trace. It takes the second core while this one compiles the flow.
        if program_store.is_open():
            pool.submit(fixed_generator()(runner.prepare), inputs)
        solved, loop_iterations = runner.integrate(inputs, report_share)
        recomputed = runner.recompute(inputs) if recompute else None
    numbers, checked = runner.certify(inputs, solved, recomputed)
    numbers |= {"rounds": np.asarray(loop_iterations), "truth": inputs.truth}
    return _dataset(chunk, numbers, checked)


def _dataset(chunk: Chunk, numbers: Mapping[str, Any], checked: Claims) -> xr.Dataset:
    """Label the numbers of a chunk's networks, without those that pad it."""
    dataset = xr.Dataset(
        {
            name: (
                ("lane", *dims(name, chunk.experiment)),
                np.asarray(numbers[name])[: chunk.lanes.size],
            )
            for name in stored_variables(chunk.experiment)
        },
        coords={
            "lane": chunk.lanes,
            "certificate": [claim.name for claim in checked],
            "hypothesis": [*STATEMENTS, *(DECAY_STATEMENTS if "dose" in numbers else ())],
        },
    )
    for name in SHARED_TIMES & dataset.data_vars.keys():
        times = dataset[name].values
        if np.array_equal(times, np.broadcast_to(times[:1], times.shape)):
            dataset[name] = ("time", times[0])
    for name, variable in dataset.data_vars.items():
        _, units, long_name = VARIABLES[str(name)]
        variable.attrs = {"units": units, "long_name": long_name}
    is_descent = isinstance(chunk.experiment.dynamics, DescentConfig)
    statuses = (Descent if is_descent else Trajectory).statuses
    dataset["status"].attrs |= {
        "flag_values": np.arange(len(statuses)),
        "flag_meanings": " ".join(status.value for status in statuses),
    }
    dataset.attrs = {"certificate_statements": certificates.statements(checked)}
    return dataset
