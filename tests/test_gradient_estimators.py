"""Gradient estimators against NumPy on the drawn rows, and against the exact gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.solvers.gradient_estimators import Batch

RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(6, 4)), RNG.normal(size=6)
PROBLEM = ddln.least_squares(FEATURES, TARGETS, normalisation="half_mean")
LAYERS = RNG.normal(size=(3, 4))
SAME = 1e-12
DRAWS = 4000
LIKELY = 4.5  # standard errors: one wrong alarm in 1e5, and the seeds are fixed


def gradient(layers, rows=slice(None), noise=0.0):
    """∂ℓ/∂u of the mean of r²/2 over some rows, in NumPy."""
    residual = FEATURES[rows] @ layers.prod(axis=0) - TARGETS[rows] - noise
    slope = FEATURES[rows].T @ residual / len(residual)
    others = [np.delete(layers, j, axis=0).prod(axis=0) for j in range(len(layers))]
    return slope * np.stack(others)


ALL = Batch(None, None)


@eqx.filter_jit
def both_gradients(estimator, problem, layers, batch):
    """∂ℓ/∂u, and the ∇ℓ(θ) of which it is the pullback."""
    return estimator.gradient(problem, layers, batch)


def estimate(estimator, batch=ALL, layers=LAYERS, problem=PROBLEM):
    return both_gradients(estimator, problem, jax.device_put(layers), batch)[0]


def batches(estimator, count, problem=PROBLEM):
    """The rows and the noise of the first steps."""

    def step(order, k):
        batch, order = estimator.draw(problem, jax.random.key(1), k, order)
        return order, batch

    draw = jax.jit(lambda: jax.lax.scan(step, estimator.first_order(problem), jnp.arange(count))[1])
    return draw()


@pytest.mark.parametrize("problem", [PROBLEM, ddln.signed(PROBLEM)], ids=["plain", "signed"])
def test_all_samples_give_the_exact_gradient(problem):
    layers = LAYERS if problem is PROBLEM else np.hstack([LAYERS, 2 * LAYERS])
    estimated, slope = both_gradients(ddln.Sampling(), problem, jax.device_put(layers), ALL)
    np.testing.assert_allclose(slope, problem.gradient(layers.prod(axis=0)), rtol=SAME)
    by_estimate = estimate(ddln.Sampling(), Batch(None, jnp.zeros(6)), layers, problem)
    np.testing.assert_allclose(by_estimate, estimated, atol=SAME)
    if problem is PROBLEM:
        np.testing.assert_allclose(estimated, gradient(layers), rtol=1e-10, atol=SAME)


@pytest.mark.parametrize("batch", [1, 4])
def test_batch_gives_the_gradient_of_its_rows(batch):
    estimator = ddln.Sampling(batch=batch, label_noise=0.3)
    drawn = batches(estimator, 5)
    for rows, noise in zip(*map(np.asarray, drawn), strict=True):
        estimated = estimate(estimator, Batch(jnp.asarray(rows), jnp.asarray(noise)))
        np.testing.assert_allclose(estimated, gradient(LAYERS, rows, noise), rtol=1e-10, atol=SAME)


@pytest.mark.parametrize("replacement", [True, False])
def test_minibatch_gradients_are_unbiased(replacement):
    estimator = ddln.Sampling(batch=2, replacement=replacement, label_noise=0.5)
    drawn = batches(estimator, DRAWS)
    estimated = jax.vmap(lambda *batch: estimate(estimator, Batch(*batch)))(*drawn)
    # Means of independent blocks.
    estimated = np.asarray(estimated).reshape(DRAWS // 40, 40, -1).mean(axis=1)
    error = estimated.std(axis=0) / np.sqrt(len(estimated))
    assert (np.abs(estimated.mean(axis=0) - gradient(LAYERS).ravel()) < LIKELY * error).all()


def test_epoch_without_replacement_has_each_sample_once():
    rows, _ = batches(ddln.Sampling(batch=2, replacement=False), 30)
    passes = np.asarray(rows).reshape(10, 6)
    assert (np.sort(passes, axis=1) == np.arange(6)).all()
    assert len(np.unique(passes, axis=0)) > 5
    uneven, _ = batches(ddln.Sampling(batch=4, replacement=False), 200)
    assert all(len(set(map(int, batch))) == 4 for batch in uneven)
    assert set(np.asarray(uneven).ravel()) == set(range(6))


def test_draws_with_replacement_are_uniform():
    rows, _ = batches(ddln.Sampling(batch=2), DRAWS)
    counts = np.bincount(np.asarray(rows).ravel(), minlength=6) / (2 * DRAWS)
    assert (np.abs(counts - 1 / 6) < LIKELY * np.sqrt(5 / 36 / (2 * DRAWS))).all()


def test_label_noise_has_its_standard_deviation():
    _, noise = batches(ddln.Sampling(label_noise=0.7), DRAWS)
    noise = np.asarray(noise)
    assert noise.shape == (DRAWS, 6)
    np.testing.assert_allclose(noise.std(), 0.7, rtol=LIKELY / np.sqrt(2 * noise.size))
    assert np.abs(noise.mean()) < LIKELY * 0.7 / np.sqrt(noise.size)


def test_noise_on_one_target_scales_with_the_batch():
    estimator = ddln.Sampling(label_noise=1.0, noisy=1)
    _, noise = batches(estimator, DRAWS)
    noise = np.asarray(noise)
    assert (np.count_nonzero(noise, axis=1) == 1).all()
    assert set(np.argmax(noise != 0, axis=1)) == set(range(6))
    # HaoChen et al. 2021: the whole gradient less ε x_i ⊙ the other layers.
    row = int(np.argmax(noise[0] != 0))
    estimated = estimate(estimator, Batch(None, jnp.asarray(noise[0])))
    others = np.stack([np.delete(LAYERS, j, axis=0).prod(axis=0) for j in range(3)])
    expected = gradient(LAYERS) - noise[0, row] / 6 * FEATURES[row] * others
    np.testing.assert_allclose(estimated, expected, rtol=1e-10, atol=SAME)
    np.testing.assert_allclose((noise[noise != 0] / 6).std(), 1.0, rtol=LIKELY / np.sqrt(2 * DRAWS))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("group", [None, 1, 2])
def test_sharpness_aware_gradients_are_taken_after_ascent(group, normalised):
    rows, noise = np.array([0, 3, 5, 1]), np.array([0.1, -0.2, 0.0, 0.3])
    estimator = ddln.SharpnessAware(0.2, group=group, normalised=normalised)
    estimated = estimate(estimator, Batch(jnp.asarray(rows), jnp.asarray(noise)))

    def uphill(rows, noise):
        climb = gradient(LAYERS, rows, noise)
        climb = climb / np.linalg.norm(climb) if normalised else climb
        return gradient(LAYERS + 0.2 * climb, rows, noise)

    parts = [slice(i, i + (group or 4)) for i in range(0, 4, group or 4)]
    expected = np.mean([uphill(rows[part], noise[part]) for part in parts], axis=0)
    np.testing.assert_allclose(estimated, expected, rtol=1e-10, atol=SAME)


def test_sharpness_aware_gradient_with_zero_rho_is_exact():
    for normalised in (False, True):
        estimator = ddln.SharpnessAware(0.0, group=1, normalised=normalised)
        np.testing.assert_allclose(estimate(estimator), gradient(LAYERS), rtol=1e-10, atol=SAME)


def test_exact_estimator_ignores_the_key():
    batch, order = ddln.Sampling().draw(PROBLEM, jax.random.key(0), jnp.asarray(0), None)
    assert batch == Batch(None, None)
    assert order is None


ROWS = RNG.integers(0, 6, size=(30, 2))
NOISE = RNG.normal(size=(30, 2))
PLAIN = ddln.optimiser("sgd", learning_rate=0.05)


def test_steps_use_given_rows_and_noise():
    layers = LAYERS
    for rows, noise in zip(ROWS, NOISE, strict=True):
        layers = layers - 0.05 * gradient(layers, rows, noise)
    estimator = ddln.Sampling(rows=ROWS, noise=NOISE)
    run = ddln.descend(PROBLEM, LAYERS, PLAIN, steps=30, oracle=estimator)
    np.testing.assert_allclose(run.layers[-1], layers, rtol=1e-10, atol=SAME)
    assert run.rates is None
    part = ddln.descend(PROBLEM, LAYERS, PLAIN, steps=11, oracle=estimator)
    end = ddln.descend(PROBLEM, part.state, PLAIN, steps=19, oracle=estimator)
    np.testing.assert_array_equal(end.layers[-1], run.layers[-1])
    with pytest.raises(ValueError, match=r"`steps` must be at most 30, .* got up to 31"):
        ddln.descend(PROBLEM, part.state, PLAIN, steps=20, oracle=estimator)


def test_given_rows_combine_with_drawn_noise():
    drawn = ddln.Sampling(batch=2, label_noise=0.3)
    rows, noise = batches(drawn, 30)
    for mixed in (
        ddln.Sampling(rows=rows, label_noise=0.3),
        ddln.Sampling(batch=2, noise=noise),
        ddln.Sampling(rows=rows, noise=noise),
    ):
        jax.tree.map(np.testing.assert_array_equal, batches(mixed, 30), Batch(rows, noise))
    whole, _ = ddln.Sampling(noise=np.ones((1, 6))).draw(PROBLEM, None, jnp.asarray(0), None)
    assert whole.rows is None
    assert (whole.noise == 1).all()


def test_more_steps_than_draws_are_an_error():
    estimator = ddln.SharpnessAware(0.1, sampling=ddln.Sampling(rows=ROWS))
    with pytest.raises(ValueError, match=r"`steps` must be at most 30, .* got up to 31"):
        ddln.descend(PROBLEM, LAYERS, PLAIN, steps=31, oracle=estimator)
    traced = eqx.filter_jit(
        lambda: ddln.descend(PROBLEM, LAYERS, PLAIN, steps=31, oracle=estimator)
    )
    with pytest.raises(eqx.EquinoxRuntimeError, match="The run ended early"):
        traced()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddln.Sampling(batch=0), "`batch` must be ≥ 1, got 0"),
        (lambda: ddln.Sampling(label_noise=-1.0), r"`label_noise` must be ≥ 0, got -1\.0"),
        (lambda: ddln.Sampling(noisy=1), "`label_noise` must be given together with `noisy`"),
        (
            lambda: ddln.Sampling(batch=2, label_noise=1.0, noisy=3),
            "`noisy` must be from 1 to the size of the batch, got 3",
        ),
        (lambda: ddln.Sampling(rows=ROWS, batch=2), "`rows` must be None if `batch` is given"),
        (
            lambda: ddln.Sampling(noise=NOISE, label_noise=1.0),
            "`noise` must be None if `label_noise` is given",
        ),
        (lambda: ddln.Sampling(rows=[0, 1]), r"`rows` must be whole .* got shape \(2,\) of int"),
        (lambda: ddln.Sampling(rows=[[0.5]]), r"`rows` must be whole numbers .* of float64"),
        (lambda: ddln.Sampling(rows=[[0, -1]]), "`rows` must be ≥ 0 and below .* got -1"),
        (lambda: ddln.Sampling(rows=[[2**32]]), "`rows` must be ≥ 0 and below .* got 4294967296"),
        (
            lambda: ddln.Sampling(rows=ROWS, noise=NOISE[:, :1]),
            r"`noise` must have the shape of `rows`, \(30, 2\), got \(30, 1\)",
        ),
        (
            lambda: ddln.Sampling(noise=NOISE).check(PROBLEM),
            r"`noise` must have shape \(steps, 6\), .* got \(30, 2\)",
        ),
        (lambda: ddln.Sampling(rows=[[6]]).check(PROBLEM), "`rows` must be below 6, got 6"),
        (lambda: ddln.SharpnessAware(-0.1), r"`rho` must be ≥ 0, got -0\.1"),
        (
            lambda: ddln.Sampling(batch=7).check(PROBLEM),
            "`batch` must be at most the number of samples, 6, got 7",
        ),
        (
            lambda: ddln.Sampling(label_noise=1.0, noisy=7).check(PROBLEM),
            "`noisy` must be at most the number of samples, 6, got 7",
        ),
        (
            lambda: ddln.Sampling(batch=1).check(ddln.from_function(jnp.sum, 1, minimum=0.0)),
            "`problem` must be a sum over samples if samples",
        ),
        (
            lambda: ddln.SharpnessAware(0.1, group=1).check(
                ddln.from_function(jnp.sum, 1, minimum=0.0)
            ),
            "`problem` must be a sum over samples for a `group`",
        ),
        (lambda: ddln.SharpnessAware(0.1, group=0), "`group` must be ≥ 1, got 0"),
        (
            lambda: ddln.SharpnessAware(0.1, group=4).check(PROBLEM),
            "`group` must divide the batch of 6, got 4",
        ),
    ],
)
def test_invalid_gradient_estimators_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
