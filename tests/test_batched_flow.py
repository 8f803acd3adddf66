import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ddln
from ddln.solvers import _batching
from ddln.solvers._steppers import Rodas5P, Tsit5, inverse
from ddln.solvers.formulations import Reduced, Smallest
from ddln.solvers.status import Status

TIMES = np.linspace(0.0, 2.0, 21)
# rtol 1e-9 on positions, times what a few hundred steps add up.
AGREES = 2e-7


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    return ddln.least_squares(rng.standard_normal((5, 4)), rng.standard_normal(5))


@pytest.fixture(scope="module")
def layers():
    """Networks from mild to stiff, with an open, a half-line, a tied and a frozen coordinate."""
    rng = np.random.default_rng(1)
    base = rng.uniform(0.5, 1.2, (4, 4))
    base[0] = 0.0
    base[:2, 1] = 0.7
    base[:, 2] = 0.4
    base[1, 3] = 0.0
    return np.linspace(0.8, 2.5, 11)[:, None, None] * base


def by_layers(problem, layers, times):
    """The definition of the flow, by SciPy."""
    depth, dim = layers.shape
    features, targets = np.asarray(problem.features), np.asarray(problem.targets)

    def rate(_, flat):
        u = flat.reshape(depth, dim)
        gradient = 2 * features.T @ (features @ u.prod(0) - targets)
        others = np.stack([np.delete(u, j, 0).prod(0) for j in range(depth)])
        return -(gradient * others).ravel()

    run = solve_ivp(rate, (0, times[-1]), layers.ravel(), "LSODA", times, rtol=1e-11, atol=1e-13)
    return run.y.T.reshape(-1, depth, dim)


def all_open(layers):
    """The networks without ties: w grows by few decades, so w itself is integrated."""
    return layers + np.array([0.0, 0.2, 0.4, 0.6])[:, None]


@pytest.mark.parametrize("solver", ["auto", "tsit5", "rodas5p"])
@pytest.mark.parametrize("transform", [np.asarray, all_open])
def test_batched_flows_agree_with_scipy(problem, layers, solver, transform):
    layers = transform(layers)
    flows = ddln.gradient_flows(problem, layers, TIMES, solver=solver)
    assert (flows.status == 0).all()
    for network in (0, 5, 10):
        expected = by_layers(problem, layers[network], TIMES)
        np.testing.assert_allclose(flows.theta[network], expected.prod(1), atol=AGREES)
        np.testing.assert_allclose(flows.trajectories().layers[network], expected, atol=AGREES)


def test_coefficients_of_tsit5_are_those_of_diffrax():
    tableau = diffrax.Tsit5.tableau
    for stage, expected in zip(Tsit5._STAGES, tableau.a_lower, strict=True):
        np.testing.assert_array_equal(stage, expected)
    np.testing.assert_array_equal(Tsit5._END, tableau.b_sol)
    np.testing.assert_array_equal(Tsit5._ERROR, tableau.b_error)


def test_trajectories_agree_with_gradient_flow_in_every_field(problem, layers):
    many = ddln.gradient_flows(problem, layers, TIMES).trajectories()
    one = ddln.gradient_flow(problem, layers[3], TIMES)
    for name in ("layers", "theta", "velocity", "loss", "gap", "times"):
        ours, reference = getattr(many, name)[3], getattr(one, name)
        np.testing.assert_allclose(ours, reference, atol=AGREES, err_msg=name)
    assert many.coordinates == one.coordinates
    assert jax.tree.structure(many) == jax.tree.structure(one)


def test_balanced_batch_follows_the_logistic_curve(problem):
    # ½(θ − y)², two layers: θ(t) = y / (1 + (y/θ₀ − 1) e^{−2yt}).
    one = ddln.least_squares([[1.0]], [1.5], normalisation="half")
    start = np.array([1e-60, 1e-6, 0.1, 1.2])
    layers = np.broadcast_to(start[:, None, None], (4, 2, 1))
    times = np.linspace(0.0, 100.0, 41)
    theta = ddln.gradient_flows(one, layers, times).theta[..., 0]
    decay = (1.5 / start[:, None] ** 2 - 1) * np.exp(-3.0 * times)
    np.testing.assert_allclose(theta, 1.5 / (1 + decay), rtol=1e-6)


