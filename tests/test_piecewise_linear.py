"""Losses with kinks: their minima, their subgradients, and the theorems that do not apply."""

from itertools import combinations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln.config.experiment import ConfigError

FIGURE4 = Path(__file__).parent.parent / "configs" / "figure4.toml"
RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(9, 3))
TARGETS = RNG.normal(size=9) * 10
LABELS = np.where(RNG.random(9) < 0.5, -1.0, 1.0)
WEIGHTS = RNG.uniform(0.5, 2.0, size=9)
# The vertices are solutions of well-conditioned systems of three equations.
SAME = 1e-12
PROBLEMS = {
    "hinge": lambda: ddln.hinge(FEATURES, LABELS),
    "hinge, weighted": lambda: ddln.hinge(FEATURES, LABELS, weights=WEIGHTS, normalisation="mean"),
    "quantile": lambda: ddln.quantile(FEATURES, TARGETS, level=0.3),
    "quantile, weighted": lambda: ddln.quantile(FEATURES, TARGETS, level=0.7, weights=WEIGHTS),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_minimum_is_the_least_value_at_a_vertex(name):
    """A piecewise linear convex function with bounded level sets is least at a crossing of kinks:
    three samples with margin 1 or residual 0."""
    problem = PROBLEMS[name]()
    kinks = LABELS if name.startswith("hinge") else TARGETS
    vertices = [
        np.linalg.solve(FEATURES[list(rows)], kinks[list(rows)])
        for rows in combinations(range(9), 3)
    ]
    values = jax.vmap(problem.loss)(jnp.array(vertices))
    np.testing.assert_allclose(problem.minimum, values.min(), rtol=SAME)
    np.testing.assert_allclose(problem.loss(problem.minimiser), problem.minimum, rtol=SAME)
    assert bool(problem.attained)
    assert (problem.smoothness, problem.pl_constant, problem.differentiable) == (None, None, False)


@pytest.mark.parametrize("level", [0.1, 0.25, 0.5, 0.9])
def test_constant_feature_gives_the_sample_quantile(level):
    targets = np.sort(RNG.normal(size=21))
    problem = ddln.quantile(np.ones((21, 1)), targets, level=level)
    np.testing.assert_allclose(problem.minimiser[0], targets[int(np.ceil(21 * level)) - 1], SAME)


def test_separable_labels_have_hinge_loss_zero():
    problem = ddln.hinge([[1.0], [-3.0]], [1, -1])
    assert float(problem.minimum) == 0.0
    assert float(problem.gap(problem.minimiser)) == 0.0


@pytest.mark.parametrize("unit", [1e-150, 1e-3, 1e6, 1e150])
def test_minimum_does_not_depend_on_units(unit):
    problem = ddln.quantile(FEATURES * unit, TARGETS / unit, level=0.3)
    expected = PROBLEMS["quantile"]()
    np.testing.assert_allclose(problem.minimum * unit, expected.minimum, rtol=SAME)
    np.testing.assert_allclose(problem.minimiser * unit**2, expected.minimiser, rtol=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_subgradient_matches_finite_differences_and_is_a_slope_at_kinks(name):
    problem = PROBLEMS[name]()
    theta = jnp.array([0.3, -0.2, 0.5])
    step = 1e-6 * jnp.eye(3)
    differences = [(problem.loss(theta + h) - problem.loss(theta - h)) / 2e-6 for h in step]
    np.testing.assert_allclose(problem.gradient(theta), jnp.array(differences), rtol=1e-8)
    kink = problem.minimiser
    slope = problem.gradient(kink)
    for other in RNG.normal(size=(20, 3)):
        rise = problem.loss(kink + other) - problem.loss(kink)
        assert rise >= slope @ other - SAME * problem.minimum


def test_traced_data_match_concrete_data():
    problem = PROBLEMS["quantile"]()
    traced = jax.jit(lambda x, y: ddln.quantile(x, y, level=0.3))(FEATURES, TARGETS)
    np.testing.assert_array_equal(traced.minimum, problem.minimum)
    many = jax.vmap(lambda y: ddln.quantile(FEATURES, y, level=0.3).minimum)(
        jnp.stack([TARGETS, 2 * TARGETS])
    )
    np.testing.assert_allclose(many, [problem.minimum, 2 * problem.minimum], rtol=SAME)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddln.hinge(FEATURES, TARGETS), "`targets` must be −1 or 1, got .* at row 0"),
        (lambda: ddln.quantile(FEATURES, TARGETS, level=1.0), "`level` must be > 0 and < 1, got 1"),
        (lambda: ddln.hinge(FEATURES, LABELS, weights=0 * WEIGHTS), "`weights` must be > 0"),
        (lambda: ddln.hinge(FEATURES, LABELS, weights=[1.0]), r"`weights` must have shape \(9,\)"),
    ],
)
def test_invalid_input_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_flows_refuse_a_loss_with_kinks():
    problem, layers = ddln.signed(PROBLEMS["hinge"]()), jnp.ones((2, 6))
    refusal = "`problem` must be differentiable for a flow, got Signed: use `descend`"
    for flow in (ddln.gradient_flow, ddln.mirror_flow):
        with pytest.raises(ValueError, match=refusal):
            flow(problem, layers, [0.0, 1.0])
    with pytest.raises(ValueError, match=refusal):
        ddln.gradient_flows(problem, layers[None], [0.0, 1.0])
    table = ["problem.loss={kind='hinge'}", "sweep={}"]
    table.append("problem.data={kind='classification', samples=9, features=3, nonzeros=2}")
    with pytest.raises(ConfigError, match=r"dynamics\.kind: a flow needs a differentiable loss"):
        ddln.load(FIGURE4, table)


def test_descent_decreases_the_loss_and_says_that_the_theorems_do_not_apply():
    experiment = ddln.load(
        FIGURE4,
        [
            "problem.loss={kind='quantile', level=0.3}",
            "dynamics={kind='descent', steps=300, points=7, optimiser={kind='sgd', "
            "learning_rate=1e-3, drops=[[200, 0.1]]}}",
            *("network.depth=2", "sweep={}", "network.signed=true"),
        ],
    )
    dataset = ddln.run(experiment)
    gap = dataset["gap"].values
    assert gap[-1] < gap[0] / 2
    assert (gap >= 0).all()
    holds = dataset["hypothesis_holds"]
    assert not bool(holds.sel(hypothesis="differentiable loss"))
    assert bool(holds.sel(hypothesis="convex loss"))
    assert bool(dataset["certificate_holds"].where(dataset["certificate_applies"], True).all())
