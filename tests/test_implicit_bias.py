"""Limit points and reference solutions against long flows, published numbers, closed forms."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import OptimizeResult, linprog, minimize, nnls, root_scalar

import ddln
from ddln import theory
from ddln.theory import reference_solutions

RNG = np.random.default_rng(0)
PROBLEM = ddln.least_squares(RNG.normal(size=(3, 6)), RNG.normal(size=3))
DATUM = ddln.signed(ddln.least_squares([[1.0, 0.4]], [1.0]))
KKT = 1e-11
ROOT = np.sqrt(2 * np.pi)


SLOWER = [(True, 2), (False, 3), (False, 5), (True, 5)]


def balanced(depth, scale, dim):
    return ddln.init.signed(ddln.init.constant(depth, dim, scale))


@pytest.mark.parametrize(
    ("signed", "depth"),
    [
        (False, 2),
        (True, 3),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOWER),
    ],
)
def test_limit_point_is_where_the_flow_ends(signed, depth):
    problem = ddln.signed(PROBLEM) if signed else PROBLEM
    layers = balanced(depth, 0.7, 6) if signed else np.random.default_rng(1).normal(size=(depth, 6))
    run = ddln.gradient_flow(problem, layers, [0.0, 500.0], rtol=1e-11, atol=1e-13)
    assert run.gap[-1] < 1e-18
    limit = ddln.limit_point(problem, layers)
    np.testing.assert_allclose(limit, run.theta[-1], atol=1e-8)
    assert max(theory.kkt_residual(problem, layers, limit)) < KKT
    # The residual detects a minimiser that is not the limit ...
    assert theory.kkt_residual(problem, layers, problem.minimiser + 0.01)[0] > 1e-3
    # ... and measures the distance of a point from the minimisers.
    np.testing.assert_allclose(theory.kkt_residual(problem, layers, 1.01 * limit)[1], 0.01)


def test_limit_point_with_deficient_features_and_a_frozen_coordinate():
    features = RNG.normal(size=(4, 2)) @ RNG.normal(size=(2, 6))
    problem = ddln.least_squares(features, RNG.normal(size=4))
    layers = np.random.default_rng(2).normal(size=(3, 6))
    layers[:2, 4] = 0.0
    limit = ddln.limit_point(problem, layers)
    assert limit[4] == 0.0
    assert max(theory.kkt_residual(problem, layers, limit)) < KKT


FLAT = 1e-8  # θ changes by orders of magnitude with the dual, so that the residual is less exact


@pytest.mark.parametrize(
    ("depth", "scale", "steps"), [(2, 1e-60, 124), (2, 1e-3, 10), (3, 1e-2, 16), (4, 1e-3, 31)]
)
def test_limit_point_takes_few_steps_where_the_dual_is_flat(depth, scale, steps):
    # `steps` as measured; a line search on the residual alone takes over 1000.
    problem = ddln.signed(PROBLEM)
    layers = balanced(depth, scale, 6)
    limit = ddln.limit_point(problem, layers, max_steps=steps * 3 // 2)
    assert max(theory.kkt_residual(problem, layers, limit)) < FLAT


def test_limit_point_converges_when_the_dual_changes_by_rounding_only():
    rng = np.random.default_rng(1)
    problem = ddln.signed(ddln.least_squares(rng.normal(size=(40, 200)), rng.normal(size=40)))
    layers = balanced(2, 1e-3, 200)  # 31 steps; 449 if every step must decrease the dual
    limit = ddln.limit_point(problem, layers, max_steps=45)
    assert max(theory.kkt_residual(problem, layers, limit)) < FLAT


@pytest.mark.slow
def test_repeated_samples_leave_the_limit_point_unchanged():
    layers = np.random.default_rng(2).normal(size=(3, 2))
    once, often = (ddln.least_squares([[1.0, 0.4]] * n, [1.0] * n) for n in (1, 4))
    np.testing.assert_allclose(
        ddln.limit_point(often, layers), ddln.limit_point(once, layers), rtol=KKT
    )


@pytest.mark.slow
def test_limit_point_under_jit_and_vmap_equals_the_eager_one():
    layers = np.random.default_rng(3).normal(size=(4, 3, 6))
    one_by_one = jnp.stack([ddln.limit_point(PROBLEM, network) for network in layers])
    together = jax.jit(jax.vmap(lambda layers: ddln.limit_point(PROBLEM, layers)))(layers)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-10, atol=1e-12)


def test_missing_limit_point_is_an_error_or_nan():
    frozen = jnp.zeros((2, 6))
    with pytest.raises(RuntimeError, match="no minimiser is within reach"):
        ddln.limit_point(PROBLEM, frozen)
    assert jnp.isnan(ddln.limit_point(PROBLEM, frozen, throw=False)).all()
    with pytest.raises(ValueError, match=r"shape \(depth, 6\), got \(2, 5\)"):
        ddln.limit_point(PROBLEM, jnp.ones((2, 5)))


@pytest.mark.parametrize("wrap", [lambda problem: problem, ddln.signed], ids=["plain", "signed"])
def test_loss_without_a_minimiser_has_no_limit_point(wrap):
    problem = wrap(ddln.logistic([[1.0, 0.5]], [1.0]))
    layers = jnp.ones((2, problem.dim))
    for ask in (
        lambda: ddln.limit_point(problem, layers),
        lambda: theory.kkt_residual(problem, layers, layers[0]),
    ):
        with pytest.raises(ValueError, match=r"must have an affine set of minimisers .* attained"):
            ask()


def single_datum(depth, scale):
    """REFERENCE: the flow's limit in closed form, at 30 digits."""
    with mpmath.workdps(30):
        x, a = (mpmath.mpf(1), mpmath.mpf("0.4")), mpmath.mpf(scale)

        def model(k):
            if depth == 2:
                return [2 * a**2 * mpmath.sinh(k * c) for c in x]
            p = -mpmath.mpf(depth) / (depth - 2)
            return [a**depth * ((1 - k * c) ** p - (1 + k * c) ** p) for c in x]

        low, high = mpmath.mpf(0), mpmath.mpf(1000 if depth == 2 else 1)
        for _ in range(110):
            middle = (low + high) / 2
            is_pole = depth > 2 and middle == 1
            if is_pole or sum(c * w for c, w in zip(x, model(middle), strict=True)) > 1:
                high = middle
            else:
                low = middle
        return [float(w) for w in model(low)]


