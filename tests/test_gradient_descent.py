"""Gradient descent against NumPy loops, published runs, and itself when resumed or transformed."""

import io
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddln

RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(4, 6)), RNG.normal(size=4)
PROBLEM = ddln.least_squares(FEATURES, TARGETS, normalisation="half_mean")
LAYERS = np.stack([RNG.uniform(0.5, 1.0, 6), RNG.uniform(-0.2, 0.2, 6)])
STEP = 0.05
SAME = 1e-12  # some hundred steps in another order of summation
EASY = ddln.least_squares([[1.0]], [2.0])
START = [[0.5], [1.0]]


def gradient(layers, features=FEATURES, targets=TARGETS):
    """∂ℒ/∂u of ‖Xθ − y‖²/2n, in NumPy."""
    slope = features.T @ (features @ layers.prod(axis=0) - targets) / len(targets)
    others = [np.delete(layers, j, axis=0).prod(axis=0) for j in range(len(layers))]
    return slope * np.stack(others)


def sgd(step: Any = STEP):
    return ddln.optimiser("sgd", learning_rate=step)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_gradient_descent_agrees_with_a_numpy_loop(depth):
    layers = RNG.uniform(0.5, 1.0, size=(depth, 6))
    run = ddln.descend(PROBLEM, layers, sgd(), steps=250, record_every=50)
    expected = [layers]
    for _ in range(250):
        layers = layers - STEP * gradient(layers)
        expected.append(layers)
    np.testing.assert_allclose(run.layers, expected[::50], rtol=SAME, atol=SAME)
    np.testing.assert_allclose(run.theta, np.prod(expected[::50], axis=1), rtol=SAME, atol=SAME)
    residuals = np.prod(expected[::50], axis=1) @ FEATURES.T - TARGETS
    np.testing.assert_allclose(run.loss, (residuals**2).sum(axis=1) / 8, rtol=1e-10)
    np.testing.assert_allclose(run.loss - PROBLEM.minimum, run.gap, atol=SAME)
    assert run.steps.tolist() == [0, 50, 100, 150, 200, 250]
    np.testing.assert_allclose(run.times, STEP * np.asarray(run.steps), rtol=SAME)
    assert int(run.stats["num_steps"]) == 250


def test_ledger_accumulates_the_steps():
    run = ddln.descend(PROBLEM, LAYERS, sgd(0.2), steps=150, record_every=150)
    layers, growth, dual, squares = LAYERS, np.ones((2, 6)), np.zeros(6), np.zeros(6)
    for k in range(150):
        step = 0.2 * FEATURES.T @ (FEATURES @ layers.prod(axis=0) - TARGETS) / 4
        growth, dual = growth * np.stack([1 - step, 1 + step]), dual - step
        block = np.stack([1 - step, 1 + step]) * (1 if k % 64 == 0 else block)
        change = (layers[0] ** 2 - layers[1] ** 2) * (1 - step**2) / block
        rounding = (1 + step**2) * (layers**2).sum(axis=0) + np.abs(change).sum(axis=0)
        squares = (1 - step**2) ** 2 * squares + rounding**2
        layers = layers - 0.2 * gradient(layers)
    assert run.ledger is not None
    np.testing.assert_allclose(run.ledger.growth[-1], growth, rtol=SAME)
    np.testing.assert_allclose(run.ledger.dual[-1], dual, rtol=1e-10)
    np.testing.assert_allclose(run.ledger.squares[-1], squares, rtol=SAME)
    assert ddln.descend(PROBLEM, LAYERS, sgd(), steps=1, ledger=False).ledger is None


def test_descend_accepts_any_optax_transformation():
    rule = optax.chain(optax.clip(0.1), optax.sgd(STEP))
    run = ddln.descend(PROBLEM, LAYERS, rule, steps=100)
    layers = LAYERS
    for _ in range(100):
        layers = layers - STEP * np.clip(gradient(layers), -0.1, 0.1)
    np.testing.assert_allclose(run.layers[-1], layers, rtol=SAME, atol=SAME)
    assert run.times.tolist() == list(range(101))  # its step size is unknown


def test_line_searches_receive_the_loss():
    run = ddln.descend(PROBLEM, LAYERS, optax.polyak_sgd(), steps=20)
    layers = LAYERS
    for _ in range(20):
        slope = gradient(layers)
        loss = np.sum((FEATURES @ layers.prod(axis=0) - TARGETS) ** 2) / 8
        layers = layers - min(loss / np.sum(slope**2), 1.0) * slope
    np.testing.assert_allclose(run.layers[-1], layers, rtol=1e-10)
    searched = ddln.descend(PROBLEM, LAYERS, optax.lbfgs(), steps=60)
    assert searched.gap[-1] < 1e-20


