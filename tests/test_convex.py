"""Losses other than least squares: their minima, derivatives, and runs on them."""

import tracemalloc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.optimize import minimize

import ddln
from ddln.config import datasets
from ddln.config.data_schema import CountsDataConfig
from ddln.config.experiment import ConfigError
from ddln.verification._convergence_bounds import divergence_bound, exponential_bound
from ddln.verification._shared_tolerances import gap_floor

RNG = np.random.default_rng(5)
X = RNG.normal(size=(12, 3))
LABELS = np.where(X @ [1.0, -1.0, 0.0] + 1.5 * RNG.normal(size=12) > 0, 1.0, -1.0)
COUNTS = RNG.poisson(np.exp(0.7 * X @ [1.0, -1.0, 0.0])).astype(float)
VALUES = X @ [1.0, -1.0, 0.0] + np.where(np.arange(12) < 3, 6.0, 0.3) * RNG.normal(size=12)
TARGETS = {"logistic": LABELS, "exponential": LABELS, "poisson": COUNTS, "huber": VALUES}
NAMES = tuple(TARGETS)
MAKE = {name: getattr(ddln, name) for name in NAMES}


def phi(name, z, y, m=mpmath):
    """The loss of a sample and its slope, in mpmath."""
    if name == "logistic":
        return m.log1p(m.exp(-y * z)), -y / (1 + m.exp(y * z))
    if name == "exponential":
        return m.exp(-y * z), -y * m.exp(-y * z)
    if name == "poisson":
        return m.exp(z) - y * z, m.exp(z) - y
    r = z - y
    inside = abs(r) <= 1
    return (r * r / 2, r) if inside else (abs(r) - m.mpf(1) / 2, m.sign(r))


def mp_loss(name, theta) -> Any:
    z = mpmath.matrix(X.tolist()) * mpmath.matrix(list(theta))
    return mpmath.fsum(phi(name, z[i], mpmath.mpf(TARGETS[name][i]))[0] for i in range(12))


def mp_minimiser(name, near) -> list:
    """The minimiser to 50 digits, by Newton's method started at `near`."""
    rows = mpmath.matrix(X.tolist())

    def gradient(*theta):
        z = rows * mpmath.matrix(theta)
        slopes = [phi(name, z[i], mpmath.mpf(TARGETS[name][i]))[1] for i in range(12)]
        return [mpmath.fsum(slopes[i] * rows[i, k] for i in range(12)) for k in range(3)]

    return list(mpmath.findroot(gradient, [float(x) for x in near], tol=1e-60, maxsteps=30))


@pytest.fixture(scope="module")
def problems():
    return {name: MAKE[name](X, TARGETS[name]) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_minimum_and_minimiser_match_mpmath_and_scipy(problems, name):
    problem = problems[name]
    assert problem.attained
    assert problem.convex
    assert problem.pl_constant is None
    with mpmath.workdps(50):
        exact = mp_minimiser(name, problem.minimiser)
        least = mp_loss(name, exact)
        np.testing.assert_allclose(problem.minimiser, [float(x) for x in exact], rtol=1e-13)
        np.testing.assert_allclose(problem.minimum, float(least), rtol=1e-14)
    found = minimize(
        jax.jit(lambda theta: problem.loss(theta)),
        np.zeros(3),
        jac=jax.jit(lambda theta: problem.gradient(theta)),
        options={"gtol": 1e-7},
    )
    np.testing.assert_allclose(problem.minimum, found.fun, rtol=1e-12)
    np.testing.assert_allclose(problem.minimiser, found.x, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-2, 3.0])
def test_gap_is_accurate_near_the_minimum(problems, name, distance):
    problem = problems[name]
    theta = np.asarray(problem.minimiser) + distance * np.array([0.3, -0.8, 0.5])
    with mpmath.workdps(50):
        exact = mp_loss(name, [mpmath.mpf(float(x)) for x in theta]) - mp_loss(
            name, mp_minimiser(name, problem.minimiser)
        )
        # θ* and Xθ are known to some 1e-15, which is the relative error of θ − θ*, twice in the gap
        tolerance = 3e-14 + 1e-14 / distance
        np.testing.assert_allclose(problem.gap(theta), float(exact), rtol=tolerance)


