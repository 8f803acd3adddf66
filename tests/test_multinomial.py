"""Multinomial logistic loss: its minima, escaping pairs, derivatives, and runs on it."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.optimize import linprog, minimize
from scipy.special import logsumexp, softmax

import ddln
from ddln.config.experiment import ConfigError
from ddln.problems._multinomial_infimum import infimum
from ddln.problems.multinomial import Multinomial
from ddln.sweeps import build
from ddln.sweeps.dataset_schema import sizes
from tests.test_infimum import exact_escapes, in_other_units, independent, integers

RNG = np.random.default_rng(11)
SAMPLES, COLUMNS, CLASSES = 14, 3, 3
DIM = COLUMNS * CLASSES
X = np.column_stack([np.ones(SAMPLES), RNG.normal(size=(SAMPLES, COLUMNS - 1))])
LABELS = np.argmax(X @ RNG.normal(size=(COLUMNS, CLASSES)) + 2 * RNG.gumbel(size=(14, 3)), axis=1)
ROUNDING = 1e-13  # some hundred roundings of sums over the samples


@pytest.fixture(scope="module")
def problem():
    return ddln.multinomial(X, LABELS)


def separated_class():
    """Data whose class 2 a hyperplane separates, while classes 0 and 1 overlap."""
    labels = np.where(np.arange(SAMPLES) < 4, 2, RNG.integers(0, 2, size=SAMPLES))
    features = np.column_stack([X[:, :2], np.where(labels == 2, 1.0, 0.0)])
    return features, labels


@eqx.filter_jit
def values_of(problem, theta):
    root = problem.hessian_root(theta)
    return {
        "loss": problem.loss(theta),
        "gap": problem.gap(theta),
        "gradient": problem.gradient(theta),
        "hessian": problem.hessian(theta),
        "root": root.T @ root,
        "grad(loss)": jax.grad(problem.loss)(theta),
        "jacfwd(gradient)": jax.jacfwd(problem.gradient)(theta),
        "jacrev(gradient)": jax.jacrev(problem.gradient)(theta),
    }


def mp_loss(features, labels, theta):
    """The loss in mpmath; `theta` row by row."""
    total = mpmath.mpf(0)
    for row, label in zip(features, labels, strict=True):
        z = [
            mpmath.fsum(mpmath.mpf(float(x)) * theta[j * CLASSES + k] for j, x in enumerate(row))
            for k in range(CLASSES)
        ]
        total += mpmath.log(mpmath.fsum(mpmath.exp(each - z[label]) for each in z))
    return total


def mp_minimum(features, labels, classes, near):
    """The minimum to 40 digits, by Newton's method on the differences from class 0."""
    rows = mpmath.matrix(features.tolist())
    free = features.shape[1] * (classes - 1)

    def probabilities(v):
        w = mpmath.matrix(features.shape[1], classes)
        for j in range(free):
            w[j // (classes - 1), 1 + j % (classes - 1)] = v[j]
        z = rows * w
        return z, [
            [
                mpmath.exp(z[i, k]) / mpmath.fsum(mpmath.exp(z[i, m]) for m in range(classes))
                for k in range(classes)
            ]
            for i in range(len(features))
        ]

    def gradient(*v):
        _, p = probabilities(v)
        return [
            mpmath.fsum(
                rows[i, j // (classes - 1)]
                * (p[i][1 + j % (classes - 1)] - (labels[i] == 1 + j % (classes - 1)))
                for i in range(len(features))
            )
            for j in range(free)
        ]

    found = mpmath.findroot(gradient, [float(x) for x in near], tol=1e-70, maxsteps=30)
    _, p = probabilities(list(found))
    return -mpmath.fsum(mpmath.log(p[i][label]) for i, label in enumerate(labels))


def test_loss_and_derivatives_match_scikit_learn_and_finite_differences(problem):
    from sklearn.metrics import log_loss

    theta, step = RNG.normal(size=DIM), 1e-6
    found = values_of(problem, theta)
    p = softmax(X @ theta.reshape(COLUMNS, CLASSES), axis=1)
    expected = log_loss(LABELS, p, normalize=False, labels=range(CLASSES))
    np.testing.assert_allclose(found["loss"], expected, rtol=ROUNDING)
    near = np.concatenate([theta + step * np.eye(DIM), theta - step * np.eye(DIM)])
    losses, gradients = map(
        np.asarray, jax.jit(jax.vmap(lambda t: (problem.loss(t), problem.gradient(t))))(near)
    )
    slopes = (losses[:DIM] - losses[DIM:]) / (2 * step)
    np.testing.assert_allclose(found["gradient"], slopes, atol=1e-7)
    curvatures = (gradients[:DIM] - gradients[DIM:]) / (2 * step)
    np.testing.assert_allclose(found["hessian"], curvatures, atol=1e-7)
    np.testing.assert_allclose(found["gradient"], found["grad(loss)"], atol=ROUNDING)
    for other in ("root", "jacfwd(gradient)", "jacrev(gradient)"):
        np.testing.assert_allclose(found["hessian"], found[other], atol=ROUNDING)


def test_minimum_matches_scikit_learn_and_mpmath(problem):
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-11, solver="newton-cg")
    weights = fit.fit(X, LABELS).coef_.T
    centred = weights - weights.mean(axis=1, keepdims=True)  # the one of least norm
    assert problem.attained
    assert problem.convex
    assert problem.pl_constant is None
    np.testing.assert_allclose(problem.minimiser, centred.ravel(), atol=1e-9)
    theta = np.asarray(problem.minimiser).reshape(COLUMNS, CLASSES)
    with mpmath.workdps(40):
        exact = mp_minimum(X, LABELS, CLASSES, (theta[:, 1:] - theta[:, :1]).ravel())
    np.testing.assert_allclose(problem.minimum, float(exact), rtol=1e-14)
    matrix, values = problem.minimisers()
    np.testing.assert_allclose(matrix @ problem.minimiser, values, atol=1e-13)
    shifted = (theta + RNG.normal(size=(COLUMNS, 1))).ravel()  # one vector added to all classes
    np.testing.assert_allclose(matrix @ shifted, values, atol=1e-13)
    assert np.linalg.matrix_rank(matrix) == COLUMNS * (CLASSES - 1)
    assert float(problem.gap(shifted)) < 1e-28


@pytest.mark.parametrize("seed", range(3))
def test_weighted_minimum_matches_scipy(seed):
    rng = np.random.default_rng(seed)
    features, weights = rng.normal(size=(60, 4)), rng.uniform(0.1, 5.0, size=60)
    labels = np.append(np.arange(5), rng.integers(0, 5, size=55))
    problem = ddln.multinomial(features, labels, weights=weights, normalisation="mean")

    def objective(theta):
        z = features @ theta.reshape(4, 5)
        loss = weights @ (logsumexp(z, axis=1) - z[np.arange(60), labels]) / 60
        slope = weights[:, None] * (softmax(z, axis=1) - np.eye(5)[labels]) / 60
        return loss, (features.T @ slope).ravel()

    found = minimize(objective, np.zeros(20), jac=True, options={"gtol": 1e-10})
    np.testing.assert_allclose(problem.minimum, found.fun, rtol=1e-10)
    np.testing.assert_allclose(problem.minimiser, found.x, atol=1e-7)  # from 0: of least norm
    largest = np.linalg.eigvalsh((features.T * weights) @ features)[-1]
    np.testing.assert_allclose(problem.smoothness, largest / 120, rtol=1e-12)


@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-2, 3.0])
def test_gap_is_accurate_near_the_minimum(problem, distance):
    theta = np.asarray(problem.minimiser) + distance * RNG.normal(size=DIM)
    near = np.asarray(problem.minimiser).reshape(COLUMNS, CLASSES)
    with mpmath.workdps(50):
        least = mp_minimum(X, LABELS, CLASSES, (near[:, 1:] - near[:, :1]).ravel())
        exact = float(mp_loss(X, LABELS, [mpmath.mpf(float(x)) for x in theta]) - least)
    # θ* and Xθ are known to some 1e-15, which is the relative error of θ − θ*, twice in the gap
    np.testing.assert_allclose(problem.gap(theta), exact, rtol=3e-14 + 1e-14 / distance)


