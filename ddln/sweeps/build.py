"""Build what the tables of a configuration describe: problem, layers, times and optimiser.

`LOSSES`, `LAWS`, `INITIALISERS` and `SCHEDULES` map every `kind` of such a table to its
constructor. Numbers that do not determine a shape may be traced.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from ddln._internal.random import fixed_generator, key_from_seed
from ddln.config import datasets
from ddln.config._table import Table
from ddln.config.data_schema import FileDataConfig
from ddln.config.dynamics_schema import DescentConfig, FlowConfig
from ddln.config.experiment import Experiment, at_point, parse
from ddln.config.schema import (
    DevicesConfig,
    ImbalancedInitConfig,
    LawConfig,
    NormalLawConfig,
    UniformLawConfig,
)
from ddln.networks import init
from ddln.problems import convex, piecewise_linear, sharding
from ddln.problems.base import Problem
from ddln.problems.least_squares import least_squares
from ddln.problems.multinomial import multinomial
from ddln.problems.signed import signed
from ddln.solvers import weight_decay
from ddln.solvers.gradient_estimators import GradientEstimator, Sampling, SharpnessAware
from ddln.solvers.optimisers import DecayingSteps, Optimiser, optimiser
from ddln.solvers.weight_decay import WeightDecay

LOSSES: Mapping[str, Callable[..., Problem]] = {
    "least_squares": least_squares,
    "logistic": convex.logistic,
    "multinomial": multinomial,
    "exponential": convex.exponential,
    "poisson": convex.poisson,
    "huber": convex.huber,
    "hinge": piecewise_linear.hinge,
    "quantile": piecewise_linear.quantile,
}
"""By kind: a function of features, targets and the other keys of the table."""


SCHEDULES: Mapping[str, Callable[..., WeightDecay]] = {
    "constant": weight_decay.constant,
    "piecewise": weight_decay.piecewise,
    "cosine": weight_decay.cosine,
}
"""By kind: a function of the other keys of the table."""


def _uniform(config: UniformLawConfig) -> init.Law:
    return partial(jax.random.uniform, minval=config.low, maxval=config.high)


def _normal(config: NormalLawConfig) -> init.Law:
    return lambda key, shape: config.mean + config.std * jax.random.normal(key, shape)


def _constant(config: Any) -> init.Law:
    return lambda key, shape: jnp.full(shape, config.value, jnp.result_type(float))


LAWS: Mapping[str, Callable[[Any], init.Law]] = {
    "uniform": _uniform,
    "normal": _normal,
    "constant": _constant,
}
"""By kind: a function of the table."""


def _law(config: LawConfig) -> init.Law:
    return LAWS[config.kind](config)


def _imbalanced(config: ImbalancedInitConfig, depth: int, dim: int) -> Float[Array, "depth dim"]:
    smallest = jnp.full((dim,), config.smallest)
    return init.imbalanced(smallest, jnp.full((depth - 1, dim), config.imbalance))


INITIALISERS: Mapping[str, Callable[[Any, int, int], Float[Array, "depth width"]]] = {
    "constant": lambda config, depth, dim: init.constant(depth, dim, config.value),
    "balanced": lambda config, depth, dim: init.balanced(
        key_from_seed(config.seed), depth, dim, law=_law(config.law)
    ),
    "uniform": lambda config, depth, dim: init.independent(
        key_from_seed(config.seed), depth, dim, law=_law(config)
    ),
    "normal": lambda config, depth, dim: init.independent(
        key_from_seed(config.seed), depth, dim, law=_law(config)
    ),
    "zero_first_layer": lambda config, depth, dim: init.zero_first_layer(
        key_from_seed(config.seed), depth, dim, law=_law(config.law)
    ),
    "imbalanced": _imbalanced,
    "explicit": lambda config, depth, dim: jnp.asarray(config.layers, jnp.result_type(float)),
}
"""By kind: a function of the table, the depth and the number of features."""


def reconstruct(network: xr.Dataset) -> tuple[Problem, Float[Array, "depth width"]]:
    """The problem and the initial layers of one network of a data set.

    Args:
        network: from `ddln.run`, with one value of every axis of its sweep:
            `dataset.sel({"network.scale": 1.4})`.

    Returns:
        The problem (that of a signed network is signed), and layers of shape (depth, width).

    Raises:
        ValueError: an axis has more than one value.

    >>> small = ["network.depth=2", "dynamics.points=11"]
    >>> experiment = ddln.load("configs/figure4.toml", small)
    >>> problem, layers = reconstruct(ddln.run(experiment).sel({"network.scale": 1.4}))
    >>> problem.dim, layers.shape
    (8, (2, 8))
    """
    experiment = parse(network.attrs["config"])
    left = [name for name in experiment.sweep if network[name].size != 1]
    if left:
        raise ValueError(f"`network` must have one value of each swept axis, got more of {left}.")
    values = {name: network[name].values.item() for name in experiment.sweep}
    experiment = at_point(experiment, values)
    return build_problem(experiment), build_layers(experiment)


def build_problem(experiment: Experiment) -> Problem:
    """The problem of an experiment; that of a signed network is signed."""
    config = experiment.problem.loss
    features, targets = datasets.draw(experiment.problem.data, config.kind)
    samples = datasets.sample_options(experiment.problem.data, config.kind)
    problem = LOSSES[config.kind](features, targets, **samples, **_options(config))
    return signed(problem) if experiment.network.signed else problem


def held_out_samples(experiment: Experiment) -> tuple[Any, ...]:
    """Features, targets and weights of the samples to test on; empty if there are none."""
    data, loss = experiment.problem.data, experiment.problem.loss.kind
    samples = datasets.prepared(data, loss).test if isinstance(data, FileDataConfig) else None
    if samples is None:
        return ()
    targets, weights, exposure = samples[1:]
    if exposure is not None:  # as in `ddln.poisson`
        targets, weights = targets / exposure, exposure * (1.0 if weights is None else weights)
    return samples.features, targets, weights


def true_parameter(experiment: Experiment) -> Float[Array, " features"] | None:
    """The parameter θ* that generated the targets; None if it is not known."""
    data, loss = experiment.problem.data, experiment.problem.loss.kind
    return jnp.asarray(datasets.truth(data)) if datasets.has_truth(data, loss) else None


def _options(config: Table) -> dict[str, Any]:
    """The keys of a table and their values, except `kind`."""
    return {name: getattr(config, name) for name in type(config).model_fields if name != "kind"}


@fixed_generator()
def build_layers(experiment: Experiment) -> Float[Array, "depth width"]:
    """The initial layers."""
    network = experiment.network
    dim = experiment.parameters
    layers = INITIALISERS[network.init.kind](network.init, network.depth, dim)
    if network.signed and layers.shape[1] == dim:  # explicit layers have both halves already
        layers = init.signed(layers)
    return network.scale * layers


def make_mesh(devices: DevicesConfig | None) -> Mesh | None:
    """The requested devices of this process as a mesh; None if no devices are requested.

    Raises:
        ValueError: the process has fewer devices.
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
    return sharding.make_mesh(here[:count], batch=devices.lanes)


