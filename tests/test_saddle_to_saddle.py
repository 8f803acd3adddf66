"""Escape times and saddle paths against closed forms, published numbers and the flow itself."""

import diffrax
import jax.numpy as jnp
import mpmath
import numpy as np
import optimistix
import pytest
from scipy.integrate import quad, solve_ivp

import ddln
from ddln import theory
from ddln.theory.saddle_to_saddle import GrowthRange, SaddlePath

ONE = ddln.least_squares([[1.0]], [1.0], normalisation="half")
HALF = ddln.least_squares([[1.0]], [2.0], normalisation="half")
STAIRS = ddln.least_squares(
    [[1.0, 0.5, 0.7, 0.0], [0.5, 1.0, 0.1, 0.7]], [1.0, 0.0], normalisation="half"
)


SHOWN = (1.0017010, 4.0357658, 5.5116408)  # in experiments/saddle_to_saddle.py and on its page
QUAD = 1e-9  # SciPy's
EVENT = 1e-8  # SciPy's, where it looks for the time of an event between steps at rtol 1e-11
CHORD = (0.04 / 80) ** 2 / 4  # h² |θ''/θ'| / 8 in units of ln(1/α), where |θ''/θ'| ≤ 2 ‖Xᵀy‖∞ = 2


def by_radau(unit, levels):
    """When each θ_k passes its level, on the mirror flow ξ' = Xᵀ(y − Xθ), θ = α² sinh 2ξ."""
    features, targets = map(np.asarray, STAIRS.minimisers())

    def halves(xi):
        both = 2 * np.array([xi - unit, -xi - unit])
        return np.exp(np.minimum(both, 50)) / 2  # a trial of Newton's method may be far off

    def theta(xi):
        return np.subtract(*halves(xi))

    run = solve_ivp(
        lambda t, xi: features.T @ (targets - features @ theta(xi)),
        (0.0, 6 * unit),
        np.zeros(4),
        method="Radau",
        jac=lambda t, xi: -(features.T @ features) * (2 * np.add(*halves(xi))),
        events=[
            lambda t, xi, k=k, level=level: theta(xi)[k] - level for k, level in levels.items()
        ],
        rtol=1e-11,
        atol=1e-11,
    )
    return [times[0] / unit for times in run.t_events]


def zero_last(depth, scale, dim=1):
    return jnp.full((depth, dim), scale).at[-1].set(0.0)


def crossings(times, theta, levels):
    """When each |θ_k| first passes a level, between saved times on a straight line."""
    found = []
    for k, level in levels.items():
        height = np.sign(level) * np.asarray(theta)[:, k]
        i = int(np.argmax(height > abs(level)))
        found.append(np.interp(abs(level), height[i - 1 : i + 1], times[i - 1 : i + 1]))
    return found


@pytest.mark.parametrize(
    ("depth", "published", "half_time"),
    [(3, 157.080, 156.229), (4, 10000.0, 9999.73), (5, 785398.16, None)],
)
def test_escape_time_has_its_closed_form_and_the_flow_escapes_then(depth, published, half_time):
    layers = zero_last(depth, 0.01)
    gammas = mpmath.gammaprod([mpmath.mpf(depth - 2) / 2], [mpmath.mpf(depth - 1) / 2])
    expected = float(mpmath.mpf("0.01") ** (2 - depth) * mpmath.sqrt(mpmath.pi) / 2 * gammas)
    found = float(ddln.escape_times(ONE, layers)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found, published, rtol=5e-6)
    if half_time is not None:
        near = half_time + np.linspace(-0.02, 0.02, 9)
        run = ddln.gradient_flow(ONE, layers, np.concatenate([[0.0], near]))
        (crossed,) = crossings(np.asarray(run.times), run.theta, {0: 0.5})
        np.testing.assert_allclose(crossed, half_time, atol=6e-3)