@pytest.mark.parametrize("distance", [0.0, 1e-8, 1.0])
@pytest.mark.parametrize("far", [1.0, 30.0, 600.0])
def test_gap_is_accurate_where_pairs_escape(distance, far):
    features, labels = separated_class()
    problem = ddln.multinomial(features, labels)
    two = ddln.logistic(features[4:, :2], 2.0 * labels[4:] - 1)
    assert not problem.attained
    assert jnp.isnan(problem.minimiser).all()
    assert problem.minimisers() is None
    expected = np.arange(CLASSES)[None] != labels[:, None]
    expected[4:, :2] = False
    np.testing.assert_array_equal(problem.escapes, expected)
    np.testing.assert_allclose(problem.minimum, two.minimum, rtol=1e-14)
    w = np.zeros((COLUMNS, CLASSES))
    w[:2, 1] = np.asarray(two.minimiser)
    w += distance * RNG.normal(size=w.shape) + far * np.outer([-0.5, 0.0, 1.0], [0.0, 0.0, 1.0])
    with mpmath.workdps(400):
        least = mp_minimum(features[4:, :2], labels[4:], 2, two.minimiser)
        exact = float(mp_loss(features, labels, [mpmath.mpf(x) for x in w.ravel()]) - least)
    # With everything at the infimum but the escaping mass e^{−far/2}, the rounding of θ* is left.
    np.testing.assert_allclose(problem.gap(w.ravel()), exact, rtol=1e-7, atol=1e-29)
    found = values_of(problem, w.ravel())
    for one, other in (("gradient", "grad(loss)"), ("hessian", "jacfwd(gradient)")):
        np.testing.assert_allclose(found[one], found[other], atol=ROUNDING)


