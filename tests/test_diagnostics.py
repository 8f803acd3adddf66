"""Diagnostics against closed forms, NumPy loops and eigenvalues, and published runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.verification import diagnostics

RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(3, 4)), RNG.normal(size=3)
PROBLEM = ddln.least_squares(FEATURES, TARGETS, normalisation="half_mean")
LAYERS = np.stack([RNG.uniform(0.5, 1.0, 4), RNG.uniform(-0.2, 0.2, 4)])
SAME = 1e-12  # some hundred steps in another order of summation
RECORDS = [0, 1, 10, -1]
SHOWN = 5e-8  # half a unit of the last digit of a published number


@pytest.fixture(scope="module")
def flow():
    times = np.concatenate([[0.0], np.geomspace(0.1, 400.0, 11)])
    return ddln.gradient_flow(PROBLEM, LAYERS, times)


def sgd(step):
    return ddln.optimiser("sgd", learning_rate=step)


def largest_eigenvalue(features, targets, layers):
    """Largest eigenvalue of the Hessian of ‖X(u ⊙ v) − y‖²/2n in (u, v), formed block by block."""
    (u, v), n = layers, len(targets)
    square = features.T @ features / n
    bend = np.diag(features.T @ (features @ (u * v) - targets) / n)
    mixed = square * np.outer(v, u) + bend
    hessian = np.block([[square * np.outer(v, v), mixed], [mixed.T, square * np.outer(u, u)]])
    return np.linalg.eigvalsh(hessian)[-1]


@pytest.fixture(scope="module")
def edge():
    """The edge-of-stability runs of Even et al. 2023: a large step beside a small one."""
    rng = np.random.default_rng(0)
    features, best, start = rng.normal(size=(50, 100)), np.zeros(100), np.zeros((2, 100))
    best[:2], start[0] = (100.0, -100.0), np.sqrt(2) * 0.1
    problem = ddln.least_squares(features, features @ best, normalisation="half_mean")
    run = jax.jit(
        jax.vmap(lambda step: ddln.descend(problem, start, sgd(step), steps=6000, record_every=300))
    )(jnp.array([1.75e-2, 5e-3]))
    along = jax.jit(jax.vmap(lambda run: diagnostics.sharpness(problem, run, RECORDS)))(run)
    return problem, run, along


def test_sharpness_along_a_run_is_numpys_largest_eigenvalue(edge):
    problem, runs, along = edge
    data = np.asarray(problem.features), np.asarray(problem.targets)
    for of_lane, layers in zip(along, np.asarray(runs.layers), strict=True):
        expected = [largest_eigenvalue(*data, layers[record]) for record in RECORDS]
        np.testing.assert_allclose(of_lane, expected, rtol=1e-10)


def test_large_steps_end_at_the_edge_of_stability(edge):
    _, runs, (large, small) = edge
    line = diagnostics.stability_threshold(runs.rates)
    np.testing.assert_allclose(line[:, 0], [2 / 1.75e-2, 2 / 5e-3])
    assert large[1] > 1.05 * line[0, 0]
    assert 0.998 < large[-1] / line[0, 0] < 1
    assert (small < 0.6 * line[1, 0]).all()
    assert (runs.gap[:, -1] < 0.01).all()


def test_sharpness_is_nan_where_a_run_diverged():
    run = ddln.descend(PROBLEM, LAYERS, sgd(50.0), steps=40, record_every=2, throw=False)
    sharpness = diagnostics.sharpness(PROBLEM, run, np.s_[::10])
    assert np.isfinite(sharpness).tolist() == [True, False, False]
    with pytest.raises(IndexError, match="out of bounds"):
        diagnostics.sharpness(PROBLEM, run, [99])


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_training_stays_at_a_minimiser_up_to_the_threshold(flow, momentum):
    layers = np.asarray(flow.layers[-1])
    top = float(ddln.theory.sharpness(PROBLEM, layers))
    step = 2 * (1 + momentum) / top

    def train(share):
        rule = ddln.optimiser("heavy_ball", learning_rate=share * step, momentum=momentum)
        return ddln.descend(PROBLEM, layers + 1e-6, rule, steps=600, throw=False).gap

    below, above = jax.jit(jax.vmap(train))(jnp.array([0.98, 1.02]))
    assert below[-1] < below[0] < 1e-3 * above[-1]
    np.testing.assert_allclose(diagnostics.stability_threshold(step, momentum), top)


def numpy_descent(features, targets, layers, step, steps, draw=lambda k: slice(None)):
    """Layers at the end of a loop on ‖X(u ⊙ v) − y‖²/2n, and Σ q(γ∇ℓ)."""
    (u, v), gain = layers, np.zeros(layers.shape[1])
    for k in range(steps):
        rows = features[draw(k)]
        x = step * rows.T @ (rows @ (u * v) - targets[draw(k)]) / len(rows)
        u, v, gain = u - x * v, v - x * u, gain - np.log((1 - x**2) ** 2) / 2
    return np.stack([u, v]), gain


@pytest.mark.parametrize("scale", [0.3, 1e-7])
def test_gain_is_the_sum_over_steps(scale):
    # At 1e-7 squares of layers near 1 do not tell their difference any more.
    layers = np.stack([np.full(4, np.sqrt(2) * scale), np.zeros(4)])
    run = ddln.descend(PROBLEM, layers, sgd(0.2), steps=600, record_every=600)
    end, expected = numpy_descent(FEATURES, TARGETS, layers, 0.2, 600)
    assert expected.max() > 0.01
    gain = diagnostics.gain(run)
    np.testing.assert_allclose(gain[0], 0.0, atol=1e-15)
    np.testing.assert_allclose(gain[-1], expected, rtol=1e-10)
    alpha = diagnostics.effective_initialisation(run)
    np.testing.assert_allclose(alpha[0], scale, rtol=SAME)
    np.testing.assert_allclose(alpha[-1], scale * np.exp(-expected / 2), rtol=1e-10)
    if scale > 0.1:
        squares = np.abs(end[0] ** 2 - end[1] ** 2)
        np.testing.assert_allclose(alpha[-1], np.sqrt(squares / 2), rtol=1e-10)


def test_gain_of_a_constant_gradient_has_its_closed_form():
    # Far from its target Huber's loss has gradient −δ x.
    problem = ddln.huber([[1.0, 0.0], [0.0, 2.0]], [1e6, 1e6], delta=0.1)
    run = ddln.descend(problem, np.array([[1.0, 1.0], [0.0, 0.5]]), sgd(0.2), steps=50)
    each = -np.log(1 - (0.2 * 0.1 * np.array([1.0, 2.0])) ** 2)
    np.testing.assert_allclose(
        diagnostics.gain(run), np.outer(np.asarray(run.steps), each), atol=1e-13
    )


def test_flow_has_no_gain(flow):
    np.testing.assert_allclose(diagnostics.gain(flow), 0.0, atol=1e-13)
    expected = np.sqrt(np.abs(LAYERS[0] ** 2 - LAYERS[1] ** 2) / 2)
    alpha = diagnostics.effective_initialisation(flow)
    np.testing.assert_allclose(alpha, np.tile(expected, (12, 1)), rtol=1e-13)
    balanced = dataclasses.replace(flow, layers=jnp.ones_like(flow.layers))
    assert (diagnostics.effective_initialisation(balanced) == 0).all()


def test_distance_to_the_flow_matches_its_closed_form():
    # ½(θ − y)² from balanced layers: θ(t) = y/(1 + (y/θ₀ − 1) e^{−2yt}), in each coordinate.
    targets = np.array([2.0, 1.0, 0.5])
    problem = ddln.least_squares(
        np.sqrt(3) * np.eye(3, 4), np.sqrt(3) * targets, normalisation="half_mean"
    )
    run = ddln.descend(problem, np.full((2, 4), 0.3), sgd(0.01), steps=200, record_every=100)
    u, thetas = np.full(3, 0.3), [np.full(3, 0.09)]
    for _ in range(200):
        u = u - 0.01 * (u**2 - targets) * u
        thetas.append(u**2)
    decay = np.exp(-2 * targets * 0.01 * np.arange(0, 201, 100)[:, None])
    flow = targets / (1 + (targets / 0.09 - 1) * decay)
    expected = np.linalg.norm(thetas[::100] - flow, axis=1)
    assert expected[-1] > 1e-3
    found = diagnostics.distance_to_flow(problem, run)
    np.testing.assert_allclose(found, expected, atol=1e-8)  # of the flow's rtol, 1e-9


def test_divergence_to_the_limit_falls_along_the_flow(flow):
    entropy, limit = ddln.Entropy(LAYERS), flow.theta[-1]
    distance = jax.jit(jax.vmap(lambda theta: entropy.divergence(limit, theta)))(flow.theta)
    assert (jnp.diff(distance) < 1e-14).all()
    np.testing.assert_allclose(distance[0], entropy.value(limit), rtol=SAME)


def test_batched_diagnostics_equal_single_ones():
    def measures(step):
        run = ddln.descend(PROBLEM, LAYERS, sgd(step), steps=50, record_every=25, throw=False)
        assert run.rates is not None
        return (
            diagnostics.sharpness(PROBLEM, run),
            diagnostics.gain(run),
            diagnostics.effective_initialisation(run),
            diagnostics.distance_to_flow(PROBLEM, run),
            diagnostics.stability_threshold(run.rates),
        )

    steps = jnp.array([0.02, 50.0])
    together = jax.jit(jax.vmap(measures))(steps)
    for along in together[:-1]:
        assert not jnp.isnan(along[0]).any()
        assert jnp.isnan(along[1, -1]).all()
    for i, step in enumerate(steps):
        for of_lane, alone in zip(together, measures(step), strict=True):
            np.testing.assert_allclose(of_lane[i], alone, rtol=1e-9, atol=SAME)


@pytest.mark.parametrize(
    ("rate", "momentum", "message"),
    [
        (0.0, 0.0, r"`learning_rate` must be > 0, got 0"),
        (0.1, 1.0, r"`momentum` must be ≥ 0 and < 1, got 1"),
        (0.1, -0.1, r"`momentum` must be ≥ 0 and < 1, got -0.1"),
    ],
)
def test_invalid_rules_are_refused(rate, momentum, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.stability_threshold(rate, momentum)


def test_only_depth_two_has_a_gain(flow):
    run = dataclasses.replace(flow, layers=jnp.ones((12, 3, 4)))
    for measure in (diagnostics.gain, diagnostics.effective_initialisation):
        with pytest.raises(ValueError, match=r"`run` must be of depth 2, got depth 3"):
            measure(run)