@eqx.filter_jit
def derivatives(problem, theta):
    """The derivatives of a loss, its own and those by autodiff."""
    return {
        "gradient": problem.gradient(theta),
        "grad(loss)": jax.grad(problem.loss)(theta),
        "hessian": problem.hessian(theta),
        "hessian(loss)": jax.hessian(problem.loss)(theta),
        "jacfwd(gradient)": jax.jacfwd(problem.gradient)(theta),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [0.0, 4.0])
def test_derivatives_match_finite_differences_of_the_loss(problems, name, at):
    problem = problems[name]
    theta = np.array([0.4, 1.1, -0.7]) * at + np.asarray(problem.minimiser) * float(at == 0)
    step = 1e-6
    loss = jax.jit(lambda theta: problem.loss(theta))
    differences = [
        (float(loss(theta + step * e)) - float(loss(theta - step * e))) / (2 * step)
        for e in np.eye(3)
    ]
    scale = 1 + abs(float(loss(theta)))
    found = derivatives(problem, theta)
    np.testing.assert_allclose(found["gradient"], differences, atol=1e-8 * scale)
    # The gradient is written as a difference from θ*, so that autodiff of ℒ is another road.
    np.testing.assert_allclose(found["gradient"], found["grad(loss)"], atol=1e-13 * scale)
    np.testing.assert_allclose(found["hessian"], found["hessian(loss)"], atol=1e-12 * scale)
    np.testing.assert_allclose(
        found["jacfwd(gradient)"], found["hessian(loss)"], atol=1e-12 * scale
    )


@pytest.mark.parametrize("name", NAMES)
def test_known_smoothness_bounds_the_change_of_the_gradient(problems, name):
    problem = problems[name]
    both = jax.jit(jax.vmap(lambda theta: (problem.gradient(theta), problem.gap(theta))))
    gradients, gaps = map(np.asarray, both(5 * RNG.normal(size=(200, 3))))
    assert (gaps >= 0).all()
    if name in ("poisson", "exponential"):
        assert problem.smoothness is None
        return
    limit = 2 * float(problem.smoothness) * gaps * (1 + 1e-12)
    assert (np.sum(gradients**2, axis=1) <= limit).all()
    top = np.linalg.svd(X)[2][0]
    largest = np.linalg.eigvalsh(X.T @ X)[-1] * {"logistic": 0.25, "huber": 1.0}[name]
    np.testing.assert_allclose(problem.smoothness, largest, rtol=1e-12)
    tight = MAKE[name](X, np.zeros(12) if name == "huber" else LABELS)
    np.testing.assert_allclose(top @ tight.hessian(jnp.zeros(3)) @ top, largest, rtol=1e-12)