@pytest.mark.parametrize("kind", ["overlapping", "separable", "quasi-separable"])
def test_two_classes_are_logistic_loss(kind):
    features, signs, normal = X, np.where(LABELS == 1, 1.0, -1.0), np.array([0.1, 1.0, -2.0])
    if kind == "separable":
        signs = np.sign(X @ normal)
    if kind == "quasi-separable":
        features = np.column_stack([X[:, :2], np.where(np.arange(SAMPLES) < 5, signs, 0.0)])
    two, one = ddln.multinomial(features, signs > 0), ddln.logistic(features, signs)
    assert bool(two.attained) == bool(one.attained)
    own = np.arange(2)[None] == (signs > 0)[:, None]
    np.testing.assert_array_equal(two.escapes, np.where(own, False, one.escapes[:, None]))
    np.testing.assert_allclose(two.minimum, one.minimum, rtol=1e-13, atol=1e-300)
    w = RNG.normal(size=(COLUMNS, 2))
    if kind == "separable":  # the margins are at least 1, and at the second scale 100
        w = np.outer(normal, [0.0, 1.0]) / np.min(np.abs(X @ normal))
    for scale in (1.0, 100.0):
        theta, single = scale * w.ravel(), scale * (w[:, 1] - w[:, 0])
        np.testing.assert_allclose(two.loss(theta), one.loss(single), rtol=1e-12)
        np.testing.assert_allclose(two.gap(theta), one.gap(single), rtol=1e-12)
        slope = np.asarray(two.gradient(theta)).reshape(COLUMNS, 2)
        size = np.max(np.abs(slope))
        np.testing.assert_allclose(slope[:, 1], one.gradient(single), atol=1e-12 * size)
        np.testing.assert_allclose(slope[:, 0], -slope[:, 1], atol=1e-12 * size)
    if kind == "overlapping":
        halves = np.asarray(two.minimiser).reshape(COLUMNS, 2)
        np.testing.assert_allclose(halves, np.outer(one.minimiser, [-0.5, 0.5]), atol=1e-13)
    largest = np.linalg.eigvalsh(features.T @ features)[-1]
    np.testing.assert_allclose(two.smoothness, largest / 2, rtol=1e-12)