def test_step_size_of_optax_rule_can_be_traced():
    ends = jax.jit(
        jax.vmap(lambda step: ddln.descend(PROBLEM, LAYERS, optax.sgd(step), steps=30).theta[-1])
    )(jnp.array([0.01, STEP]))
    alone = ddln.descend(PROBLEM, LAYERS, sgd(), steps=30).theta[-1]
    np.testing.assert_allclose(ends[1], alone, rtol=SAME)


def test_records_are_at_the_requested_steps():
    marks = np.unique(np.geomspace(1, 200, 12).astype(int))
    run = ddln.descend(PROBLEM, LAYERS, sgd(), steps=230, record_at=marks)
    every = ddln.descend(PROBLEM, LAYERS, sgd(), steps=230, record_every=1)
    assert run.steps.tolist() == [0, *marks.tolist(), 230]
    np.testing.assert_array_equal(run.layers, every.layers[run.steps])
    assert ddln.descend(PROBLEM, LAYERS, sgd(), steps=1000).steps.size == 101
    uneven = ddln.descend(PROBLEM, LAYERS, sgd(), steps=7, record_every=3)
    assert uneven.steps.tolist() == [0, 3, 6, 7]


def test_schedules_determine_steps_and_flow_time():
    schedule = optax.piecewise_constant_schedule(0.1, {30: 0.1, 60: 0.1})
    rates = [0.1] * 30 + [0.01] * 30 + [0.001] * 40
    run = ddln.descend(PROBLEM, LAYERS, sgd(schedule), steps=100, record_every=20)
    layers = LAYERS
    for rate in rates:
        layers = layers - rate * gradient(layers)
    np.testing.assert_allclose(run.layers[-1], layers, rtol=SAME, atol=SAME)
    np.testing.assert_allclose(run.times, np.cumsum([0, *rates])[::20], rtol=SAME)


def test_momentum_speeds_up_flow_time():
    problem = ddln.least_squares([[1.0]], [2.0], normalisation="half")
    rule = ddln.optimiser("heavy_ball", learning_rate=1e-5, momentum=0.9)
    run = ddln.descend(problem, np.full((2, 1), 0.1), rule, steps=15_000)
    np.testing.assert_allclose(run.times[-1], 1.5, rtol=SAME)
    logistic = 2 / (1 + (2 / 0.01 - 1) * np.exp(-4 * run.times))
    np.testing.assert_allclose(run.theta[:, 0], logistic, atol=0.01)  # late by γβ/(1 − β)²


def test_signed_model_agrees_with_a_numpy_loop():
    problem = ddln.signed(PROBLEM)
    start = ddln.init.signed(ddln.init.constant(2, 6, 0.3))
    run = ddln.descend(problem, start, sgd(), steps=300)
    u, v = np.full(6, 0.3), np.full(6, 0.3)
    for _ in range(300):
        slope = FEATURES.T @ (FEATURES @ (u**2 - v**2) - TARGETS) / 4
        u, v = u - STEP * slope * u, v + STEP * slope * v
    np.testing.assert_allclose(problem.predictor(run.theta)[-1], u**2 - v**2, atol=SAME)


RULES = {
    "sgd": sgd(),
    "nesterov": ddln.optimiser("nesterov", learning_rate=STEP, momentum=0.8),
    "adam": ddln.optimiser("adam", learning_rate=STEP),
}
ESTIMATORS = {
    "all": ddln.Sampling(),
    "shuffled": ddln.Sampling(batch=3, replacement=False, label_noise=0.1),
    "uphill": ddln.SharpnessAware(0.1, group=1, sampling=ddln.Sampling(batch=2)),
}