def test_logistic_regression_agrees_with_scikit_learn(problems):
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(X, LABELS)
    np.testing.assert_allclose(problems["logistic"].minimiser, fitted.coef_[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["logistic", "exponential"])
def test_separable_labels_have_unattained_infimum_zero(name):
    problem = MAKE[name](X, np.sign(X @ [1.0, 2.0, -0.5]))
    assert float(problem.minimum) == 0.0
    assert not problem.attained
    assert problem.escapes.all()
    assert jnp.isnan(problem.minimiser).all()
    assert problem.minimisers() is None
    theta = jnp.array([10.0, 20.0, -5.0])
    np.testing.assert_allclose(problem.gap(theta), problem.loss(theta), rtol=1e-14)
    np.testing.assert_allclose(problem.gradient(theta), jax.grad(problem.loss)(theta), rtol=1e-12)


@pytest.mark.parametrize("name", ["logistic", "exponential"])
def test_quasi_separable_labels_have_the_infimum_of_samples_on_the_hyperplane(name):
    # The last column is 0 on the first 12 samples and separates the other 4.
    extra = np.column_stack([RNG.normal(size=(4, 3)), [1.0, -1.0, 2.0, 0.1]])
    turn = np.linalg.qr(RNG.normal(size=(4, 4)))[0]  # hides the direction
    wide = np.vstack([np.column_stack([X, np.zeros(12)]), extra]) @ turn
    problem = MAKE[name](wide, np.concatenate([LABELS, [1.0, -1.0, 1.0, 1.0]]))
    alone = MAKE[name](X, LABELS)
    assert not problem.attained
    np.testing.assert_array_equal(problem.escapes, np.arange(16) >= 12)
    np.testing.assert_allclose(problem.minimum, alone.minimum, rtol=1e-13)
    far = jnp.concatenate([alone.minimiser, jnp.array([4000.0])]) @ turn
    assert problem.gap(far) < 1e-15
    assert problem.loss(far) >= problem.minimum - 1e-11


def test_zero_counts_escape_only_if_positive_counts_are_fixed():
    features = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    problem = ddln.poisson(features, [2.0, 0.0, 4.0])
    assert problem.escapes.tolist() == [False, True, False]
    np.testing.assert_allclose(problem.minimum, 2 * (3 - 3 * np.log(3.0)), rtol=1e-14)
    held = ddln.poisson(features, [2.0, 0.0, 4.0][::-1])
    assert not held.attained
    moved = ddln.poisson(np.vstack([features, [1.0, -1.0]]), [2.0, 0.0, 4.0, 0.0])
    assert moved.attained  # what lowers one zero count raises the other


@pytest.mark.parametrize("seed", range(4))
def test_huber_minimum_matches_quadratic_program(seed):
    # The Moreau form: min over θ and e of ½‖Xθ − y − e‖² + δ‖e‖₁, as e = e₊ − e₋.
    rng = np.random.default_rng(seed)
    features, targets, delta = rng.normal(size=(9, 4)), rng.normal(size=9), 0.05 * 4**seed
    problem = ddln.huber(features, targets, delta=delta)

    def objective(x):
        r = features @ x[:4] - targets - x[4:13] + x[13:]
        gradient = np.concatenate([features.T @ r, -r + delta, r + delta])
        return r @ r / 2 + delta * x[4:].sum(), gradient

    bounds = [(None, None)] * 4 + [(0, None)] * 18
    options = {"ftol": 1e-15, "gtol": 1e-11, "maxiter": 20000, "maxfun": 20000, "maxcor": 30}
    found = minimize(objective, np.zeros(22), jac=True, bounds=bounds, options=options)
    np.testing.assert_allclose(problem.minimum, found.fun, rtol=1e-8)
    assert problem.minimum <= found.fun + 1e-12
    np.testing.assert_allclose(jax.grad(problem.loss)(problem.minimiser), 0, atol=1e-13)


ROUNDING = 1e-11  # of the residuals, over the threshold


@pytest.mark.parametrize("delta", [1e-3, 0.05, 1.0])
def test_huber_minimum_is_found_if_most_residuals_exceed_the_threshold(delta):
    rng = np.random.default_rng(1)
    features, noise = rng.normal(size=(40, 60)), rng.standard_t(1.5, size=40)
    wide = ddln.huber(features, noise, delta=delta)
    np.testing.assert_allclose(features @ wide.minimiser, noise, atol=ROUNDING)  # interpolates
    assert wide.minimum < 1e-25
    # The loss is not strictly convex, so test optimality: clipped residuals are orthogonal to X.
    narrow = features[:, :15]
    residual = narrow @ ddln.huber(narrow, noise, delta=delta).minimiser - noise
    slopes = np.clip(residual / delta, -1, 1)
    assert (np.abs(slopes) == 1).mean() > 0.3
    np.testing.assert_allclose(narrow.T @ slopes, 0, atol=ROUNDING / delta**0.5)


def test_huber_is_half_of_least_squares_within_the_threshold():
    wide, half = (
        ddln.huber(X, VALUES, delta=100),
        ddln.least_squares(X, VALUES, normalisation="half"),
    )
    theta = jnp.array([0.3, 1.0, 2.0])
    for name in ("loss", "gap", "gradient", "hessian"):
        np.testing.assert_allclose(
            getattr(wide, name)(theta), getattr(half, name)(theta), rtol=1e-12
        )
    np.testing.assert_allclose(wide.minimum, half.minimum, rtol=1e-13)
    affine = wide.minimisers()
    assert affine is not None
    matrix, values = affine
    np.testing.assert_allclose(matrix @ half.minimiser, values, rtol=1e-12)


def test_minimisers_are_affine_only_if_the_loss_is_strictly_convex_there(problems):
    assert problems["huber"].minimisers() is None  # some residuals lie beyond the threshold
    for name in ("logistic", "exponential", "poisson"):
        matrix, values = problems[name].minimisers()
        np.testing.assert_allclose(matrix @ problems[name].minimiser, values, atol=1e-14)


def test_low_rank_and_zero_data_have_a_minimum():
    flat = X[:, :2] @ RNG.normal(size=(2, 5))
    problem, thin = ddln.logistic(flat, LABELS), ddln.logistic(X[:, :2], LABELS)
    np.testing.assert_allclose(problem.minimum, thin.minimum, rtol=1e-13)
    null = np.linalg.svd(flat)[2][2:]
    np.testing.assert_allclose(null @ problem.minimiser, 0, atol=1e-12)  # the least norm
    nothing = ddln.logistic(np.zeros((3, 2)), [1, 1, -1])
    np.testing.assert_allclose(nothing.minimum, 3 * np.log(2), rtol=1e-15)
    assert nothing.attained


SINGLE = 1e-5  # 80 roundings: θ − θ* is a difference of larger terms


@pytest.mark.parametrize("name", [*NAMES, "least_squares", "function"])
def test_single_precision_loss_stays_single_and_accurate(name):
    single = X.astype(np.float32)
    if name == "function":
        start = np.zeros(3, np.float32)
        problem, exact = (
            ddln.from_function(
                ddln.logistic(x, LABELS.astype(x.dtype)).loss, 3, start=s, convex=True
            )
            for x, s in ((single, start), (single.astype(float), start.astype(float)))
        )
    else:
        make = getattr(ddln, name)
        targets = np.asarray(TARGETS.get(name, VALUES), np.float32)
        problem, exact = make(single, targets), make(single.astype(float), targets.astype(float))
    theta = np.asarray(problem.minimiser) + np.array([0.5, -0.4, 0.3], np.float32)
    parts = ("loss", "gap", "gradient", "hessian")

    @eqx.filter_jit
    def values_of(problem, theta):
        return {part: getattr(problem, part)(theta) for part in parts}

    values, exact_values = values_of(problem, theta), values_of(exact, theta.astype(float))
    for part in ("minimum", "minimiser", "pl_constant", "smoothness"):
        values[part] = getattr(problem, part)
    known = {part: value for part, value in values.items() if value is not None}
    assert {part: value.dtype for part, value in known.items()} == dict.fromkeys(known, jnp.float32)
    for part, value in known.items():
        want = np.asarray(exact_values[part] if part in parts else getattr(exact, part))
        near = SINGLE * np.max(np.abs(want))
        if part == "gap" and name == "function":
            near = SINGLE * float(problem.minimum)  # a difference, as its docstring says
        np.testing.assert_allclose(value, want, atol=near, rtol=0, err_msg=part)
    run = jax.eval_shape(lambda u: ddln.gradient_flow(problem, u, TIMES), LAYERS.astype(np.float32))
    assert {run.theta.dtype, run.gap.dtype} == {jnp.dtype(jnp.float32)}


def test_large_counts_and_normalisations():
    problem = ddln.poisson([[1.0], [1.0]], [10**6, 3 * 10**6], normalisation="mean")
    np.testing.assert_allclose(problem.minimiser, np.log(2e6), rtol=1e-14)
    np.testing.assert_allclose(problem.minimum, 2e6 - 2e6 * np.log(2e6), rtol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_traced_data_match_concrete_data(problems, name):
    def numbers(targets):
        problem = MAKE[name](X, targets)
        theta = jnp.array([0.3, 1.0, -0.4])
        return problem.minimum, problem.minimiser, problem.gap(theta), problem.attained

    targets = np.stack([TARGETS[name], TARGETS[name][::-1]])
    traced = jax.jit(jax.vmap(numbers))(targets)
    for i in range(2):
        for got, want in zip(traced, numbers(targets[i]), strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-12)
    assert jnp.isnan(jax.jit(numbers)(np.full(12, 0.5))[0]) == (name != "huber")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddln.logistic(X[:2], [1, 0]), r"`targets` must be −1 or 1, got 0 at row 1"),
        (lambda: ddln.exponential(X[:2], [2, 1]), "must be −1 or 1, got 2 at row 0"),
        (lambda: ddln.poisson(X[:3], [0, 1, -2]), "whole numbers ≥ 0, got -2 at row 2"),
        (lambda: ddln.poisson(X[:3], [0, 1.5, 2]), "whole numbers ≥ 0, got 1.5 at row 1"),
        (lambda: ddln.huber(X, VALUES, delta=0), "`delta` must be > 0, got 0"),
        (lambda: ddln.huber(X, VALUES[:3]), r"`targets` must have shape \(12,\), got \(3,\)"),
        (lambda: ddln.logistic(X[0], [1]), r"`features` must have 2 dimension\(s\)"),
        (lambda: ddln.logistic(X, LABELS, normalisation="max"), "`normalisation` must be one of"),
        (lambda: ddln.from_function(jnp.sum, 2), "must be given for a loss that is not convex"),
        (lambda: ddln.from_function(lambda x: x, 2, minimum=0), r"must return a real number"),
        (lambda: ddln.from_function(jnp.sum, 0, minimum=0), "`dim` must be ≥ 1, got 0"),
        (
            lambda: ddln.from_function(lambda x: jnp.sum(x**2), 1, minimum=1, minimiser=[0]),
            "`minimum` must be the loss at `minimiser`",
        ),
        (
            lambda: ddln.from_function(lambda x: 1e-9 * x[0] ** 2, 1, minimum=1e-9, minimiser=[0]),
            "`minimum` must be the loss at `minimiser`",
        ),
        (
            lambda: ddln.from_function(lambda x: jnp.log(x[0]), 1, minimiser=[0]),
            "`loss` must be finite at `minimiser`, got -inf",
        ),
        (
            lambda: ddln.from_function(lambda x: (x[0] - 1) ** 2, 1, minimiser=[1.001]),
            "`minimiser` must minimise the loss, 9.99.*e-07 there, but nearby it is",
        ),
        (
            lambda: ddln.from_function(lambda x: jnp.sum(jnp.exp(x)), 2, convex=True),
            "must attain a minimum that can be found, or `minimum` be given",
        ),
        (
            lambda: ddln.from_function(jnp.sum, 2, minimum=0, pl_constant=0),
            r"`pl_constant` must be > 0, got 0\.0",
        ),
        (
            lambda: ddln.from_function(jnp.sum, 2, minimum=0, smoothness=-1),
            r"`smoothness` must be > 0, got -1\.0",
        ),
        (
            lambda: ddln.from_function(jnp.sum, 2, minimum=0, pl_constant=3, smoothness=2),
            r"`pl_constant` must be ≤ `smoothness`, 2\.0, got 3\.0",
        ),
    ],
)
def test_invalid_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_function_loss_has_the_minimum_of_the_loss_it_wraps(problems):
    risk = problems["logistic"]
    problem = ddln.from_function(risk.loss, 3, convex=True)
    np.testing.assert_allclose(problem.minimum, risk.minimum, rtol=1e-14)
    np.testing.assert_allclose(problem.minimiser, risk.minimiser, rtol=1e-9)
    assert problem.attained
    assert problem.pl_constant is problem.smoothness is None
    with pytest.raises(ValueError, match="must attain a minimum"):
        ddln.from_function(ddln.logistic(X[:2], LABELS[:2]).loss, 3, convex=True)
    bare = ddln.from_function(risk.loss, 3, minimum=risk.minimum)
    assert not bare.attained
    assert not bare.convex


