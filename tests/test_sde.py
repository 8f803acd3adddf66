"""Noise against its enumerated covariance; flows against closed forms, SciPy and training."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import ddln
from ddln.solvers import _sde_terms
from ddln.solvers.gradient_estimators import Batch

RNG = np.random.default_rng(0)
FEATURES, COUNTS = RNG.normal(size=(3, 2)), np.array([1.0, 0.0, 2.0])
LAYERS = RNG.uniform(0.5, 1.0, size=(3, 2))
SIGMA = 0.3
PROBLEMS = {
    "least squares": ddln.least_squares(FEATURES, COUNTS, normalisation="half_mean"),
    "poisson": ddln.poisson(FEATURES, COUNTS, normalisation="sum"),
    "signed": ddln.signed(ddln.least_squares(FEATURES, COUNTS, normalisation="mean")),
}
PLAIN = PROBLEMS["least squares"]
BOTH = ddln.Sampling(batch=2, label_noise=SIGMA)
SAME = 1e-12  # some hundred operations in another order
TIMES = [0.0, 0.5, 1.2]


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def layers_of(problem):
    return LAYERS if problem.dim == 2 else np.hstack([LAYERS, 0.5 * LAYERS])


def batches(estimator):
    """All equally likely batches; noise on a target is plus or minus its standard deviation."""
    size = estimator.batch or 3
    draws = [None] if estimator.batch is None else itertools.product(range(3), repeat=size)
    for rows in draws:
        rows = None if rows is None else np.array(rows)
        if estimator.label_noise is None:
            yield rows, None
            continue
        noisy = estimator.noisy or size
        for places in itertools.combinations(range(size), noisy):
            for signs in itertools.product([-1.0, 1.0], repeat=noisy):
                noise = np.zeros(size)
                noise[list(places)] = estimator.label_noise * size / noisy * np.array(signs)
                yield rows, noise


CASES = {
    "samples": ("signed", ddln.Sampling(batch=2)),
    "labels": ("least squares", ddln.Sampling(label_noise=SIGMA)),
    "one label": ("poisson", ddln.Sampling(label_noise=SIGMA, noisy=1)),
    "both": ("poisson", BOTH),
    "both, one label": ("signed", ddln.Sampling(batch=2, label_noise=SIGMA, noisy=1)),
}


@pytest.mark.parametrize(("name", "estimator"), CASES.values(), ids=CASES)
def test_noise_has_the_covariance_of_the_gradient_estimator(name, estimator):
    problem = PROBLEMS[name]
    layers = jnp.asarray(layers_of(problem))
    rows, noise = (
        None if parts[0] is None else jnp.asarray(np.stack(parts))
        for parts in zip(*batches(estimator), strict=True)
    )

    @jax.jit
    def gradients_and_root(layers):
        seen = jax.vmap(lambda *batch: estimator.gradient(problem, layers, Batch(*batch))[0])
        kinds = sum(kind is not None for kind in (estimator.batch, estimator.label_noise))
        root = jax.jacfwd(lambda dB: _sde_terms.noise(problem, layers, estimator, dB))
        return seen(rows, noise), root(jnp.zeros((kinds, 3)))

    gradients, root = gradients_and_root(layers)
    gradients, root = np.asarray(gradients).reshape(-1, layers.size), root.reshape(layers.size, -1)
    np.testing.assert_allclose(root @ root.T, np.cov(gradients.T, bias=True), rtol=0, atol=SAME)


def test_halving_steps_keeps_the_brownian_motion():
    def increments(key, halvings):
        path = _sde_terms.Brownian(key, jnp.asarray(3), (1, 2), halvings)
        starts = jnp.arange(2 * 2**halvings) / 2**halvings
        return jax.vmap(lambda t: path.evaluate(t, t + 0.5**halvings))(starts)

    keys = jax.random.split(jax.random.key(0), 4000)
    whole, halves, fine = (
        jax.jit(jax.vmap(lambda key, h=h: increments(key, h)))(keys) for h in (0, 1, 3)
    )
    np.testing.assert_allclose(halves.reshape(4000, 2, 2, 2).sum(axis=2), whole[:, :, 0], atol=SAME)
    pairs = fine.reshape(4000, 4, 4, 2).sum(axis=2)
    np.testing.assert_allclose(pairs, halves[:, :, 0], atol=SAME)
    pieces = np.asarray(fine).reshape(4000, 32)
    likely = 5 / np.sqrt(4000)  # five standard errors of a correlation; the seed is fixed
    np.testing.assert_allclose(8 * pieces.T @ pieces / 4000, np.eye(32), atol=1.5 * likely)
    assert np.abs(pieces.mean(axis=0)).max() < likely / np.sqrt(8)


# Depth 2, one sample x, ℒ = (xθ − y)²/2, label noise σ: with dX = x(xθ − y) dt + xσ√γ dB
# d(u ± v) = ∓(u ± v) dX, so u² − v² = (u² − v²)₀ exp(−x²σ²γt) and d ln|(u + v)/(u − v)| = −2 dX.
START = np.array([[0.8], [0.5]])
RATE, PUSH = 0.25, 0.7  # xσ√γ


def one_sample(x, key, times, halvings=0):
    """A run with one step per saved time, and the Brownian increments."""
    run = ddln.stochastic_flow(
        SINGLE[x],
        START,
        times,
        learning_rate=RATE,
        oracle=ddln.Sampling(label_noise=PUSH / x / math.sqrt(RATE)),
        key=key,
        dt=times[1],
        halvings=halvings,
        throw=False,
    )
    path = _sde_terms.Brownian(key, jnp.asarray(0), (1, 1), 0)
    motion = jax.vmap(path.evaluate)(jnp.arange(len(times) - 1.0))[:, 0, 0]
    return run, motion * jnp.sqrt(times[1])


SINGLE = {x: ddln.least_squares([[x]], [0.5], normalisation="half") for x in (1.0, 0.1)}


def test_weak_and_strong_errors_have_the_orders_of_euler():
    def one(steps, key):
        run, motion = one_sample(1.0, key, jnp.arange(33) / steps)
        u, v = run.layers[:, :, 0].T
        left = (u**2 - v**2) / (u[0] ** 2 - v[0] ** 2)
        # Without the drift it would be this product, whose mean is known.
        factors = jnp.where(jnp.arange(32) < steps, 1 - PUSH**2 * motion**2, 1.0)
        return left[steps], jnp.prod(factors)

    steps = np.array([8, 16, 32])
    keys = jax.random.split(jax.random.key(0), 4000)
    left, control = np.asarray(jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(steps, keys))
    mean = np.mean(left - control, axis=1) + (1 - PUSH**2 / steps) ** steps
    # The sampling error of a mean is 3 % of it, 0.03 of its slope.
    weak, strong = np.abs(mean - math.exp(-(PUSH**2))), np.std(left, axis=1)
    assert abs(slope(1 / steps, weak) - 1) < 0.1
    assert abs(slope(1 / steps, strong) - 0.5) < 0.1


@pytest.mark.slow
def test_halved_steps_converge_to_the_closed_form():
    keys = jax.random.split(jax.random.key(1), 500)

    def error(halvings):
        def one(key):
            run, motion = one_sample(0.1, key, jnp.arange(9) / 8, halvings)
            u, v = run.layers[:, :, 0].T
            moved = jnp.log(jnp.abs((u + v) / (u - v))) / 2
            push = 0.1 * (0.1 * run.theta[:, 0] - 0.5)
            drift = (push[1:] + push[:-1]) / 16
            return moved[-1] - moved[0] + jnp.sum(drift + PUSH * motion)

        return np.median(np.abs(jax.jit(jax.vmap(one))(keys)))

    # A step moves it by the artanh of its push, so errors are of third order in pushes, of first in
    # steps: 16 times less, and some of the rule for the drift.
    assert error(4) < error(0) / 8


def gradient(layers):
    """∂ℒ/∂u of ‖Xθ − y‖²/2n, in NumPy."""
    residual = FEATURES @ layers.prod(axis=0) - COUNTS
    return FEATURES.T @ residual / 3 * others(layers)


def others(layers):
    return np.stack([np.delete(layers, j, axis=0).prod(axis=0) for j in range(len(layers))])


@pytest.mark.parametrize("momentum", [None, 0.6])
def test_scheme_agrees_with_euler_in_numpy(momentum):
    rate, key = 0.02, jax.random.key(2)
    run = ddln.stochastic_flow(
        PLAIN,
        LAYERS,
        TIMES,
        learning_rate=rate,
        oracle=BOTH,
        momentum=momentum,
        key=key,
    )
    complement = 1 - (momentum or 0.0)
    step, mass = rate / complement, rate * (2 - complement) / (2 * complement**2)
    path = _sde_terms.Brownian(key, jnp.asarray(0), (2, 3), 0)
    layers, velocity = LAYERS, -step / (2 * mass) * gradient(LAYERS)
    saved, k = [layers], 0
    for span in np.diff(TIMES):
        count = math.ceil(span / step - 1e-3)
        for _ in range(count):
            motion = np.asarray(path.evaluate(jnp.asarray(float(k)))) * np.sqrt(step * span / count)
            residual = FEATURES @ layers.prod(axis=0) - COUNTS
            weights = residual * (motion[0] - motion[0].mean()) / np.sqrt(6)
            weights -= SIGMA * motion[1] / np.sqrt(6)
            kick = (FEATURES.T @ weights) * others(layers)
            force = -gradient(layers) * span / count + kick
            if momentum is None:
                layers = layers + force
            else:
                layers, velocity = (
                    layers + velocity * span / count,
                    velocity + (force - velocity * span / count) / mass,
                )
            k += 1
        saved.append(layers)
    np.testing.assert_allclose(run.layers, saved, rtol=SAME, atol=SAME)
    assert int(run.stats["num_steps"]) == k
    assert (run.layer_velocity is None) == (momentum is None)
    np.testing.assert_allclose(run.theta, run.layers.prod(axis=1), rtol=SAME)
    residuals = np.asarray(run.theta) @ FEATURES.T - COUNTS
    np.testing.assert_allclose(run.loss, (residuals**2).sum(axis=1) / 6, rtol=SAME)
    np.testing.assert_allclose(run.loss - PLAIN.minimum, run.gap, atol=SAME)


def test_momentum_flow_agrees_with_scipy():
    rate, momentum = 0.05, 0.7
    mass = rate * (1 + momentum) / (2 * (1 - momentum) ** 2)
    run = ddln.stochastic_flow(PLAIN, LAYERS, TIMES, learning_rate=rate, momentum=momentum)

    def field(t, state):
        layers, velocity = state.reshape(2, 3, 2)
        return np.stack([velocity, -(velocity + gradient(layers)) / mass]).ravel()

    start = np.stack([LAYERS, -(1 - momentum) / (1 + momentum) * gradient(LAYERS)])
    expected = scipy.integrate.solve_ivp(
        field, (0, 1.2), start.ravel(), "DOP853", TIMES, rtol=1e-11, atol=1e-13
    ).y.T.reshape(-1, 2, 3, 2)
    fine = ddln.stochastic_flow(
        PLAIN, LAYERS, TIMES, learning_rate=rate, momentum=momentum, halvings=4
    )
    # Tsitouras's steps of fifth order, of half the mass in length and of a 32nd of it.
    np.testing.assert_allclose(run.layers, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(fine.layers, expected[:, 0], atol=1e-9)
    assert fine.layer_velocity is not None
    np.testing.assert_allclose(fine.layer_velocity, expected[:, 1], atol=1e-9)


@pytest.mark.parametrize("fixed", ["momentum", "mass"])
def test_heavy_ball_approximates_its_flow_to_second_order(fixed):
    """To first order in γ at a fixed mass, to second order at a fixed β."""

    def error(steps):
        step = 2 / steps
        momentum = 0.5 if fixed == "momentum" else 1 - step / 0.5  # λ = γ/(1 − β)² = ½
        rate = step * (1 - momentum)
        rule = ddln.optimiser("heavy_ball", learning_rate=rate, momentum=momentum)
        run = ddln.descend(PLAIN, LAYERS, rule, steps=steps, record_every=steps // 4)
        flow = ddln.stochastic_flow(
            PLAIN, LAYERS, run.times, learning_rate=rate, momentum=momentum, halvings=2
        )
        return rate, np.abs(flow.layers[-1] - run.layers[-1]).max()

    rates, errors = np.transpose([error(steps) for steps in (128, 256, 512)])
    assert abs(slope(rates, errors) - (2 if fixed == "momentum" else 1)) < 0.05


PAIR = np.array([1.0, 0.6]), np.array([1.2, -0.3])


def pair():
    return ddln.least_squares(PAIR[0][:, None], PAIR[1], normalisation="half_mean")


def imbalance(layers):
    return layers[..., 0, 0] ** 2 - layers[..., 1, 0] ** 2


@pytest.mark.slow
def test_minibatch_training_approximates_its_flow_to_first_order():
    def trained(steps, rate):
        """E[u² − v²] over all ways to draw a sample at each step."""
        u, v = np.full(2**steps, 0.9), np.full(2**steps, 0.4)
        for row in np.array(list(itertools.product([0, 1], repeat=steps))).T:
            push = rate * PAIR[0][row] * (PAIR[0][row] * u * v - PAIR[1][row])
            u, v = u - push * v, v - push * u
        return np.mean(u**2 - v**2)

    def flowed(rate, halvings):
        end = jax.vmap(
            lambda key: ddln.stochastic_flow(
                pair(),
                [[0.9], [0.4]],
                [0.0, 0.2],
                learning_rate=rate,
                oracle=ddln.Sampling(batch=1),
                key=key,
                halvings=halvings,
                throw=False,
            ).layers[-1]
        )
        return np.mean(imbalance(jax.jit(end)(jax.random.split(jax.random.key(0), 10_000))))

    rates = 0.2 / np.array([5, 10, 20])
    expected = np.array([trained(round(0.2 / rate), rate) for rate in rates])
    errors = np.array([np.abs([flowed(rate, h) for rate in rates] - expected) for h in (3, 0)])
    # The sampling error of the smallest is 3 %.
    assert abs(slope(rates, errors[0]) - 1) < 0.1
    # Euler's steps of length γ are those of training but for the third moment of their noise.
    assert (errors[1] < 0.1 * errors[0]).all()


@pytest.mark.slow
def test_minibatch_heavy_ball_approximates_its_flow():
    rate, momentum, oracle = 0.025, 0.5, ddln.Sampling(batch=1)
    rule = ddln.optimiser("heavy_ball", learning_rate=rate, momentum=momentum)
    start = [[0.9], [0.4]]

    def end(key):
        controls = {"key": key, "oracle": oracle, "throw": False}
        trained = ddln.descend(pair(), start, rule, steps=40, record_every=40, **controls)
        flowed = ddln.stochastic_flow(
            pair(),
            start,
            [0.0, 2.0],
            learning_rate=rate,
            momentum=momentum,
            halvings=2,
            **controls,
        )
        return imbalance(trained.layers[-1]), imbalance(flowed.layers[-1])

    trained, flowed = jax.jit(jax.vmap(end))(jax.random.split(jax.random.key(0), 20_000))
    quiet = ddln.stochastic_flow(pair(), start, [0.0, 2.0], learning_rate=rate, momentum=momentum)
    effect = np.mean(trained) - imbalance(quiet.layers[-1])
    # Within 3 % of the effect of noise: 1 % from the step size, 0.3 % sampling error.
    assert abs(np.mean(flowed) - np.mean(trained)) < 0.03 * abs(effect)


@pytest.mark.slow
def test_vmapped_stochastic_flows_agree_with_single_runs():
    def run(rate, momentum, sigma, scale, key):
        return ddln.stochastic_flow(
            PLAIN,
            scale * LAYERS,
            TIMES,
            learning_rate=rate,
            oracle=ddln.Sampling(batch=2, label_noise=sigma),
            momentum=momentum,
            key=key,
            throw=False,
        )

    arguments = (
        jnp.array([0.02, 0.03, 0.05]),
        jnp.array([0.0, 0.5, 0.8]),
        jnp.array([0.0, 0.1, 0.2]),
        jnp.array([1.0, 0.8, 1.1]),
        jax.random.split(jax.random.key(0), 3),
    )
    together = jax.jit(jax.vmap(run))(*arguments)
    for i in range(3):
        alone = run(*(axis[i] for axis in arguments))
        np.testing.assert_allclose(together.layers[i], alone.layers, rtol=1e-10)
        assert together.stats["num_steps"][i] == alone.stats["num_steps"]
    assert together.ok.all()
    assert repr(together) == "Diffusion(theta=(3, 3, 2))"


def test_forward_derivatives_agree_with_finite_differences():
    def end(sigma, scale):
        run = ddln.stochastic_flow(
            PLAIN,
            scale * LAYERS,
            TIMES,
            learning_rate=0.02,
            oracle=ddln.Sampling(batch=2, label_noise=sigma),
            key=jax.random.key(0),
            throw=False,
        )
        return run.theta[-1]

    end = jax.jit(end)
    at, along, step = (0.2, 1.0), (1.0, 0.5), 1e-5
    slope = jax.jvp(end, at, along)[1]
    there, back = (end(*(x + s * v for x, v in zip(at, along, strict=True))) for s in (step, -step))
    np.testing.assert_allclose(slope, (there - back) / (2 * step), rtol=1e-7, atol=1e-9)


def test_divergence_sets_status_and_gives_nan():
    unstable = {"learning_rate": 50.0, "oracle": BOTH, "key": jax.random.key(0)}
    times = [0.0, 100.0, 4000.0]
    run = ddln.stochastic_flow(PLAIN, LAYERS, times, **unstable, throw=False)
    assert run.status_names[int(run.status)] == "diverged"
    assert not run.ok
    assert np.isfinite(run.layers[0]).all()
    lost = np.isnan(run.loss)
    assert lost[-1]
    assert (np.diff(lost.astype(int)) >= 0).all()
    for saved in (run.layers, run.theta, run.gap):
        assert np.isnan(saved[lost]).all()
        assert np.isfinite(saved[~lost]).all()
    assert repr(run).startswith("Diffusion(diverged, 3 points up to 4000, depth 3, dim 2, gap 0.")
    with pytest.raises(
        RuntimeError, match=r"\(diverged\) after .* lower the scale .* step size of training"
    ):
        ddln.stochastic_flow(PLAIN, LAYERS, times, **unstable)
    traced = eqx.filter_jit(lambda layers: ddln.stochastic_flow(PLAIN, layers, times, **unstable))
    with pytest.raises(Exception, match=r"pass `throw=False` to get it"):
        jax.block_until_ready(traced(jnp.asarray(LAYERS)).loss)


def test_invalid_traced_numbers_give_nan():
    def run(rate, momentum, dt):
        return ddln.stochastic_flow(
            PLAIN,
            LAYERS,
            TIMES,
            learning_rate=rate,
            oracle=BOTH,
            momentum=momentum,
            key=jax.random.key(0),
            dt=dt,
            throw=False,
        )

    good, wrong = (0.1, 0.5, 0.1), (-0.1, 1.0, 0.0)
    numbers = np.array([good] * 5)
    numbers[np.arange(3), np.arange(3)] = wrong
    numbers[3, 2] = 1e-20  # more steps than can be counted
    runs = jax.jit(jax.vmap(run))(*numbers.T)
    assert runs.ok.tolist() == [False] * 4 + [True]
    assert np.isnan(runs.theta[:4, 1:]).all()


def test_stochastic_flow_keeps_single_precision():
    problem = ddln.least_squares(np.float32(FEATURES), np.float32(COUNTS))
    run = ddln.stochastic_flow(
        problem,
        np.float32(LAYERS),
        TIMES,
        learning_rate=0.01,
        oracle=BOTH,
        momentum=0.5,
        key=jax.random.key(0),
        halvings=1,
    )
    saved = jax.tree.leaves((run.times, run.layers, run.layer_velocity, run.gap))
    assert {array.dtype for array in saved} == {np.dtype("f4")}


GOOD = {"learning_rate": 0.1, "oracle": BOTH, "key": jax.random.key(0)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"`learning_rate` must be > 0, got 0\.0"),
        ({"momentum": 1.0}, r"`momentum` must be ≥ 0 and < 1, got 1\.0"),
        ({"momentum": -0.1}, r"`momentum` must be ≥ 0 and < 1, got -0\.1"),
        ({"dt": 0.0}, r"`dt` must be > 0, got 0\.0"),
        ({"dt": 1e-20}, r"`times` must be at most 1\.07e\+09 steps of the scheme apart, got"),
        ({"halvings": -1}, r"`halvings` must be ≥ 0, got -1"),
        ({"times": [0.0, 1.0, 1.0]}, r"`times` must be ≥ 0 and strictly increasing"),
        ({"layers": LAYERS[:, :1]}, r"`layers` must have shape \(depth, 2\), got \(3, 1\)"),
        ({"key": None}, r"`key` must be given if `oracle` draws"),
        ({"oracle": None}, r"`oracle` must draw something if there is no `momentum`"),
        (
            {"oracle": ddln.Sampling(batch=4)},
            r"`batch` must be at most the number of samples, 3, got 4",
        ),
        (
            {"oracle": ddln.Sampling(batch=2, replacement=False)},
            r"`oracle` must be a `ddln\.Sampling`, and with replacement, got Sampling\(",
        ),
        (
            {"oracle": ddln.Sampling(rows=[[0]])},
            r"`oracle` must draw at random, got your own `rows` or `noise`",
        ),
        (
            {"oracle": ddln.SharpnessAware(0.1, sampling=BOTH)},
            r"`oracle` must be a `ddln\.Sampling`, and with replacement, got SharpnessAware\(",
        ),
        (
            {"problem": ddln.from_function(jnp.sum, 2, minimum=0.0)},
            r"`problem` must be a sum over samples if samples",
        ),
    ],
)
def test_invalid_arguments_are_errors(changes, message):
    arguments = {"problem": PLAIN, "layers": LAYERS, "times": TIMES} | GOOD | changes
    with pytest.raises(ValueError, match=message):
        ddln.stochastic_flow(**arguments)
