"""Weight decay in every flow: against SciPy on the layers, and the laws that depend on the dose."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

import ddln
from ddln import weight_decay
from ddln.solvers.gradient_flow import gradient_flow

TIMES = np.linspace(0.0, 3.0, 7)
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-13}
AGAINST_SCIPY = 1e-8  # a hundred times the tolerances
DOSE_LAW = SAME_MINIMUM = 1e-9
ROUNDING = 1e-13

CONSTANT = weight_decay.constant(0.3)
PIECEWISE = weight_decay.piecewise([0.5, 0.0, 0.2], until=[1.1, 2.3, np.inf])
COSINE = weight_decay.cosine(0.5, until=4.0, final=0.1)
FORMULAS = {
    "constant": (CONSTANT, lambda t: 0.3, []),
    "piecewise": (PIECEWISE, lambda t: 0.5 if t < 1.1 else 0.0 if t < 2.3 else 0.2, [1.1, 2.3]),
    "cosine": (COSINE, lambda t: 0.1 + 0.2 * (1 + np.cos(np.pi * t / 4)), []),
}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    return ddln.least_squares(rng.standard_normal((5, 6)), rng.standard_normal(5))


def all_kinds(depth):
    """Layers with open, half-line, frozen and zero coordinates."""
    rng = np.random.default_rng(depth)
    layers = rng.uniform(0.3, 1.1, (depth, 6)) * rng.choice([-1.0, 1.0], (depth, 6))
    layers[0, 1], layers[1, 1] = 0.2, -0.2
    layers[:2, 2] = 0.0
    layers[0, 3] = 0.0
    return layers


def by_scipy(problem, layers, omega, jumps):
    """The layers at `TIMES`, by DOP853 from each jump of ω to the next."""
    features, targets = np.asarray(problem.features), np.asarray(problem.targets)

    def rate(t, flat):
        u = flat.reshape(layers.shape)
        gradient = 2 * features.T @ (features @ u.prod(0) - targets)
        others = [np.delete(u, j, 0).prod(0) for j in range(len(u))]
        return (-gradient * np.array(others) - omega(t) * u).ravel()

    stops = sorted({*TIMES, *jumps})
    path = {0.0: layers.ravel()}
    for start, end in itertools.pairwise(stops):

        def before_the_end(t, flat, last=end - 1e-12):  # where ω may jump
            return rate(min(t, last), flat)

        control = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-14}
        path[end] = solve_ivp(before_the_end, (start, end), path[start], **control).y[:, -1]
    return np.array([path[t] for t in TIMES]).reshape(-1, *layers.shape)


@pytest.mark.parametrize("schedule", FORMULAS)
def test_dose_is_the_integral_of_the_rate(schedule):
    decay, omega, jumps = FORMULAS[schedule]
    for t in (0.0, 0.7, 1.1, 1.9, 3.5):
        reference, _ = quad(omega, 0.0, t, points=[x for x in jumps if x < t] or None)
        np.testing.assert_allclose(decay.dose(t), reference, atol=1e-12)
        np.testing.assert_allclose(decay.rate(t), omega(t), atol=ROUNDING)


QUICK = ("piecewise", 3)  # each case compiles five solvers
CASES = [
    pytest.param(*case, marks=[] if case == QUICK else pytest.mark.slow)
    for case in itertools.product(FORMULAS, range(2, 9))
]


@pytest.mark.parametrize(("schedule", "depth"), CASES)
def test_every_flow_agrees_with_scipy_on_the_layers(problem, schedule, depth):
    decay, omega, jumps = FORMULAS[schedule]
    layers = all_kinds(depth)
    reference = by_scipy(problem, layers, omega, jumps)
    reduced = gradient_flow(problem, layers, TIMES, weight_decay=decay, **TIGHT)
    direct = gradient_flow(
        problem, layers, TIMES, weight_decay=decay, coordinates="layers", **TIGHT
    )
    mirror = ddln.mirror_flow(problem, layers, TIMES, weight_decay=decay, **TIGHT)
    runs = {"reduced": reduced, "layers": direct, "mirror": mirror}
    for solver in ("tsit5", "rodas5p"):
        networks = np.stack([layers, 0.9 * layers])
        flows = ddln.gradient_flows(
            problem, networks, TIMES, weight_decay=decay, solver=solver, **TIGHT
        )
        runs[solver] = jax.tree.map(lambda x: x[0], flows.trajectories())
        np.testing.assert_allclose(flows.theta[0], reference.prod(1), atol=AGAINST_SCIPY)
    for name, run in runs.items():
        np.testing.assert_allclose(run.layers, reference, atol=AGAINST_SCIPY, err_msg=name)
        theta = reference.prod(1)
        features, targets = np.asarray(problem.features), np.asarray(problem.targets)
        gradients = 2 * (theta @ features.T - targets) @ features
        velocity = -jax.vmap(ddln.mobility)(reference) * gradients
        velocity -= depth * np.vectorize(omega)(TIMES)[:, None] * theta
        np.testing.assert_allclose(run.velocity, velocity, atol=1e2 * AGAINST_SCIPY, err_msg=name)


@pytest.mark.parametrize("depth", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_flow_after_decay_depends_on_the_dose_only(depth):
    """A linear model that interpolates: the flow of e^{−Ω} u(0) ends where it ends."""
    rng = np.random.default_rng(3)
    problem = ddln.least_squares(rng.standard_normal((3, 6)), rng.standard_normal(3))
    layers, dose = np.abs(all_kinds(depth)) + np.linspace(0.1, 1.0, depth)[:, None], 0.4
    schedules = [
        weight_decay.piecewise(rates, until=[1.0, 2.0, 4.0, np.inf])
        for rates in ([dose, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.0])
    ]
    times = [0.0, 6.0, 400.0]
    expected = ddln.limit_point(problem, np.exp(-dose) * layers)
    without = ddln.limit_point(problem, layers)
    assert np.abs(expected - without).max() > 1e-3
    for schedule in schedules:
        run = gradient_flow(problem, layers, times, weight_decay=schedule, rtol=1e-12, atol=1e-15)
        assert run.decay is not None
        np.testing.assert_allclose(run.decay.dose[-1], dose, rtol=ROUNDING)
        np.testing.assert_allclose(run.theta[-1], expected, atol=DOSE_LAW)


@pytest.mark.slow
def test_each_network_has_its_own_decay(problem):
    layers, rates = all_kinds(3), jnp.array([0.0, 0.4])
    networks = jnp.stack([layers, layers])
    expected = [by_scipy(problem, layers, lambda t, w=w: w, []).prod(1) for w in (0.0, 0.4)]
    cosines = jax.vmap(lambda w: weight_decay.cosine(w, until=3.0, final=w))(rates)
    for decay in (rates, cosines):
        flows = ddln.gradient_flows(problem, networks, TIMES, weight_decay=decay, **TIGHT)
        np.testing.assert_allclose(flows.theta, expected, atol=AGAINST_SCIPY)


def test_time_of_a_schedule_is_that_of_the_run(problem):
    layers = all_kinds(3)
    whole = gradient_flow(problem, layers, TIMES, weight_decay=PIECEWISE, **TIGHT)
    later = TIMES[2] + TIMES
    rest = gradient_flow(problem, whole.layers[2], later, weight_decay=PIECEWISE, **TIGHT)
    np.testing.assert_allclose(rest.theta[:5], whole.theta[2:], atol=AGAINST_SCIPY)


@pytest.mark.slow
def test_derivative_in_omega_matches_finite_differences(problem):
    layers = all_kinds(3)

    def end(omega):
        return gradient_flow(problem, layers, TIMES, weight_decay=omega, **TIGHT).loss[-1]

    difference = (end(0.3 + 1e-4) - end(0.3 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.jit(jax.grad(end))(0.3), difference, rtol=1e-5)


def test_large_doses_reach_the_minimum_of_the_lasso():
    """A dose of 300, where e^{LΩ} is no number. The minimum in closed form: soft thresholding."""
    problem = ddln.least_squares(np.diag([1.0, 2.0, 0.5]), [2.0, -1.0, 0.1])
    layers = [[0.1, 0.1, 0.1], [1.0, 1.5, 1.0]]
    run = gradient_flow(problem, layers, [0.0, 10.0, 300.0], weight_decay=1.0, rtol=1e-12)
    drive, curvature = np.array([4.0, -4.0, 0.1]), np.array([2.0, 8.0, 0.5])
    expected = np.sign(drive) * np.maximum(np.abs(drive) - 1.0, 0.0) / curvature
    np.testing.assert_allclose(run.theta[-1], expected, atol=SAME_MINIMUM)


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        (lambda: -0.1, r"`weight_decay` must be ≥ 0, got -0\.1"),
        (lambda: np.nan, "`weight_decay` must be finite, got nan"),
        (lambda: weight_decay.cosine(0.1, until=2.0), "`weight_decay` must cover all of `times`"),
        (lambda: 200.0, r"dose ∫ω of at most 355 over `times` .* got up to 600"),
        (lambda: [0.1, 0.2], r"must be one schedule or one for each of \(\) runs, got \(2,\)"),
        (lambda: weight_decay.constant(-1.0), r"`rate` must be ≥ 0, got -1\.0"),
        (lambda: weight_decay.constant(1.0, until=0.0), "`until` must be > 0"),
        (lambda: weight_decay.piecewise([0.1, np.inf], [1, 2]), "`rates` must be finite"),
        (lambda: weight_decay.piecewise([0.1, 0.2], [2.0, 1.0]), "`until` must increase"),
        (lambda: weight_decay.piecewise([0.1], [1.0, 2.0]), "`until` must have an end for each"),
        (lambda: weight_decay.cosine(0.1, until=2.0, final=-1.0), "`final` must be ≥ 0"),
    ],
)
def test_invalid_decay_is_refused(problem, decay, message):
    with pytest.raises(ValueError, match=message):
        gradient_flow(problem, all_kinds(3), TIMES, weight_decay=decay())


def test_layers_take_any_dose(problem):
    times = [0.0, 1.0, 3.0]
    run = gradient_flow(problem, all_kinds(3), times, weight_decay=200.0, coordinates="layers")
    assert np.abs(run.layers[-1]).max() < 1e-12


def test_target_gap_is_refused_under_decay(problem):
    with pytest.raises(ValueError, match="`target_gap` must be None under weight decay"):
        ddln.gradient_flows(problem, all_kinds(3)[None], TIMES, weight_decay=0.1, target_gap=1e-3)
