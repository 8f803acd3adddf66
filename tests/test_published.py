"""Experiments of papers in their published settings, compared to the published digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.sweeps import studies
from ddln.verification import diagnostics

SHOWN = 5e-8  # half a unit of the last digit


def sgd(step):
    return ddln.optimiser("sgd", learning_rate=step)


def on(features, best):
    return ddln.least_squares(features, features @ best, normalisation="half_mean")


def from_one_layer(scale):
    """Layers √2 α and 0."""
    return np.stack([np.full(30, np.sqrt(2) * scale), np.zeros(30)])


def even_2023():
    """Data of the large-step runs, the true parameter, and test data."""
    arrays = studies.find("large_steps").data()
    return arrays["features"], arrays["truth"], arrays["test_features"]


def papazov_2024():
    """Data of the momentum runs, and of the sharpness-aware ones."""
    arrays = studies.find("sharpness_aware").data()
    return arrays["features"], arrays["truth"]


@pytest.fixture(scope="module")
def large_steps():
    """The problem, the step sizes and the runs; the last of them diverges."""
    features, best, _ = even_2023()
    problem, start = on(features, best), from_one_layer(0.1)
    steps = jnp.asarray((10 ** np.linspace(-2, 1, 30))[[0, 14, 15, 17, 18]])
    run = jax.jit(
        jax.vmap(lambda step: ddln.descend(problem, start, sgd(step), steps=100_000, throw=False))
    )(steps)
    assert run.ok.tolist() == [True, True, True, True, False]
    return problem, steps[:4], jax.tree.map(lambda x: x[:4], run)


def test_large_steps_end_away_from_the_sparse_truth(large_steps):
    *_, runs = large_steps
    _, best, unseen = even_2023()
    ends = np.asarray(runs.theta[:, -1])
    distance = np.linalg.norm(ends - best, axis=1)
    published = np.array(list(studies.find("large_steps").RECOMPUTED.values())).T
    np.testing.assert_allclose(distance, published[0], atol=SHOWN)
    shown = np.sqrt(jax.vmap(on(unseen, best).loss)(ends) / 40)  # ‖Xβ − y‖/2n
    np.testing.assert_allclose(shown, published[1], atol=SHOWN)


def test_large_steps_are_certified(large_steps):
    problem, _, runs = large_steps
    certificates = jax.jit(jax.vmap(lambda run: ddln.certify(problem, run)))(runs)
    assert certificates["exact identity"].applies.all()
    assert float(certificates["exact identity"].measured.max()) < 1e-12
    assert certificates.ok.all()


@pytest.mark.slow
def test_large_steps_have_the_gain_of_a_numpy_loop(large_steps):
    _, steps, runs = large_steps
    features, best, _ = even_2023()
    gains = jax.jit(jax.vmap(lambda run: diagnostics.gain(run)[-1]))(runs)
    assert (jnp.diff(jnp.mean(gains, axis=1)) > 0).all()
    (u, v), gain = from_one_layer(0.1), 0.0
    for _ in range(100_000):
        x = float(steps[1]) * features.T @ (features @ (u * v - best)) / 20
        u, v, gain = u - x * v, v - x * u, gain - np.log((1 - x**2) ** 2) / 2
    np.testing.assert_allclose(runs.theta[1, -1], u * v, atol=1e-9)
    np.testing.assert_allclose(gains[1], gain, rtol=1e-9, atol=1e-12)


def test_momentum_has_its_limits_and_effective_initialisations():
    features, best = papazov_2024()
    problem, start = on(features, best), from_one_layer(0.1)

    def lane(beta):
        rule = ddln.optimiser("heavy_ball", intrinsic_step=0.05, momentum=beta)
        return ddln.descend(problem, start, rule, steps=200_000, record_every=100_000)

    study = studies.find("momentum")
    runs = jax.jit(jax.vmap(lane))(jnp.array(list(study.DISTANCES)))
    errors = np.sum((np.asarray(runs.theta[:, -1]) - best) ** 2, axis=1)
    np.testing.assert_allclose(errors, list(study.DISTANCES.values()), atol=SHOWN)
    alpha = jax.vmap(diagnostics.effective_initialisation)(runs)[:, -1]
    balances = np.mean(alpha[jnp.array([0, 3])] ** 2, axis=1)
    np.testing.assert_allclose(balances, list(study.IMBALANCES.values()), atol=SHOWN)


@pytest.mark.parametrize(
    ("scale", "rate", "oracle"),
    [
        (0.02, 5 / 30, ddln.Sampling()),
        (0.1, 5 / 30, ddln.SharpnessAware(0.1)),
        # Their ascent step carries the factor 2 of the squared loss.
        (0.1, 10 / 30, ddln.SharpnessAware(2 * 0.1, group=1)),
    ],
    ids=["GD", "n-SAM", "1-SAM"],
)
def test_sharpness_aware_runs_equal_a_numpy_loop(scale, rate, oracle):
    features, best = papazov_2024()
    targets = features @ best
    problem = ddln.least_squares(features, targets, normalisation="half_mean")
    u, v = np.full(30, scale), np.zeros(30)
    run = ddln.descend(
        problem, np.stack([u, v]), sgd(rate), steps=10_001, oracle=oracle, record_every=5000
    )
    rho = getattr(oracle, "rho", 0.0)
    for _ in range(10_001):
        if getattr(oracle, "group", None):
            climb = 2 * 0.1 * (features @ (u * v) - targets)[:, None] * features
        else:
            climb = float(rho) * (features.T @ (features @ (u * v) - targets) / 20)[None]
        up, vp = u + climb * v, v + climb * u  # a row per sample, or one for all
        residual = np.sum(features * (up * vp), axis=1) - targets
        slopes = residual[:, None] * features
        u, v = u - rate * np.mean(slopes * vp, axis=0), v - rate * np.mean(slopes * up, axis=0)
    np.testing.assert_allclose(run.layers[-1], np.stack([u, v]), rtol=1e-8, atol=1e-10)


def test_label_noise_runs_equal_a_numpy_loop():
    arrays = studies.find("label_noise").data()
    features, targets, best = arrays["features"], arrays["targets"], arrays["truth"]
    problem = ddln.least_squares(features, targets, normalisation="half_mean")
    oracle = ddln.Sampling(label_noise=1.0, noisy=1)
    # A third of the steps in a hundred: the same settings otherwise.
    rule = ddln.optimiser("sgd", learning_rate=0.01, drops=[(1000, 0.1), (2000, 0.1)])
    key = jax.random.key(123)
    run = ddln.descend(
        *(problem, np.ones((2, 100)), rule),
        steps=3000,
        oracle=oracle,
        key=key,
        record_every=1500,
    )
    draw = jax.jit(jax.vmap(lambda k: oracle.draw(problem, key, k, None)[0].noise))
    noise = np.asarray(draw(jnp.arange(3000))) / 40  # ε at one row of each
    v = np.ones(100)
    for k in range(3000):
        slope = features.T @ (features @ v**2 - targets) / 40 - noise[k] @ features
        v = v - 0.01 * 10.0 ** -(k >= 1000) * 10.0 ** -(k >= 2000) * slope * v
    np.testing.assert_allclose(run.layers[-1], np.stack([v, v]), rtol=1e-8)
    assert np.linalg.norm(run.theta[-1] - best) < np.linalg.norm(run.theta[0] - best)