def pairs_of(features, labels, classes):
    """x_i ⊗ (e_y − e_k) without the columns of class 0, and the pairs (i, k)."""
    pairs = [(i, k) for i, y in enumerate(labels) for k in range(classes) if k != y]
    signs = np.eye(classes, dtype=int)
    rows = [np.outer(features[i], (signs[labels[i]] - signs[k])[1:]).ravel() for i, k in pairs]
    return np.array(rows), pairs


def minimum_of_rest(rows, pairs, weights):
    """The minimum over pairs that do not escape, by SciPy, in an orthonormal basis."""
    basis, samples = np.linalg.qr(rows.astype(float))[0], np.array([i for i, _ in pairs], int)

    def terms(a):
        """The loss, and the probability of each pair."""
        odds = np.exp(-basis @ a)
        totals = 1 + np.bincount(samples, odds, weights.size)
        return weights @ np.log(totals), odds / totals[samples]

    def hessian(a):
        p = terms(a)[1]
        means = np.zeros((weights.size, basis.shape[1]))
        np.add.at(means, samples, p[:, None] * basis)
        return (basis.T * (weights[samples] * p)) @ basis - (means.T * weights) @ means

    if not basis.size:
        return terms(np.zeros(0))[0]
    with np.errstate(over="ignore", invalid="ignore"):
        return minimize(
            lambda a: terms(a)[0],
            np.zeros(basis.shape[1]),
            jac=lambda a: -basis.T @ (weights[samples] * terms(a)[1]),
            hess=hessian,
            method="trust-exact",
            options={"gtol": 1e-10 * np.max(weights), "maxiter": 1000},
        ).fun


def test_partly_separable_pairs_match_linear_programs():
    # Class 3 is beyond one plane; on it, class 2 is beyond another; classes 0 and 1 overlap.
    rng = np.random.default_rng(3)
    labels = np.array([0, 1] * 6 + [2] * 4 + [3] * 4)
    tested = np.column_stack([rng.normal(size=(20, 1)), 0.0 + (labels == 2), 0.0 + (labels == 3)])
    tested[labels == 3, 1] = rng.normal(size=4)
    tested = np.column_stack([np.ones(20), tested]) @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    problem = ddln.multinomial(tested, labels)
    rows, pairs = pairs_of(tested, labels, 4)
    kept = np.ones(len(rows), bool)
    while True:  # the largest total margin, each at most 1; then the pairs that it leaves at 0
        found = linprog(
            np.concatenate([np.zeros(rows.shape[1]), -np.ones(kept.sum())]),
            A_ub=np.hstack([-rows[kept], np.eye(kept.sum())]),
            b_ub=np.zeros(kept.sum()),
            bounds=[(None, None)] * rows.shape[1] + [(0, 1)] * int(kept.sum()),
        )
        gone = found.x[rows.shape[1] :] > 1e-6
        if not gone.any():
            break
        kept[np.flatnonzero(kept)[gone]] = False
    escapes = np.zeros((20, 4), bool)
    escapes[tuple(np.transpose(pairs))] = ~kept
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(problem.escapes, escapes)
    left = [pair for pair, stays in zip(pairs, kept, strict=True) if stays]
    thin = rows[kept][:, np.linalg.norm(rows[kept], axis=0) > 0]
    left_singular, singular, _ = np.linalg.svd(thin, full_matrices=False)
    thin = left_singular[:, singular > 1e-10]
    least = minimum_of_rest(thin, left, np.ones(20))
    np.testing.assert_allclose(problem.minimum, least, rtol=1e-10)


def test_iris_has_the_published_deviance_of_its_two_overlapping_species():
    # R: glm(Species ~ ., binomial) of versicolor and virginica has residual deviance 11.899.
    from sklearn.datasets import load_iris

    features, species = map(np.asarray, load_iris(return_X_y=True))
    problem = ddln.multinomial(np.column_stack([features, np.ones(150)]), species)
    np.testing.assert_allclose(2 * problem.minimum, 11.899, atol=5e-4)
    assert np.asarray(problem.escapes).sum(axis=0).tolist() == [100, 50, 50]  # setosa is apart


MINIMUM = 1e-7  # relative: at offsets of 1e8, rounding is 1e-8 of an integer
EPS = float(np.finfo(float).eps)
REFUSED = 0.02  # the largest share of refused data sets