@pytest.mark.parametrize(("depth", "scale"), [(2, "1"), (2, "0.1"), (3, "0.1"), (4, "0.3")])
def test_limit_of_a_single_datum_matches_the_closed_form(depth, scale):
    limit = DATUM.predictor(ddln.limit_point(DATUM, balanced(depth, float(scale), 2)))
    np.testing.assert_allclose(limit, single_datum(depth, scale), rtol=1e-11)
    published = {
        (2, "1"): (0.86496013, 0.33759968),
        (2, "0.1"): (0.97564852, 0.06087869),
        (3, "0.1"): (0.99863326, 0.00341685),
    }
    if (depth, scale) in published:
        np.testing.assert_allclose(limit, published[depth, scale], atol=5e-9)


@pytest.mark.parametrize(("depth", "power"), [(2, 1.2), (3, 3.0)])
def test_distance_to_the_least_l1_norm_falls_like_a_power_of_the_scale(depth, power):
    # α^{2(1−|x₂|)} at depth 2, α^depth from 3 on.
    problem = ddln.least_squares([[1.0, 0.4]], [1.0])
    nearest = theory.min_l1(problem)
    scales = np.array([1e-2, 1e-3])
    errors = [
        float(
            jnp.linalg.norm(
                DATUM.predictor(ddln.limit_point(DATUM, balanced(depth, a, 2))) - nearest
            )
        )
        for a in scales
    ]
    slope = np.diff(np.log(errors)) / np.diff(np.log(scales))
    np.testing.assert_allclose(slope, power, rtol=2e-2)