@pytest.mark.parametrize(
    ("rule", "oracle"),
    [("sgd", "all"), ("sgd", "shuffled"), ("nesterov", "uphill"), ("adam", "shuffled")],
)
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(rule, oracle):
    key = jax.random.key(3) if ESTIMATORS[oracle].sampling.is_random else None
    controls = {"record_every": 35, "oracle": ESTIMATORS[oracle]}
    whole = ddln.descend(PROBLEM, LAYERS, RULES[rule], steps=210, key=key, **controls)
    first = ddln.descend(PROBLEM, LAYERS, RULES[rule], steps=105, key=key, **controls)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, first.state)
    file.seek(0)
    state = eqx.tree_deserialise_leaves(file, first.state)
    second = ddln.descend(PROBLEM, state, RULES[rule], steps=105, **controls)
    for name in ("steps", "times", "layers", "theta", "loss", "gap", "ledger"):
        ends, later = getattr(whole, name), getattr(second, name)
        jax.tree.map(lambda one, two: np.testing.assert_array_equal(one[3:], two), ends, later)
    jax.tree.map(np.testing.assert_array_equal, whole.state, second.state)


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_last_state_does_not_depend_on_the_records(rule):
    """Steps fused in pairs would change the last digits of Adam and of the ledger."""
    whole = ddln.descend(PROBLEM, LAYERS, RULES[rule], steps=200)
    first = ddln.descend(PROBLEM, LAYERS, RULES[rule], steps=77)
    second = ddln.descend(PROBLEM, first.state, RULES[rule], steps=123, record_every=123)
    jax.tree.map(np.testing.assert_array_equal, whole.state, second.state)


def test_progress_receives_the_run_in_parts():
    whole = ddln.descend(PROBLEM, LAYERS, sgd(), steps=330, record_every=10)
    parts = []
    run = ddln.descend(PROBLEM, LAYERS, sgd(), steps=330, record_every=10, progress=parts.append)
    assert [int(part.steps[-1]) for part in parts] == [*range(20, 330, 20), 330]
    jax.tree.map(np.testing.assert_array_equal, whole, run)


def test_descent_stops_at_its_target_gap():
    run = ddln.descend(EASY, START, sgd(), steps=1000, record_every=10, target_gap=1e-8)
    rest = int(run.stats["num_steps"]) // 10
    assert run.status_names[int(run.status)] == "stopped"
    assert run.ok
    assert run.gap[rest - 1] > 1e-8 >= run.gap[rest]
    assert (run.layers[rest:] == run.layers[rest : rest + 1]).all()
    assert int(run.steps[-1]) == 1000
    further = ddln.descend(EASY, run.state, sgd(), steps=10, target_gap=1e-8)
    assert int(further.stats["num_steps"]) == 10 * rest


def test_divergence_sets_status_or_raises():
    with pytest.raises(
        RuntimeError, match=r"\(diverged\) after \d+ steps: .* step size of training"
    ):
        ddln.descend(EASY, START, sgd(10.0), steps=100)
    run = ddln.descend(EASY, START, sgd(10.0), steps=100, throw=False)
    assert run.status_names[int(run.status)] == "diverged"
    assert jnp.isnan(run.theta[-1]).all()
    assert run.ledger is not None
    assert jnp.isnan(run.ledger.growth[-1]).all()
    assert jnp.isfinite(run.theta[0]).all()
    assert "diverged" in repr(run)
    over = ddln.descend(EASY, START, sgd(), steps=100, largest_loss=2.0, throw=False)
    assert not over.ok
    assert jnp.isnan(over.theta).all()
    assert int(over.stats["num_steps"]) == 0
    with pytest.raises(eqx.EquinoxRuntimeError, match="The run ended early"):
        eqx.filter_jit(lambda step: ddln.descend(EASY, START, sgd(step), steps=9))(10.0)


def test_vmapped_descents_agree_with_single_runs():
    steps, keys = jnp.array([0.01, 0.05, 10.0]), jax.random.split(jax.random.key(0), 3)
    oracle = ddln.Sampling(batch=2, replacement=False)

    def run(step, key):
        return ddln.descend(
            PROBLEM,
            LAYERS,
            sgd(step),
            steps=400,
            oracle=oracle,
            key=key,
            target_gap=0.04,
            throw=False,
        )

    together = jax.jit(jax.vmap(run))(steps, keys)
    names = [together.status_names[int(code)] for code in together.status]
    assert names == ["ok", "stopped", "diverged"]
    assert int(together.stats["num_steps"][1]) < 300
    for i, (step, key) in enumerate(zip(steps, keys, strict=True)):
        alone = run(step, key)
        of_run = jax.tree.map(lambda x, i=i: x[i], together)
        np.testing.assert_allclose(of_run.layers, alone.layers, rtol=1e-10)
        assert int(of_run.stats["num_steps"]) == int(alone.stats["num_steps"])
    again = jax.vmap(
        lambda state: ddln.descend(PROBLEM, state, sgd(), steps=5, oracle=oracle, throw=False)
    )(together.state)
    assert (again.steps[:, -1] == 405).all()