def saved_times(flow: FlowConfig) -> Float[Array, " points"]:
    """The flow times of the saved points."""
    if flow.times is not None:
        return jnp.asarray([0.0, *flow.times, flow.until])
    if flow.spacing == "linear":
        return jnp.linspace(0.0, flow.until, flow.points)
    # Linear up to until / span and logarithmic beyond, without a gap after 0.
    span = jnp.power(10.0, flow.decades)
    return flow.until / span * jnp.expm1(jnp.linspace(0.0, jnp.log1p(span), flow.points))


def build_weight_decay(flow: FlowConfig) -> WeightDecay | None:
    """The schedule of a flow's weight decay."""
    if flow.weight_decay is None:
        return None
    return SCHEDULES[flow.weight_decay.kind](**_options(flow.weight_decay))


def build_optimiser(descent: DescentConfig) -> Optimiser:
    """The optimiser of a descent."""
    given = {name: x for name, x in _options(descent.optimiser).items() if x is not None}
    schedule = given.pop("schedule", None)
    built = optimiser(descent.optimiser.kind, **given)
    if schedule is None:
        return built
    final = jnp.asarray(schedule.final, float)
    rate = built.numbers["learning_rate"]
    steps = DecayingSteps(rate, final, schedule.kind, schedule.warm_up, descent.steps)
    return eqx.tree_at(lambda rule: rule.numbers["learning_rate"], built, steps)


def build_gradient_estimator(descent: DescentConfig) -> GradientEstimator:
    """The estimator of the gradient in each step of a descent."""
    options = {} if descent.sampling is None else _options(descent.sampling)
    options.pop("seed", None)
    sampling = Sampling(**options)
    if descent.sharpness_aware is None:
        return sampling
    return SharpnessAware(**_options(descent.sharpness_aware), sampling=sampling)


def sampling_key(descent: DescentConfig) -> PRNGKeyArray | None:
    """The key of the gradient estimator; None if the estimator draws nothing."""
    if descent.sampling is None or not build_gradient_estimator(descent).sampling.is_random:
        return None
    return key_from_seed(descent.sampling.seed)
