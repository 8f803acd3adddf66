"""Experiments computed: every lane of a chunk side by side in one compiled program.

A lane is one network, its flow, its certificates and the theorems' predictions for it. `compute`
runs the lanes of one chunk; `ddln.grid` puts chunks together.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import xarray as xr
from jaxtyping import Array

from ddln import certificates, claims, data, flow, init, losses, network, problem
from ddln._checks import ArrayLike
from ddln.config import Experiment, changes_shape, numeric_leaves, substitute, value_of
from ddln.grid import assemble
from ddln.hypotheses import STATEMENTS, check_hypotheses
from ddln.plan import Chunk, make_plan
from ddln.variables import VARIABLES, kept

_SOLVERS = {
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
    # With its own root finder half the steps are rejected (docs/decisions.md).
    "kvaerno5": partial(diffrax.Kvaerno5, root_finder=optimistix.Newton(rtol=1e-9, atol=1e-12)),
}

_LOSSES = {
    "least_squares": problem.least_squares,
    "logistic": losses.logistic,
    "exponential": losses.exponential,
    "poisson": losses.poisson,
    "huber": losses.huber,
}


def run(experiment: Experiment) -> xr.Dataset:
    """Compute an experiment, in memory.

    Args:
        experiment: from `ddln.load`, with its sweep.

    Returns:
        A dataset with a dimension per axis of the sweep, named by its dotted name (an axis that is
        zipped to another is a coordinate along its dimension), then `time` (flow time), `layer`,
        `coordinate`, `certificate`. A lane that fails is NaN from there on and has another
        `status` than 0.

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


def validate(chunk: Chunk) -> None:
    """Build a chunk's first problem and network, so that what is wrong with them is said first.

    Raises:
        ValueError: they do not fit, or are not finite.
    """
    first = {name: values[0] for name, values in chunk.values.items()}
    experiment = substitute(chunk.experiment, first)
    loss, layers = _problem(experiment), _layers(experiment)
    start = network.effective_parameter(layers)
    for words, value in {
        "θ": jnp.max(jnp.abs(start)),
        "the loss": loss.loss(start),
        "the mobility M": jnp.max(network.mobility(layers)),
    }.items():
        if not bool(jnp.isfinite(value)):
            raise ValueError(f"network.scale: {words} must be finite at the start, got {value}")
    if not bool((network.mobility(layers) > 0).any()):
        raise ValueError(
            "network.init: every coordinate is frozen, so that nothing would move: its smallest "
            "layers are all 0, or network.scale is so small that their products are"
        )


