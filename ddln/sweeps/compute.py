"""Experiments computed, the lanes of a chunk side by side.

A lane is one network, its flow or descent, its certificates and the theorems' predictions for it.
`compute` runs the lanes of one chunk in three steps: networks and problems are built, flows
integrated or networks trained, and curves held against the theorems. `ddln.sweeps.assemble` puts
chunks together.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.random import fixed_generator
from ddln._internal.validation import ArrayLike, largest
from ddln.config.dynamics import Descent as Training
from ddln.config.experiment import (
    ConfigError,
    Experiment,
    changes_shape,
    numeric_leaves,
    substitute,
    value_of,
)
from ddln.networks import layers as network
from ddln.problems import sharding
from ddln.problems.base import Problem
from ddln.solvers import batched_flow, gradient_descent, gradient_flow
from ddln.solvers.gradient_descent import Descent
from ddln.sweeps import build as parts
from ddln.sweeps.assemble import assemble
from ddln.sweeps.dataset_schema import FINER, VARIABLES, along, kept
from ddln.sweeps.plan import Chunk, is_solved_again, make_plan, seconds
from ddln.theory.assumptions import STATEMENTS, check_hypotheses
from ddln.verification import claims, diagnostics, error_estimate, flow_certificates

_SOLVERS = {
    "auto": diffrax.Tsit5,
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
    # With its own root finder half the steps are rejected (docs/decisions.md).
    "kvaerno5": partial(diffrax.Kvaerno5, root_finder=optimistix.Newton(rtol=1e-9, atol=1e-12)),
}


FEW = 32
"""Lanes up to which certifying a chunk is over before a thorough compiler would be."""
LONG = 5.0
"""Seconds from which on a descent is cut into parts, so as to tell how far it is."""

Report = Callable[[Chunk, float], None]


def run(experiment: Experiment) -> xr.Dataset:
    """Compute an experiment, in memory.

    Args:
        experiment: from `ddln.load`, with its sweep.

    Returns:
        A dataset with a dimension per axis of the sweep, named by its dotted name (an axis that is
        zipped to another is a coordinate along its dimension), then `time` (flow time; of a descent
        `step` lies along it too), `layer`, `coordinate`, `certificate`. A lane that fails is NaN
        from there on, and its `status` says how it ended.

    Raises:
        ValueError: the data and the network do not make a problem.

    >>> experiment = ddln.load("configs/figure4.toml").with_({"dynamics.points": 11})
    >>> dict(ddln.run(experiment)["gap"].sizes)
    {'network.scale': 3, 'time': 11}
    """
    plan = make_plan(experiment)
    for chunk in plan.programs:
        validate(chunk)
    computed = {chunk.index: compute(chunk) for chunk in plan.chunks}
    return assemble(plan, lambda chunk: computed[chunk.index])


def sweep(experiment: Experiment, over: Mapping[str, ArrayLike | Mapping[str, Any]]) -> xr.Dataset:
    """Compute an experiment over a grid of values, in memory.

    Args:
        experiment: from `ddln.load`; axes of its own sweep are kept where `over` has no other.
        over: dotted names of numeric leaves and their values, shape (n,) each, or a table as in a
            config: `{"values": seeds, "zip": "network.scale"}` walks the seeds in step with the
            scales, along their dimension.

    Returns:
        As `ddln.run`.

    Raises:
        ValueError: a name that is no numeric leaf, or a value out of its range.

    >>> experiment = ddln.load("configs/figure4.toml").with_({"dynamics.points": 11})
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
    """Build a chunk's first problem and network, so that what is wrong with them is said first.

    Raises:
        ConfigError: they do not fit, or are not finite.
    """
    drop_programs()
    first = {name: values[0] for name, values in chunk.values.items()}
    experiment = substitute(chunk.experiment, first)
    loss, layers = parts.problem_of(experiment), parts.layers_of(experiment)
    start = network.effective_parameter(layers)
    for words, value in {
        "θ": largest(jnp.abs(start)),
        "the loss": loss.loss(start),
        "the mobility M": largest(network.mobility(layers)),
    }.items():
        if not bool(jnp.isfinite(value)):
            raise ConfigError([f"network.scale: {words} must be finite at the start, got {value}"])
    if not bool((network.mobility(layers) > 0).any()):
        raise ConfigError(
            [
                "network.init: every coordinate is frozen, so that nothing would move: its "
                "smallest layers are all 0, or network.scale is so small that their products are"
            ]
        )


