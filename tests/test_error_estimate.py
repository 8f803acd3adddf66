"""The error of a flow, from a much finer solution, against its expected error."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.verification.error_estimate import discrepancy, expected_error

FINER = 1e-12  # rtol, a thousandth of the default


def error_over_expected(depth, networks):
    """The largest error of each network over δ, and its `discrepancy`."""
    rng = np.random.default_rng(depth)
    features, targets = rng.normal(size=(networks, 6, 4)), rng.normal(size=(networks, 6))
    targets = targets * 10 ** rng.uniform(-1, 1.5, size=(networks, 1))
    layers = rng.uniform(0.5, 1.2, size=(networks, depth, 4))
    layers[::2, 0] = 0.0
    times = np.linspace(0.0, 1.0, 21) * 10 ** rng.uniform(-1, 0.5, size=(networks, 1))

    @jax.jit
    @jax.vmap
    def compare(features, targets, layers, times):
        problem = ddln.least_squares(features, targets)
        run = ddln.gradient_flow(problem, layers, times, throw=False)
        finer = {"rtol": FINER, "atol": FINER * 1e-3, "throw": False}
        again = ddln.gradient_flow(problem, layers, times, **finer).theta
        apart = jnp.max(jnp.linalg.norm(run.theta - again, axis=1))
        return apart / expected_error(run), discrepancy(run, again), run.status

    over, found, status = map(np.asarray, compare(features, targets, layers, times))
    done = status == 0
    assert done.mean() > 0.95  # a few are too stiff for Tsitouras's method
    return over[done], found[done]


@pytest.mark.parametrize(
    ("depth", "networks"),
    [(6, 6), *(pytest.param(depth, 100, marks=pytest.mark.slow) for depth in (2, 3, 6, 12, 16))],
)
def test_expected_error_grows_with_depth_like_the_error(depth, networks):
    over, found = error_over_expected(depth, networks)
    # The same share of what is expected at every depth, and not far below it.
    assert 0.1 < over.max() < 0.8
    assert found.max() < 0.8


def test_nan_in_a_completed_run_is_not_dropped():
    problem, layers = ddln.least_squares([[1.0]], [2.0]), [[0.0], [1.0]]
    run = ddln.gradient_flow(problem, layers, [0.0, 1.0, 2.0, 3.0])
    spoilt = dataclasses.replace(run, theta=run.theta.at[1].set(jnp.nan))
    assert jnp.isnan(expected_error(spoilt))
    assert jnp.isinf(discrepancy(spoilt, run.theta))
    late = dataclasses.replace(run, velocity=run.velocity.at[1].set(jnp.nan))
    assert jnp.isinf(discrepancy(late, run.theta))
    # A run that failed has no numbers from there on, and is compared before.
    failed = dataclasses.replace(run, status=jnp.asarray(1), theta=run.theta.at[2:].set(jnp.nan))
    assert jnp.isfinite(expected_error(failed))
    assert discrepancy(failed, run.theta) == 0
    assert jnp.isnan(discrepancy(run, jnp.full_like(run.theta, jnp.nan)))