def verdict(seed):
    """None if the infimum of a random data set is correct, else what is wrong."""
    rng = np.random.default_rng([31, seed])
    rows, with_constant = integers(rng)
    rows = rows[:8, :3]
    classes = int(rng.integers(2, 5 if rows.shape[1] < 3 else 4))
    scores = rows @ rng.integers(-3, 4, size=(rows.shape[1], classes))
    scores = scores + 0.1 * rng.random(scores.shape)  # ties at random
    kind = rng.integers(0, 3)
    labels = np.argmax(scores, axis=1) if kind else rng.integers(0, classes, size=len(rows))
    if kind == 2:
        labels[rng.integers(0, len(rows))] = rng.integers(0, classes)
    weights = 10.0 ** rng.uniform(-2, 2, size=len(rows)) if rng.integers(0, 2) else None
    features = in_other_units(rng, rows, with_constant)
    ones = np.ones(len(rows)) if weights is None else weights
    try:
        fitted, gone, minimum, minimiser = infimum(classes, 1.0, EPS, features, 1.0 * labels, ones)
    except ValueError as error:
        return f"refused: {error}" if "beyond" in str(error) else str(error)
    exact, pairs = pairs_of(rows, labels, classes)
    leaves = exact_escapes(exact, np.ones(len(exact)), np.zeros(len(exact), bool))
    expected = np.zeros((len(rows), classes), bool)
    expected[tuple(np.transpose(pairs))] = leaves
    if (gone != expected).any() or np.isnan(minimiser).any() != leaves.any():
        return f"escapes {gone}, not {expected}"
    left = [pair for pair, away in zip(pairs, leaves, strict=True) if not away]
    least = minimum_of_rest(independent(exact[~leaves]), left, ones)
    if not abs(minimum - least) <= MINIMUM * max(abs(least), np.max(ones)):
        return f"minimum {minimum}, not {least}"
    if not leaves.any():
        theta = minimiser.reshape(-1, classes)
        z, size = features @ theta, np.abs(features) @ np.abs(theta)
        off = z - z[np.arange(len(rows)), labels][:, None] - fitted
        if np.max(np.abs(off) / (1 + size.max(axis=1, keepdims=True))) > 1e-13:
            return f"minimiser {theta} does not give its predictions"
    return None


def wrong(seeds):
    """The wrong verdicts, and the share of refusals."""
    faults = {seed: text for seed in seeds if (text := verdict(seed))}
    refused = {seed: text for seed, text in faults.items() if text.startswith("refused")}
    print(f"{len(refused)} of {len(seeds)} refused", *list(refused.values())[:3])
    return {s: t for s, t in faults.items() if s not in refused}, len(refused) / len(seeds)


def test_equivalent_data_have_one_infimum():
    faults, refused = wrong(range(60))
    assert faults == {}
    assert refused <= REFUSED


@pytest.mark.slow
def test_thousands_of_equivalent_data_sets_have_one_infimum():
    faults, refused = wrong(range(60, 4000))
    assert faults == {}
    assert refused <= REFUSED


LAYERS = RNG.normal(size=(2, DIM))
TIMES = np.linspace(0.0, 2.0, 41)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attained", "escaping"])
def test_all_applicable_theorems_hold_on_a_run(problem, kind):
    tested = problem if kind == "attained" else ddln.multinomial(*separated_class())
    run = ddln.gradient_flow(tested, LAYERS, TIMES)
    certificates = ddln.certify(tested, run)
    assert certificates.ok
    applies = {claim.name for claim in certificates.claims if claim.applies}
    assert applies >= {"conservation", "monotone loss", "dissipation", "mirror identity"}
    assert ("divergence bound" in applies) == (kind == "attained")
    # A direction in which the loss is constant: the gradients of the classes sum to 0, and so do
    # the changes of ∇Q(θ).
    network = ddln.Entropy(LAYERS)
    dual = np.asarray(jax.vmap(network.mirror_map)(run.theta[::10]))
    change = (dual - dual[0]).reshape(-1, COLUMNS, CLASSES)
    assert np.max(np.abs(change.sum(axis=2))) < 1e-9 * np.max(np.abs(change))