@pytest.mark.parametrize("speed", [0.0, 0.5], ids=["autonomous", "faster and faster"])
@pytest.mark.parametrize(("stepper", "order"), [(Tsit5, 5), (Rodas5P, 5)])
def test_steps_and_dense_output_have_their_orders(stepper, order, speed):
    class Logistic:
        def rate(self, time, y):
            return (1 + speed * time)[None] * y * (1 - y)

        def linearised(self, time, y):
            drift = speed * y * (1 - y) if speed else None
            jacobian = (1 + speed * time)[None] * (1 - 2 * y)
            return self.rate(time, y), jacobian[None], drift

        def is_terminated(self, y):
            return jnp.full(y.shape[1:], False)

    sizes = np.array([0.1, 0.05])
    start = jnp.full((1, 2), 0.2)
    system = Logistic()
    carry, zeros = stepper.start(system, start), jnp.zeros(2)
    step = stepper.step(system, zeros, start, carry, jnp.asarray(sizes))

    def exact(t):
        return 1 / (1 + 4 * np.exp(-t - speed * t**2 / 2))

    def errors(fraction):
        c1, c2, c3 = step.coefficients
        inner = c1 + fraction * (c2 + fraction * c3)
        value = (1 - fraction) * start + fraction * (step.end + (1 - fraction) * inner)
        return np.abs(np.asarray(value[0]) - exact(fraction * sizes))

    at_end, between = errors(1.0), errors(0.37)
    assert np.log2(at_end[0] / at_end[1]) > order + 0.7
    assert np.log2(between[0] / between[1]) > order - 0.3
    estimate = np.abs(np.asarray(step.error[0]))
    assert (estimate > at_end).all()
    assert np.log2(estimate[0] / estimate[1]) > order - 0.3


def test_stiff_flows_take_few_steps():
    # Rates of 1 and 1e8: an explicit method would need 1e8 steps.
    problem = ddln.least_squares(np.diag([1.0, 1e4]), [1.0, 1e4])
    layers = np.broadcast_to(np.array([[0.0, 0.0], [1.0, 1.0]]), (3, 2, 2))
    flows = ddln.gradient_flows(problem, layers, [0.0, 1.0, 2.0, 50.0])
    assert (flows.status == 0).all()
    assert int(flows.stats["num_steps"].max()) < 400
    np.testing.assert_allclose(flows.theta[:, -1], 1.0, rtol=1e-7)


def test_each_network_can_have_its_own_problem(layers):
    rng = np.random.default_rng(2)
    features, targets = rng.standard_normal((11, 5, 4)), rng.standard_normal((11, 5))
    problems = jax.jit(jax.vmap(ddln.least_squares))(features, targets)
    flows = ddln.gradient_flows(problems, layers, TIMES)
    for network in (0, 7):
        alone = ddln.least_squares(features[network], targets[network])
        one = ddln.gradient_flow(alone, layers[network], TIMES)
        np.testing.assert_allclose(flows.loss[network], one.loss, atol=AGREES)


@pytest.mark.slow
def test_each_network_can_have_its_own_signed_problem(layers):
    rng = np.random.default_rng(2)
    features, targets = rng.standard_normal((11, 5, 2)), rng.standard_normal((11, 5))

    def make(features, targets):
        return ddln.signed(ddln.least_squares(features, targets))

    problems = jax.jit(jax.vmap(make))(features, targets)
    assert problems.minimiser.shape == (11, 4)
    flows = ddln.gradient_flows(problems, layers, TIMES)
    one = ddln.gradient_flow(make(features[7], targets[7]), layers[7], TIMES)
    np.testing.assert_allclose(flows.loss[7], one.loss, atol=AGREES)


@pytest.mark.slow
def test_signed_logistic_batch_agrees_with_gradient_flow(layers):
    rng = np.random.default_rng(3)
    features = rng.standard_normal((6, 4))
    problem = ddln.signed(ddln.logistic(features, np.sign(rng.standard_normal(6))))
    start = np.concatenate([layers, layers], axis=-1)
    flows = ddln.gradient_flows(problem, start, TIMES, solver="rodas5p")
    one = ddln.gradient_flow(problem, start[4], TIMES)
    np.testing.assert_allclose(flows.loss[4], one.loss, atol=AGREES)


