"""Objects built from tables equal those built by `ddln` from the same numbers."""

from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import xarray as xr

import ddln
from ddln.config._errors import kinds_of
from ddln.config.dynamics_schema import DescentConfig, FlowConfig, OptimiserConfig
from ddln.config.schema import InitConfig, LawConfig, LossConfig
from ddln.solvers import optimisers
from ddln.sweeps import build

FIGURE4 = Path(__file__).parent.parent / "configs" / "figure4.toml"


def descent(**tables):
    plain = {"kind": "descent", "steps": 10, "optimiser": {"kind": "sgd", "learning_rate": 0.1}}
    dynamics = ddln.load(FIGURE4).with_({"dynamics": {**plain, **tables}}).dynamics
    assert isinstance(dynamics, DescentConfig)
    return dynamics


@pytest.mark.parametrize(
    ("tables", "constructors"),
    [
        (LossConfig, build.LOSSES),
        (LawConfig, build.LAWS),
        (InitConfig, build.INITIALISERS),
        (OptimiserConfig, optimisers.NAMES),
    ],
    ids=["losses", "laws", "initialisers", "optimisers"],
)
def test_every_kind_has_one_table_and_one_constructor(tables, constructors):
    kinds = [kind for table in get_args(tables) for kind in kinds_of(table)]
    assert sorted(kinds) == sorted(constructors)


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "sgd", "learning_rate": 0.1},
        {"kind": "sgd", "learning_rate": 0.1, "weight_decay": 0.01},
        {"kind": "sign", "learning_rate": 0.1},
        {"kind": "heavy_ball", "learning_rate": 0.1, "momentum": 0.9},
        {"kind": "nesterov", "intrinsic_step": 0.1, "momentum": 0.9},
        {"kind": "adam", "learning_rate": 0.1, "b1": 0.8, "b2": 0.9, "eps": 1e-3},
    ],
    ids=lambda rule: "-".join([rule["kind"], *list(rule)[2:]]),
)
def test_optimiser_has_the_numbers_of_its_table(rule):
    made = build.build_optimiser(descent(optimiser=rule))
    numbers = {name: value for name, value in rule.items() if name != "kind"}
    expected = ddln.optimiser(rule["kind"], **numbers)
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    assert jax.tree.leaves(made) == jax.tree.leaves(expected)


def test_gradient_estimator_has_the_numbers_of_its_tables():
    whole = build.build_gradient_estimator(descent())
    assert not whole.sampling.is_random
    drawn = {"batch": 2, "replacement": False, "label_noise": 0.5, "noisy": 1, "seed": 4}
    uphill = {"rho": 0.3, "group": 1, "normalised": True}
    made = build.build_gradient_estimator(descent(sampling=drawn, sharpness_aware=uphill))
    assert isinstance(made, ddln.SharpnessAware)
    assert (made.rho, made.group, made.normalised) == (0.3, 1, True)
    assert {name: getattr(made.sampling, name) for name in drawn if name != "seed"} == {
        name: value for name, value in drawn.items() if name != "seed"
    }


def test_deterministic_layers_are_scale_times_their_table():
    plain = ddln.load(FIGURE4).with_({"sweep": {}, "network.depth": 3, "network.scale": 2.0})
    given = np.arange(24.0).reshape(3, 8)
    for table, expected in [
        ({"kind": "constant", "value": 0.5}, np.full((3, 8), 0.5)),
        ({"kind": "explicit", "layers": given.tolist()}, given),
        # √(0.5² + 2) = 1.5
        (
            {"kind": "imbalanced", "smallest": 0.5, "imbalance": 2.0},
            np.full((3, 8), 1.5) - np.eye(3, 1),
        ),
    ]:
        layers = build.build_layers(plain.with_({"network.init": table}))
        np.testing.assert_array_equal(layers, 2 * expected, err_msg=table["kind"])
    law = {"kind": "constant", "value": 0.5}
    balanced = plain.with_({"network.init": {"kind": "balanced", "law": law}})
    np.testing.assert_array_equal(np.abs(build.build_layers(balanced)), np.full((3, 8), 1.0))


def test_reconstruct_refuses_more_than_one_network():
    dataset = xr.Dataset(
        coords={"network.scale": [1.0, 1.4, 1.8]}, attrs={"config": ddln.load(FIGURE4).to_toml()}
    )
    with pytest.raises(ValueError, match=r"one value of each swept axis, got more of \['network"):
        build.reconstruct(dataset)


def test_only_a_random_estimator_has_a_key():
    assert build.sampling_key(descent()) is None
    assert build.sampling_key(descent(sampling={})) is None
    drawn = build.sampling_key(descent(sampling={"batch": 1, "seed": 4}))
    assert drawn == jax.random.key(4)


def test_logarithmic_times_cover_the_given_decades():
    flow = ddln.load(FIGURE4).with_(
        {"dynamics.spacing": "log", "dynamics.decades": 3, "dynamics.until": 50.0}
    )
    assert isinstance(flow.dynamics, FlowConfig)
    times = np.asarray(build.saved_times(flow.dynamics))
    assert times[0] == 0.0
    np.testing.assert_allclose(times[-1], 50.0)
    ratios = times[1:] / times[:-1].clip(1e-300)
    late = times[:-1] > 10 * 50.0 / 1e3
    # Evenly in the logarithm to the share of the linear start that is left there.
    np.testing.assert_allclose(np.log(ratios[late]), np.log(1001) / 300, rtol=0.1)
    assert times[1] < 2 * 50.0 / 1e3 * np.log(1001) / 300


@pytest.mark.slow
def test_reconstruct_recovers_problem_and_layers():
    experiment = ddln.load(FIGURE4).with_({"dynamics.points": 5, "sweep.network.scale": [1.0, 2.0]})
    dataset = ddln.run(experiment)
    problem, layers = build.reconstruct(dataset.sel({"network.scale": 2.0}))
    np.testing.assert_allclose(layers, dataset["layers"].sel({"network.scale": 2.0})[0])
    loss = jax.vmap(problem.loss)(dataset["theta"].values[1])
    np.testing.assert_allclose(loss, dataset["loss"].values[1])
    with pytest.raises(ValueError, match=r"one value of each swept axis, .* \['network.scale'\]"):
        build.reconstruct(dataset)
