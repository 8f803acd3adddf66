"""Certificates hold on the true flow of a thousand networks, and fail on a wrong one."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln import theory
from ddln.networks.reparametrisation import Reduction
from ddln.solvers import gradient_flow
from ddln.solvers.cost_model import LARGEST_DENSE_DIM
from ddln.sweeps import report
from ddln.verification._convergence_bounds import asymptotic_rate
from ddln.verification._mirror_flow import diagonal, dual_path
from ddln.verification._shared_tolerances import gap_floor
from ddln.verification.certificates import FlowCertificates

TIMES = np.linspace(0.0, 1.0, 81)
SAMPLES, DIM = 6, 4  # what most tests use, to share their programs
ROUNDING = 1e-9  # of a few sums and quotients
LATE = 1e-3  # far above the quadrature's error, and small against 1


def expected_error(run):
    """δ of docs/theory.md for the default tolerances and coordinates v of size at most 3."""
    return 30 * 1e-9 * np.linalg.norm(run.theta, axis=1).max() + 1e-12


def padded(features, targets, layers):
    """A small problem and its network in the usual shape.

    The further samples and features are zero, and so the further coordinates rest. Their layers
    are those of the last coordinate.
    """
    samples, dim = np.shape(features)
    more = ((0, SAMPLES - samples), (0, DIM - dim))
    problem = ddln.least_squares(np.pad(features, more), np.pad(targets, more[0]))
    return problem, np.pad(layers, ((0, 0), more[1]), mode="edge")


def random_run(key, depth=3, samples=SAMPLES, dim=DIM):
    data, noise, weights = jax.random.split(key, 3)
    problem = ddln.least_squares(
        jax.random.normal(data, (samples, dim)), jax.random.normal(noise, (samples,))
    )
    layers = ddln.init.normal(weights, depth, dim)
    return problem, ddln.gradient_flow(problem, layers, TIMES, throw=False)


@pytest.fixture(scope="module")
def certified():
    problem, run = random_run(jax.random.key(3))
    return problem, run, ddln.certify(problem, run)


@pytest.mark.parametrize("networks", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_theorem_holds_on_many_networks(networks):
    certify = jax.jit(jax.vmap(lambda key: ddln.certify(*random_run(key))))
    certificates = certify(jax.random.split(jax.random.key(0), networks))
    failures = {
        claim.name: int((~claim.holds).sum())
        for claim in certificates.claims
        if not claim.holds.all()
    }
    assert failures == {}
    applies = {claim.name: int(jnp.sum(claim.applies)) for claim in certificates.claims}
    assert applies["exponential bound"] == applies["mirror identity"] == networks
    assert applies["dual path"] > networks / 2
    assert applies["asymptotic rate"] > networks / 20


OTHERS = [(2, 1), (5, 3), (12, 60)]


@pytest.mark.parametrize(
    ("depth", "dim"), [(3, DIM), *(pytest.param(*size, marks=pytest.mark.slow) for size in OTHERS)]
)
def test_identities_hold_at_any_depth_and_width(depth, dim):
    problem, run = random_run(jax.random.key(depth), depth, dim + 2, dim)
    certificates = ddln.certify(problem, run)
    assert certificates.ok
    assert np.asarray(certificates["conservation"].measured) < 1e-12
    assert np.asarray(certificates["mirror identity"].measured) < 1e-10
    assert np.asarray(certificates["entropy Hessian"].measured) < 1e-10


@pytest.mark.parametrize(
    ("wrong", "claims"),
    [
        # One factor of M changed: one layer's share counted one and a half times.
        (lambda true: lambda self, v: 1.5 * true(self, v), {"mirror identity", "dissipation"}),
        (lambda true: lambda self, v: true(self, v).at[0].multiply(1.01), {"mirror identity"}),
        (lambda true: lambda self, v: -true(self, v), {"monotone loss", "mirror identity"}),
    ],
    ids=["factor", "one coordinate", "ascent"],
)
def test_wrong_dynamics_fails(monkeypatch, certified, wrong, claims):
    problem, run, _ = certified
    speed = wrong(Reduction.remaining_product)

    class Wrong(gradient_flow.Reduced):
        def rate(self, v, gradient):
            return -speed(self.reduction, v) * gradient

    monkeypatch.setattr(gradient_flow, "Reduced", Wrong)
    spoilt = gradient_flow.gradient_flow(problem, run.layers[0], TIMES / 1000)
    failed = {c.name for c in ddln.certify(problem, spoilt).claims if not c.holds}
    assert claims <= failed


def spoil(run, **fields):
    return dataclasses.replace(run, **fields)


@pytest.mark.parametrize(
    ("fields", "claim"),
    [
        (lambda run: {"layers": run.layers.at[7, 0].multiply(1 + 1e-9)}, "conservation"),
        (lambda run: {"layers": run.layers.at[7].multiply(-1)}, "sign"),
        (lambda run: {"gap": run.gap.at[7].set(run.gap[6] * 1.001)}, "monotone loss"),
        (lambda run: {"velocity": run.velocity * (1 + 1e-8)}, "mirror identity"),
        (lambda run: {"velocity": run.velocity * (1 + 1e-8)}, "dissipation"),
        (lambda run: {"layers": run.layers.at[-1].multiply(1 + 1e-8)}, "entropy Hessian"),
        (lambda run: {"times": run.times * 1.2}, "dual path"),
        (lambda run: {"gap": run.gap.at[-1].set(1e4)}, "divergence bound"),
        (lambda run: {"gap": run.gap.at[3].set(run.gap[0] * 1.01)}, "exponential bound"),
        (lambda run: {"gap": run.gap.at[3].set(run.gap[0] * 1.01)}, "a-posteriori bound"),
        (lambda run: {"gap": run.gap.at[-1].set(jnp.nan)}, "completed"),
    ],
)
def test_each_claim_fails_when_what_it_names_breaks(certified, fields, claim):
    problem, run, certificates = certified
    assert certificates[claim].holds
    assert not ddln.certify(problem, spoil(run, **fields(run)))[claim].holds


OFF = 1e-6  # far above the tolerances of what is spoilt, and small against 1


@pytest.mark.parametrize(
    ("fields", "claim", "share"),
    [
        (lambda run: {"velocity": run.velocity * (1 + OFF)}, "dissipation", OFF),
        (lambda run: {"velocity": run.velocity * (1 + OFF)}, "mirror identity", OFF),
        # M is of degree 2 (L − 1) in the layers.
        (lambda run: {"layers": run.layers.at[-1].multiply(1 + OFF)}, "entropy Hessian", 4 * OFF),
    ],
)
def test_measured_value_is_the_relative_error(certified, fields, claim, share):
    problem, run, _ = certified
    measured = ddln.certify(problem, spoil(run, **fields(run)))[claim].measured
    np.testing.assert_allclose(measured, share, rtol=1e-3)


def test_conservation_error_is_relative_to_the_largest_layer(certified):
    problem, run, _ = certified
    layers = np.array(run.layers)
    layers[7, 0] *= 1 + OFF
    certificates = ddln.certify(problem, spoil(run, layers=jnp.asarray(layers)))
    smallest = np.argmin(np.abs(layers[0]), axis=0)
    gaps = layers**2 - np.take_along_axis(layers, smallest[None, None], axis=1) ** 2
    size = np.abs(layers).max(axis=(0, 1))
    drift = np.abs(gaps - gaps[:1]).max(axis=(0, 1)) / size**2
    np.testing.assert_allclose(certificates["conservation"].measured, drift.max(), rtol=1e-6)
    outside = np.sqrt(gaps[:1]) - np.sign(layers[:1]) * layers
    outside[:, smallest, np.arange(4)] = -np.inf
    deficit = (outside.max(axis=(0, 1)) / size).max()
    np.testing.assert_allclose(certificates["sign"].measured, deficit, atol=1e-15)


def test_tolerances_match_the_theory_page(certified):
    problem, run, certificates = certified
    rounding = np.finfo(float).eps
    for names, tolerance in {
        ("conservation", "sign"): 4096 * rounding,
        ("dissipation", "mirror identity", "entropy Hessian"): 450_000 * rounding,
        ("divergence bound", "exponential bound"): 1e-6,
    }.items():
        for name in names:
            np.testing.assert_allclose(certificates[name].tolerance, tolerance, err_msg=name)
    root = np.linalg.norm(np.asarray(problem.features), 2) * expected_error(run)  # β = 2σ²
    start = np.sqrt(run.gap[0])
    np.testing.assert_allclose(certificates["monotone loss"].tolerance, 2 * root / start)
    fall = np.diff(np.sqrt(run.gap)).max() / start
    np.testing.assert_allclose(certificates["monotone loss"].measured, fall)
    bounds = certificates.predictions
    for name in ("divergence", "exponential", "posterior"):
        ratio = (np.maximum(np.sqrt(run.gap) - root, 0) ** 2)[1:] / getattr(
            bounds, f"{name}_bound"
        )[1:]
        first = 0.0 if name == "divergence" else (1 - root / start) ** 2
        claim = certificates[{"posterior": "a-posteriori"}.get(name, name) + " bound"]
        np.testing.assert_allclose(claim.measured, max(ratio.max(), first), rtol=1e-9)
    doubt = certificates["a-posteriori bound"].tolerance - 1e-6
    np.testing.assert_allclose(doubt, bounds.posterior_error, rtol=1e-6)


def test_wrong_asymptotic_rate_fails():
    problem, layers = padded([[1.0, 0.5]], [2.0], [[0.0, 0.0], [1.0, 0.8], [0.9, -1.1]])
    run = ddln.gradient_flow(problem, layers, TIMES)
    rate = ddln.certify(problem, run)["asymptotic rate"]
    assert rate.applies
    assert rate.holds
    # From the last resolved gap to where it is e² times as large.
    floor = (np.linalg.norm(problem.features, 2) * expected_error(run)) ** 2
    gap, times = np.asarray(run.gap), np.asarray(run.times)
    last = np.flatnonzero(gap > 1e4 * floor)[-1]
    first = np.flatnonzero(gap[:last] >= np.e**2 * gap[last])[-1]
    slope = np.log(gap[first] / gap[last]) / (2 * (times[last] - times[first]))
    np.testing.assert_allclose(rate.measured, slope, rtol=1e-9)
    predicted = ddln.asymptotic_rate(problem, run.theta[last], layers)
    np.testing.assert_allclose(rate.predicted, predicted, rtol=1e-9)
    slower = spoil(run, times=1.1 * run.times)
    assert not ddln.certify(problem, slower)["asymptotic rate"].holds


@pytest.mark.parametrize("which", [0, 1])
def test_nan_among_the_rates_fails_the_asymptotic_rate(monkeypatch, which):
    problem, layers = padded(np.eye(2), [2.0, 1.0], [[0.0, 0.0], [1.0, 1.2]])
    run = ddln.gradient_flow(problem, layers, 8 * TIMES)
    floor = jax.jit(gap_floor)(problem, run)
    right = jax.jit(lambda *given: asymptotic_rate(*given))(problem, run, floor)
    assert right.applies
    assert right.holds
    true = theory.mode_rates

    def spoilt(*given):
        rates, modes = true(*given)
        return rates.at[which].set(jnp.nan), modes

    monkeypatch.setattr(theory, "mode_rates", spoilt)
    assert not jax.jit(lambda *given: asymptotic_rate(*given))(problem, run, floor).holds


@pytest.mark.slow
def test_layer_and_mirror_formulations_are_certified(certified):
    problem, run, _ = certified
    layers = run.layers[0]
    assert ddln.certify(
        problem, ddln.gradient_flow(problem, layers, TIMES, coordinates="layers")
    ).ok
    assert ddln.certify(problem, ddln.mirror_flow(problem, layers, TIMES)).ok


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 5, 8])
@pytest.mark.parametrize("target", [1e3, 1e5])
def test_mirror_flow_to_the_end_of_its_range_is_certified(depth, target):
    problem = ddln.least_squares([[1.0]], [target])
    layers = np.array([[0.0]] + [[1.0 + 0.1 * i] for i in range(depth - 1)])
    times = np.linspace(0.0, 3.0 / target, 41)
    run = ddln.mirror_flow(problem, layers, times)
    _, high = ddln.Entropy(layers).range()
    xi = ddln.Entropy(layers).mirror_map(run.theta[-1])
    assert xi[0] > 0.9 * high[0]
    assert np.allclose(run.theta[-1], target, rtol=1e-5)
    assert ddln.certify(problem, run).ok


def test_exponential_bound_does_not_apply_to_tied_networks(certified):
    problem, _, _ = certified
    layers = jnp.ones((3, 4)).at[:2, 1].set(0.0)
    certificates = ddln.certify(problem, ddln.gradient_flow(problem, layers, TIMES))
    assert certificates.ok
    assert not certificates["exponential bound"].applies
    assert certificates["mirror identity"].applies


def test_certificates_print_as_a_table(certified):
    text = repr(certified[2])
    assert "mirror identity" in text
    assert "Theorem 1" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "FAILS" not in text


def test_transformations_agree_with_eager(certified):
    problem, run, certificates = certified
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), run)
    batch = eqx.filter_jit(jax.vmap(lambda run: ddln.certify(problem, run)))(two)
    assert batch.ok.tolist() == [True, True]
    for one, many in zip(certificates.claims, batch.claims, strict=True):
        predicted = np.asarray(many.predicted)[1]
        np.testing.assert_allclose(predicted, one.predicted, rtol=1e-9, err_msg=one.name)


def test_repr_of_a_batch_lists_its_claims(certified):
    *_, certificates = certified
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), certificates)
    assert repr(batch).startswith("Certificates(completed, consistency, conservation, ")
    assert "completed" in batch._repr_html_()


def test_floor_without_smoothness_uses_the_largest_sampled_hessian(certified):
    plain, run, _ = certified  # which run it is does not matter
    problem = ddln.exponential(plain.features, jnp.sign(plain.targets))
    hessians = jax.jit(jax.vmap(lambda theta: problem.hessian(theta)))(np.asarray(run.theta)[::10])
    largest = max(np.linalg.norm(hessian) for hessian in np.asarray(hessians))
    floor = largest * expected_error(run) ** 2 / 2
    np.testing.assert_allclose(jax.jit(gap_floor)(problem, run), floor, rtol=ROUNDING)


def test_errors_are_relative_to_the_initial_loss_and_dual():
    problem, layers = padded([[1.0, 0.5]], [0.3], [[0.0, 0.0], [1.0, 0.8], [0.9, -1.1]])
    run = ddln.gradient_flow(problem, layers, TIMES)
    root = np.hypot(1.0, 0.5) * expected_error(run)
    tolerance = ddln.certify(problem, run)["monotone loss"].tolerance
    np.testing.assert_allclose(tolerance, 2 * root / 0.3, rtol=ROUNDING)
    late = ddln.certify(problem, spoil(run, times=(1 + LATE) * run.times))["dual path"]
    np.testing.assert_allclose(late.measured, LATE, rtol=1e-3)


def test_integral_claims_do_not_apply_with_too_few_saved_times(certified):
    problem, run, _ = certified
    few = jax.tree.map(lambda saved: saved[::20] if saved.ndim else saved, run)
    certificates = ddln.certify(problem, few)
    assert isinstance(certificates, FlowCertificates)
    assert not certificates["dual path"].applies
    assert certificates["exponential bound"].applies
    # The error of the a-posteriori bound goes with μ: up to 5 % the claim is made.
    error = certificates.predictions.posterior_error
    for share, applies in ((0.049, True), (0.051, False)):
        scaled = eqx.tree_at(lambda p: p.pl_constant, problem, problem.pl_constant * share / error)
        assert ddln.certify(scaled, few)["a-posteriori bound"].applies == applies


def test_diagonal_agrees_above_the_dense_size():
    at = np.linspace(-2.0, 2.0, LARGEST_DENSE_DIM + 1)
    for part in (at, at[1:]):
        found = jax.jit(partial(diagonal, lambda x: x**3))(part)
        np.testing.assert_allclose(found, 3 * part**2)


def test_too_few_times_are_refused(certified):
    problem, run, _ = certified
    short = jax.tree.map(lambda saved: saved[:3] if saved.ndim else saved, run)
    with pytest.raises(ValueError, match="at least 5 saved times, got 3"):
        ddln.certify(problem, short)


@pytest.mark.parametrize(
    ("features", "targets", "layers"),
    [
        (np.zeros((2, 2)), np.ones(2), [[0.1, 0.2], [1.0, 1.0]]),
        (np.eye(2), np.zeros(2), [[0.0, 0.0], [1.0, 1.0]]),
        (np.eye(2), np.zeros(2), [[0.0, 0.0], [0.0, 0.0]]),
        (np.eye(2), [1.0, 1.0], [[0.0, 0.4], [0.0, 1.0]]),
        (np.eye(2), [1.0, -1.0], [[1.0, 1.0], [1.0 + 4.5e-16, 1.0 + 1e-12]]),
    ],
    ids=["no data", "at the minimum", "all frozen", "one frozen", "nearly tied"],
)
def test_degenerate_networks_are_certified(features, targets, layers):
    problem, layers = padded(features, targets, layers)
    for coordinates in ("reduced", "layers"):
        run = ddln.gradient_flow(problem, layers, TIMES, coordinates=coordinates)
        certificates = ddln.certify(problem, run)
        assert certificates.ok, repr(certificates)
        assert bool(certificates["monotone loss"].applies) == (run.gap[0] > 0)


@pytest.mark.slow
def test_frozen_coordinate_changes_no_tolerance_except_of_bounds(certified):
    problem, run, certificates = certified
    features = np.insert(np.asarray(problem.features), 1, 0.0, axis=1)
    layers = np.insert(np.asarray(run.layers[0]), 1, [0.0, 0.0, 2.0], axis=1)
    wider = ddln.least_squares(features, problem.targets)
    again = ddln.certify(wider, ddln.gradient_flow(wider, layers, TIMES))
    assert again.ok
    # No rate is bounded from below; and θ* is 0 there but for its rounding, where Q is not defined.
    assert not again["exponential bound"].applies
    assert not again["divergence bound"].applies
    for one, other in zip(certificates.claims, again.claims, strict=True):
        if not one.name.endswith("bound"):
            assert other.applies == one.applies, one.name
            # The steps of the integrator, and so the curve, are others to its tolerance.
            np.testing.assert_allclose(other.tolerance, one.tolerance, rtol=1e-5, err_msg=one.name)


@pytest.mark.slow
def test_tolerance_of_integrated_layers_grows_towards_a_tie(certified):
    problem, run, _ = certified
    layers = np.array(run.layers[0])
    layers[1, 2] = layers[0, 2] * (1 + 1e-3)
    run = ddln.gradient_flow(problem, layers, TIMES, coordinates="layers", rtol=1e-10)
    squares = np.asarray(run.layers) ** 2
    ascending = np.sort(squares[0], axis=0)
    magnified = (squares.max(axis=(0, 1)) / (ascending[1] - ascending[0])).max()
    assert magnified > 400
    ten_errors = 10 * 30 * 1e-10
    certificates = ddln.certify(problem, run)
    assert certificates.ok
    for name, times in {"conservation": 1, "sign": 1, "mirror identity": magnified}.items():
        tolerance = certificates[name].tolerance
        np.testing.assert_allclose(tolerance, ten_errors * times, rtol=ROUNDING)
    tied = jnp.ones((3, 4))
    run = ddln.gradient_flow(problem, tied, TIMES, coordinates="layers", rtol=1e-10)
    tolerance = ddln.certify(problem, run)["mirror identity"].tolerance
    np.testing.assert_allclose(tolerance, ten_errors, rtol=ROUNDING)


def test_run_that_fails_at_once_misses_its_whole_horizon(certified):
    problem, run, _ = certified
    stopped = spoil(run, gap=run.gap.at[1:].set(jnp.nan))
    assert ddln.certify(problem, stopped)["completed"].measured == TIMES[-1]


def test_half_lines_are_certified_down_to_zero():
    problem, layers = padded([[1.0]], [-1.0], [[0.5], [0.5]])
    for until in (10.0, 30.0, 300.0, 1000.0):
        run = ddln.gradient_flow(problem, layers, until * TIMES)
        certificates = ddln.certify(problem, run)
        assert certificates.ok, repr(certificates)


def test_every_claim_has_a_meaning_in_plain_words(certified, decayed):
    problem, run, certificates = certified
    descent = ddln.descend(
        problem, run.layers[0], ddln.optimiser("sgd", learning_rate=1e-3), steps=9
    )
    others = decayed[2], ddln.certify(problem, descent)
    claims = [*certificates.claims, *(claim for other in others for claim in other.claims)]
    assert {claim.name for claim in claims} == report.MEANINGS.keys()


def test_other_objects_are_refused(certified):
    problem, *_ = certified
    other: Any = np.zeros(3)
    with pytest.raises(ValueError, match=r"`run` must be a flow's or a descent's, got ndarray"):
        ddln.certify(problem, other)


def test_run_from_a_scale_of_1e_minus_120_is_certified():
    problem, layers = padded([[1.0, 0.2]], [1.0], [[0.0, 0.0], [1e-120, 2e-120]])
    run = ddln.gradient_flow(problem, layers, 300 * TIMES)
    certificates = ddln.certify(problem, run)
    assert run.gap[-1] < 1e-12 * run.gap[0]
    assert bool(certificates["mirror identity"].applies)
    assert bool(certificates.ok), certificates


DECAY = ddln.weight_decay.piecewise([0.8, 0.3, 0.0], until=[0.4, 0.7, jnp.inf])


@pytest.fixture(scope="module")
def decayed():
    problem, run = random_run(jax.random.key(3))
    layers = run.layers[0].at[:2, 1].set(0.8).at[:2, 2].set(0.0)  # a half-line, and frozen
    layers = layers / 2  # slower, so that the quadrature of the dual path is exact to 1e-4
    run = ddln.gradient_flow(problem, layers, TIMES, weight_decay=DECAY)
    return problem, run, ddln.certify(problem, run)


def test_dual_path_leaves_out_an_effective_parameter_that_underflows():
    problem = ddln.least_squares([[1.0]], [1e-3], normalisation="half")
    times = np.linspace(0.0, 3000.0, 41)
    flows = ddln.gradient_flows(problem, [[[0.0], [1e-30]]], times, weight_decay=0.1)
    run = jax.tree.map(lambda saved: saved[0], flows.trajectories())
    assert run.theta[-1, 0] == 0  # where ∇Q(θ) is 3
    claim = dual_path(problem, ddln.Entropy(run.layers[0]), run)
    assert claim.applies
    assert claim.holds, claim
    np.testing.assert_allclose(claim.measured, 0.0, atol=1e-9)


IDENTITIES_UNDER_DECAY = {
    *("consistency", "conservation", "sign", "monotone objective"),
    *("dissipation", "mirror identity", "entropy Hessian", "dual path"),
}


def test_certificates_hold_under_decay(decayed):
    *_, certificates = decayed
    assert certificates.ok, certificates
    applying = {claim.name for claim in certificates.claims if claim.applies}
    assert applying == IDENTITIES_UNDER_DECAY | {"completed"}
    assert certificates["conservation"].measured < 1e-13
    assert certificates["mirror identity"].measured < 1e-10
    assert np.isnan(certificates.predictions.exponential_bound).all()


SOLVES = {"layers": partial(ddln.gradient_flow, coordinates="layers"), "mirror": ddln.mirror_flow}


@pytest.mark.slow
@pytest.mark.parametrize("coordinates", ["layers", "mirror"])
def test_certificates_of_other_coordinates_hold_under_decay(decayed, coordinates):
    problem, run, _ = decayed
    other = SOLVES[coordinates](problem, run.layers[0], TIMES, weight_decay=DECAY)
    assert ddln.certify(problem, other).ok


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_certificates_hold_after_a_large_dose(depth):
    rng = np.random.default_rng(depth)
    problem = ddln.least_squares(rng.normal(size=(6, 4)), 2 * rng.normal(size=6))
    layers = rng.uniform(0.4, 1.2, (depth, 4))
    times = np.linspace(0.0, 300.0, 301)
    run = ddln.gradient_flow(problem, layers, times, weight_decay=0.5)
    assert run.decay is not None
    assert float(run.decay.dose[-1]) == 150.0
    assert bool(ddln.certify(problem, run).ok), ddln.certify(problem, run)


@pytest.mark.parametrize(
    ("wrong", "claims"),
    [
        # The exponents of λ, of the velocity, of the objective and of the time-varying entropy.
        (
            lambda decay: {"dose": 0.5 * decay.dose},
            {"conservation", "mirror identity", "dual path"},
        ),
        (lambda decay: {"rate": 1.01 * decay.rate}, {"consistency", "dissipation"}),
        (lambda decay: {"rate": 0.99 * decay.rate}, {"mirror identity"}),
        (
            lambda decay: {"dose": 1.001 * decay.dose},
            {"conservation", "mirror identity", "dual path"},
        ),
    ],
)
def test_a_wrong_exponent_of_decay_fails(decayed, wrong, claims):
    problem, run, _ = decayed
    spoilt = spoil(run, decay=run.decay._replace(**wrong(run.decay)))
    failed = {claim.name for claim in ddln.certify(problem, spoilt).claims if not claim.holds}
    assert claims <= failed


def test_flow_with_a_wrong_exponent_fails(monkeypatch, decayed):
    """Shrinking λ by e^{−Ω}, as if it were a layer."""
    problem, run, _ = decayed
    true = Reduction.shrunk

    def shrunk(self, dose):
        reduction = true(self, dose)
        return eqx.tree_at(
            lambda r: r.other_imbalances, reduction, self.other_imbalances * jnp.exp(-dose)
        )

    monkeypatch.setattr(Reduction, "shrunk", shrunk)
    spoilt = gradient_flow.gradient_flow(problem, run.layers[0], TIMES[:7], weight_decay=0.5)
    monkeypatch.setattr(Reduction, "shrunk", true)
    failed = {claim.name for claim in ddln.certify(problem, spoilt).claims if not claim.holds}
    assert {"conservation", "mirror identity"} <= failed


@pytest.mark.slow
def test_rising_objective_fails_under_decay(decayed):
    problem, run, _ = decayed
    spoilt = spoil(run, loss=run.loss.at[7].set(2 * run.loss[6]))
    claim = ddln.certify(problem, spoilt)["monotone objective"]
    assert claim.applies
    assert not claim.holds