@pytest.mark.slow
def test_kernel_and_rich_regimes_match_published_numbers():
    # Woodworth et al. 2020, in the setting of Azulay et al. 2021: u² − v², u = v = √α.
    state = np.random.RandomState(1993)
    features, _ = (state.standard_normal((samples, 1000)) for samples in (100, 2000))
    truth = np.zeros(1000)
    truth[state.choice(np.arange(1000), 5, replace=False)] = 1 / np.sqrt(5)
    targets = features @ truth + 0.1 * state.randn(100)
    plain = ddln.least_squares(features, targets)
    problem = ddln.signed(plain)

    def numbers(predictor):
        return np.sum((np.asarray(predictor) - truth) ** 2), np.sum(np.abs(predictor))

    for scale, expected in {
        1e-4: (0.0374862742, 3.0163632853),
        1e-2: (0.7736112072, 7.3798800810),
    }.items():
        layers = balanced(2, scale**0.5, 1000)
        limit = ddln.limit_point(problem, layers)
        np.testing.assert_allclose(numbers(problem.predictor(limit)), expected, atol=5e-10)
        assert max(theory.kkt_residual(problem, layers, limit)) < KKT
    least = numbers(theory.min_l1(plain)), numbers(theory.min_l2(plain))
    np.testing.assert_allclose(least[0], (0.0111233700, 2.6466022760), atol=1e-9)
    np.testing.assert_allclose(least[1], (0.8933581565, 7.9608096922), atol=1e-9)


def test_small_scales_tend_to_the_least_l1_norm_and_large_ones_to_the_least_l2_norm():
    problem = ddln.signed(PROBLEM)
    small = problem.predictor(ddln.limit_point(problem, balanced(2, 1e-60, 6)))
    np.testing.assert_allclose(small, theory.min_l1(PROBLEM), atol=1e-8)
    large = problem.predictor(ddln.limit_point(problem, balanced(2, 1e3, 6)))
    np.testing.assert_allclose(large, theory.min_l2(PROBLEM), atol=1e-5)


def test_lasso_meets_its_optimality_conditions():
    for normalisation in ("sum", "half_mean"):
        problem = ddln.least_squares(
            np.asarray(PROBLEM.features), np.asarray(PROBLEM.targets), normalisation=normalisation
        )
        penalty = 0.3 * float(jnp.max(jnp.abs(problem.gradient(jnp.zeros(6)))))
        theta = theory.lasso(problem, penalty)
        gradient = np.asarray(problem.gradient(jnp.asarray(theta)))
        active = theta != 0
        np.testing.assert_allclose(gradient[active], -penalty * np.sign(theta[active]), rtol=1e-6)
        assert (np.abs(gradient[~active]) <= penalty).all()
    with pytest.raises(ValueError, match=r"`penalty` must be > 0, got 0\.0"):
        theory.lasso(PROBLEM, 0.0)


def test_unconverged_lasso_is_an_error(monkeypatch):
    monkeypatch.setattr(reference_solutions, "_LASSO_ITERATIONS", 1)
    with pytest.raises(
        RuntimeError, match=r"lasso of `problem` at penalty 0\.001 did not converge"
    ):
        theory.lasso(PROBLEM, 1e-3)


def test_failure_of_the_linear_program_for_min_l1_is_an_error(monkeypatch):
    failed = OptimizeResult(status=4, message="numerical difficulties")
    monkeypatch.setattr("scipy.optimize.linprog", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="`problem`: numerical difficulties"):
        theory.min_l1(PROBLEM)


def test_references_reject_signed_problems():
    for reference in (theory.min_l1, theory.min_l2, lambda problem: theory.lasso(problem, 1.0)):
        with pytest.raises(ValueError, match=r"least squares \(of a signed one, its `.unsigned`\)"):
            reference(DATUM)