@pytest.mark.parametrize("target", [3.0, -2.0])
def test_escape_time_matches_quadrature(target):
    layers = np.array([[0.3], [0.01], [0.2]])
    first, second = 0.3**2 - 0.01**2, 0.2**2 - 0.01**2
    # As w, the smallest layer, moves, ∇Q changes by dw over the product of the others.
    ends = (0.01, np.inf) if target > 0 else (-np.inf, 0.01)
    end, _ = quad(lambda w: 1 / np.sqrt((w**2 + first) * (w**2 + second)), *ends, epsrel=QUAD / 10)
    problem = ddln.least_squares([[1.0]], [target], normalisation="half")
    expected = end / abs(target - layers.prod())
    np.testing.assert_allclose(ddln.escape_times(problem, layers)[0], expected, rtol=QUAD)


def test_escape_time_is_infinite_without_gradient_at_depth_two_or_frozen():
    assert jnp.isinf(ddln.escape_times(ONE, zero_last(2, 0.1))[0])
    assert jnp.isinf(ddln.escape_times(ONE, zero_last(3, 0.1), [1.0])[0])
    assert jnp.isinf(ddln.escape_times(ONE, jnp.zeros((3, 1)))[0])
    down = ddln.least_squares([[1.0]], [-1.0])
    assert jnp.isinf(ddln.escape_times(down, jnp.full((3, 1), 0.1))[0])  # towards the end 0


def test_saddle_path_of_depth_two_matches_published_visits():
    path = theory.saddle_path(STAIRS, zero_last(2, 1.0, 4))
    np.testing.assert_allclose(path.times, [0, 1, 4, 5.63265306], atol=1e-8)
    visits = [[0, 0, 0, 0], [0.8, 0, 0, 0], [0, 0, 1.4, 0], [0, 0, 10 / 7, -10 / 49]]
    np.testing.assert_allclose(path.theta, visits, atol=1e-12)
    signed = theory.saddle_path(ddln.signed(STAIRS), ddln.init.signed(jnp.ones((2, 4))))
    np.testing.assert_allclose(signed.times, path.times, atol=1e-8)
    np.testing.assert_allclose(signed.theta[:, :4] - signed.theta[:, 4:], visits, atol=1e-12)


def test_time_average_of_the_saddle_path_matches_quadrature():
    theta = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, -3.0]])
    path = SaddlePath(np.array([0.0, 1.0, 2.5]), theta, GrowthRange(-np.ones(2), np.ones(2)))
    grid = (np.arange(40_000) + 0.5) / 10_000  # midpoints
    theta = path.theta[np.searchsorted(path.times, grid, side="right") - 1]
    for t, found in zip((0.5, 1.7, 4.0), path.time_average([0.5, 1.7, 4.0]), strict=True):
        np.testing.assert_allclose(found, theta[grid < t].mean(axis=0), atol=1e-12)


def test_flow_climbs_the_staircase_at_scale_1e_minus_60():
    # A jump is when the entering coordinate passes half its height at the next saddle: .4, .7, .1.
    unit = 60 * np.log(10)
    jumps = by_radau(unit, {0: 0.4, 2: 0.7, 3: -0.1})
    np.testing.assert_allclose(jumps[0], 1 + np.log(1.6) / 2 / unit, rtol=EVENT)  # alone: exactly
    np.testing.assert_allclose(jumps, SHOWN, atol=5e-8)  # the digits given
    times = np.concatenate([[0.0], *[t + np.linspace(-0.02, 0.02, 81) for t in jumps]]) * unit
    run = ddln.gradient_flow(STAIRS, zero_last(2, np.sqrt(2) * 1e-60, 4), times, rtol=1e-8)
    found = crossings(times / unit, run.theta, {0: 0.4, 2: 0.7, 3: -0.1})
    np.testing.assert_allclose(found, jumps, atol=CHORD * unit)