def compute(chunk: Chunk) -> xr.Dataset:
    """Run a chunk's lanes.

    Returns:
        A dataset over `lane`, with the chunk's numbers in the grid as its coordinate.
    """
    # The last chunk of a shape is padded with copies of a lane, to run as the same program.
    padded = {
        name: np.pad(values, (0, chunk.width - values.size), mode="edge")
        for name, values in chunk.values.items()
    }
    numbers, checked = _program(chunk)(padded, _numbers(chunk.experiment, padded))
    dataset = xr.Dataset(
        {
            name: (("lane", *VARIABLES[name][0]), np.asarray(numbers[name])[: chunk.lanes.size])
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
        "flag_values": np.arange(len(flow.STATUS)),
        "flag_meanings": " ".join(flow.STATUS),
    }
    dataset.attrs = {"certificate_statements": claims.statements(checked)}
    return dataset


def _numbers(experiment: Experiment, swept: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an experiment that decide no shape and are the same on every lane."""
    leaves = {
        name: leaf for name, leaf in numeric_leaves(experiment).items() if not changes_shape(leaf)
    }
    return {name: np.asarray(value_of(experiment, name)) for name in leaves if name not in swept}


_PROGRAMS: dict[tuple, Any] = {}


def _program(chunk: Chunk):
    """The compiled lanes of all chunks that differ in numbers only: these are arguments of it."""
    experiment = chunk.experiment
    zeros = dict.fromkeys([*chunk.values, *_numbers(experiment, chunk.values)], 0)
    form = substitute(experiment, zeros).model_dump_json()
    key = (form, tuple(chunk.values), chunk.width, str(jnp.result_type(float)))
    if key not in _PROGRAMS:

        def lane(swept: dict[str, Array], shared: dict[str, Array]):
            return _lane(substitute(experiment, {**shared, **swept}))

        _PROGRAMS[key] = jax.jit(jax.vmap(lane, in_axes=(0, None), axis_size=chunk.width))
    return _PROGRAMS[key]


def _lane(experiment: Experiment) -> tuple[dict[str, Array], tuple[claims.Claim, ...]]:
    loss, layers = _problem(experiment), _layers(experiment)
    trajectory = _flow(experiment)(loss, layers, _times(experiment))
    certified = certificates.certify(loss, trajectory)
    checked, predictions = certified.claims, certified.predictions
    assumed = check_hypotheses(loss, trajectory)
    numbers = {
        "flow_time": trajectory.times,
        "loss": trajectory.loss,
        "gap": trajectory.gap,
        "theta": trajectory.theta,
        "velocity": trajectory.velocity,
        "layers": trajectory.layers,
        "bound": predictions.exponential_bound,
        "posterior_bound": predictions.posterior_bound,
        "divergence_bound": predictions.divergence_bound,
        "rate_bound": predictions.rate_bound,
        "asymptotic_rate": certified["asymptotic rate"].predicted,
        "status": trajectory.status,
        "steps": trajectory.stats["num_steps"],
        "hypothesis_holds": jnp.stack([assumed[name] for name in STATEMENTS]),
    } | {
        f"certificate_{name}": jnp.stack([jnp.asarray(getattr(claim, name)) for claim in checked])
        for name in ("measured", "predicted", "tolerance", "applies", "holds")
    }
    if experiment.network.signed:
        numbers["predictor"] = loss.predictor(trajectory.theta)
    return numbers, checked


def _problem(experiment: Experiment) -> problem.Problem:
    features, targets = data.draw(experiment.problem.data)
    table = experiment.problem.loss
    options = {name: getattr(table, name) for name in type(table).model_fields if name != "kind"}
    loss = _LOSSES[table.kind](features, targets, **options)
    return problem.signed(loss) if experiment.network.signed else loss


def _law(law) -> init.Law:
    if law.kind == "uniform":
        return partial(jax.random.uniform, minval=law.low, maxval=law.high)
    if law.kind == "normal":
        return lambda key, shape: law.mean + law.std * jax.random.normal(key, shape)
    return lambda key, shape: jnp.full(shape, law.value, jnp.result_type(float))


def _layers(experiment: Experiment) -> Array:
    table, depth = experiment.network.init, experiment.network.depth
    _, dim = data.shape_of(experiment.problem.data)
    if table.kind == "explicit":
        layers = jnp.asarray(table.layers, jnp.result_type(float))
    elif table.kind == "constant":
        layers = init.constant(depth, dim, table.value)
    elif table.kind == "imbalanced":
        layers = init.imbalanced(
            jnp.full((dim,), table.smallest), jnp.full((depth - 1, dim), table.imbalance)
        )
    else:
        key = jax.random.key(table.seed)
        if table.kind == "balanced":
            layers = init.balanced(key, depth, dim, law=_law(table.law))
        elif table.kind == "zero_first_layer":
            layers = init.zero_first_layer(key, depth, dim, law=_law(table.law))
        else:
            layers = init.independent(key, depth, dim, law=_law(table))
    if experiment.network.signed and table.kind != "explicit":
        layers = init.signed(layers)
    return experiment.network.scale * layers


def _times(experiment: Experiment) -> Array:
    dynamics = experiment.dynamics
    if dynamics.spacing == "linear":
        return jnp.linspace(0.0, dynamics.until, dynamics.points)
    # Evenly spaced up to the first scale, then in the logarithm, without a gap after 0.
    first = 1e-8 * dynamics.until
    return first * jnp.expm1(jnp.linspace(0.0, jnp.log1p(1e8), dynamics.points))


def _flow(experiment: Experiment):
    dynamics = experiment.dynamics
    controls = {
        "rtol": dynamics.rtol,
        "atol": dynamics.atol,
        "solver": _SOLVERS[dynamics.solver](),
        "max_steps": dynamics.max_steps,
        "throw": False,
    }
    if dynamics.kind == "mirror_flow":
        return partial(flow.mirror_flow, **controls)
    return partial(flow.gradient_flow, coordinates=dynamics.coordinates, **controls)
