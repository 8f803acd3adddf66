"""Rates and bounds against their formulas, long runs and the Hessian."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln import theory

RNG = np.random.default_rng(0)
PROBLEM = ddln.least_squares(RNG.normal(size=(10, 6)), RNG.normal(size=10))
assert PROBLEM.pl_constant is not None
MU = float(PROBLEM.pl_constant)
LAYERS = RNG.uniform(0.5, 1.2, size=(4, 6))


def test_rate_bound_matches_its_formula():
    squares = np.sort(LAYERS**2, axis=0)
    gaps = squares[1:] - squares[:1]
    expected = MU * gaps.prod(axis=0).min()
    np.testing.assert_allclose(ddln.rate_bound(PROBLEM, LAYERS), expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1.4, 1.8])
def test_rate_bound_scales_with_the_layers(scale):
    ratio = ddln.rate_bound(PROBLEM, scale * LAYERS) / ddln.rate_bound(PROBLEM, LAYERS)
    np.testing.assert_allclose(ratio, scale ** (2 * (4 - 1)), rtol=1e-10)


def test_rate_bound_needs_a_pl_constant():
    with pytest.raises(ValueError, match=r"must have a PL constant .*, got None"):
        ddln.rate_bound(ddln.logistic([[1.0]], [1.0]), [[0.0], [1.0]])


def test_rate_bound_of_tied_layers_is_zero():
    assert ddln.rate_bound(PROBLEM, jnp.ones((3, 6))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3])
def test_asymptotic_rate_matches_a_long_run(depth):
    rng = np.random.default_rng(depth)
    problem = ddln.least_squares(rng.normal(size=(4, 2)), rng.normal(size=4))
    layers = rng.uniform(0.6, 1.2, size=(depth, 2))
    rough = ddln.gradient_flow(problem, layers, [0.0, 50.0])
    rates, _ = theory.mode_rates(problem, rough.theta[-1], layers)
    # Late enough for the faster mode to be e^20 times smaller, while the gap is above rounding.
    late = min(10 / float(rates[1] - rates[0]), 12 / float(rates[0]))
    times = jnp.array([0.0, late, late * 1.2])
    run = ddln.gradient_flow(problem, layers, times, rtol=1e-12, atol=1e-15)
    measured = jnp.log(run.gap[1] / run.gap[2]) / (2 * 0.2 * late)
    predicted = ddln.asymptotic_rate(problem, run.theta[-1], layers)
    np.testing.assert_allclose(measured, predicted, rtol=0.02)


def test_asymptotic_rate_ignores_directions_that_do_not_move():
    wide = ddln.least_squares(RNG.normal(size=(3, 6)), RNG.normal(size=3))
    rates, _ = theory.mode_rates(wide, np.ones(6), LAYERS)
    assert (rates > 0).sum() == 3
    assert ddln.asymptotic_rate(wide, np.ones(6), LAYERS) == rates[rates > 0][0]


@pytest.mark.parametrize(("samples", "dim"), [(3, 6), (8, 3)], ids=["wide", "tall"])
def test_asymptotic_rate_of_deficient_data_is_the_smallest_nonzero_rate(samples, dim):
    rng = np.random.default_rng(samples)
    features = 0.1 * rng.normal(size=(samples, 2)) @ rng.normal(size=(2, dim))
    problem, layers = ddln.least_squares(features, rng.normal(size=samples)), LAYERS[:, :dim]
    rows = features * np.sqrt(ddln.mobility(layers))
    expected = 2 * np.linalg.svd(rows, compute_uv=False)[1] ** 2
    assert expected < 1
    found = ddln.asymptotic_rate(problem, np.prod(layers, axis=0), layers)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["least squares", "signed", "logistic"])
def test_modes_of_few_samples_are_eigenvectors_of_the_hessian(kind):
    features, targets = RNG.normal(size=(3, 6)), np.array([1.0, -1.0, 1.0])
    make = ddln.logistic if kind == "logistic" else ddln.least_squares
    problem, layers = make(features, targets), np.abs(LAYERS) + 0.1
    if kind == "signed":
        problem, layers = ddln.signed(problem), ddln.init.signed(layers)
    theta = np.prod(layers, axis=0)
    rates, modes = theory.mode_rates(problem, theta, layers)
    root = np.sqrt(np.asarray(ddln.mobility(layers)))
    hessian = np.asarray(jax.jit(jax.hessian(lambda theta: problem.loss(theta)))(theta))
    whole = root[:, None] * hessian * root[None]
    np.testing.assert_allclose(np.linalg.eigvalsh(whole)[-3:], rates, rtol=1e-9)
    np.testing.assert_allclose(whole @ modes, modes * rates[None], atol=1e-9 * float(rates[-1]))


@pytest.mark.slow
def test_mobility_integral_converges_with_the_saved_times():
    integrals = []
    for points in (21, 41, 641):
        run = ddln.gradient_flow(PROBLEM, LAYERS, jnp.linspace(0.0, 0.5, points))
        integral, error = theory.smallest_mobility_integral(run)
        integrals.append((float(integral[-1]), float(error)))
    truth = integrals[-1][0]
    for integral, error in integrals[:2]:
        assert abs(integral - truth) <= error + 1e-9 * truth
    assert abs(integrals[1][0] - truth) < abs(integrals[0][0] - truth) / 5


def test_divergence_bound_is_infinite_at_the_start_and_nan_outside_the_domain():
    times = jnp.array([0.0, 1.0])
    assert jnp.isinf(theory.divergence_bound(PROBLEM, LAYERS, times)[0])
    negative = ddln.least_squares([[1.0]], [-1.0])
    assert jnp.isnan(theory.divergence_bound(negative, [[1.0], [1.0]], times)[1])


INTEGRATOR = 1e-6  # global error at the default tolerances, and of the quadrature


@pytest.mark.slow
def test_posterior_bound_equals_the_gap_in_one_dimension():
    # In one dimension gap' = −2μM gap.
    problem = ddln.least_squares([[1.5]], [2.0])
    run = ddln.gradient_flow(problem, [[0.2], [1.0], [1.1]], jnp.linspace(1.0, 1.2, 41))
    assert run.gap[-1] < run.gap[0] / 5
    np.testing.assert_allclose(theory.posterior_bound(problem, run), run.gap, rtol=INTEGRATOR)
    predicted = eqx.filter_jit(theory.predict)(problem, run)
    np.testing.assert_allclose(predicted.posterior_bound, run.gap, rtol=INTEGRATOR)
    # The relative error of the bound is the error of its exponent.
    _, error = theory.smallest_mobility_integral(run)
    assert problem.pl_constant is not None
    np.testing.assert_allclose(predicted.posterior_error, 2 * problem.pl_constant * error)


@pytest.mark.slow
def test_posterior_bound_is_constant_with_a_frozen_coordinate():
    layers = np.vstack([np.zeros((2, 6)), np.ones((1, 6))])
    layers[0, 1:] = 0.5
    layers[1, 1:] = 0.8
    run = ddln.gradient_flow(PROBLEM, layers, jnp.linspace(0.0, 0.5, 5))
    np.testing.assert_array_equal(theory.posterior_bound(PROBLEM, run), jnp.full(5, run.gap[0]))
    assert theory.predict(PROBLEM, run).posterior_error == 0


def test_bounds_count_time_from_the_first():
    times = jnp.array([0.0, 0.1, 0.4])
    for bound in (theory.exponential_bound, theory.divergence_bound):
        late = bound(PROBLEM, LAYERS, times + 3.0)
        np.testing.assert_allclose(late, bound(PROBLEM, LAYERS, times), rtol=1e-12)
    rate = float(ddln.rate_bound(PROBLEM, LAYERS))
    start = float(PROBLEM.gap(jnp.prod(LAYERS, axis=0)))
    expected = start * np.exp(-2 * rate * np.asarray(times))
    np.testing.assert_allclose(
        theory.exponential_bound(PROBLEM, LAYERS, times), expected, rtol=1e-12
    )
    divergence = float(ddln.Entropy(LAYERS).value(PROBLEM.minimiser))
    np.testing.assert_allclose(
        theory.divergence_bound(PROBLEM, LAYERS, times)[1:], divergence / times[1:], rtol=1e-12
    )


EDGES = {
    # On y = (1, 0) the second coordinate ends at the edge with no slope: θ ~ 1/t.
    "no slope": ([[1, 0], [0, 1]], [1, 0], np.full((2, 2), 0.5), [1, 0], 0),
    "no slope, depth 3": ([[1, 0], [0, 1]], [1, 0], np.full((3, 2), 0.5), [1, 0], 0),
    "no slope, both": ([[1, 0], [0, 1]], [0, 0], np.full((2, 2), -0.5), [0, 0], 0),
    "a slope": ([[1, 0], [0, 1]], [1, -1], np.full((2, 2), 0.5), [1, 0], 2),  # C g = 1 · 2
    "two slopes": ([[1, 0], [0, 1]], [-3, -1], np.full((2, 2), 0.5), [0, 0], 2),
    "a slope beside another layer": (
        *([[1, 0], [0, 1]], [1, -1], [[0.5, 0.5], [0.5, 0.5], [2, 1]], [1, 0]),
        0.75**0.5 * 2,
    ),
    "a slope, depth 3": ([[1, 0], [0, 1]], [1, -1], np.full((3, 2), 0.5), [1, 0], 0),
    "leaving": ([[1, 0], [0, 1]], [1, 1], np.full((2, 2), 0.5), [1, 0], 0),
    # The first coordinate adapts to the second: the gap is 0 for every value of the second.
    "not needed": ([[1, 1]], [1], np.full((2, 2), 0.5), [1, 0], 4),
    "frozen beside": ([[1, 0], [0, 1]], [1, 0], [[0.5, 0], [0.5, 0]], [1, 0], 4),
}


@pytest.mark.parametrize("name", EDGES)
def test_asymptotic_rate_on_the_edge_of_a_half_line(name):
    features, targets, layers, theta, expected = EDGES[name]
    problem = ddln.least_squares(np.asarray(features, float), np.asarray(targets, float))
    found = ddln.asymptotic_rate(problem, np.asarray(theta, float), layers)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "name", ["a slope", pytest.param("a slope beside another layer", marks=pytest.mark.slow)]
)
def test_edge_rate_matches_a_run(name):
    features, targets, layers, theta, expected = EDGES[name]
    problem = ddln.least_squares(np.asarray(features, float), np.asarray(targets, float))
    run = ddln.gradient_flow(problem, layers, [0.0, 3.0, 4.0], rtol=1e-11, atol=1e-14)
    left = run.loss - problem.loss(jnp.asarray(theta, float))
    np.testing.assert_allclose(jnp.log(left[1] / left[2]) / 2, expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "power"), [("no slope", 1), ("a slope, depth 3", 3)])
def test_theta_decays_like_a_power_of_time_if_the_rate_is_zero(name, power):
    features, targets, layers, *_ = EDGES[name]
    problem = ddln.least_squares(np.asarray(features, float), np.asarray(targets, float))
    theta = ddln.gradient_flow(problem, layers, [0.0, 1e4, 1e5], rtol=1e-11, atol=1e-14).theta
    np.testing.assert_allclose(jnp.log10(theta[1, 1] / theta[2, 1]), power, rtol=1e-2)


@pytest.mark.parametrize(
    ("layers", "theta"), [([[0.5], [0.5]], [-1.0]), ([[-0.5], [0.5]], [1.0]), ([[0], [0]], [1.0])]
)
def test_rate_outside_the_domain_is_an_error_or_nan(layers, theta):
    problem = ddln.least_squares([[1.0]], [2.0])
    with pytest.raises(ValueError, match=r"keep the sign of θ\(0\) on half-lines .* at index 0"):
        ddln.asymptotic_rate(problem, theta, layers)
    traced = jax.jit(lambda theta: ddln.asymptotic_rate(problem, theta, layers))
    assert jnp.isnan(traced(jnp.asarray(theta)))


def test_rate_bound_of_traced_nan_layers_is_nan_at_every_width():
    for dim in (2, 5000):
        layers = jnp.ones((2, dim)).at[0].set(0.5).at[0, 1].set(jnp.nan)
        problem = ddln.least_squares(np.ones((1, dim)), [1.0])
        assert jnp.isnan(jax.jit(lambda u, p=problem: ddln.rate_bound(p, u))(layers))
