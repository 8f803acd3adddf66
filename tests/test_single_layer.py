"""Depth 1 is gradient flow on θ itself: the baseline of every depth, in closed form."""

from pathlib import Path

import diffrax
import numpy as np
import optax
import pytest
import scipy.linalg

import ddln
from ddln.config.experiment import load

CONFIGS = Path(__file__).parent.parent / "configs"
RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(3, 6)), RNG.normal(size=3)
START = RNG.normal(size=6)
TIMES = np.linspace(0.0, 5.0, 41)
RIDGE = 0.3


@pytest.fixture(scope="module")
def problem():
    return ddln.least_squares(FEATURES, TARGETS)


def exact(decay=0.0):
    """θ(t) of θ̇ = −2Xᵀ(Xθ − y) − ωθ, by the matrix exponential."""
    matrix = 2 * FEATURES.T @ FEATURES + decay * np.eye(6)
    rest = np.linalg.pinv(matrix) @ (2 * FEATURES.T @ TARGETS)
    return np.array([rest + scipy.linalg.expm(-matrix * t) @ (START - rest) for t in TIMES])


FORMULATIONS = {
    "reduced": ddln.gradient_flow,
    "layers": lambda *given, **options: ddln.gradient_flow(*given, coordinates="layers", **options),
    "implicit": lambda *given, **options: ddln.gradient_flow(
        *given, solver=diffrax.Kvaerno5(), **options
    ),
    "mirror": ddln.mirror_flow,
}


@pytest.mark.parametrize(
    ("name", "decay"),
    [*((name, None) for name in FORMULATIONS), ("reduced", RIDGE), ("mirror", RIDGE)],
)
def test_flow_of_one_layer_is_that_of_theta(problem, name, decay):
    run = FORMULATIONS[name](problem, START[None], TIMES, weight_decay=decay)
    np.testing.assert_allclose(run.theta, exact(decay or 0.0), atol=5e-9)
    np.testing.assert_array_equal(run.layers[:, 0], run.theta)


@pytest.mark.parametrize(
    ("name", "decay"),
    [("reduced", None), pytest.param("mirror", RIDGE, marks=pytest.mark.slow)],
)
def test_flow_of_one_layer_is_certified(problem, name, decay):
    run = FORMULATIONS[name](problem, START[None], TIMES, weight_decay=decay)
    certificates = ddln.certify(problem, run)
    assert certificates.ok, certificates
    assert certificates["consistency"].applies
    assert certificates["mirror identity"].applies


@pytest.mark.parametrize("decay", [None, RIDGE])
def test_batched_flow_of_one_layer_is_that_of_theta(problem, decay):
    layers = np.stack([START[None], -START[None]])
    flows = ddln.gradient_flows(problem, layers, TIMES, weight_decay=decay)
    np.testing.assert_allclose(flows.theta[0], exact(decay or 0.0), atol=5e-9)


def test_entropy_of_one_layer_is_half_the_squared_distance():
    entropy, theta, other = ddln.Entropy(START[None]), RNG.normal(size=6), RNG.normal(size=6)
    np.testing.assert_allclose(entropy.value(theta), np.sum((theta - START) ** 2) / 2, rtol=1e-14)
    np.testing.assert_allclose(entropy.mirror_map(theta), theta - START, rtol=1e-14)
    np.testing.assert_allclose(entropy.inverse(theta - START), theta, rtol=1e-14)
    np.testing.assert_array_equal(entropy.hessian(theta), np.ones(6))
    np.testing.assert_allclose(
        entropy.divergence(theta, other), np.sum((theta - other) ** 2) / 2, rtol=1e-14
    )
    conjugate = np.sum(theta**2 - START**2) / 2
    np.testing.assert_allclose(entropy.conjugate(theta - START), conjugate, rtol=1e-14)
    decayed = entropy.decayed(0.7)
    np.testing.assert_allclose(decayed.mirror_map(theta), theta - np.exp(-0.7) * START, rtol=1e-13)
    assert not np.isfinite(entropy.range()).any()


def test_limit_of_one_layer_is_the_nearest_minimiser(problem):
    nearest = START + np.linalg.pinv(FEATURES) @ (TARGETS - FEATURES @ START)
    np.testing.assert_allclose(ddln.limit_point(problem, START[None]), nearest, atol=1e-12)


def test_descent_on_one_layer_is_gradient_descent(problem):
    run = ddln.descend(problem, START[None], optax.sgd(0.01), steps=20)
    theta = START
    for _ in range(20):
        theta = theta - 0.02 * FEATURES.T @ (FEATURES @ theta - TARGETS)
    np.testing.assert_allclose(run.theta[-1], theta, rtol=1e-13)
    assert ddln.certify(problem, run).ok


def test_rate_bound_of_one_layer_is_the_pl_constant(problem):
    np.testing.assert_allclose(ddln.rate_bound(problem, START[None]), problem.pl_constant)


@pytest.mark.parametrize(
    "call",
    [
        lambda problem: ddln.theory.saddle_path(problem, START[None]),
        lambda problem: ddln.theory.scale_for_rate(problem, START[None], 1.0),
    ],
)
def test_what_needs_two_layers_refuses_one(problem, call):
    with pytest.raises(ValueError, match="`layers` must be at least two"):
        call(problem)


@pytest.mark.slow
def test_sweep_of_one_layer_is_certified():
    changes = ["network.depth=1", 'network.init={kind="normal"}', "dynamics.points=41"]
    dataset = ddln.run(load(CONFIGS / "figure4.toml", changes))
    assert dataset["certificate_holds"].all()
    np.testing.assert_array_equal(dataset["layers"].sel(layer=1), dataset["theta"])