def test_new_numbers_need_no_compilation():
    traced = []

    def loss(theta):
        traced.append(None)
        return jnp.sum((theta - 1) ** 2)

    problem = ddln.from_function(loss, 2, minimiser=[1.0, 1.0])

    def run(scale, step, momentum, target):
        rule = ddln.optimiser("heavy_ball", learning_rate=step, momentum=momentum)
        return ddln.descend(
            problem, scale * jnp.ones((2, 2)), rule, steps=20, record_every=10, target_gap=target
        )

    run(0.5, 0.01, 0.5, 1e-9)
    before = len(traced)
    run(0.6, 0.02, 0.7, 1e-8)
    assert len(traced) == before

    def noisy(rho, sigma, key):
        traced.append(None)
        oracle = ddln.SharpnessAware(rho, sampling=ddln.Sampling(batch=1, label_noise=sigma))
        controls: dict[str, Any] = {"steps": 20, "oracle": oracle, "key": key, "throw": False}
        return ddln.descend(PROBLEM, LAYERS, sgd(), **controls).loss

    batch = jax.jit(jax.vmap(noisy))
    before = len(traced)
    for seed in range(2):
        numbers = jnp.array([0.1, 0.2]) * (seed + 1)
        batch(numbers, numbers, jax.random.split(jax.random.key(seed)))
    assert len(traced) == before + 1


def test_vmapped_descents_share_two_matrix_products():
    def run(step):
        return ddln.descend(PROBLEM, LAYERS, sgd(step), steps=20).gap

    text = jax.jit(jax.vmap(run)).lower(jnp.ones(5)).as_text()
    loop = text[text.index("stablehlo.while", text.index("stablehlo.while") + 1) :]
    products = [line for line in loop.splitlines() if "dot_general" in line]
    assert any("5x6" in line and "5x4" in line for line in products)
    assert not any("batching_dims" in line for line in products)


def test_jit_agrees_with_eager_and_jvp_with_finite_differences():
    def end(step):
        return ddln.descend(PROBLEM, LAYERS, sgd(step), steps=50, throw=False).loss[-1]

    np.testing.assert_allclose(jax.jit(end)(STEP), end(STEP), rtol=SAME)
    slope = jax.jvp(end, (STEP,), (1.0,))[1]
    finite = (end(STEP + 1e-6) - end(STEP - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope, finite, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_results_keep_single_precision(rule):
    problem = ddln.least_squares(np.ones((2, 1), np.float32), np.ones(2, np.float32))
    run = ddln.descend(problem, np.array([[0.0], [1.0]], np.float32), RULES[rule], steps=5)
    types = {x.dtype for x in jax.tree.leaves(run) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert types == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"steps": 0}, "`steps` must be ≥ 1, got 0"),
        ({"record_every": 0}, "`record_every` must be ≥ 1, got 0"),
        ({"record_every": 1, "record_at": [1]}, "`record_every` must be None if `record_at`"),
        ({"record_at": [3, 2]}, "`record_at` must increase from 0 or more to at most 10"),
        ({"record_at": [11]}, "`record_at` must increase from 0 or more to at most 10"),
        ({"record_at": [0.5]}, "`record_at` must be a list of whole numbers"),
        ({"layers": [[1.0, 2.0], [3.0, 4.0]]}, r"shape \(depth, 1\), got \(2, 2\)"),
        ({"oracle": ddln.Sampling(batch=1)}, "`key` must be given if `oracle` draws"),
        ({"target_gap": np.nan}, "`target_gap` must be finite, got nan"),
    ],
)
def test_invalid_arguments_are_errors(controls, message):
    given = {"layers": START, "optimiser": sgd(), "steps": 10} | controls
    with pytest.raises(ValueError, match=message):
        ddln.descend(EASY, **given)


@pytest.mark.slow
def test_run_resumes_only_with_the_same_method():
    state = ddln.descend(EASY, START, sgd(), steps=2).state
    for controls, message in [
        ({"key": jax.random.key(0)}, "`key` must be None for a run that continues"),
        ({"optimiser": RULES["adam"]}, "`optimiser` must be of the same kind"),
        ({"oracle": ddln.Sampling(batch=1, replacement=False)}, "`oracle` must be of the same"),
        ({"oracle": ddln.Sampling(batch=1)}, "`oracle` must not draw if"),
    ]:
        with pytest.raises(ValueError, match=message):
            ddln.descend(EASY, state, **({"optimiser": sgd(), "steps": 2} | controls))
    uphill = ddln.descend(EASY, state, sgd(), steps=2, oracle=ddln.SharpnessAware(0.1))
    assert uphill.ledger is None