@pytest.mark.parametrize("name", NAMES)
def test_signed_risk_is_the_risk_on_doubled_features(problems, name):
    signed, doubled = ddln.signed(problems[name]), MAKE[name](np.hstack([X, -X]), TARGETS[name])
    theta = jnp.asarray(RNG.normal(size=6))
    for part in ("loss", "gap", "gradient", "hessian"):
        np.testing.assert_allclose(
            getattr(signed, part)(theta), getattr(doubled, part)(theta), rtol=1e-10, atol=1e-12
        )
    np.testing.assert_allclose(signed.minimum, doubled.minimum, rtol=1e-13)
    if signed.smoothness is not None:
        np.testing.assert_allclose(signed.smoothness, doubled.smoothness, rtol=1e-12)
    assert signed.gap(signed.minimiser) < 1e-25


YEARS = 2 + 2 * np.log((1 + 2 ** (-2 / 3) + 2 ** (1 / 3)) / 2)  # by hand, as is the 1 below
IN_UNITS = [
    *(("poisson", [[1, k, 1], [1, k, -2], [1, k, -1]], [0, 0, 2], YEARS, []) for k in (2020, 1e6)),
    *(
        ("poisson", [[1, 0, 4], [1, 2 * k, 2], [1, k, 3]], [0, 1, 2], 2.744529375825728, [])
        for k in (1.0, 1e6)
    ),
    *(
        ("logistic", crossing, [-1, -1, 1, 1], 2.1233795723420568, [])
        for k in (1.0, 1e9, 1e12)
        for crossing in [[[1, 4, 8 * k], [1, 2, 8 * k], [1, 2, 10 * k], [1, 9, 2 * k]]]
    ),
    *(
        ("logistic", [[1, t + k * step] for k in range(5)], [-1, -1, 1, 1, 1], 0.0, range(5))
        for t, step in ((2456293.5, 1), (1.7e9, 86400), (1.7e9, 3600))
    ),
    (
        "logistic",
        [[1, 101325, 29], [1, 101325, 1], [1, 101325, 55], [1, 101325.01, 75]],
        [-1, 1, 1, 1],
        1.9088566925814816,
        [3],
    ),
    (
        "logistic",
        [[1, 4, 0.04], [1, 5, 0.008], [1, 5, 0.7], [1, 8, 0.01], [1, 9, 0.07]],
        [-1, -1, -1, 1, 1],
        0.0,
        range(5),
    ),
    (  # d = (−40, −9, 0, −2) has x·d ≤ −10 for the zeros and 0 for the last
        "poisson",
        [
            *([1, 2, -40, -4], [1, -4, 20, 3], [1, 3, 0, -2], [1, 2, -20, 3]),
            *([1, -2, 30, -1], [1, 3, -40, -2], [1, -4, 20, -2]),
        ],
        [0, 0, 0, 0, 0, 0, 1],
        1.0,
        range(6),
    ),
]


