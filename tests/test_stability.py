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
EIGENVALUE = 1e-12  # relative; LOBPCG stops at 20 · depth · dim roundings, here 1e-12


def test_sharpness_at_a_minimiser_matches_its_formula():
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


def test_stable_step_in_a_flat_valley_is_long():
    # At θ = y the only nonzero eigenvalue of the Hessian is 2 (0.1² + 0.2²).
    problem = ddln.least_squares([[1.0]], [0.1 * 0.2])
    step = theory.largest_stable_step(problem, [[0.1], [0.2]])
    np.testing.assert_allclose(step, 20.0, rtol=EIGENVALUE)


@pytest.mark.parametrize("samples", [1, 30], ids=["rank one", "indefinite"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sharpness_is_the_largest_eigenvalue_of_the_hessian(samples, dtype):
    rng = np.random.default_rng(samples)
    layers = rng.normal(size=(3, 70)).astype(dtype)
    features = rng.normal(size=(samples, 70)).astype(dtype)
    targets = features @ layers.prod(axis=0) if samples == 1 else rng.normal(size=samples)
    problem = ddln.least_squares(features, targets.astype(dtype))
    hessian = jax.jit(jax.hessian(lambda u: problem.loss(jnp.prod(u, axis=0))))(layers)
    expected = np.linalg.eigvalsh(np.asarray(hessian, float).reshape(210, 210))
    assert (expected[0] < -1e-3 * expected[-1]) == (samples > 1)
    found = theory.sharpness(problem, layers)
    assert found.dtype == dtype
    rounding = EIGENVALUE if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(found, expected[-1], rtol=rounding)


def test_sharpness_of_a_wide_network_never_forms_the_hessian():
    rng = np.random.default_rng(0)
    problem = ddln.least_squares(rng.normal(size=(20, 2000)), rng.normal(size=20))
    layers = rng.normal(size=(3, 2000))
    compiled = jax.jit(lambda layers: theory.sharpness(problem, layers)).lower(layers).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 6000**2  # an eighth of the Hessian
    # At a minimiser it is the largest eigenvalue of 2 √M XᵀX √M.
    fitted = ddln.least_squares(problem.features, problem.features @ layers.prod(axis=0))
    rows = np.asarray(problem.features) * np.sqrt(np.asarray(ddln.mobility(layers)))
    expected = 2 * np.linalg.norm(rows, 2) ** 2
    np.testing.assert_allclose(theory.sharpness(fitted, layers), expected, rtol=1e-10)


@pytest.mark.parametrize("dim", [4, 40], ids=["formed", "multiplied"])
def test_derivative_of_sharpness_matches_finite_differences(dim):
    rng = np.random.default_rng(0)
    problem = ddln.least_squares(rng.normal(size=(3, dim)), rng.normal(size=3))
    layers, direction = rng.normal(size=(2, 3, dim))
    step = 1e-5
    sharpness = jax.jit(lambda s: theory.sharpness(problem, layers + s * direction))
    difference = (sharpness(step) - sharpness(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(sharpness))(0.0), difference, rtol=1e-6)


def test_sharpness_under_jit_and_vmap_equals_the_eager_one():
    batch = jnp.stack([LAYERS, 1.4 * LAYERS])
    together = jax.jit(jax.vmap(lambda layers: theory.sharpness(PROBLEM, layers)))(batch)
    np.testing.assert_allclose(together, [theory.sharpness(PROBLEM, layers) for layers in batch])


@pytest.mark.parametrize("dim", [2, 40], ids=["formed", "multiplied"])
def test_stable_step_at_a_flat_point_is_infinite(dim):
    flat = ddln.least_squares(np.zeros((1, dim)), [1.0])
    assert jnp.isinf(theory.largest_stable_step(flat, jnp.ones((2, dim))))