def test_saddle_path_of_depth_three_matches_the_flow_at_small_scale():
    scale = 1e-3
    path = theory.saddle_path(STAIRS, zero_last(3, 1.0, 4))
    times = np.linspace(0, 1.3 * path.times[-1] / scale, 1301)
    run = ddln.gradient_flow(
        STAIRS,
        zero_last(3, scale, 4),
        times,
        rtol=1e-6,
        atol=1e-9,
        solver=diffrax.Kvaerno5(root_finder=optimistix.Newton(rtol=1e-8, atol=1e-10)),
    )
    entering, levels = set(), {}
    for before, after in zip(path.theta[:-1], path.theta[1:], strict=True):
        for k in np.flatnonzero((before == 0) & (after != 0)):
            entering.add(int(k))
            levels[int(k)] = after[k] / 2
    found = crossings(times * scale, run.theta, levels)
    np.testing.assert_allclose(found, path.times[1:], rtol=2e-2)
    np.testing.assert_allclose(run.theta[-1], path.theta[-1], atol=2e-2)


LAYERS = {
    "two layers": zero_last(2, 1.0, 4),
    "three layers": np.array([[0.9, 1.3, 0.7, 1.1], [1.2, 0.8, 1.0, 0.6], [0.0, 0.2, -0.3, 0.1]]),
    "a half-line, and a frozen coordinate": [[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]],
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_saddle_has_the_least_weighted_l1_norm(kind):
    path = theory.saddle_path(STAIRS, LAYERS[kind])
    assert len(path.times) > 2
    np.testing.assert_allclose(theory.excess_norm(STAIRS, path), 0.0, atol=1e-9)


def test_a_point_that_is_not_of_least_norm_has_an_excess():
    path = theory.saddle_path(STAIRS, zero_last(2, 1.0, 4))
    kernel = np.linalg.svd(np.asarray(STAIRS.features))[2][-1]
    theta = path.theta + 0.01 * kernel
    l1 = np.abs(theta).sum(axis=1)
    excess = theory.excess_norm(STAIRS, path._replace(theta=theta))
    # The point of least ℓ1 norm with the predictions of a saddle is the saddle itself.
    expected = (l1 - np.abs(path.theta).sum(axis=1)) / l1
    np.testing.assert_allclose(excess, expected, atol=1e-9)
    assert (excess > 1e-4).all()


def test_two_analytic_layers_climb_their_own_staircase():
    """w₀² − 2w₁², whose θ_k turns negative in half the time: θ = α² (e^{4s} − 2e^{−8s})."""
    growth = theory.growth_range(lambda w: w[0] ** 2 - 2 * w[1] ** 2, jnp.zeros((2, 4)))
    np.testing.assert_allclose(growth, [[-0.25] * 4, [0.5] * 4], rtol=1e-14)
    path = theory.saddle_path(STAIRS, growth)
    np.testing.assert_allclose(theory.excess_norm(STAIRS, path), 0.0, atol=1e-9)
    features, targets = map(np.asarray, STAIRS.minimisers())
    unit = 200 * np.log(10)

    def powers(s):
        return np.exp(np.minimum([4 * s - 2 * unit, -8 * s - 2 * unit], 50))

    def theta(s):
        return np.array([1, -2]) @ powers(s)

    middles = unit * np.append((path.times[1:-1] + path.times[2:]) / 2, path.times[-1] + 1)
    run = solve_ivp(
        lambda t, s: features.T @ (targets - features @ theta(s)),
        (0.0, middles[-1]),
        np.zeros(4),
        method="Radau",
        jac=lambda t, s: -(features.T @ features) * (np.array([4, 16]) @ powers(s)),
        t_eval=middles,
        rtol=1e-8,
        atol=1e-8,
    )
    between = np.array([theta(s) for s in run.y.T])
    np.testing.assert_allclose(between, path.theta[1:], atol=1e-6)


def test_growth_of_products_is_that_of_two_layers():
    growth = theory.growth_range(lambda w: jnp.sinh(w[0]) * jnp.expm1(w[1]), jnp.zeros((2, 4)))
    path = theory.saddle_path(STAIRS, growth)
    expected = theory.saddle_path(STAIRS, zero_last(2, 1.0, 4))
    np.testing.assert_allclose(path.times, expected.times, rtol=1e-12)
    with pytest.raises(ValueError, match=r"`saddle` must have G\(w_k\) = 0"):
        theory.growth_range(lambda w: w[0] * w[1], [[0.0], [1.0]])
    with pytest.raises(ValueError, match="`layers` must have 4 coordinates, got 1"):
        theory.saddle_path(STAIRS, GrowthRange(-np.ones(1), np.ones(1)))


def test_invalid_input_is_named():
    with pytest.raises(RuntimeError, match="more than 1 jumps"):
        theory.saddle_path(STAIRS, zero_last(2, 1.0, 4), max_jumps=1)
    with pytest.raises(ValueError, match=r"shape \(depth, 4\), got \(3, 1\)"):
        ddln.escape_times(STAIRS, zero_last(3, 1.0), jnp.zeros(4))


@pytest.mark.parametrize("depth", [2, 3])
def test_frozen_coordinate_leaves_the_saddle_path_unchanged(depth):
    without = ddln.least_squares(
        np.delete(np.asarray(STAIRS.features), 2, axis=1), STAIRS.targets, normalisation="half"
    )
    path = theory.saddle_path(without, zero_last(depth, 1.0, 3))
    frozen = theory.saddle_path(STAIRS, zero_last(depth, 1.0, 4).at[0, 2].set(0.0))
    np.testing.assert_allclose(frozen.times, path.times, rtol=1e-12)
    np.testing.assert_allclose(frozen.theta, np.insert(path.theta, 2, 0.0, axis=1), atol=1e-12)


def test_rounded_jump_time_gives_one_jump():
    assert 1 / 49 * 49 < 1  # so that at its end it is not quite there
    problem = ddln.least_squares([[1.0]], [49.0], normalisation="half")
    path = theory.saddle_path(problem, zero_last(2, 1.0))
    np.testing.assert_array_equal(path.times, [0.0, 1 / 49])
    np.testing.assert_allclose(path.theta, [[0.0], [49.0]], rtol=1e-12)


@pytest.mark.parametrize("wrap", [lambda problem: problem, ddln.signed], ids=["plain", "signed"])
def test_saddle_path_rejects_other_losses(wrap):
    problem = wrap(ddln.logistic([[1.0], [1.0]], [1, -1]))
    with pytest.raises(ValueError, match="must be least squares, signed or not, got Logistic"):
        theory.saddle_path(problem, zero_last(2, 1.0, problem.dim))


def test_saddle_path_in_single_precision_is_the_same():
    problem = ddln.least_squares(
        *(np.asarray(part, np.float32) for part in STAIRS.minimisers()), normalisation="half"
    )
    path = theory.saddle_path(problem, np.asarray(zero_last(2, 1.0, 4), np.float32))
    np.testing.assert_allclose(path.times, [0, 1, 4, 5.63265306], rtol=1e-5)


def test_wrong_saddle_from_scipy_is_an_error(monkeypatch):
    monkeypatch.setattr("scipy.optimize.nnls", lambda columns, _: (np.ones(columns.shape[1]), 0.0))
    with pytest.raises(RuntimeError, match=r"violates the optimality conditions by 5\.0e-01"):
        theory.saddle_path(HALF, zero_last(2, 1.0, 1))

    def failing(*_):
        raise RuntimeError("Maximum number of iterations reached.")

    monkeypatch.setattr("scipy.optimize.nnls", failing)
    with pytest.raises(RuntimeError, match="find a saddle of `problem`: Maximum number"):
        theory.saddle_path(HALF, zero_last(2, 1.0, 1))
