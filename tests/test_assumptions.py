"""Hypotheses of the theorems that hold, and that fail."""

import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.theory import assumptions

RNG = np.random.default_rng(0)
PROBLEM = ddln.least_squares(RNG.normal(size=(4, 3)), RNG.normal(size=4))
TIMES = jnp.linspace(0.0, 0.5, 5)


class Wrong(ddln.LeastSquares):
    """Least squares with a wrong PL constant."""

    def __init__(self, problem, factor):
        super().__init__(problem.features, problem.targets, 1.0)
        self.pl_constant = factor * problem.pl_constant


def holding(problem, layers):
    run = ddln.gradient_flow(problem, layers, TIMES)
    return {name for name, holds in ddln.check_hypotheses(problem, run).items() if holds}


def test_random_network_on_least_squares_meets_every_hypothesis():
    layers = RNG.normal(size=(3, 3))
    assert holding(PROBLEM, layers) == set(assumptions.STATEMENTS)
    assert holding(ddln.signed(PROBLEM), RNG.normal(size=(3, 6))) == set(assumptions.STATEMENTS)


def test_tied_layers_violate_the_unique_smallest_layer_only():
    missing = set(assumptions.STATEMENTS) - holding(PROBLEM, jnp.full((3, 3), 0.5))
    assert missing == {"unique smallest layer"}


def test_pl_constant_too_large_is_detected():
    layers = RNG.normal(size=(3, 3))
    assert "PL condition" in holding(Wrong(PROBLEM, 1.0), layers)
    assert "PL condition" not in holding(Wrong(PROBLEM, 1e3), layers)


@pytest.mark.parametrize("least", [0.0, -1e6, pytest.param(3.0, marks=pytest.mark.slow)])
def test_converged_run_with_any_minimum_meets_the_pl_condition(least):
    # The gap is a difference: near the end it is as inexact as the minimum's rounding.
    curvature = jnp.array([1.0, 2.0, 4.0])

    def loss(theta):
        return jnp.sum(curvature * (theta - 1) ** 2) / 2 + least

    layers = np.full((3, 3), 1.2) * np.array([[0.5], [1.0], [1.5]])
    for mu, kept in ((1.0, True), (4.1, False)):
        problem = ddln.from_function(loss, 3, minimiser=np.ones(3), pl_constant=mu, convex=True)
        run = ddln.gradient_flow(problem, layers, jnp.linspace(0.0, 40.0, 21))
        assert abs(run.gap[-1]) <= 1e-15 * (1 + abs(least))
        assert bool(ddln.check_hypotheses(problem, run)["PL condition"]) == kept


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
def test_dataset_has_hypotheses_and_the_predictor_of_a_signed_network(signed):
    experiment = ddln.load("configs/figure4.toml").with_(
        {
            "dynamics.points": 11,
            "network.depth": 2,
            "network.signed": signed,
            "problem.data.samples": 4,
            "problem.data.features": 3,
            "sweep.network.scale": [1.0],
        }
    )
    dataset = ddln.run(experiment)
    assert dataset.sizes["coordinate"] == (6 if signed else 3)
    rows = assumptions.summary(dataset)
    assert [row["holds"] for row in rows] == [True] * 5
    assert all(len(line) <= 80 for line in assumptions.render(rows).splitlines())
    if signed:
        positive, negative = np.split(dataset["theta"].values, 2, axis=-1)
        np.testing.assert_array_equal(dataset["predictor"].values, positive - negative)
        assert dataset["certificate_holds"].values.all()
    else:
        assert "predictor" not in dataset


def test_explicit_layers_of_a_signed_network_need_twice_the_width():
    plain = ddln.load("configs/figure4.toml").with_({"sweep": {}})
    rows = [[0.0] * 8, [1.0] * 8]
    message = r"network.init.layers\[0\]: 8 weights for 2 × 8 features"
    with pytest.raises(ValueError, match=message):
        plain.with_(
            {
                "network": {
                    "depth": 2,
                    "signed": True,
                    "init": {"kind": "explicit", "layers": rows},
                }
            }
        )
