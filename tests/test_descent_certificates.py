"""Certificates of discrete runs hold on true ones, whatever their steps and samples, and fail on
others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate

import ddln
from ddln.problems.base import Problem
from ddln.solvers import gradient_estimators
from ddln.verification import discretisation

RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(4, 8)), RNG.normal(size=4)
PROBLEM = ddln.least_squares(FEATURES, TARGETS, normalisation="half_mean")
LAYERS = np.stack([np.full(8, 0.3), RNG.uniform(-0.1, 0.1, 8)])
EXACT = 1e-12


def train(step=0.1, steps=3000, oracle=None, layers=LAYERS, problem: Problem = PROBLEM, **numbers):
    rule = ddln.optimiser("sgd", learning_rate=step, **numbers)
    key = None if oracle is None else jax.random.key(0)
    return ddln.descend(problem, layers, rule, steps=steps, oracle=oracle, key=key, throw=False)


@pytest.fixture(scope="module")
def run():
    return train()


@pytest.mark.parametrize(
    ("step", "oracle"),
    [
        (0.1, None),
        (0.6, None),
        (0.05, ddln.Sampling(batch=1)),
        (0.05, ddln.Sampling(batch=3, replacement=False)),
        (0.05, ddln.Sampling(batch=2, label_noise=0.5)),
    ],
    ids=["small", "large", "single", "shuffled", "noisy"],
)
def test_identities_of_depth_two_hold_at_any_step_and_samples(step, oracle):
    run = train(step, oracle=oracle)
    certificates = ddln.certify(PROBLEM, run)
    assert certificates.ok
    for name in ("exact identity", "KKT of the limit"):
        assert bool(certificates[name].applies)
    assert np.asarray(certificates["exact identity"].measured) < EXACT
    assert np.asarray(certificates["KKT of the limit"].measured) < 1e-10


@pytest.mark.slow
def test_identities_hold_for_signed_models_and_other_losses():
    labels = np.sign(TARGETS)
    problems: tuple[Problem, ...] = (
        ddln.signed(PROBLEM),
        ddln.huber(FEATURES, TARGETS),
        ddln.logistic(FEATURES, labels),
    )
    for problem in problems:
        layers = np.tile(LAYERS, problem.dim // 8)
        certificates = ddln.certify(problem, train(0.02, layers=layers, problem=problem))
        assert certificates.ok
        assert np.asarray(certificates["exact identity"].measured) < EXACT


def test_exact_identity_allows_for_amplified_rounding_and_for_no_more():
    """Steps multiply u ± v by −1.5 and 3.5; u² − v², nearly 0 at first, grows with its error."""
    problem = ddln.huber([[1.0]], [0.0], delta=1.0)
    run = train(2.5, steps=25, layers=np.array([[1.2], [1.2 * (1 - 1e-9)]]), problem=problem)
    assert run.ledger is not None
    amplified = jnp.sqrt(run.ledger.squares[:, 0]) / jnp.sum(run.layers**2, axis=(1, 2))
    assert amplified[-1] > 1e8

    def claim(layers):
        return ddln.certify(problem, dataclasses.replace(run, layers=layers))["exact identity"]

    certify = jax.jit(jax.vmap(claim))
    records = jnp.array([1, 5, 10, 15])
    shares = jnp.maximum(1e-10, 1e-13 * amplified[records])
    moved = [run.layers.at[k, 0].multiply(1 + x) for k, x in zip(records, shares, strict=True)]
    assert certify(jnp.stack([run.layers, *moved])).holds.tolist() == [True, *4 * [False]]


def test_continued_run_is_certified_from_its_first_record(run):
    rule = ddln.optimiser("sgd", learning_rate=0.1)
    later = ddln.descend(PROBLEM, train(steps=30).state, rule, steps=3000)
    certificates = ddln.certify(PROBLEM, later)
    assert certificates.ok
    assert bool(certificates["exact identity"].applies)


def test_large_steps_end_at_the_limit_point_of_their_last_imbalance():
    run = train(0.6)
    flow_limit = ddln.limit_point(PROBLEM, LAYERS)
    assert np.linalg.norm(run.theta[-1] - flow_limit) > 1e-3
    # ξ̃ and the last λ as layers: u + v and u − v of modulus √λ e^{±ξ̃}.
    (u, v), (u0, v0) = np.asarray(run.layers[-1]), LAYERS
    assert run.ledger is not None
    growth, dual = np.asarray(run.ledger.growth[-1]), np.asarray(run.ledger.dual[-1])
    start = np.log(np.abs((u0 + v0) / (u0 - v0))) / 2
    shifted = start + np.log(np.abs(growth[0] / growth[1])) / 2 - dual
    root = np.sqrt(np.abs((u - v) * (u + v)))
    plus, minus = root * np.exp(shifted), root * np.exp(-shifted)
    layers = np.stack([(plus + minus) / 2, (plus - minus) / 2])
    np.testing.assert_allclose(ddln.limit_point(PROBLEM, layers), run.theta[-1], atol=1e-8)


def test_tampered_runs_fail(run):
    def failures(run):
        return {claim.name for claim in ddln.certify(PROBLEM, run).claims if not claim.holds}

    assert failures(run) == set()
    moved = dataclasses.replace(run, layers=run.layers.at[-1, 0, 2].add(1e-6))
    assert "exact identity" in failures(moved)
    slopes = run.ledger.dual.at[-1, 0].add(1e-6)
    other = dataclasses.replace(run, ledger=dataclasses.replace(run.ledger, dual=slopes))
    assert failures(other) == {"KKT of the limit"}
    risen = dataclasses.replace(run, gap=run.gap.at[5].multiply(1 + 1e-6).at[4].set(run.gap[5]))
    assert failures(risen) == {"consistency", "monotone loss"}
    bolder = dataclasses.replace(run, rates=jnp.full_like(run.rates, 1.0))
    assert failures(bolder) == set()
    gone = dataclasses.replace(run, gap=run.gap.at[-1].set(jnp.nan))
    assert "completed" in failures(gone)


def cosine(rate):
    return optax.adam(optax.cosine_decay_schedule(rate, 300))


RULES = {
    "sgd": (ddln.optimiser("sgd", learning_rate=0.05), None),
    "heavy ball": (ddln.optimiser("heavy_ball", learning_rate=0.01, momentum=0.8), None),
    "nesterov": (ddln.optimiser("nesterov", learning_rate=0.01, momentum=0.8), None),
    "adam": (ddln.optimiser("adam", learning_rate=0.01), None),
    "sign": (ddln.optimiser("sign", learning_rate=0.003), None),
    "dropped": (ddln.optimiser("sgd", learning_rate=0.05, drops=[(100, 0.1)]), None),
    "adamw": (optax.adamw(0.01), None),
    "schedule": (cosine(0.01), None),
    "shuffled": (
        ddln.optimiser("adam", learning_rate=0.01),
        ddln.Sampling(batch=3, replacement=False, label_noise=0.1),
    ),
    "uphill": (ddln.optimiser("sgd", learning_rate=0.02), ddln.SharpnessAware(0.1, group=2)),
}
QUICK_RULES = ("adam", "heavy ball", "shuffled")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK_RULES else pytest.mark.slow) for n in RULES]
)
def test_every_rule_follows_its_own_recursion(name):
    rule, oracle = RULES[name]
    key = None if oracle is None else jax.random.key(3)
    run = ddln.descend(
        PROBLEM, LAYERS, rule, steps=300, record_every=5, oracle=oracle, key=key, throw=False
    )
    certify = jax.jit(lambda problem, run: ddln.certify(problem, run))
    certificates = certify(PROBLEM, run)
    assert certificates.ok, certificates
    assert certificates["recursion"].applies

    def fails(problem, run, layers):
        """Make everything recorded at a point consistent with the layers there."""
        theta = jax.vmap(ddln.effective_parameter)(layers)
        loss, gap = jax.vmap(problem.loss)(theta), jax.vmap(problem.gap)(theta)
        moved = dataclasses.replace(run, layers=layers, theta=theta, loss=loss, gap=gap)
        certificates = certify(problem, moved)
        assert certificates["consistency"].holds
        return not bool(certificates["recursion"].holds)

    random = jnp.asarray(np.random.default_rng(1).normal(size=run.layers.shape))
    assert fails(PROBLEM, run, random)
    assert fails(PROBLEM, run, run.layers.at[:, 0, 0].multiply(1.001))
    # The sign of a gradient says little of how large it is.
    share = 1.5 if name == "sign" else 1.01
    other = ddln.least_squares(FEATURES, share * TARGETS, normalisation="half_mean")
    assert fails(other, run, run.layers)
    carried = jax.tree.map(lambda x: x * 2, run.carried)
    if name in QUICK_RULES:  # has a state
        spoilt = dataclasses.replace(run, carried=(carried[0], run.carried[1]))
        assert not certify(PROBLEM, spoilt)["recursion"].holds


def test_run_that_did_not_follow_its_rule_fails():
    run = ddln.descend(PROBLEM, LAYERS, optax.sgd(0.05), steps=60, record_every=3)
    late = run.layers.at[6:].set(run.layers[5:-1])  # behind by what 9 stretches of 20 show
    theta = jax.vmap(ddln.effective_parameter)(late)
    loss, gap = jax.vmap(PROBLEM.loss)(theta), jax.vmap(PROBLEM.gap)(theta)
    spoilt = dataclasses.replace(run, layers=late, theta=theta, loss=loss, gap=gap)
    assert not ddln.certify(PROBLEM, spoilt)["recursion"].holds


def test_one_nan_fails_at_any_record(run):
    for name in ("times", "layers", "theta", "loss", "gap"):
        value = getattr(run, name)
        spoilt = value.at[(17,) + (-1,) * (value.ndim - 1)].set(jnp.nan)
        assert not ddln.certify(PROBLEM, dataclasses.replace(run, **{name: spoilt})).ok


def test_wrong_gradient_fails(monkeypatch):
    true = gradient_estimators.estimated_gradient
    monkeypatch.setattr(gradient_estimators, "estimated_gradient", lambda *all: true(*all) + 0.01)
    rule = ddln.optimiser("sgd", learning_rate=0.11)
    wrong = ddln.descend(PROBLEM, LAYERS[:, ::-1].copy(), rule, steps=777, record_every=70)
    certificates = ddln.certify(PROBLEM, wrong)
    assert bool(certificates["exact identity"].holds)  # of any gradient at all
    assert not bool(certificates["KKT of the limit"].holds)


@pytest.mark.slow
def test_claims_that_do_not_apply_are_marked():
    deep = np.concatenate([LAYERS, np.ones((1, 8))])
    cases = {
        "deep": train(layers=deep, steps=10),
        "decayed": train(weight_decay=0.1, steps=10),
        "uphill": train(oracle=ddln.SharpnessAware(0.1), steps=10),
    }
    for name, run in cases.items():
        assert run.ledger is None
        certificates = ddln.certify(PROBLEM, run)
        assert certificates.ok
        assert not certificates["exact identity"].applies
        assert not certificates["KKT of the limit"].applies
        assert bool(certificates["descent lemma"].applies) == (name == "deep")
    balanced = ddln.certify(PROBLEM, train(layers=np.full((2, 8), 0.3)))
    assert balanced.ok
    assert not bool(balanced["KKT of the limit"].applies)


def test_unstable_steps_need_not_decrease_the_loss():
    problem = ddln.least_squares([[1.0]], [1.0], normalisation="half")
    layers = np.array([[1.2], [0.0]])
    rule = ddln.optimiser("sgd", learning_rate=1.05)
    certificates = ddln.certify(problem, ddln.descend(problem, layers, rule, steps=50))
    assert not bool(certificates["monotone loss"].applies)
    assert certificates.ok


def test_divergence_fails_only_the_first_claim():
    certificates = ddln.certify(PROBLEM, train(50.0, steps=100))
    assert not bool(certificates["completed"].holds)
    assert [bool(claim.applies) for claim in certificates.claims] == [True, *6 * [False]]


def test_batched_certificates_equal_single_ones():
    steps = jnp.array([0.05, 0.1])
    runs = jax.vmap(lambda step: train(step, steps=200))(steps)
    together = jax.jit(jax.vmap(lambda run: ddln.certify(PROBLEM, run)))(runs)
    for i, step in enumerate(steps):
        alone = ddln.certify(PROBLEM, train(step, steps=200))
        for claim, of_lane in zip(alone.claims, together.claims, strict=True):
            lane = jnp.broadcast_to(jnp.asarray(of_lane.measured), (2,))[i]
            np.testing.assert_allclose(lane, claim.measured, rtol=1e-6, atol=1e-10)


DEEP = np.concatenate([np.zeros((1, 8)), RNG.uniform(0.5, 1.0, (2, 8))])
SECOND_ORDER = 1e-6  # relative, of steps of 1e-3
SLOPE = 0.02  # the order of a first-order method is 1 ± 0.02


def first_order_change(layers, until):
    """e of θ_K = θ(T) + (T/K) e + O(K⁻²), by SciPy: u̇ = −g, ė = −∂g/∂u (e + ½g), g = ∂ℒ/∂u."""

    def gradient(u):
        slope = FEATURES.T @ (FEATURES @ u.prod(axis=0) - TARGETS) / 4
        return slope * np.stack([np.delete(u, j, axis=0).prod(axis=0) for j in range(len(u))])

    def along(function, u, direction):
        return function(u + 1e-30j * direction).imag / 1e-30

    def field(_, state):
        u, e = state.reshape(2, *layers.shape)
        g = gradient(u)
        return -np.concatenate([g, along(gradient, u, e + g / 2)], axis=None)

    start = np.concatenate([layers, np.zeros_like(layers)], axis=None)
    accuracy = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
    end = scipy.integrate.solve_ivp(field, (0.0, until), start, **accuracy).y[:, -1]
    u, e = end.reshape(2, *layers.shape)
    return along(lambda u: u.prod(axis=0), u, e)


def test_discretisation_error_is_that_of_the_modified_loss():
    steps = np.array([1000, 2000, 4000])
    errors = np.asarray(discretisation.discretisation_error(PROBLEM, DEEP, 2.0, steps))
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 1.0, atol=SLOPE)
    per_step = errors * steps / 2.0
    expected = np.linalg.norm(first_order_change(DEEP, 2.0))
    np.testing.assert_allclose(2 * per_step[2] - per_step[1], expected, rtol=SECOND_ORDER)


def test_gradient_descent_follows_the_flow_to_first_order():
    claim = ddln.discretisation_order(PROBLEM, DEEP, 2.0)
    assert bool(claim.applies)
    assert bool(claim.holds)
    np.testing.assert_allclose(claim.measured, 1.0, atol=SLOPE)


@pytest.mark.parametrize(
    ("layers", "until"),
    [(DEEP, 2000.0), (10 * DEEP, 2.0), (DEEP, 1e-7), (np.zeros((3, 8)), 2.0)],
    ids=["large steps", "sharp", "below the flow's accuracy", "frozen"],
)
def test_order_does_not_apply_outside_its_asymptotic_range(layers, until):
    claim = ddln.discretisation_order(PROBLEM, layers, until)
    assert not bool(claim.applies)
    assert bool(claim.holds)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 6])
@pytest.mark.parametrize("loss", ["least_squares", "logistic"])
def test_order_is_one_at_other_depths_and_losses(depth, loss):
    targets = TARGETS if loss == "least_squares" else np.sign(TARGETS)
    problem = getattr(ddln, loss)(FEATURES, targets)
    layers = np.random.default_rng(depth).uniform(0.3, 0.8, (depth, 8))
    claim = ddln.discretisation_order(problem, layers, 1.0)
    assert bool(claim.applies)
    np.testing.assert_allclose(claim.measured, 1.0, atol=SLOPE)


@pytest.mark.slow
def test_batched_orders_equal_single_ones():
    scales = jnp.array([0.5, 1.0])
    together = jax.jit(
        jax.vmap(lambda scale: ddln.discretisation_order(PROBLEM, scale * DEEP, 2.0))
    )(scales)
    for i, scale in enumerate(scales):
        alone = ddln.discretisation_order(PROBLEM, scale * DEEP, 2.0)
        np.testing.assert_allclose(together.measured[i], alone.measured, atol=1e-6)
        assert together.applies[i] == alone.applies


@pytest.mark.slow
def test_wrong_gradient_has_no_order(monkeypatch):
    true = gradient_estimators.estimated_gradient
    monkeypatch.setattr(gradient_estimators, "estimated_gradient", lambda *all: 1.01 * true(*all))
    deeper = np.concatenate([DEEP, DEEP[1:2]])
    claim = ddln.discretisation_order(PROBLEM, deeper, 2.0)
    assert bool(claim.applies)
    assert not bool(claim.holds)


@pytest.mark.parametrize(
    ("until", "steps", "message"),
    [
        (0.0, [1, 2], r"`until` must be > 0, got 0"),
        (1.0, [2, 2], r"`steps` must be whole numbers that increase from 1 or more, got \[2, 2\]"),
        (1.0, [0, 1], r"`steps` must be whole numbers that increase from 1 or more, got \[0, 1\]"),
        (1.0, [1.5, 2.5], r"`steps` must be whole numbers"),
        (1.0, [], r"`steps` must be whole numbers that increase from 1 or more, got \[\]"),
    ],
)
def test_invalid_comparisons_are_refused(until, steps, message):
    with pytest.raises(ValueError, match=message):
        discretisation.discretisation_error(PROBLEM, DEEP, until, steps)
    with pytest.raises(ValueError, match=r"`steps` must be ≥ 1, got 0"):
        ddln.discretisation_order(PROBLEM, DEEP, 1.0, steps=0)