@fixed_generator()
def compute(chunk: Chunk, report: Report | None = None, *, again: bool | None = None) -> xr.Dataset:
    """Run a chunk's lanes; where memory does not do for them, one half after the other.

    Args:
        chunk: of a plan.
        report: called with the chunk and the share of its steps that is done, now and then in a
            long descent.
        again: whether flows are solved a second time, see `ddln.verification.error_estimate`;
            `None`: where the chunk is of the sample.

    Returns:
        A dataset over `lane`, with the chunk's numbers in the grid as its coordinate. Where
        memory ran out, its attribute `lanes_at_once` tells with how many lanes it did not: the
        last digits differ by that.

    Raises:
        MemoryError: there is too little for a single lane.
    """
    try:
        return _together(chunk, report, is_solved_again(chunk) if again is None else again)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
    # No longer within the error, whose traceback holds what was computed.
    if chunk.width == 1:
        raise MemoryError(
            f"chunk {chunk.index}: out of memory with a single lane; fewer dynamics.points take "
            "less, and so do fewer samples or features"
        )
    width = (chunk.width + 1) // 2
    warnings.warn(
        f"chunk {chunk.index}: out of memory with {chunk.width} lanes at once, going on with "
        f"{width}; a lower `memory` plans for it",
        ResourceWarning,
        stacklevel=2,
    )
    halves = [compute(half, report, again=again) for half in _parts(chunk, width)]
    dataset = xr.concat(
        halves, "lane", data_vars="minimal", coords="minimal", compat="override", join="override"
    )
    return dataset.assign_attrs(
        lanes_at_once=min(half.attrs.get("lanes_at_once", width) for half in halves)
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _parts(chunk: Chunk, width: int) -> list[Chunk]:
    """A chunk's lanes in chunks that are narrower."""
    return [
        replace(
            chunk,
            lanes=chunk.lanes[start : start + width],
            values={name: values[start : start + width] for name, values in chunk.values.items()},
            width=width,
        )
        for start in range(0, chunk.lanes.size, width)
    ]


def _together(chunk: Chunk, report: Report | None, twice: bool) -> xr.Dataset:
    drop_programs()
    # The last chunk of a shape is padded with copies of a lane, to run as the same program.
    padded = {
        name: np.pad(values, (0, chunk.width - values.size), mode="edge")
        for name, values in chunk.values.items()
    }
    build, integrate, examine, measure = _programs(chunk)
    best, problems, *given = build(padded, _numbers(chunk.experiment, padded))
    tell = None if report is None or seconds(chunk) < LONG else partial(report, chunk)
    runs, rounds = integrate(problems, *given, tell)
    again = np.full(runs.theta.shape, np.nan, runs.theta.dtype)
    if twice and isinstance(runs, gradient_flow.Trajectory):
        again = _again(integrate, problems, *given)
    numbers, checked = examine(problems, given[0], runs, again)
    # Waited for: two batches of eigenvalues side by side can lock each other (docs/decisions.md).
    numbers = {name: np.asarray(value) for name, value in numbers.items()}
    numbers |= measure(problems, runs) | {"rounds": rounds, "truth": best}
    dataset = xr.Dataset(
        {
            name: (
                ("lane", *along(name, chunk.experiment)),
                np.asarray(numbers[name])[: chunk.lanes.size],
            )
            for name in kept(chunk.experiment)
        },
        coords={
            "lane": chunk.lanes,
            "certificate": [claim.name for claim in checked],
            "hypothesis": list(STATEMENTS),
        },
    )
    for name, variable in dataset.data_vars.items():
        _, units, words = VARIABLES[str(name)]
        variable.attrs = {"units": units, "long_name": words}
    dataset["status"].attrs |= {
        "flag_values": np.arange(len(runs.status_names)),
        "flag_meanings": " ".join(runs.status_names),
    }
    dataset.attrs = {"certificate_statements": claims.statements(checked)}
    return dataset


def _again(integrate, problems, layers, controls, keys):
    """θ of all lanes by the same program at finer tolerances."""
    times, *tolerances, target = controls
    finest = jnp.finfo(layers.dtype).eps
    finer = [jnp.maximum(tolerance / FINER, finest) for tolerance in tolerances]
    never = None if target is None else jnp.zeros_like(target)
    runs, _ = integrate(problems, layers, (times, *finer, never), keys, None)
    return runs.theta


def _numbers(experiment: Experiment, swept: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an experiment that decide no shape and are the same on every lane."""
    leaves = {
        name: leaf for name, leaf in numeric_leaves(experiment).items() if not changes_shape(leaf)
    }
    return {name: np.asarray(value_of(experiment, name)) for name in leaves if name not in swept}


_PROGRAMS: dict[tuple, Any] = {}
_MOST_PROGRAMS = 16
"""Shapes whose steps are kept: chunks of a shape follow each other."""


def _programs(chunk: Chunk):
    """The compiled steps of all chunks that differ in numbers only: these are arguments of them."""
    experiment = chunk.experiment
    zeros = dict.fromkeys([*chunk.values, *_numbers(experiment, chunk.values)], 0)
    form = substitute(experiment, zeros).model_dump_json()
    key = (form, tuple(chunk.values), chunk.width, str(jnp.result_type(float)))
    if key not in _PROGRAMS:
        # A problem that no axis sweeps is one for all lanes, and so is what they draw.
        problems = 0 if any(name.startswith("problem.") for name in chunk.values) else None
        keys = 0 if "dynamics.sampling.seed" in chunk.values else None

        def lane(swept: dict[str, Array], shared: dict[str, Array]):
            return _build(substitute(experiment, {**shared, **swept}))

        axes = problems, 0, 0, keys
        build = jax.vmap(lane, (0, None), (0, *axes), axis_size=chunk.width)
        measure = partial(_measure, experiment.dynamics.measure)
        haste = _haste(chunk.width)
        examine, measure = (
            jax.jit(jax.vmap(f, lanes), compiler_options=haste)
            for f, lanes in ((_examine, (problems, 0, 0, 0)), (measure, (problems, 0)))
        )
        if len(_PROGRAMS) >= _MOST_PROGRAMS:
            _PROGRAMS.pop(next(iter(_PROGRAMS)))
        _PROGRAMS[key] = jax.jit(build), _integrator(experiment, axes), examine, measure
    return _PROGRAMS[key]


def _haste(lanes: int) -> dict[str, bool | int]:
    """For a large program that does little work: compiled in half the time, a tenth slower; for few
    lanes in a fifth of the time, at less than half the speed."""
    options: dict[str, bool | int] = {"xla_cpu_use_fusion_emitters": False}
    return options | ({"xla_backend_optimization_level": 0} if lanes <= FEW else {})


def _build(experiment: Experiment):
    """θ* where it is known, problem, layers, what else the integrator is given, and the key of what
    it draws."""
    dynamics, key = experiment.dynamics, None
    if isinstance(dynamics, Training):
        controls = parts.rule_of(dynamics), parts.oracle_of(dynamics), dynamics.target_gap
        key = parts.key_of(dynamics)
    else:
        tolerances = (jnp.asarray(x, float) for x in (dynamics.rtol, dynamics.atol))
        controls = parts.times_of(dynamics), *tolerances, dynamics.target_gap
    best = parts.truth_of(experiment)
    return best, parts.problem_of(experiment), parts.layers_of(experiment), controls, key


def _integrator(experiment: Experiment, axes: tuple):
    """From what was built to runs, and how many steps were computed for each."""
    dynamics, mesh = experiment.dynamics, parts.mesh_of(experiment.devices)
    if isinstance(dynamics, Training):
        return _on(mesh, _trainer(dynamics, axes))
    steps = {"max_steps": dynamics.max_steps}
    if dynamics.is_batched:

        def integrate(problems, layers, controls, *_):
            times, rtol, atol, target_gap = controls
            options = {"rtol": rtol, "atol": atol, "target_gap": target_gap, **steps}
            options |= {"solver": dynamics.solver, "mesh": mesh}
            flows = batched_flow.gradient_flows(problems, layers, times, **options)
            return flows.trajectories(), flows.stats["num_rounds"]

        return integrate

    solve = gradient_flow.mirror_flow
    if dynamics.kind == "gradient_flow":
        solve = partial(gradient_flow.gradient_flow, coordinates=dynamics.coordinates)
    solver = _SOLVERS[dynamics.solver]()

    def alone(problem, layers, controls, _):
        times, rtol, atol, _ = controls
        options = {"rtol": rtol, "atol": atol, "solver": solver, "throw": False, **steps}
        return solve(problem, layers, times, **options)

    together = jax.jit(jax.vmap(alone, axes))
    return _on(mesh, lambda *given: _with_rounds(together(*given[:-1])))


def _on(mesh: Mesh | None, integrate: Callable) -> Callable:
    """The same on the devices of a mesh; what comes of it is put together on the first of them."""
    if mesh is None:
        return integrate

    def on_mesh(problems, layers, *given):
        problems = sharding.place(problems, mesh, lanes=problems.minimum.ndim > 0)
        found = integrate(problems, sharding.place(layers, mesh, lanes=True), *given)
        return jax.device_put(found, mesh.devices.flat[0])

    return on_mesh


def _trainer(dynamics: Training, axes: tuple):
    """Not compiled as a whole: what it calls is, with the records as arguments."""

    def integrate(problems, layers, controls, keys, tell):
        def alone(problem, layers, controls, key):
            rule, oracle, target = controls
            schedule = {"steps": dynamics.steps, "record_at": dynamics.records}
            options = {"oracle": oracle, "key": key, "target_gap": target, "progress": progress}
            return gradient_descent.descend(
                problem, layers, rule, throw=False, **schedule, **options
            )

        def reached(part: Descent):
            # The clock is one for all lanes, no tracer even under `vmap`; reading it is waiting.
            tell(int(part.state.step) / dynamics.steps)

        progress = None if tell is None else reached
        return _with_rounds(jax.vmap(alone, axes)(problems, layers, controls, keys))

    return integrate


def _with_rounds(runs):
    """Lanes side by side are computed until the last of them ends."""
    taken = runs.stats["num_steps"].astype(int)
    return runs, jnp.broadcast_to(jnp.max(taken), taken.shape)


def _measure(
    names: tuple[str, ...], loss: Problem, run: gradient_flow.Trajectory | Descent
) -> dict[str, Array]:
    known = {
        "sharpness": lambda: diagnostics.sharpness(loss, run),
        "gain": lambda: diagnostics.gain(run),
        "effective_initialisation": lambda: diagnostics.effective_initialisation(run),
    }
    return {name: known[name]() for name in names}


def _examine(
    loss: Problem, layers: Array, run: gradient_flow.Trajectory | Descent, again: Array
) -> tuple[dict[str, Array], tuple[claims.Claim, ...]]:
    if isinstance(run, Descent):
        certified = flow_certificates.certify(loss, run, start=layers)
        own = {"step": run.steps.astype(int)}
    else:
        certified = flow_certificates.certify(loss, run, start=layers)
        predictions = certified.predictions
        own = {
            "velocity": run.velocity,
            "bound": predictions.exponential_bound,
            "posterior_bound": predictions.posterior_bound,
            "divergence_bound": predictions.divergence_bound,
            "rate_bound": predictions.rate_bound,
            "asymptotic_rate": certified["asymptotic rate"].predicted,
            "discrepancy": error_estimate.discrepancy(run, again),
        }
    checked, assumed = certified.claims, check_hypotheses(loss, run)
    numbers = {
        "flow_time": run.times,
        "loss": run.loss,
        "gap": run.gap,
        "theta": run.theta,
        "predictor": loss.predictor(run.theta),
        "layers": run.layers,
        "status": run.status,
        "steps": run.stats["num_steps"].astype(int),
        "hypothesis_holds": jnp.stack([assumed[name] for name in STATEMENTS]),
    } | {
        f"certificate_{name}": jnp.stack([jnp.asarray(getattr(claim, name)) for claim in checked])
        for name in ("measured", "predicted", "tolerance", "applies", "holds")
    }
    return own | numbers, checked
