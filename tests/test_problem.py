import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import ddln
from ddln.problems import sharding
from ddln.problems.out_of_core import least_squares_of_blocks

RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(5, 8)), RNG.normal(size=5)
TALL = RNG.normal(size=(10, 6)), RNG.normal(size=10)
DEFICIENT = RNG.normal(size=(7, 3)) @ RNG.normal(size=(3, 6)), RNG.normal(size=7)


@pytest.mark.parametrize("data", [WIDE, TALL, DEFICIENT], ids=["wide", "tall", "deficient"])
@pytest.mark.parametrize(
    ("normalisation", "factor"),
    [
        ("sum", lambda n: 1.0),
        ("half", lambda n: 0.5),
        ("mean", lambda n: 1 / n),
        ("half_mean", lambda n: 0.5 / n),
    ],
)
def test_least_squares_matches_numpy(data, normalisation, factor):
    features, targets = data
    factor = factor(len(targets))
    problem = ddln.least_squares(features, targets, normalisation=normalisation)
    theta = RNG.normal(size=features.shape[1])
    residual = features @ theta - targets
    best, *_ = np.linalg.lstsq(features, targets, rcond=None)
    singular = np.linalg.svd(features, compute_uv=False)
    smallest = singular[singular > 1e-10][-1]
    loss, slope, autodiff, hessian, twice = jax.jit(
        lambda theta: (
            problem.loss(theta),
            problem.gradient(theta),
            jax.grad(problem.loss)(theta),
            problem.hessian(theta),
            jax.hessian(problem.loss)(theta),
        )
    )(theta)
    np.testing.assert_allclose(loss, factor * residual @ residual, rtol=1e-12)
    np.testing.assert_allclose(slope, 2 * factor * features.T @ residual, atol=1e-11)
    np.testing.assert_allclose(slope, autodiff, atol=1e-11)
    np.testing.assert_allclose(hessian, twice, atol=1e-11)
    np.testing.assert_allclose(problem.minimiser, best, atol=1e-12)
    np.testing.assert_allclose(
        problem.minimum, factor * np.sum((features @ best - targets) ** 2), atol=1e-12
    )
    assert problem.pl_constant is not None
    assert problem.smoothness is not None
    np.testing.assert_allclose(problem.pl_constant, 2 * factor * smallest**2, rtol=1e-10)
    np.testing.assert_allclose(problem.smoothness, 2 * factor * singular[0] ** 2, rtol=1e-12)


@pytest.mark.parametrize("data", [WIDE, TALL, DEFICIENT], ids=["wide", "tall", "deficient"])
def test_pl_condition_and_smoothness_hold_and_are_attained(data):
    problem = ddln.least_squares(*data)
    theta = np.asarray(problem.minimiser) + RNG.normal(size=(200, data[0].shape[1]))
    both = jax.jit(jax.vmap(lambda theta: (problem.gradient(theta), problem.gap(theta))))
    gradients, gaps = map(np.asarray, both(theta))
    ratio = np.sum(gradients**2, axis=1) / 2 / gaps
    assert problem.pl_constant is not None
    assert problem.smoothness is not None
    assert (ratio >= problem.pl_constant * (1 - 1e-9)).all()
    assert (ratio <= problem.smoothness * (1 + 1e-9)).all()
    _, singular, right = np.linalg.svd(data[0])
    slowest = right[np.sum(singular > 1e-10) - 1]
    along = problem.minimiser + slowest
    attained = jnp.sum(problem.gradient(along) ** 2) / 2 / problem.gap(along)
    np.testing.assert_allclose(attained, problem.pl_constant, rtol=1e-8)


def test_gap_has_no_cancellation_near_a_positive_minimum():
    problem = ddln.least_squares(*TALL)
    assert problem.minimum > 0.1
    step = 1e-12 * np.ones(6)
    np.testing.assert_allclose(
        problem.gap(problem.minimiser + step), np.sum((TALL[0] @ step) ** 2), rtol=1e-2
    )


def test_gradient_of_tall_badly_scaled_data_is_accurate():
    scales = 10.0 ** -np.arange(6)
    features, targets = RNG.normal(size=(200, 6)) * scales, RNG.normal(size=200)
    theta = RNG.normal(size=6)
    with mpmath.workdps(40):
        matrix = mpmath.matrix(features.tolist())
        residual = matrix * mpmath.matrix(theta.tolist()) - mpmath.matrix(targets.tolist())
        exact = np.array([float(x) for x in 2 * matrix.T * residual])
    problem = ddln.least_squares(features, targets)
    assert problem.core.shape == (6, 6)
    np.testing.assert_allclose(problem.gradient(jnp.asarray(theta)), exact, rtol=1e-13)


def test_zero_features_give_zero_constants():
    problem = ddln.least_squares(np.zeros((3, 2)), np.ones(3))
    assert problem.pl_constant == 0
    assert problem.minimiser.tolist() == [0.0, 0.0]
    assert float(problem.minimum) == 3.0