def test_minibatches_average_to_the_loss(problem):
    weights = RNG.uniform(0.5, 2.0, SAMPLES)
    weighted = ddln.multinomial(X, LABELS, weights=weights)
    theta, rows = RNG.normal(size=DIM), np.arange(SAMPLES).reshape(-1, 7)
    z = X @ theta.reshape(COLUMNS, CLASSES)
    terms = logsumexp(z, axis=1) - z[np.arange(SAMPLES), LABELS]
    for tested, factors in ((problem, np.ones(SAMPLES)), (weighted, weights)):
        halves = jax.jit(jax.vmap(tested.estimate, (None, 0)))(theta, rows)
        expected = 2 * (factors * terms)[rows].sum(axis=1)
        np.testing.assert_allclose(halves, expected, rtol=ROUNDING)
        np.testing.assert_allclose(np.mean(halves), tested.loss(theta), rtol=ROUNDING)
    oracle = ddln.Sampling(batch=7, label_noise=0.1)
    rule = ddln.optimiser("sgd", learning_rate=0.1)
    with pytest.raises(ValueError, match="`label_noise` must be None: the labels of `multinomial`"):
        ddln.descend(problem, LAYERS, rule, steps=3, oracle=oracle, key=jax.random.key(0))


def test_held_out_loss_matches_scikit_learn(problem):
    from sklearn.metrics import log_loss

    rule = ddln.optimiser("sgd", learning_rate=0.01)
    run = ddln.descend(problem, LAYERS, rule, steps=4)
    features, labels = RNG.normal(size=(5, COLUMNS)), np.array([0, 2, 1, 1, 2])
    found = ddln.diagnostics.held_out_loss(problem, run, features, labels)
    for loss, theta in zip(found, np.asarray(run.theta), strict=True):
        p = softmax(features @ theta.reshape(COLUMNS, CLASSES), axis=1)
        expected = SAMPLES * log_loss(labels, p, labels=range(CLASSES))
        np.testing.assert_allclose(loss, expected, rtol=ROUNDING)
    with pytest.raises(ValueError, match="`targets` must be whole numbers from 0 to 2, got 3 at r"):
        ddln.diagnostics.held_out_loss(problem, run, features, labels + 1)


def test_signed_problem_is_the_problem_on_doubled_features(problem):
    signed, doubled = ddln.signed(problem), ddln.multinomial(np.hstack([X, -X]), LABELS)
    theta = RNG.normal(size=2 * DIM)
    found, expected = values_of(signed, theta), values_of(doubled, theta)
    for part in ("loss", "gap", "gradient", "hessian", "root"):
        np.testing.assert_allclose(found[part], expected[part], atol=10 * ROUNDING)
    assert signed.smoothness is not None
    np.testing.assert_allclose(signed.smoothness, doubled.smoothness, rtol=1e-12)
    assert signed.gap(signed.minimiser) < 1e-25
    affine = signed.minimisers()
    assert affine is not None
    matrix, values = affine
    np.testing.assert_allclose(matrix @ signed.minimiser, values, atol=1e-13)


def test_smoothness_is_that_of_boehning():
    # λ_max(diag p − ppᵀ) = ½ at p = (½, ½, 0), for one row of length √2.
    problem = ddln.multinomial([[1.0, 1.0]], [0], classes=3, normalisation="half")
    theta = jnp.asarray([[0.0, 0.0, -500.0], [0.0, 0.0, -500.0]]).ravel()
    np.testing.assert_allclose(np.linalg.eigvalsh(problem.hessian(theta))[-1], 0.5, rtol=1e-12)
    np.testing.assert_allclose(problem.smoothness, 0.5, rtol=1e-12)


