"""Designed initialisations against the rate bound and the entropy that they were designed for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln import theory

RNG = np.random.default_rng(0)
PROBLEM = ddln.least_squares(RNG.normal(size=(4, 3)), RNG.normal(size=4))


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_designed_scale_and_imbalance_give_the_prescribed_rate(depth):
    layers = RNG.normal(size=(depth, 3))
    scale = theory.scale_for_rate(PROBLEM, layers, 7.0)
    np.testing.assert_allclose(ddln.rate_bound(PROBLEM, scale * layers), 7.0, rtol=1e-12)
    imbalance = theory.imbalance_for_rate(PROBLEM, depth, 7.0)
    network = ddln.init.imbalanced(np.zeros(3), jnp.full((depth - 1, 3), imbalance))
    np.testing.assert_allclose(ddln.rate_bound(PROBLEM, network), 7.0, rtol=1e-12)


def test_designed_layers_recover_a_known_network():
    prescribed = np.array([0.0, 0.4, 0.9, 1.7])
    theta = np.linspace(-2, 2, 21)
    curvature = ddln.Entropy(np.repeat(prescribed[:, None], 21, axis=1)).hessian(theta)
    layers = theory.layers_for_entropy(theta, curvature, 4)
    np.testing.assert_allclose(layers.ravel(), prescribed, rtol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_curvature_of_random_networks_is_met_to_the_tolerance(seed):
    rng = np.random.default_rng(seed)
    depth, reach = int(rng.integers(2, 6)), 10 ** rng.uniform(-1, 3)
    prescribed = np.concatenate([[0.0], np.exp(rng.uniform(-2, 2, depth - 1))])
    theta = reach * np.linspace(-1, 1, 15) if seed % 2 else reach * np.logspace(-4, 0, 15)

    def curvature(layers):
        """1/M in NumPy, w by bisection."""
        squares = np.asarray(layers, float).ravel()[1:, None] ** 2
        low, high = np.zeros_like(theta), np.full_like(theta, 1 + reach)
        for _ in range(200):
            w = (low + high) / 2
            over = w * np.prod(np.sqrt(w**2 + squares), axis=0) > np.abs(theta)
            low, high = np.where(over, low, w), np.where(over, w, high)
        shares = np.sum(w**2 / (w**2 + squares), axis=0)
        return 1 / (np.prod(w**2 + squares, axis=0) * (1 + shares))

    layers = theory.layers_for_entropy(theta, curvature(prescribed), depth, tolerance=1e-8)
    np.testing.assert_allclose(curvature(layers), curvature(prescribed), rtol=1.1e-8)


def test_fit_does_not_depend_on_the_callers_precision():
    prescribed, theta = np.array([0.0, 0.4, 0.9, 1.7]), np.linspace(-2, 2, 21)
    curvature = ddln.Entropy(np.repeat(prescribed[:, None], 21, axis=1)).hessian(theta)
    with jax.enable_x64(False):
        layers = theory.layers_for_entropy(theta, np.asarray(curvature, np.float32), 4)
        assert layers.dtype == jnp.float32
    np.testing.assert_allclose(
        layers.ravel(), prescribed, rtol=1e-4
    )  # 1e-7 of Q'' is 1e-5 of λ here


def test_curvature_at_one_point_determines_a_network_of_depth_two():
    layers = theory.layers_for_entropy([0.0], [1 / 9], 2, tolerance=1e-9)
    np.testing.assert_allclose(layers, [[0.0], [3.0]], rtol=1e-9)


def test_impossible_curvature_is_an_error_with_the_best_error_and_status():
    theta = np.linspace(-1, 1, 9)
    with pytest.raises(
        ValueError, match=r"depth 2 within 1e-06; the nearest found is .* off .*tol"
    ):
        theory.layers_for_entropy(theta, 1 + theta**2, 2)


@pytest.mark.slow
def test_time_to_gap_is_an_upper_bound_and_matches_its_formulas():
    layers = RNG.normal(size=(3, 3))
    start = PROBLEM.gap(jnp.prod(layers, axis=0))
    for gap in (0.1, 1e-6):
        time = theory.time_to_gap(PROBLEM, layers, gap)
        run = ddln.gradient_flow(PROBLEM, layers, [0.0, float(time)])
        assert run.gap[-1] <= gap * (1 + 1e-9)
        exponential = np.log(start / gap) / (2 * ddln.rate_bound(PROBLEM, layers))
        divergence = ddln.Entropy(layers).value(PROBLEM.minimiser) / gap
        np.testing.assert_allclose(time, min(exponential, divergence), rtol=1e-9)
    assert theory.time_to_gap(PROBLEM, layers, 2 * start) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.time_to_gap(PROBLEM, np.ones((2, 3)), 0.0), r"`gap` must be > 0, got 0\.0"),
        (lambda: theory.scale_for_rate(PROBLEM, np.ones((2, 3)), 1.0), "unique smallest layer"),
        (lambda: theory.scale_for_rate(PROBLEM, np.eye(2, 3), -1.0), "`rate` must be > 0, got -1"),
        (lambda: theory.imbalance_for_rate(PROBLEM, 1, 1.0), "`depth` must be ≥ 2, got 1"),
        (lambda: theory.layers_for_entropy([0.0], [-1.0], 2), "`curvature` be > 0"),
        (
            lambda: theory.layers_for_entropy([0.0], [1.0], 2, tolerance=0),
            r"`tolerance` must be > 0, got 0\.0",
        ),
    ],
)
def test_invalid_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
