"""Sharpness and the stable step against NumPy's own gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln import theory

RNG = np.random.default_rng(0)
PROBLEM = ddln.least_squares(RNG.normal(size=(3, 4)), RNG.normal(size=3))
LAYERS = RNG.normal(size=(3, 4))


def test_sharpness_at_a_minimiser_is_that_of_the_mobile_hessian():
    limit = ddln.limit_point(PROBLEM, LAYERS)
    run = ddln.gradient_flow(PROBLEM, LAYERS, [0.0, 300.0], rtol=1e-11)
    end = run.layers[-1]
    np.testing.assert_allclose(run.theta[-1], limit, atol=1e-8)
    root = jnp.sqrt(ddln.mobility(end))
    hessian = root[:, None] * PROBLEM.hessian(limit) * root[None]
    np.testing.assert_allclose(
        theory.sharpness(PROBLEM, end), np.linalg.eigvalsh(hessian)[-1], rtol=1e-7
    )


@pytest.mark.parametrize(("share", "stays"), [(0.98, True), (1.02, False)])
def test_gradient_descent_stays_at_a_minimiser_up_to_the_stable_step(share, stays):
    end = ddln.gradient_flow(PROBLEM, LAYERS, [0.0, 300.0], rtol=1e-11).layers[-1]
    step = share * float(theory.largest_stable_step(PROBLEM, end))
    features, targets = np.asarray(PROBLEM.features), np.asarray(PROBLEM.targets)
    layers = np.asarray(end) + 1e-6 * RNG.normal(size=end.shape)
    losses = []
    for _ in range(400):
        residual = features @ layers.prod(axis=0) - targets
        losses.append(residual @ residual)
        gradient = 2 * features.T @ residual
        others = np.stack([np.delete(layers, j, axis=0).prod(axis=0) for j in range(3)])
        layers = layers - step * gradient[None] * others
    assert (losses[-1] < losses[0]) == stays


def test_sharpness_under_transformations_is_the_eager_one():
    batch = jnp.stack([LAYERS, 1.4 * LAYERS])
    together = jax.jit(jax.vmap(lambda layers: theory.sharpness(PROBLEM, layers)))(batch)
    np.testing.assert_allclose(together, [theory.sharpness(PROBLEM, lane) for lane in batch])


def test_a_flat_point_has_no_largest_step():
    flat = ddln.least_squares(np.zeros((1, 2)), [1.0])
    assert jnp.isinf(theory.largest_stable_step(flat, jnp.ones((2, 2))))
