import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.solvers.formulations import Layers, Mirror, Reduced, Smallest, observe, vector_field

ROUNDING = 1e-12


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    return ddln.least_squares(rng.standard_normal((5, 4)), rng.standard_normal(5))


@pytest.fixture(scope="module", params=[2, 3, 6])
def layers(request):
    """Every coordinate open, one of them passing through θ = 0."""
    layers = np.random.default_rng(1).uniform(-1.2, 1.2, (request.param, 4))
    layers[0, 0] = 0.0
    return jnp.asarray(layers)


@pytest.mark.parametrize("formulation", [Layers, Smallest, Reduced, Mirror])
def test_formulations_start_with_the_same_layers_and_velocity(problem, layers, formulation):
    variables = {Layers: lambda u: u, Mirror: ddln.Entropy}.get(formulation, ddln.Reduction)
    start = formulation(variables(layers))
    observed = jax.jit(observe)(0.0, start.initial(), (problem, start))
    theta = np.prod(layers, axis=0)
    velocity = -ddln.mobility(layers) * problem.gradient(theta)
    for ours, reference in zip(observed[:3], (layers, theta, velocity), strict=True):
        np.testing.assert_allclose(ours, reference, atol=ROUNDING)


def test_tied_and_frozen_coordinates_move_like_the_layers(problem):
    layers = jnp.asarray(np.random.default_rng(2).uniform(0.5, 1.2, (4, 4)))
    layers = layers.at[:2, 1].set(0.3).at[:2, 2].set(0.0).at[0, 3].set(-layers[1, 3])
    for formulation in (Smallest, Reduced):
        start = formulation(ddln.Reduction(layers))
        observed = jax.jit(observe)(0.0, start.initial(), (problem, start))
        theta = np.prod(layers, axis=0)
        velocity = -ddln.mobility(layers) * problem.gradient(theta)
        for ours, reference in zip(observed[:3], (layers, theta, velocity), strict=True):
            np.testing.assert_allclose(ours, reference, atol=ROUNDING)


@pytest.mark.parametrize("formulation", [Smallest, Reduced])
def test_jacobian_is_the_derivative_of_the_rate(problem, layers, formulation):
    start = formulation(ddln.Reduction(layers))
    state = start.initial() + 0.3
    theta = eqx.filter_jit(start.theta)(state)
    gradient, hessian = jax.jit(lambda x: (problem.gradient(x), problem.hessian(x)))(theta)
    ours = eqx.filter_jit(start.jacobian)(state, gradient, hessian)
    rate = jax.jacfwd(lambda state: vector_field(0.0, state, (problem, start)))
    derivative = np.asarray(jax.jit(rate)(state))
    np.testing.assert_allclose(ours, derivative, atol=ROUNDING * np.max(np.abs(derivative)))


def test_tolerance_on_w_corresponds_to_the_tolerance_on_v(layers):
    reduction = ddln.Reduction(layers)
    formulations = Smallest(reduction), Reduced(reduction)
    in_w, in_v = (formulation.tolerance(jnp.asarray(1e-6)) for formulation in formulations)
    squares = np.sort(np.asarray(layers) ** 2, axis=0)
    np.testing.assert_allclose(in_v, 1e-6)
    np.testing.assert_allclose(in_w, 1e-6 * np.sqrt(squares[1] - squares[0]), rtol=1e-9)