def test_failure_does_not_affect_other_flows_of_a_batch(problem, layers):
    spoiled = layers.copy()
    spoiled[4] *= 1e60
    both = [ddln.gradient_flows(problem, x, TIMES, solver="tsit5") for x in (layers, spoiled)]
    others = np.arange(11) != 4
    assert int(both[1].status[4]) == 2
    assert np.isnan(both[1].theta[4, 1:]).all()
    np.testing.assert_array_equal(both[0].status[others], 0)
    np.testing.assert_allclose(both[1].theta[others], both[0].theta[others], atol=AGREES)


@pytest.mark.parametrize("solver", ["tsit5", "rodas5p"])
def test_flow_stops_at_its_target_gap(problem, layers, solver):
    plain = ddln.gradient_flows(problem, layers, TIMES, solver=solver)
    target = np.asarray(plain.gap[:, 10]).copy()
    target[3] = 0.0
    flows = ddln.gradient_flows(problem, layers, TIMES, solver=solver, target_gap=target)
    stopped = np.arange(11) != 3
    assert (flows.status[stopped] == ddln.Trajectory.code_of(Status.STOPPED)).all()
    assert int(flows.status[3]) == ddln.Trajectory.code_of(Status.OK)
    assert (flows.gap[stopped, -1] <= target[stopped]).all()
    np.testing.assert_array_equal(flows.theta[stopped, -1], flows.theta[stopped, -2])
    np.testing.assert_allclose(flows.theta[:, :10], plain.theta[:, :10], atol=AGREES)
    np.testing.assert_allclose(flows.theta[3], plain.theta[3], atol=AGREES)
    fewer = flows.stats["num_steps"] < plain.stats["num_steps"]
    assert fewer[stopped].all()


def methods(problem, layers, until=2.0):
    """The stepper and formulation of each network."""
    reduction = jax.vmap(ddln.Reduction)(layers)
    predicted = _batching.predict(problem, layers, reduction, jnp.full(len(layers), until))
    found = {}
    rtol = np.full(len(layers), 1e-9)
    stiffness, coordinate_range = map(np.asarray, predicted)
    options = {"dim": layers.shape[-1], "solver": "auto", "concurrency": 2}
    for batch in _batching.plan_batches(stiffness, coordinate_range, rtol, **options):
        found |= dict.fromkeys(batch.members.tolist(), (batch.stepper, batch.formulation))
    return [found[network] for network in range(len(layers))]


def test_prediction_chooses_stepper_and_formulation():
    wide = ddln.least_squares(np.eye(40), np.ones(40))
    scales = jnp.array([1e-6, 1.0, 30.0])
    layers = scales[:, None, None] * jnp.stack([jnp.zeros(40), jnp.ones(40)])[None]
    assert methods(wide, layers) == [(Tsit5, Reduced), (Tsit5, Smallest), (Rodas5P, Smallest)]
    tied = jnp.ones((1, 2, 40))
    assert methods(wide, tied) == [(Tsit5, Reduced)]
    # With the infimum at infinity, the range of w is unknown.
    endless = ddln.logistic(np.eye(40), np.ones(40))
    assert methods(endless, layers[1:2]) == [(Tsit5, Reduced)]