@pytest.mark.parametrize(("name", "features", "targets", "minimum", "escape"), IN_UNITS)
def test_minima_and_escapes_do_not_depend_on_units(name, features, targets, minimum, escape):
    problem = MAKE[name](features, targets)
    np.testing.assert_allclose(problem.minimum, minimum, rtol=1e-12)
    assert np.flatnonzero(problem.escapes).tolist() == list(escape)
    assert bool(problem.attained) == (not escape)


@pytest.mark.parametrize("offset", [1e6, 1e7, 1e8])
def test_offset_column_has_the_minimum_of_the_centred_column(offset):
    u = np.round(1024 * RNG.normal(size=40))  # exact beside each offset
    labels = np.where(u + 700 * RNG.normal(size=40) > 0, 1.0, -1.0)
    far, near = (ddln.logistic(np.column_stack([np.ones(40), u + o]), labels) for o in (offset, 0))
    assert far.attained
    np.testing.assert_allclose(far.minimum, near.minimum, rtol=1e-13)
    np.testing.assert_allclose(far.fitted, near.fitted, atol=1e-12)


@pytest.mark.parametrize("power", [6, 12, 15, 18])
def test_minimum_of_large_counts_is_found(power):
    problem = ddln.poisson([[1.0], [1.0]], [10.0**power, 3 * 10.0**power])
    place = np.log(2) + power * np.log(10)
    np.testing.assert_allclose(problem.minimiser, place, rtol=1e-14)
    np.testing.assert_allclose(problem.minimum, 4 * 10.0**power * (1 - place), rtol=1e-14)
    mixed = ddln.poisson([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]], [10.0**power, 1, 1])
    # e^z + 2 e^{2z} = 3 at z = 0
    np.testing.assert_allclose(mixed.minimiser, [power * np.log(10), 0.0], atol=1e-13)


