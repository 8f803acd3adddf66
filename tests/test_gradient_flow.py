"""Flows against SciPy's DOP853 on the layers, closed forms, and each other."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ddln
from ddln.solvers import gradient_flow

TIMES = np.linspace(0.0, 2.0, 9)
AGREEMENT = 1e-8
EASY = ddln.least_squares([[1.0]], [2.0])


def network(seed, depth, samples, dim):
    rng = np.random.default_rng(seed)
    problem = ddln.least_squares(rng.normal(size=(samples, dim)), rng.normal(size=samples))
    return problem, rng.uniform(0.5, 1.1, size=(depth, dim)) * rng.choice([-1, 1], (depth, dim))


def reference(problem, layers, times):
    """The definition: u̇^j = −∇ℒ(θ) ⊙ Π_{i≠j} uⁱ, in NumPy, by DOP853."""
    features, targets = np.asarray(problem.features), np.asarray(problem.targets)
    depth, dim = layers.shape

    def rate(_, flat):
        u = flat.reshape(depth, dim)
        gradient = 2 * features.T @ (features @ u.prod(axis=0) - targets)
        return -np.concatenate([gradient * np.delete(u, j, 0).prod(axis=0) for j in range(depth)])

    span = times[0], times[-1]
    solution = solve_ivp(rate, span, layers.ravel(), "DOP853", t_eval=times, rtol=1e-12, atol=1e-13)
    return solution.y.T.reshape(-1, depth, dim)


OTHERS = [(2, 6, 1), (12, 5, 3), (3, 30, 200)]


@pytest.mark.parametrize(
    ("depth", "samples", "dim"),
    [(5, 5, 3), *(pytest.param(*size, marks=pytest.mark.slow) for size in OTHERS)],
)
def test_every_formulation_agrees_with_scipy_on_the_layers(depth, samples, dim):
    problem, layers = network(depth, depth, samples, dim)
    expected = reference(problem, layers, TIMES)
    runs = [
        ddln.gradient_flow(problem, layers, TIMES, rtol=1e-10, atol=1e-13),
        ddln.gradient_flow(problem, layers, TIMES, coordinates="layers", rtol=1e-11),
    ]
    if dim < 100:  # inverting the mirror map at every step takes its time
        runs.append(ddln.mirror_flow(problem, layers, TIMES))
    for run in runs:
        np.testing.assert_allclose(run.layers, expected, atol=AGREEMENT)
        np.testing.assert_allclose(run.theta, expected.prod(axis=1), atol=AGREEMENT)
        np.testing.assert_allclose(run.loss - problem.minimum, run.gap, atol=1e-12)


def test_default_tolerances_reach_the_reference():
    problem, layers = network(1, 3, 6, 4)
    run = ddln.gradient_flow(problem, layers, TIMES)
    np.testing.assert_allclose(run.layers, reference(problem, layers, TIMES), atol=AGREEMENT)


def test_balanced_depth_two_is_the_logistic_curve():
    problem = ddln.least_squares([[1.0]], [2.0], normalisation="half")
    start, target = 0.01, 2.0
    run = ddln.gradient_flow(problem, np.full((2, 1), start**0.5), TIMES, rtol=1e-11)
    curve = target / (1 + (target / start - 1) * np.exp(-2 * target * TIMES))
    np.testing.assert_allclose(run.theta[:, 0], curve, rtol=1e-9)


def test_frozen_coordinates_stay_at_the_saddle():
    problem, layers = network(2, 3, 6, 4)
    layers[:2, 1] = 0.0
    run = ddln.gradient_flow(problem, layers, TIMES)
    assert (run.theta[:, 1] == 0).all()
    np.testing.assert_allclose(run.layers, reference(problem, layers, TIMES), atol=AGREEMENT)


def test_velocity_is_the_derivative_of_theta():
    problem, layers = network(3, 3, 6, 4)
    times = np.array([*TIMES[:2], 0.5 - 1e-4, 0.5, 0.5 + 1e-4, *TIMES[5:]])
    run = ddln.gradient_flow(problem, layers, times, rtol=1e-12, atol=1e-14)
    finite = np.diff(np.asarray(run.theta)[[2, 4]], axis=0)[0] / 2e-4
    np.testing.assert_allclose(np.asarray(run.velocity)[3], finite, rtol=1e-5, atol=1e-7)


def test_start_time_does_not_matter():
    problem, layers = network(4, 3, 6, 4)
    late = ddln.gradient_flow(problem, layers, TIMES + 2.0**45)  # exact: TIMES are quarters
    np.testing.assert_array_equal(late.theta, ddln.gradient_flow(problem, layers, TIMES).theta)


def test_implicit_solver_agrees_with_the_reference():
    problem, layers = network(5, 3, 6, 4)
    run = ddln.gradient_flow(problem, layers, TIMES, solver=diffrax.Kvaerno5(), rtol=1e-8)
    np.testing.assert_allclose(run.layers, reference(problem, layers, TIMES), atol=1e-6)


def test_vmap_agrees_with_eager_flows():
    problem, layers = network(6, 3, 6, 4)
    scales = np.array([0.8, 1.2])

    def theta(scale):
        return ddln.gradient_flow(problem, scale * layers, TIMES).theta

    loop = np.stack([theta(scale) for scale in scales])
    np.testing.assert_allclose(jax.vmap(theta)(scales), loop, rtol=1e-9)


@pytest.mark.parametrize(
    "adjoint", [None, pytest.param(diffrax.ForwardMode(), marks=pytest.mark.slow)]
)
def test_jit_agrees_with_eager_flows_and_gradients_with_finite_differences(adjoint):
    problem, layers = network(7, 3, 6, 4)
    times = np.array([0.0, 0.3])

    def loss(scale):
        run = ddln.gradient_flow(
            problem, scale * layers, times, rtol=1e-10, atol=1e-13, adjoint=adjoint
        )
        return run.loss[-1]

    step = 1e-5
    finite = (loss(1.0 + step) - loss(1.0 - step)) / (2 * step)
    derivative = jax.jacfwd if adjoint else jax.grad
    value, slope = jax.jit(lambda scale: (loss(scale), derivative(loss)(scale)))(1.0)
    np.testing.assert_allclose(value, loss(1.0), rtol=1e-12)
    np.testing.assert_allclose(slope, finite, rtol=1e-6)


def test_results_keep_single_precision():
    problem = ddln.least_squares(np.ones((1, 1), np.float32), np.ones(1, np.float32))
    layers = np.array([[0.0], [1.0]], np.float32)
    run = ddln.gradient_flow(problem, layers, [0.0, 1.0], rtol=1e-4, atol=1e-6)
    assert run.theta.dtype == jnp.float32


def test_failed_flow_raises_with_advice():
    with pytest.raises(RuntimeError, match=r"\(max_steps\) after 1 steps: .* raise max_steps"):
        ddln.gradient_flow(EASY, [[0.1], [1.0]], [0.0, 1.0], max_steps=1)
    run = ddln.gradient_flow(EASY, [[0.1], [1.0]], [0.0, 1.0], max_steps=1, throw=False)
    assert not run.ok
    assert jnp.isnan(run.theta[-1]).all()
    assert "max_steps" in repr(run)


@pytest.mark.slow
def test_failure_does_not_affect_other_flows_of_a_vmap():
    scales = np.array([1.0, 1e3])

    def run(scale):
        layers = scale * np.array([[0.1], [1.0]])
        return ddln.gradient_flow(EASY, layers, [0.0, 1.0], max_steps=200, throw=False)

    runs = jax.vmap(run)(scales)
    assert runs.ok.tolist() == [True, False]
    np.testing.assert_allclose(runs.theta[0], run(1.0).theta, rtol=1e-9)


@pytest.mark.parametrize(
    ("layers", "times", "options", "message"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0], {}, r"shape \(depth, 1\) .* got \(2, 2\)"),
        ([[1.0], [2.0]], [0.0], {}, "at least two times, got 1"),
        ([[1.0], [2.0]], [0.0, 0.0], {}, "strictly increasing"),
        ([[1.0], [2.0]], [-1.0, 0.0], {}, "must be ≥ 0"),
        ([[1.0], [2.0]], [0.0, 1.0], {"rtol": 0.0}, "`rtol` must be > 0, got 0.0"),
        ([[1.0], [2.0]], [0.0, 1.0], {"max_steps": 0}, "`max_steps` must be ≥ 1, got 0"),
        (
            [[1.0], [2.0]],
            [0.0, 1.0],
            {"coordinates": "polar"},
            "'reduced' or 'layers', got 'polar'",
        ),
    ],
)
def test_invalid_arguments_are_errors(layers, times, options, message):
    with pytest.raises(ValueError, match=message):
        ddln.gradient_flow(EASY, layers, times, **options)


@pytest.mark.slow
def test_frozen_coordinates_do_not_disturb_a_long_run():
    problem = ddln.least_squares(np.eye(2), [1.0, 1.0])
    times = [0.0, 500.0]
    for solve in (ddln.gradient_flow, ddln.mirror_flow):
        run = solve(problem, [[0.0, 0.5], [0.0, 1.0]], times)
        assert (run.theta[:, 0] == 0).all()
        np.testing.assert_allclose(run.theta[-1, 1], 1.0, rtol=AGREEMENT)


def test_network_with_three_zero_layers_is_stationary():
    problem, layers = network(8, 3, 6, 4)
    layers[:, 0] = 0.0
    run = ddln.gradient_flow(problem, layers, TIMES)
    assert (np.asarray(run.velocity)[:, 0] == 0).all()


def test_half_line_coordinate_tends_to_zero():
    problem = ddln.least_squares([[1.0]], [-1.0], normalisation="half")
    times = np.array([0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 500.0, 1000.0])
    theta = np.asarray(ddln.gradient_flow(problem, np.ones((2, 1)), times).theta)
    # Near 0 the gradient is 1, and θ̇ = −2θ.
    np.testing.assert_allclose(theta[5] / theta[4], np.exp(-2 * 20.0), rtol=1e-4)
    assert theta[-1] == 0


@pytest.mark.parametrize(
    ("solve", "finest"), [(ddln.gradient_flow, 1e-9), (ddln.mirror_flow, 1e-10)]
)
def test_default_tolerances_depend_on_the_precision(solve, finest):
    rounding = np.finfo(np.float32).eps
    for dtype, rtol, atol in (
        (np.float64, finest, 1e-3 * finest),
        (np.float32, 100 * rounding, rounding / 10),
    ):
        problem = ddln.least_squares(np.ones((1, 1), dtype), np.ones(1, dtype))
        run = solve(problem, np.array([[0.0], [1.0]], dtype), [0.0, 0.1], throw=False)
        np.testing.assert_array_equal([run.rtol, run.atol], np.array([rtol, atol], dtype))


def test_tolerance_below_machine_epsilon_warns():
    problem = ddln.least_squares(np.ones((1, 1), np.float32), np.ones(1, np.float32))
    with pytest.warns(UserWarning, match="finer than the 1e-07 of float32"):
        ddln.gradient_flow(
            problem, np.array([[0.0], [1.0]], np.float32), [0.0, 0.1], rtol=1e-9, throw=False
        )
    gradient_flow.as_tolerances(
        float(np.finfo(np.float32).eps), None, 1e-9, jnp.dtype("float32")
    )  # no warning


@pytest.mark.parametrize("solve", [ddln.gradient_flow, ddln.mirror_flow])
def test_flow_with_infinite_loss_is_not_ok(solve):
    # θ and its velocity stay finite, but (θ − y)² overflows.
    problem = ddln.least_squares([[1.0]], [1e160])
    run = solve(problem, [[0.0], [1.0]], [0.0, 1e-165], throw=False)
    assert np.isfinite(run.theta).all()
    assert np.isfinite(run.velocity).all()
    assert run.status_names[int(run.status)] == "diverged"
