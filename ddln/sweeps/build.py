"""What the tables of a configuration stand for: a problem, layers, times, a rule of training.

Numbers that decide no shape may be traced.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array

from ddln._internal.random import fixed_generator, key_from_seed
from ddln.config import datasets
from ddln.config.dynamics import Descent, Flow
from ddln.config.experiment import Experiment, parse
from ddln.config.schema import Devices, Table
from ddln.networks import init
from ddln.problems import base, convex, sharding
from ddln.solvers.gradient_estimators import GradientEstimator, Sampling, SharpnessAware
from ddln.solvers.optimisers import Optimiser, optimiser

_LOSSES = {
    "least_squares": base.least_squares,
    "logistic": convex.logistic,
    "exponential": convex.exponential,
    "poisson": convex.poisson,
    "huber": convex.huber,
}


def reconstruct(lane: xr.Dataset) -> tuple[base.Problem, Array]:
    """The problem and the initial layers of one network of a data set.

    Args:
        lane: from `ddln.run`, with one value of every axis of its sweep:
            `dataset.sel({"network.scale": 1.4})`.

    Returns:
        The problem, of a signed network the signed one, and layers, shape (depth, width).

    Raises:
        ValueError: more than one value of an axis.

    >>> experiment = ddln.load("configs/figure4.toml").with_({"dynamics.points": 5})
    >>> problem, layers = reconstruct(ddln.run(experiment).sel({"network.scale": 1.4}))
    >>> problem.dim, layers.shape
    (8, (6, 8))
    """
    experiment = parse(lane.attrs["config"])
    left = [name for name in experiment.sweep if lane[name].size != 1]
    if left:
        raise ValueError(f"`lane` must have one value of each swept axis, got more of {left}.")
    values = {name: lane[name].values.item() for name in experiment.sweep}
    experiment = experiment.with_({**values, "sweep": {}})
    return problem_of(experiment), layers_of(experiment)


def problem_of(experiment: Experiment) -> base.Problem:
    """The loss on the data; of a signed network the signed one."""
    features, targets = datasets.draw(experiment.problem.data)
    table = experiment.problem.loss
    loss = _LOSSES[table.kind](features, targets, **_options(table))
    return base.signed(loss) if experiment.network.signed else loss


def truth_of(experiment: Experiment) -> Array | None:
    """θ* that the data were made with, shape (features,); None where it is not known."""
    table = experiment.problem.data
    return jnp.asarray(datasets.truth(table)) if datasets.has_truth(table) else None


def _options(table: Table) -> dict[str, Any]:
    """All that a table says but its kind."""
    return {name: getattr(table, name) for name in type(table).model_fields if name != "kind"}


def _law(law) -> init.Law:
    if law.kind == "uniform":
        return partial(jax.random.uniform, minval=law.low, maxval=law.high)
    if law.kind == "normal":
        return lambda key, shape: law.mean + law.std * jax.random.normal(key, shape)
    return lambda key, shape: jnp.full(shape, law.value, jnp.result_type(float))


@fixed_generator()
def layers_of(experiment: Experiment) -> Array:
    """The initial layers, shape (depth, width)."""
    table, depth = experiment.network.init, experiment.network.depth
    _, dim = datasets.shape_of(experiment.problem.data)
    if table.kind == "explicit":
        layers = jnp.asarray(table.layers, jnp.result_type(float))
    elif table.kind == "constant":
        layers = init.constant(depth, dim, table.value)
    elif table.kind == "imbalanced":
        layers = init.imbalanced(
            jnp.full((dim,), table.smallest), jnp.full((depth - 1, dim), table.imbalance)
        )
    else:
        key = key_from_seed(table.seed)
        if table.kind == "balanced":
            layers = init.balanced(key, depth, dim, law=_law(table.law))
        elif table.kind == "zero_first_layer":
            layers = init.zero_first_layer(key, depth, dim, law=_law(table.law))
        else:
            layers = init.independent(key, depth, dim, law=_law(table))
    if experiment.network.signed and table.kind != "explicit":
        layers = init.signed(layers)
    return experiment.network.scale * layers


def mesh_of(devices: Devices | None) -> Mesh | None:
    """The devices of this process that are asked for; None where none are.

    Raises:
        ValueError: it has fewer.
    """
    if devices is None:
        return None
    here, count = jax.local_devices(), devices.lanes * devices.features
    if len(here) < count:
        raise ValueError(
            f"devices: lanes × features must be at most the {len(here)} there are, got {count}; on "
            f"a CPU there are as many as XLA_FLAGS=--xla_force_host_platform_device_count={count} "
            "says"
        )
    return sharding.mesh_of(here[:count], lanes=devices.lanes)


def times_of(flow: Flow) -> Array:
    """The flow times that are saved, shape (points,)."""
    if flow.spacing == "linear":
        return jnp.linspace(0.0, flow.until, flow.points)
    # Evenly spaced up to the first scale, then in the logarithm, without a gap after 0.
    span = jnp.power(10.0, flow.decades)
    return flow.until / span * jnp.expm1(jnp.linspace(0.0, jnp.log1p(span), flow.points))


def rule_of(descent: Descent) -> Optimiser:
    """The rule of training."""
    given = {name: x for name, x in _options(descent.optimiser).items() if x is not None}
    return optimiser(descent.optimiser.kind, **given)


def oracle_of(descent: Descent) -> GradientEstimator:
    """What gradient a step sees."""
    drawn = {} if descent.sampling is None else _options(descent.sampling)
    drawn.pop("seed", None)
    sampling = Sampling(**drawn)
    if descent.sharpness_aware is None:
        return sampling
    return SharpnessAware(**_options(descent.sharpness_aware), sampling=sampling)


def key_of(descent: Descent) -> Array | None:
    """For what the oracle draws; None where it draws nothing."""
    if descent.sampling is None or not oracle_of(descent).sampling.is_random:
        return None
    return key_from_seed(descent.sampling.seed)