def test_statistical_dimension_solves_its_stationarity_equation():
    counts, dim = np.array([[1, 7], [20, 39]]), 40

    def excess(t, power):
        """∫ (x − t)^power φ(x) dx over x > t."""
        return quad(lambda x: (x - t) ** power * np.exp(-(x**2) / 2), t, np.inf)[0] / ROOT

    for k, found in zip(counts.flat, theory.statistical_dimension(counts, dim).flat, strict=True):
        root = root_scalar(lambda t, k=k: k * t - 2 * (dim - k) * excess(t, 1), bracket=(0, 10))
        t = root.root
        expected = k * (1 + t**2) + 2 * (dim - k) * excess(t, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_statistical_dimension_is_where_basis_pursuit_turns():
    # Eight samples below δ and thirteen above, where √d = 6.3, all of twenty draws agree.
    k, dim = 5, 40
    turn = float(theory.statistical_dimension(k, dim))
    for samples, recovered in ((turn - 8, 0), (turn + 13, 20)):
        found = 0
        for seed in range(20):
            rng = np.random.default_rng(seed)
            truth = np.append(rng.normal(size=k), np.zeros(dim - k))
            features = rng.normal(size=(round(samples), dim))
            solution = theory.min_l1(ddln.least_squares(features, features @ truth))
            found += np.allclose(solution, truth, atol=1e-6)
        assert found == recovered


@pytest.mark.parametrize("norm", [1, 2])
def test_largest_margins_match_a_general_solver(norm):
    rng = np.random.default_rng(5)
    features = rng.normal(size=(6, 9))
    labels = np.sign(features @ rng.normal(size=9))
    problem = ddln.logistic(features, labels)
    theta = theory.max_margin(problem, norm=norm)
    margins = labels * (features @ theta)
    assert margins.min() > 1 - 1e-9
    signed = labels[:, None] * features
    if norm == 1:  # by duality, max Σ ν over ν ≥ 0 with |Σ ν_i y_i x_i| ≤ 1
        rows = np.vstack([signed.T, -signed.T])
        least = -linprog(-np.ones(6), A_ub=rows, b_ub=np.ones(18)).fun
    else:
        margin = {"type": "ineq", "fun": lambda theta: signed @ theta - 1}
        start = 10 * theta + rng.normal(size=9)
        least = minimize(lambda theta: theta @ theta, start, constraints=margin).fun ** 0.5
    np.testing.assert_allclose(np.linalg.norm(theta, ord=norm), least, rtol=1e-6)
    with pytest.raises(ValueError, match=r"labels ±1 and a linear model .* got Signed"):
        theory.max_margin(ddln.signed(problem), norm=norm)
    with pytest.raises(ValueError, match="labels that some θ separates"):
        theory.max_margin(ddln.logistic([[1.0], [1.0]], [1.0, -1.0]), norm=norm)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e5, 1e7, 1e10])
def test_largest_margin_scales_with_the_units(norm, unit):
    # −θ₁ − kθ₂ ≥ 1 and θ₁ + 2kθ₂ ≥ 1, k the unit: either norm is least where both are equalities.
    features = np.array([[1.0, unit], [1.0, 2 * unit]])
    for factor in (1e-9, 1.0, 1e9):
        theta = theory.max_margin(ddln.logistic(factor * features, [-1.0, 1.0]), norm=norm)
        np.testing.assert_allclose(theta * factor, [-3.0, 2 / unit], rtol=1e-12)
        along = {1: [0.5, 0.0], 2: [0.4, 0.2]}[norm]
        alone = theory.max_margin(ddln.logistic([[2 * factor, factor]], [1.0]), norm=norm)
        np.testing.assert_allclose(alone * factor, along, rtol=1e-12)


@pytest.mark.parametrize("norm", [1, 2])
def test_largest_margins_are_optimal_by_duality(norm):
    rng = np.random.default_rng(3)
    for _ in range(20):
        features = rng.integers(-5, 6, size=(rng.integers(2, 9), 3)) + np.array([0.0, 0.0, 2020.0])
        labels = np.where(features @ [1.0, -2.0, 0.0] + 0.5 > 0, 1.0, -1.0)
        signed = labels[:, None] * np.column_stack([np.ones(len(labels)), features])
        problem = ddln.logistic(labels[:, None] * signed, labels)
        if not problem.escapes.all():
            continue
        theta = theory.max_margin(problem, norm=norm)
        assert (signed @ theta).min() > 1 - 1e-9
        tight = signed[signed @ theta < 1 + 1e-7]
        if norm == 2:  # θ lies in the cone of the rows with margin 1
            assert nnls(tight.T, theta)[1] < 1e-7 * np.linalg.norm(theta)
        else:
            rows = np.vstack([signed.T, -signed.T])
            dual = -linprog(-np.ones(len(signed)), A_ub=rows, b_ub=np.ones(8)).fun
            np.testing.assert_allclose(np.abs(theta).sum(), dual, rtol=1e-6)


def test_max_margin_rejects_other_norms():
    with pytest.raises(ValueError, match="`norm` must be 1 or 2, got 3"):
        theory.max_margin(ddln.logistic([[1.0]], [1.0]), norm=3)