def test_traced_data_match_concrete_data(problem):
    def numbers(features, labels):
        traced = ddln.multinomial(features, labels, classes=CLASSES)
        theta = jnp.linspace(-1.0, 1.0, DIM)
        return traced.minimum, traced.minimiser, traced.gap(theta), traced.attained

    labels = np.stack([LABELS, np.where(np.arange(SAMPLES) < 4, 2, LABELS)]).astype(float)
    traced = jax.jit(jax.vmap(numbers, (None, 0)))(X, labels)
    for i in range(2):
        for got, want in zip(traced, numbers(X, labels[i]), strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-12, atol=1e-14)
    invalid = jax.jit(jax.vmap(numbers, (None, 0)))(X, labels + 1)
    assert jnp.isnan(invalid[0]).all()
    assert jnp.isnan(invalid[2]).all()
    with pytest.raises(ValueError, match="`classes` must be given inside `jit`"):
        jax.jit(lambda labels: ddln.multinomial(X, labels).minimum)(labels[0])


def test_single_precision_loss_stays_single_and_accurate(problem):
    single = ddln.multinomial(X.astype(np.float32), LABELS.astype(np.float32))
    exact = ddln.multinomial(X.astype(np.float32).astype(float), LABELS)
    theta = np.linspace(-1.0, 1.0, DIM, dtype=np.float32)
    found, expected = values_of(single, theta), values_of(exact, theta.astype(float))
    for part in ("loss", "gap", "gradient", "hessian", "root"):
        assert found[part].dtype == jnp.float32
        near = 1e-5 * np.max(np.abs(expected[part]))  # 80 roundings
        np.testing.assert_allclose(found[part], expected[part], atol=near, err_msg=part)
    np.testing.assert_allclose(single.minimiser, exact.minimiser, atol=1e-5)


ON_DEVICES = """
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import ddln
from ddln.problems import sharding
rng = np.random.default_rng(0)
problem = ddln.multinomial(rng.normal(size=(9, 4)), np.arange(9) % 3)
layers, times = rng.normal(size=(2, 12)), np.linspace(0.0, 1.0, 11)
mesh = sharding.make_mesh(jax.devices()[:2])
runs = [ddln.gradient_flow(*given, times) for given in (
    (problem, layers), sharding.shard(problem, layers, mesh))]
assert len(runs[1].layers.devices()) == 2
np.testing.assert_allclose(runs[1].layers, runs[0].layers, rtol=1e-10, atol=1e-12)
np.testing.assert_allclose(runs[1].gap, runs[0].gap, rtol=1e-10, atol=1e-12)
"""


@pytest.mark.slow
def test_two_devices_match_one_device():
    flags = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ON_DEVICES], env=environment, check=True, timeout=300)


def with_entry(array, index, value):
    changed = np.array(array, float)
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddln.multinomial(X, with_entry(LABELS, 5, 0.5)), "whole numbers ≥ 0, got 0.5 at"),
        (lambda: ddln.multinomial(X, with_entry(LABELS, 3, -1)), r"≥ 0, got -1 at row 3 \(rows"),
        (
            lambda: ddln.multinomial(X, with_entry(LABELS, 2, 3), classes=3),
            "`labels` must be whole numbers from 0 to 2, got 3 at row 2",
        ),
        (
            lambda: ddln.multinomial(X, with_entry(LABELS, 2, 9)),
            "sample of every class from 0 to 9, unless `classes` is given, but none has class 3",
        ),
        (lambda: ddln.multinomial(X, 0 * LABELS), "`labels` must have at least two classes, got 1"),
        (lambda: ddln.multinomial(X, LABELS, classes=1), "`classes` must be ≥ 2, got 1"),
        (lambda: ddln.multinomial(X, LABELS[:3]), r"`labels` must have shape \(14,\), got \(3,\)"),
        (lambda: ddln.multinomial(X[0], LABELS), r"`features` must have 2 dimension\(s\)"),
        (lambda: ddln.multinomial(X, np.eye(3)[LABELS]), r"`labels` must have 1 dimension\(s\)"),
        (
            lambda: ddln.multinomial(X, with_entry(LABELS, 1, np.nan)),
            "`labels` must be finite, got",
        ),
        (
            lambda: ddln.multinomial(with_entry(X, (4, 1), np.inf), LABELS),
            r"got inf at index \(4, 1",
        ),
        (lambda: ddln.multinomial(X, list("aabbccaabbccab")), "`labels` must be real, got <U1"),
        (lambda: ddln.multinomial(X, LABELS, weights=0 * LABELS), "`weights` must be > 0"),
        (lambda: ddln.multinomial(X, LABELS, normalisation="max"), "`normalisation` must be one"),
        (
            lambda: ddln.theory.max_margin(ddln.multinomial(X, LABELS), norm=1),
            "`problem` must have labels ±1 and a linear model .* got Multinomial",
        ),
    ],
)
def test_invalid_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


