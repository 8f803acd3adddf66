import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.solvers.formulations import Layers, Mirror, Reduced, Smallest, field, observe

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


@pytest.mark.parametrize("picture", [Layers, Smallest, Reduced, Mirror])
def test_every_picture_shows_the_same_network_moving_the_same_way(problem, layers, picture):
    start = picture(layers if picture is Layers else ddln.Reduction(layers))
    seen = jax.jit(observe)(0.0, start.initial(), (problem, start))
    theta = np.prod(layers, axis=0)
    velocity = -ddln.mobility(layers) * problem.gradient(theta)
    for ours, reference in zip(seen[:3], (layers, theta, velocity), strict=True):
        np.testing.assert_allclose(ours, reference, atol=ROUNDING)


def test_tied_and_frozen_coordinates_move_as_the_layers_do(problem):
    layers = jnp.asarray(np.random.default_rng(2).uniform(0.5, 1.2, (4, 4)))
    layers = layers.at[:2, 1].set(0.3).at[:2, 2].set(0.0).at[0, 3].set(-layers[1, 3])
    for picture in (Smallest, Reduced):
        start = picture(ddln.Reduction(layers))
        seen = jax.jit(observe)(0.0, start.initial(), (problem, start))
        theta = np.prod(layers, axis=0)
        velocity = -ddln.mobility(layers) * problem.gradient(theta)
        for ours, reference in zip(seen[:3], (layers, theta, velocity), strict=True):
            np.testing.assert_allclose(ours, reference, atol=ROUNDING)


@pytest.mark.parametrize("picture", [Smallest, Reduced])
def test_the_jacobian_is_the_derivative_of_the_rate(problem, layers, picture):
    start = picture(ddln.Reduction(layers))
    state = start.initial() + 0.3
    theta = start.theta(state)
    ours = start.jacobian(state, problem.gradient(theta), problem.hessian(theta))
    derivative = jax.jit(jax.jacfwd(lambda state: field(0.0, state, (problem, start))))(state)
    np.testing.assert_allclose(ours, derivative, atol=ROUNDING * np.max(np.abs(derivative)))


def test_a_tolerance_is_one_of_the_position_whatever_the_picture(layers):
    reduction = ddln.Reduction(layers)
    pictures = Smallest(reduction), Reduced(reduction)
    in_w, in_v = (picture.tolerance(jnp.asarray(1e-6)) for picture in pictures)
    squares = np.sort(np.asarray(layers) ** 2, axis=0)
    np.testing.assert_allclose(in_v, 1e-6)
    np.testing.assert_allclose(in_w, 1e-6 * np.sqrt(squares[1] - squares[0]), rtol=1e-9)