def test_memory_is_linear_in_the_samples():
    features = np.column_stack([np.ones(4000), RNG.normal(size=(4000, 6))])
    labels = np.where(features[:, 1] + RNG.normal(size=4000) > 0, 1.0, -1.0)
    tracemalloc.start()
    ddln.logistic(features, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * features.nbytes  # 4000² numbers are 570 times as many


CLOSE = 200 * float(np.finfo(float).eps)


@pytest.mark.parametrize("last", [1.0, 3.0])
def test_separation_within_rounding_is_refused(last):
    features = np.array([[1.0, 1.0], [1.0, 1.0 + CLOSE], [1.0, last]])
    labels = np.array([-1.0, 1.0, 1.0])
    with pytest.raises(
        ValueError, match=r"`features` must .* column \d \(from 0\) is within \d+ r"
    ):
        ddln.logistic(features, labels)
    assert jnp.isnan(jax.jit(lambda x: ddln.logistic(x, labels).minimum)(features))


LAYERS = jnp.array([[0.1, 0.0, -0.2], [1.0, 0.8, 1.1], [0.7, -0.9, 1.3]])
TIMES = jnp.linspace(0.0, 1.0, 41)


def certified(problem):
    run = ddln.gradient_flow(problem, LAYERS, TIMES)
    return {claim.name: claim for claim in ddln.certify(problem, run).claims}


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("separable", "exponential", "huber", "poisson", "function")
]