CLOSE = 200 * EPS


def test_separation_within_rounding_is_refused():
    features = np.array([[1.0, 1.0], [1.0, 1.0 + CLOSE], [1.0, 1.0]])
    with pytest.raises(ValueError, match=r"`features` must have columns whose linear dependence"):
        ddln.multinomial(features, [0, 1, 2])
    with pytest.raises(ValueError, match=r"`features` must show, beyond their rounding, which cl"):
        ddln.multinomial(features + np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0]]), [0, 1, 2])
    traced = jax.jit(lambda x: ddln.multinomial(x, [0, 1, 2], classes=3).minimum)
    assert jnp.isnan(traced(features))


CONFIG = """
study = "flowers"
[problem]
loss = { kind = "multinomial" }
data = { kind = "file", path = "flowers.csv", target = "kind", intercept = true, test = 0.25 }
[network]
depth = 2
init = { kind = "normal", seed = 1 }
[dynamics]
until = 1.0
points = 11
measure = ["held_out_loss"]
[sweep]
"network.scale" = [0.5, 1.0]
"""


def experiment(tmp_path, *overrides):
    rng, names = np.random.default_rng(0), ("tulip", "aster", "rose")
    rows = [f"{a},{b},{names[k % 3]}" for k, (a, b) in enumerate(rng.normal(size=(20, 2)))]
    (tmp_path / "flowers.csv").write_text("\n".join(["a,b,kind", *rows]), encoding="utf-8")
    (tmp_path / "flowers.toml").write_text(CONFIG, encoding="utf-8")
    return ddln.load(tmp_path / "flowers.toml", overrides)


def test_network_of_a_config_has_a_coordinate_for_each_feature_and_class(tmp_path):
    plain = experiment(tmp_path)
    signed = plain.with_({"network.signed": True})
    assert (plain.features, plain.parameters, plain.width, signed.width) == (3, 9, 9, 18)
    assert sizes(signed)["coordinate"] == 2 * sizes(signed)["feature"] == 18
    assert build.build_layers(plain).shape == (2, 9)
    problem = build.build_problem(plain)
    assert isinstance(problem, Multinomial)
    assert problem.dim == 9
    features, labels, _ = build.held_out_samples(plain)
    assert features.shape == (5, 3)
    assert {*labels} | {*np.asarray(problem.targets)} == {0, 1, 2}
    descent = "kind='descent', steps=9, optimiser={kind='sgd', learning_rate=1}"
    for override, message in (
        (
            "network.init={kind='explicit', layers=[[1], [1]]}",
            "1 weights for 3 features × 3 classes",
        ),
        (
            "problem.data={kind='gaussian', samples=5, features=3}",
            "must be a class 0, 1, 2, …: not",
        ),
        (
            f"dynamics={{{descent}, sampling={{label_noise=1.0}}}}",
            r"dynamics\.sampling\.label_noise: not for multinomial loss",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            experiment(tmp_path, override)


@pytest.mark.slow
@pytest.mark.parametrize("is_signed", [False, True])
def test_sweep_of_a_config_matches_single_runs(tmp_path, is_signed):
    swept = experiment(tmp_path, f"network.signed={str(is_signed).lower()}")
    dataset = ddln.run(swept)
    assert bool(dataset["certificate_holds"].all())
    problem, layers = build.reconstruct(dataset.sel({"network.scale": 1.0}))
    run = ddln.gradient_flow(problem, layers, dataset["time"].values)
    one = dataset.sel({"network.scale": 1.0})
    np.testing.assert_allclose(one["theta"], run.theta, atol=1e-6)
    held_out = build.held_out_samples(swept)
    expected = ddln.diagnostics.held_out_loss(problem, run, *held_out)
    np.testing.assert_allclose(one["held_out_loss"], expected, rtol=1e-6)
