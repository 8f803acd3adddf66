from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddln

RATE = 0.03
GRADIENT = np.array([0.7, -1.3])


def stepped(entropy, theta, rate: Any = RATE, gradient: Any = GRADIENT) -> Any:
    rule = ddln.mirror_descent(entropy, rate)
    updates, _ = rule.update(jnp.asarray(gradient), rule.init(theta), theta)
    return optax.apply_updates(theta, updates)


def test_balanced_depth_two_gives_exponentiated_gradient():
    # ∇Q(θ) = ½ log(θ/θ₀).
    theta = jnp.array([0.4, 2.0])
    entropy = ddln.Entropy(jnp.full((2, 2), 0.5))
    expected = theta * np.exp(-2 * RATE * GRADIENT)
    np.testing.assert_allclose(stepped(entropy, theta), expected, rtol=1e-14)


def test_open_depth_two_gives_the_hyperbolic_step():
    # ∇Q(θ) = ½ asinh(2θ/λ), λ = 4.
    theta = jnp.array([0.4, -2.0])
    entropy = ddln.Entropy(jnp.array([[0.0, 0.0], [2.0, 2.0]]))
    expected = 2 * np.sinh(np.arcsinh(np.asarray(theta) / 2) - 2 * RATE * GRADIENT)
    np.testing.assert_allclose(stepped(entropy, theta), expected, rtol=1e-14)


def test_identity_mirror_map_gives_gradient_descent():
    class Euclidean:
        mirror_map = inverse = staticmethod(lambda x: x)

    theta = jnp.array([0.4, -2.0])
    expected = theta - RATE * GRADIENT
    np.testing.assert_allclose(stepped(Euclidean(), theta), expected, rtol=1e-14)


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    problem = ddln.least_squares(rng.normal(size=(4, 3)), rng.normal(size=4))
    layers = jnp.asarray(rng.uniform(0.5, 1.0, size=(3, 3))).at[0].set(0.0)
    return problem, layers


def descended(problem, layers, rate, steps):
    rule = ddln.mirror_descent(ddln.Entropy(layers), rate)

    def step(_, carry):
        theta, state = carry
        updates, state = rule.update(problem.gradient(theta), state, theta)
        return optax.apply_updates(theta, updates), state

    start = ddln.effective_parameter(layers)
    return jax.lax.fori_loop(0, steps, step, (start, rule.init(start)))[0]


def test_steps_converge_to_mirror_flow_with_order_one(network):
    problem, layers = network
    flow = ddln.mirror_flow(problem, layers, [0.0, 0.5]).theta[-1]
    run = jax.jit(lambda rate, steps: descended(problem, layers, rate, steps))
    errors = [float(jnp.max(jnp.abs(run(0.5 / k, k) - flow))) for k in (1000, 2000, 4000)]
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, 1.0, atol=0.02)


@pytest.mark.slow
def test_learning_rate_can_be_vmapped(network):
    problem, layers = network
    rates = jnp.array([0.001, 0.01])
    together = jax.vmap(lambda rate: descended(problem, layers, rate, 20))(rates)
    for rate, theta in zip(rates, together, strict=True):
        alone = descended(problem, layers, float(rate), 20)
        np.testing.assert_allclose(theta, alone, rtol=1e-10)


def test_schedules_set_the_rate_of_each_step(network):
    problem, layers = network
    halved = descended(problem, layers, optax.piecewise_constant_schedule(0.01, {1: 0.5}), 2)
    theta = ddln.effective_parameter(layers)
    for rate in (0.01, 0.005):
        theta = stepped(ddln.Entropy(layers), theta, rate, problem.gradient(theta))
    np.testing.assert_allclose(halved, theta, rtol=1e-12)


def test_step_out_of_range_raises_or_gives_nan(network):
    problem, layers = network
    with pytest.raises(ValueError, match=r"range of ∇Q"):
        stepped(ddln.Entropy(layers), jnp.zeros(3), 1e3, jnp.ones(3))
    far = jax.jit(lambda rate: descended(problem, layers, rate, 3))(1e3)
    assert jnp.isnan(far).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ddln.Entropy(np.array([[0.0], [1.0]])), -1.0), r"`learning_rate` must be > 0, got -1"),
        ((object(), 0.1), r"`entropy` must have the maps"),
    ],
)
def test_invalid_input_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        ddln.mirror_descent(*arguments)


def test_missing_params_are_an_error():
    rule = ddln.mirror_descent(ddln.Entropy(jnp.array([[0.0], [1.0]])), 0.1)
    with pytest.raises(ValueError, match=r"`params` must be the current θ"):
        rule.update(jnp.ones(1), rule.init(jnp.ones(1)))