@pytest.mark.parametrize("name", ["logistic", *SLOW])
def test_all_applicable_theorems_hold_on_a_run(problems, name):
    if name == "separable":
        problem = ddln.logistic(X, np.sign(X @ [1.0, 2.0, -0.5]))
    elif name == "function":
        problem = ddln.from_function(problems["logistic"].loss, 3, convex=True)
    else:
        problem = problems[name]
    claims = certified(problem)
    assert {name for name, claim in claims.items() if not claim.holds} == set()
    applies = {name for name, claim in claims.items() if claim.applies}
    everywhere = {"conservation", "monotone loss", "dissipation", "mirror identity", "dual path"}
    assert applies >= everywhere
    assert ("divergence bound" in applies) == (name != "separable")
    assert not applies & {"exponential bound", "a-posteriori bound"}  # no PL constant
    if name == "separable":
        assert "asymptotic rate" not in applies


def test_user_given_pl_constant_enables_the_exponential_bound():
    curvature = jnp.array([1.0, 2.0, 4.0])

    def loss(theta):
        return jnp.sum(curvature * (theta - 1) ** 2) / 2

    @jax.jit
    def bounds(problem, run):
        given = problem, run, ddln.theory.predict(problem, run), gap_floor(problem, run)
        return exponential_bound(*given), divergence_bound(*given)

    problem = ddln.from_function(loss, 3, minimum=0, minimiser=np.ones(3), pl_constant=1)
    run = ddln.gradient_flow(problem, LAYERS, TIMES)
    exponential, divergence = bounds(problem, run)
    assert exponential.applies
    assert exponential.holds
    assert not divergence.applies  # convexity was not claimed
    wrong = ddln.from_function(loss, 3, minimum=0, minimiser=np.ones(3), pl_constant=20)
    assert not bounds(wrong, run)[0].holds