@pytest.mark.parametrize(
    ("features", "targets", "options", "message"),
    [
        ([1.0, 2.0], [1.0], {}, r"`features` must have 2 dimension\(s\), got shape \(2,\)"),
        ([[1.0, 2.0]], [1.0, 2.0], {}, r"`targets` must have shape \(1,\), got \(2,\)"),
        ([[np.nan]], [1.0], {}, r"`features` must be finite, got nan at index \(0, 0\)"),
        ([[1.0]], [np.inf], {}, r"`targets` must be finite, got inf at index \(0,\)"),
        ([[1.0]], [1.0], {"normalisation": "sun"}, "must be one of 'sum', .* got 'sun'"),
        (np.zeros((0, 2)), np.zeros(0), {}, "samples ≥ 1"),
    ],
)
def test_invalid_data_are_refused_by_name(features, targets, options, message):
    with pytest.raises(ValueError, match=message):
        ddln.least_squares(features, targets, **options)


OVERFLOWING = [
    ([[1e-200]], [1e200]),  # the minimiser
    ([[1.0], [1.0]], [1e200, -1e200]),  # the minimum
]


@pytest.mark.parametrize(("features", "targets"), OVERFLOWING)
def test_minimum_or_minimiser_that_overflows_is_refused(features, targets):
    message = (
        "`features` and `targets` must have a least-squares solution that is finite in float64"
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    on_mesh = jax.device_put(jnp.asarray(features), sharding.column_sharding(mesh))
    makes = (
        lambda: ddln.least_squares(features, targets),
        lambda: sharding.sharded_least_squares(on_mesh, targets),
        lambda: least_squares_of_blocks([(features, targets)]),
    )
    for make in makes:
        with pytest.raises(ValueError, match=message):
            make()
    traced = jax.jit(ddln.least_squares)(jnp.asarray(features), jnp.asarray(targets))
    assert jnp.isnan(traced.minimum)
    assert jnp.isnan(traced.minimiser).all()


def test_failed_factorisation_is_refused(monkeypatch):
    def fail(matrix, **_):
        rank = min(matrix.shape)
        return (
            jnp.full((matrix.shape[0], rank), jnp.nan),
            jnp.full(rank, jnp.nan),
            jnp.full((rank, matrix.shape[1]), jnp.nan),
        )

    monkeypatch.setattr(jnp.linalg, "svd", fail)
    features = RNG.normal(size=(3, 2)), RNG.normal(size=3)
    with jax.disable_jit(), pytest.raises(ValueError, match=r"is finite in float64, got ℒ\* = nan"):
        ddln.least_squares(*features)


def test_signed_least_squares_is_least_squares_on_doubled_features():
    features, targets = WIDE
    problem = ddln.signed(ddln.least_squares(features, targets))
    doubled = ddln.least_squares(np.hstack([features, -features]), targets)
    theta = RNG.normal(size=16)
    for name in ("loss", "gap", "gradient", "hessian"):
        np.testing.assert_allclose(
            getattr(problem, name)(theta), getattr(doubled, name)(theta), rtol=1e-12, atol=1e-12
        )
    for name in ("minimum", "pl_constant", "smoothness"):
        np.testing.assert_allclose(
            getattr(problem, name), getattr(doubled, name), rtol=1e-10, atol=1e-25
        )
    assert problem.gap(problem.minimiser) < 1e-24
    assert (problem.minimiser >= 0).all()
    minimisers = problem.minimisers()
    assert minimisers is not None
    matrix, values = minimisers
    np.testing.assert_allclose(matrix @ problem.minimiser, values, atol=1e-12)
    np.testing.assert_allclose(problem.predictor(theta), theta[:8] - theta[8:])


@pytest.mark.parametrize("wrap", [lambda problem: problem, ddln.signed], ids=["plain", "signed"])
def test_estimates_over_all_samples_average_to_the_loss(wrap):
    problem = wrap(ddln.least_squares(*TALL, normalisation="half_mean"))
    theta = jnp.asarray(RNG.normal(size=problem.dim))
    batches = jnp.arange(10).reshape(5, 2)
    estimates = [problem.estimate(theta, rows) for rows in batches]
    np.testing.assert_allclose(np.mean(estimates), problem.loss(theta), rtol=1e-12)
    moved = problem.estimate(theta, batches[0], jnp.array([0.5, -0.5]))
    residual = TALL[0][:2] @ problem.predictor(theta) - TALL[1][:2] - jnp.array([0.5, -0.5])
    np.testing.assert_allclose(moved, np.sum(residual**2) / 4, rtol=1e-12)


def test_changing_the_given_array_does_not_change_the_problem():
    buffer = np.ones(6 * 4 + 8)
    start = -buffer.ctypes.data % 64 // buffer.itemsize  # memory that JAX would share
    features = buffer[start : start + 6 * 4].reshape(6, 4)
    problem = ddln.least_squares(features, np.ones(6))
    features[:] = 0.0
    np.testing.assert_array_equal(problem.features, 1.0)


def test_signing_a_signed_problem_is_refused():
    problem = ddln.signed(ddln.least_squares([[1.0]], [1.0]))
    with pytest.raises(ValueError, match="must not be signed already"):
        ddln.signed(problem)


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("make", [ddln.least_squares, ddln.logistic])
def test_batched_gradients_match_single_gradients(make, is_signed):
    rng = np.random.default_rng(5)
    problem = make(rng.standard_normal((6, 4)), np.sign(rng.standard_normal(6)))
    problem = ddln.signed(problem) if is_signed else problem
    thetas = rng.standard_normal((problem.dim, 3))
    gradient = jax.jit(lambda theta: problem.gradient(theta))
    each = np.stack([gradient(theta) for theta in thetas.T], axis=-1)
    together = jax.jit(lambda thetas: problem.gradients(thetas))(thetas)
    np.testing.assert_allclose(together, each, rtol=1e-12, atol=1e-12)