def test_efficiency_counts_padding(problem, layers):
    flows = ddln.gradient_flows(problem, np.stack([layers[4]] * 3), TIMES, solver="tsit5")
    width = _batching.batch_width(3, 4, Tsit5, 2)
    width *= -(-3 // width)
    assert flows.efficiency == pytest.approx(3 / width, rel=0.02)


def test_exhausted_step_budget_gives_max_steps(problem, layers):
    flows = ddln.gradient_flows(problem, layers, TIMES, max_steps=20)
    assert (flows.status == 1).all()
    assert (flows.stats["num_steps"] == 20).all()
    assert np.isnan(flows.theta[:, -1]).all()
    assert np.isfinite(flows.theta[:, 0]).all()


def test_networks_can_have_different_times_and_start_times(problem, layers):
    times = TIMES[None] * np.linspace(0.5, 1.0, 11)[:, None] + 3.0
    flows = ddln.gradient_flows(problem, layers, times)
    shared = ddln.gradient_flows(problem, layers, TIMES)
    np.testing.assert_allclose(flows.theta[-1], shared.theta[-1], atol=AGREES)
    one = ddln.gradient_flow(problem, layers[0], times[0])
    np.testing.assert_allclose(flows.theta[0], one.theta, atol=AGREES)


@pytest.mark.slow
def test_batches_keep_single_precision(problem, layers):
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, problem)
    flows = ddln.gradient_flows(single, layers.astype(np.float32), TIMES.astype(np.float32))
    assert all(
        leaf.dtype == jnp.float32
        for leaf in jax.tree.leaves(eqx.filter(flows, eqx.is_inexact_array))
    )
    double = ddln.gradient_flows(problem, layers, TIMES)
    # 1e-5 is the tolerance that single precision allows.
    np.testing.assert_allclose(flows.theta, double.theta, atol=1e-3)


def test_batched_flows_are_reproducible_bit_for_bit(problem, layers):
    first, second = (ddln.gradient_flows(problem, layers, TIMES).smallest for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_inverse_agrees_with_numpy():
    rng = np.random.default_rng(4)
    for dim in (1, 3, 20):
        matrices = rng.standard_normal((7, dim, dim)) + dim * np.eye(dim)
        ours = jnp.moveaxis(inverse(jnp.moveaxis(jnp.asarray(matrices), 0, -1)), -1, 0)
        np.testing.assert_allclose(ours, np.linalg.inv(matrices), atol=1e-12)


def test_wrong_number_of_problems_is_an_error(problem, layers):
    three = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 3), problem)
    with pytest.raises(
        ValueError, match=r"one problem or 11 of them, one for each network, got \(3"
    ):
        ddln.gradient_flows(three, layers, TIMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": np.ones((4, 4))}, r"`layers` must have 3 dimension"),
        ({"layers": np.ones((2, 3, 5))}, r"`layers` must have shape \(networks, depth, 4\)"),
        ({"times": np.ones((2, 3))}, r"strictly increasing"),
        ({"times": TIMES[None]}, r"`times` must have shape \(times,\) or \(11, times\)"),
        ({"rtol": np.ones(3)}, r"`rtol` must have shape \(11,\), got \(3,\)"),
        ({"atol": -1.0}, r"`atol` must be > 0, got -1"),
        ({"solver": "euler"}, r"`solver` must be one of 'auto', 'tsit5', 'rodas5p'"),
        ({"max_steps": 0}, r"`max_steps` must be ≥ 1, got 0"),
        ({"target_gap": np.ones(3)}, r"`target_gap` must have shape \(11,\), got \(3,\)"),
    ],
)
def test_invalid_input_is_an_error(problem, layers, change, message):
    arguments = {"layers": layers, "times": TIMES, **change}
    with pytest.raises(ValueError, match=message):
        ddln.gradient_flows(problem, arguments.pop("layers"), arguments.pop("times"), **arguments)


@pytest.mark.parametrize("solver", ["tsit5", pytest.param("rodas5p", marks=pytest.mark.slow)])
def test_flows_with_infinite_loss_are_not_ok(solver):
    problems = jax.jit(jax.vmap(ddln.least_squares))(
        jnp.ones((2, 1, 1)), jnp.array([[1e160], [1.0]])
    )
    layers = np.broadcast_to([[0.0], [1.0]], (2, 2, 1))
    flows = ddln.gradient_flows(problems, layers, [0.0, 1e-165], solver=solver)
    assert np.isfinite(flows.theta).all()
    names = flows.trajectories().status_names
    assert [names[code] for code in flows.status] == ["diverged", "ok"]


def test_flows_have_the_precision_of_the_calling_thread():
    with jax.enable_x64(False):
        problem = ddln.least_squares([[1.0]], [2.0])
        run = ddln.gradient_flows(problem, [[[0.0], [1.0]]], [0.0, 20.0]).trajectories()
    assert run.theta.dtype == np.float32
    assert float(run.theta[0, -1, 0]) == pytest.approx(2.0, rel=1e-4)
