"""Settings of papers, run as they are written: the numbers are to the digits that are given."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddln
from ddln import diagnostics

ROOT = Path(__file__).parent.parent
SHOWN = 5e-8  # half a unit of the last digit
BETAS = [0.0, 0.5, 0.8, 0.9]
ENDS = [0.0573329, 0.0576647, 0.0578650, 0.0579655]  # ‖θ − θ*‖² of heavy ball


def sgd(step):
    return ddln.optimiser("sgd", learning_rate=step)


def on(features, best):
    return ddln.least_squares(features, features @ best, normalisation="half_mean")


def from_one_layer(scale):
    """Layers √2 α and 0."""
    return np.stack([np.full(30, np.sqrt(2) * scale), np.zeros(30)])


def even_2023():
    """Data of the large-step runs, the minimiser that made them, and data to test on."""
    rng = np.random.default_rng(1234)
    best = np.zeros(30)
    best[:3] = rng.normal(0, 1, 3)
    features, unseen = rng.multivariate_normal(np.zeros(30), np.eye(30), (2, 20))
    return features, best, unseen


def papazov_2024():
    """Data of the momentum runs (and of the sharpness-aware ones), by numpy's legacy generator."""
    rng = np.random.RandomState(0)
    features = rng.multivariate_normal(np.zeros(30), np.eye(30), 20)
    rng.multivariate_normal(np.zeros(30), np.eye(30), 1000)
    best = rng.randn(30)
    best[3:] = 0.0
    best = np.abs(best) / np.linalg.norm(best)
    return features, best


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
    np.testing.assert_allclose(distance, [0.0463753, 0.0570298, 0.2082543, 2.2201981], atol=SHOWN)
    shown = np.sqrt(jax.vmap(on(unseen, best).loss)(ends) / 40)  # ‖Xβ − y‖/2n
    np.testing.assert_allclose(shown, [0.0066700, 0.0079211, 0.0249945, 0.2523654], atol=SHOWN)


def test_large_steps_are_certified(large_steps):
    problem, _, runs = large_steps
    certificates = jax.jit(jax.vmap(lambda run: ddln.certify(problem, run)))(runs)
    assert certificates["exact identity"].applies.all()
    assert float(certificates["exact identity"].measured.max()) < 1e-12
    assert certificates.ok.all()


def test_large_steps_gain_what_their_loop_in_numpy_does(large_steps):
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

    runs = jax.jit(jax.vmap(lane))(jnp.array(BETAS))
    errors = np.sum((np.asarray(runs.theta[:, -1]) - best) ** 2, axis=1)
    np.testing.assert_allclose(errors, ENDS, atol=SHOWN)
    alpha = jax.vmap(diagnostics.effective_initialisation)(runs)[:, -1]
    np.testing.assert_allclose(
        np.mean(alpha[jnp.array([0, 3])] ** 2, axis=1), [0.0099243, 0.0098569], atol=SHOWN
    )


@pytest.mark.parametrize(
    ("scale", "rate", "oracle"),
    [
        (0.02, 5 / 30, ddln.Sampling()),
        (0.1, 5 / 30, ddln.SharpnessAware(0.1)),
        # Their ascent step carries the factor 2 of the squared loss.
        (0.1, 10 / 30, ddln.SharpnessAware(2 * 0.1, per_sample=True)),
    ],
    ids=["GD", "n-SAM", "1-SAM"],
)
def test_sharpness_aware_runs_are_their_loop(scale, rate, oracle):
    features, best = papazov_2024()
    targets = features @ best
    problem = ddln.least_squares(features, targets, normalisation="half_mean")
    u, v = np.full(30, scale), np.zeros(30)
    run = ddln.descend(
        problem, np.stack([u, v]), sgd(rate), steps=10_001, oracle=oracle, record_every=5000
    )
    rho = getattr(oracle, "rho", 0.0)
    for _ in range(10_001):
        if getattr(oracle, "per_sample", False):
            climb = 2 * 0.1 * (features @ (u * v) - targets)[:, None] * features
        else:
            climb = float(rho) * (features.T @ (features @ (u * v) - targets) / 20)[None]
        up, vp = u + climb * v, v + climb * u  # a row per sample, or one for all
        residual = np.sum(features * (up * vp), axis=1) - targets
        slopes = residual[:, None] * features
        u, v = u - rate * np.mean(slopes * vp, axis=0), v - rate * np.mean(slopes * up, axis=0)
    np.testing.assert_allclose(run.layers[-1], np.stack([u, v]), rtol=1e-8, atol=1e-10)


def test_label_noise_runs_are_their_loop():
    rng = np.random.RandomState(123)
    rng.rand(100)
    best = np.zeros(100)
    best[:5] = 1.0
    features = rng.randn(40, 100)
    targets = features @ best
    problem = ddln.least_squares(features, targets, normalisation="half_mean")
    oracle = ddln.Sampling(label_noise=1.0, noisy=1)
    # A third of the steps in a hundred: the same settings otherwise.
    rate = optax.piecewise_constant_schedule(0.01, {1000: 0.1, 2000: 0.1})
    key = jax.random.key(123)
    run = ddln.descend(
        *(problem, np.ones((2, 100)), sgd(rate)),
        steps=3000,
        oracle=oracle,
        key=key,
        record_every=1500,
    )
    draw = jax.jit(jax.vmap(lambda k: oracle.draw(problem, key, k, None)[0].noise / 40))
    noise = np.asarray(draw(jnp.arange(3000)))  # ε at one row of each
    v = np.ones(100)
    for k in range(3000):
        slope = features.T @ (features @ v**2 - targets) / 40 - noise[k] @ features
        v = v - 0.01 * 10.0 ** -(k >= 1000) * 10.0 ** -(k >= 2000) * slope * v
    np.testing.assert_allclose(run.layers[-1], np.stack([v, v]), rtol=1e-8)
    assert np.linalg.norm(run.theta[-1] - best) < np.linalg.norm(run.theta[0] - best)


@pytest.mark.slow
def test_momenta_of_one_intrinsic_step_end_there_from_a_config_too(tmp_path):
    features, best = papazov_2024()
    np.savez(tmp_path / "data.npz", features=features, targets=features @ best)
    rule = {"kind": "heavy_ball", "intrinsic_step": 0.05, "momentum": 0.0}
    experiment = ddln.load(ROOT / "configs" / "large_steps.toml", ["sweep={}"]).with_(
        {
            "problem.data.path": str(tmp_path / "data.npz"),
            "dynamics.steps": 200_000,
            "dynamics.optimiser": rule,
        }
    )
    runs = ddln.sweep(experiment, over={"dynamics.optimiser.momentum": BETAS})
    errors = ((runs["theta"].isel(time=-1) - best) ** 2).sum("coordinate")
    np.testing.assert_allclose(errors, ENDS, atol=SHOWN)