CONFIG = """
study = "logistic"
[problem]
data = { kind = "classification", samples = 12, features = 3, nonzeros = 1, noise = 1.0 }
loss = { kind = "logistic" }
[network]
depth = 3
init = { kind = "normal", seed = 1 }
[dynamics]
until = 1.0
points = 21
[sweep]
"problem.data.seed" = [0, 1, 2]
"""


def experiment(tmp_path, *overrides):
    path = tmp_path / "logistic.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return ddln.load(path, overrides)


@pytest.mark.slow
@pytest.mark.slow
def test_logistic_config_runs_over_seeds_of_the_data(tmp_path):
    dataset = ddln.run(experiment(tmp_path))
    assert bool((dataset["status"] == 0).all())
    assert bool(dataset["certificate_holds"].all())
    for seed in range(3):
        drawn = experiment(tmp_path, "sweep={}", f"problem.data.seed={seed}").problem.data
        problem = ddln.logistic(*datasets.draw(drawn))
        one = dataset.sel({"problem.data.seed": seed})
        np.testing.assert_allclose(
            one["gap"][-1], problem.gap(one["theta"].values[-1]), rtol=1e-10, atol=1e-16
        )


@pytest.mark.slow
def test_asymptotic_rate_allows_for_a_loss_not_yet_quadratic(tmp_path):
    # At the start of its last e-fold 3 % of the gap is of third order in θ − θ*.
    overrides = ("sweep={}", "network.signed=true", "dynamics.until=3.0", "dynamics.points=41")
    dataset = ddln.run(experiment(tmp_path, *overrides))
    rate = dataset.sel(certificate="asymptotic rate")
    assert bool(rate["certificate_applies"].all())
    assert bool(rate["certificate_holds"].all())
    assert float(rate["certificate_tolerance"] / rate["certificate_predicted"]) < 0.03


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['problem.data={kind="gaussian", samples=5, features=3}'], "must be -1 or 1: not of kind"),
        (["problem.loss.kind=poisson"], "must be a whole number ≥ 0: not of kind"),
    ],
)
def test_invalid_targets_are_named_before_the_run(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        ddln.run(experiment(tmp_path, *overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("problem.loss.kind=logistik", 'unknown kind "logistik", did you mean "logistic"'),
        ('problem.loss={normalisation="max"}', r"problem\.loss\.normalisation: must be one of"),
        ('problem.loss={kind="huber", delta=0}', r"problem\.loss\.delta: must be > 0, got 0"),
        ("problem.loss={delta=1}", r"problem\.loss\.delta: unknown key"),
        ("sweep.problem.loss.delta=[1, 2]", r"sweep\.problem\.loss\.delta: not a numeric key"),
    ],
)
def test_invalid_loss_table_is_named_by_its_path(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        experiment(tmp_path, override)


def test_default_loss_is_least_squares(tmp_path):
    loss = experiment(tmp_path, 'problem.loss={normalisation="mean"}').problem.loss
    assert (loss.kind, loss.normalisation) == ("least_squares", "mean")


def test_counts_have_the_requested_mean():
    table = CountsDataConfig(kind="counts", samples=20000, features=2, nonzeros=2, strength=0.3)
    _, counts = datasets.draw(table)
    assert (np.asarray(counts) % 1 == 0).all()
    expected = np.exp(0.3**2)  # E exp(N(0, 2 · 0.3²))
    assert abs(np.mean(counts) - expected) < 5 * np.sqrt(expected * 1.5 / 20000)
    assert datasets.draw(table.model_copy(update={"strength": 0.0}))[1].mean() < 1.05
