"""Parametrisations against closed forms, mpmath, products of layers, and flows by SciPy."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ddln

TOLERANCE = 1e-12  # relative; of the inverse, times the condition number |Mξ/θ|
FLOW = 1e-7  # of flows at rtol 1e-9
REACH = 1e-9  # of the extrapolated ends of the range, relative
FACTORS = np.array([1e-6, 0.1, 0.7, 1.3])  # of θ(0)
LIMIT = ddln.least_squares([[1.0, 0.5, -0.3, 0.2], [0.3, 1.0, 0.4, -0.6]], [1.0, 0.5])


def eg(w):
    return w[0] ** 2 / 4


def burg(w):
    return jnp.exp(w[0])


def cube(w):
    return w[0] ** 3


def tsallis(w):
    return (w[0] / 4) ** 4


def difference(w):
    return w[0] ** 3 - w[1] ** 3


def product(w):
    return jnp.prod(w)


def unnamed(w):
    return jnp.exp(w[0]) * (2 + jnp.sin(w[1]))


# name: G, ∇Q(θ) and Q(θ) anchored at θ(0), by their known formulas, for m = 1 and M = c θ^q.
POWERS = {
    "exponentiated gradient": (eg, lambda x, a: mpmath.log(x / a)),  # M = θ
    "Burg": (burg, lambda x, a: 1 / a - 1 / x),  # M = θ²
    "w³": (cube, lambda x, a: (a ** (-mpmath.mpf(1) / 3) - x ** (-mpmath.mpf(1) / 3)) / 3),
    "Tsallis": (tsallis, lambda x, a: 2 * (a**-0.5 - x**-0.5)),  # M = θ^{3/2}
}


@eqx.filter_jit
def evaluated(entropy, theta, xi):
    """All functions of an entropy: of θ, and of ξ."""
    of_theta = entropy.mirror_map(theta), entropy.hessian(theta), entropy.value(theta)
    return of_theta, (entropy.inverse(xi), entropy.conjugate(xi))


@pytest.mark.parametrize("name", POWERS)
def test_mirror_map_inverse_and_entropy_have_their_known_formulas(name):
    function, dual_of = POWERS[name]
    start = np.array([[0.3, 1.1, 0.7, 2.0]])
    entropy = ddln.Parametrisation(function, start)
    anchor = np.array([float(function(start[:, k])) for k in range(4)])
    theta = anchor * FACTORS
    with mpmath.workdps(30):
        pairs = [(mpmath.mpf(x), mpmath.mpf(a)) for x, a in zip(theta, anchor, strict=True)]
        xi = np.array([float(dual_of(x, a)) for x, a in pairs])
        parts: Any = [mpmath.quad(lambda x, a=a: dual_of(x, a), [a, x]) for x, a in pairs]
        value = sum(float(part) for part in parts)
    (found, curvature, total), (back, conjugate) = evaluated(entropy, theta, xi)
    np.testing.assert_allclose(found, xi, rtol=TOLERANCE)
    condition = np.abs(xi / np.asarray(curvature) / theta)
    np.testing.assert_array_less(np.abs(back / theta - 1), TOLERANCE * np.maximum(1, condition))
    np.testing.assert_allclose(total, value, rtol=TOLERANCE)
    expected = theta @ xi - value
    np.testing.assert_allclose(
        conjugate, expected, rtol=TOLERANCE * abs(float(theta @ xi / expected))
    )


def test_difference_of_powers_and_its_range_have_their_closed_form():
    start = np.array([[0.5, 1.0, 0.3, 0.8], [0.5, 0.2, 0.6, 0.8]])
    entropy = ddln.Parametrisation(difference, start)
    ends = 1 / (3 * start)  # u = 1/(1/u₀ − 3ξ), v = 1/(1/v₀ + 3ξ)
    xi = np.array([-0.9, -0.1, 0.4, 0.95]) * np.where(np.arange(4) < 2, ends[1], ends[0])
    with mpmath.workdps(30):
        u, v = ([mpmath.mpf(x) for x in row] for row in start)
        along = [mpmath.mpf(x) for x in xi]
        powers = [
            (1 / a - 3 * s) ** -3 - (1 / b + 3 * s) ** -3
            for a, b, s in zip(u, v, along, strict=True)
        ]
        theta = np.array([float(x) for x in powers])
    (found, curvature, _), (back, _) = evaluated(entropy, theta, xi)
    condition = np.abs(xi / np.asarray(curvature) / theta)
    np.testing.assert_allclose(found, xi, rtol=TOLERANCE)
    np.testing.assert_array_less(np.abs(back / theta - 1), TOLERANCE * np.maximum(1, condition))
    low, high = entropy.range()
    np.testing.assert_allclose(low, -ends[1], rtol=REACH)
    np.testing.assert_allclose(high, ends[0], rtol=REACH)


@pytest.mark.slow
def test_function_without_closed_form_agrees_with_mpmath():
    start = np.array([[0.1, -0.5, 0.3, 0.0], [0.2, 1.0, -2.0, 3.0]])
    xi = np.array([-2.0, 0.3, 0.1, -0.05])
    theta = []
    with mpmath.workdps(18):
        for k in range(4):
            sign = mpmath.mpf(float(np.sign(xi[k])))

            def slope(_, w, sign=sign):
                grown = mpmath.exp(w[0])
                return [
                    sign * grown * (2 + mpmath.sin(w[1])),
                    sign * grown * mpmath.cos(w[1]),
                ]

            end = mpmath.odefun(slope, 0, [mpmath.mpf(x) for x in start[:, k]])(abs(xi[k]))
            theta.append(float(mpmath.exp(end[0]) * (2 + mpmath.sin(end[1]))))
    entropy = ddln.Parametrisation(unnamed, start)
    (found, _, _), (back, _) = evaluated(entropy, np.array(theta), xi)
    np.testing.assert_allclose(found, xi, rtol=TOLERANCE)
    np.testing.assert_allclose(back, theta, rtol=TOLERANCE)


@pytest.mark.parametrize("depth", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 6))])
def test_products_of_layers_have_the_entropy_of_the_network(depth):
    rng = np.random.default_rng(depth)
    layers = rng.uniform(0.4, 1.2, (depth, 4)) * rng.choice([-1, 1], (depth, 4))
    layers[0, 0] = 0.0
    layers[1, 3] = layers[0, 3] = 0.3  # a half-line
    ours, theirs = ddln.Parametrisation(product, layers), ddln.Entropy(layers)
    theta = layers.prod(axis=0) * np.array([1.0, -2.0, 3.0, 0.1]) + np.array([0.4, 0, 0, 0])
    xi = np.asarray(theirs.mirror_map(theta))
    found, expected = (evaluated(entropy, theta, xi) for entropy in (ours, theirs))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=TOLERANCE)
    near = theta * np.array([1.5, 0.5, 2.0, 3.0])
    np.testing.assert_allclose(
        ours.divergence(near, theta), theirs.divergence(near, theta), rtol=TOLERANCE
    )
    for one, other in zip(ours.range(), theirs.range(), strict=True):
        np.testing.assert_allclose(one, other, rtol=REACH)


def test_derivatives_are_the_known_ones_and_jit_and_vmap_change_nothing():
    entropy = ddln.Parametrisation(cube, np.array([[0.3, 1.1, 0.7, 2.0]]))
    theta = np.asarray(entropy.start[0] ** 3 * FACTORS)
    xi = entropy.mirror_map(theta)
    np.testing.assert_allclose(jax.grad(entropy.value)(theta), xi, rtol=TOLERANCE)
    second = jnp.diagonal(jax.jacfwd(jax.grad(entropy.value))(theta))
    np.testing.assert_allclose(second, entropy.hessian(theta), rtol=TOLERANCE)
    third = jnp.diagonal(jax.jacfwd(entropy.hessian)(theta))  # 1/M = θ^{−4/3}/9
    np.testing.assert_allclose(third, -4 / 27 * theta ** (-7 / 3), rtol=1e-10)
    np.testing.assert_allclose(jax.grad(entropy.conjugate)(xi), theta, rtol=1e-10)
    batched = jax.vmap(entropy.mirror_map)(np.stack([theta, 2 * theta]))
    np.testing.assert_allclose(batched[1], entropy.mirror_map(2 * theta), rtol=1e-14)
    with pytest.raises(ValueError, match="not to its start"):
        jax.grad(lambda w: ddln.Parametrisation(cube, w).value(theta))(entropy.start)


def test_flows_of_the_parameters_agree_with_scipy_and_end_at_the_limit_point():
    start = np.array([[0.5, 1.0, 0.3, 0.8], [0.6, 0.2, 0.6, 0.7]])
    entropy, times = ddln.Parametrisation(difference, start), np.array([0.0, 0.5, 2.0, 60.0])
    features, targets = map(np.asarray, (LIMIT.features, LIMIT.targets))

    def slope(_, flat):
        u, v = flat.reshape(2, 4)
        gradient = 2 * features.T @ (features @ (u**3 - v**3) - targets)
        return -np.concatenate([3 * u**2 * gradient, -3 * v**2 * gradient])

    found = solve_ivp(slope, (0, 60), start.ravel(), "DOP853", times, rtol=1e-11, atol=1e-13)
    expected = found.y.T.reshape(4, 2, 4)
    run = ddln.gradient_flow(LIMIT, entropy, times)
    mirrored = ddln.mirror_flow(LIMIT, entropy, times)
    for flow in (run, mirrored):
        np.testing.assert_allclose(flow.layers, expected, atol=FLOW)
        np.testing.assert_allclose(flow.theta, expected[:, 0] ** 3 - expected[:, 1] ** 3, atol=FLOW)
    limit = ddln.limit_point(LIMIT, entropy)
    np.testing.assert_allclose(run.theta[-1], limit, atol=FLOW)
    assert max(ddln.theory.kkt_residual(LIMIT, entropy, limit)) < TOLERANCE
    bound = ddln.theory.divergence_bound(LIMIT, entropy, jnp.asarray(times))
    assert (run.gap[1:] <= bound[1:]).all()


STARTS = {
    difference: [[0.5, 1.0, 0.3, 0.8], [0.6, 0.2, 0.6, 0.7]],
    eg: [[0.5, 0.3, 1.0, 0.7]],
    burg: [[0.1, -0.3, 0.2, 0.5]],
    tsallis: [[2.0, 3.0, 1.5, 2.5]],
    unnamed: [[0.5, -0.3, 1.0, 0.7], [0.2, 0.1, 0.5, 1.0]],
}
CORRUPTIONS = {
    "θ": lambda run: {"theta": run.theta.at[40, 1].multiply(1 + 1e-6)},
    "velocity": lambda run: {"velocity": run.velocity.at[40, 1].multiply(0.999)},
    "loss": lambda run: {"loss": run.loss.at[40].multiply(1.001)},
    "gap": lambda run: {"gap": run.gap.at[40].multiply(1.001)},
    "clock": lambda run: {"times": 1.001 * run.times},
    "another curve": lambda run: {"layers": -run.layers[:, ::-1]},
    "NaN": lambda run: {"layers": run.layers.at[40, 0, 0].set(jnp.nan)},
}


@pytest.mark.slow
@pytest.mark.parametrize("flow", [ddln.gradient_flow, ddln.mirror_flow])
@pytest.mark.parametrize("function", STARTS)
def test_flow_of_a_parametrisation_is_certified(function, flow):
    entropy = ddln.Parametrisation(function, STARTS[function])
    run = flow(LIMIT, entropy, np.linspace(0.0, 3.0, 81))
    certificates = ddln.certify(LIMIT, run)
    assert certificates.ok, certificates
    for name in ("consistency", "gradient curve", "mirror identity", "entropy Hessian", "clock"):
        assert certificates[name].applies


def test_corruptions_of_a_flow_of_a_parametrisation_are_caught():
    entropy = ddln.Parametrisation(difference, STARTS[difference])
    run = ddln.gradient_flow(LIMIT, entropy, np.linspace(0.0, 3.0, 81))
    spoilt = [dataclasses.replace(run, **change(run)) for change in CORRUPTIONS.values()]
    other = ddln.Parametrisation(difference, 1.001 * entropy.start)
    spoilt.append(dataclasses.replace(run, entropy=other))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), run, *spoilt)
    certificates = jax.jit(jax.vmap(ddln.certify, (None, 0)))(LIMIT, stacked)
    caught = dict(zip(["none", *CORRUPTIONS, "another entropy"], ~certificates.ok, strict=True))
    assert {name for name, is_caught in caught.items() if not is_caught} == {"none"}
    curve = dict(zip(caught, certificates["gradient curve"].holds, strict=True))
    assert not curve["another curve"]
    assert not curve["another entropy"]


RULES = {
    "gradient descent": ("sgd", {}),
    "heavy ball": ("heavy_ball", {"momentum": 0.9}),
    "Adam": ("adam", {}),
    "decay": ("sgd", {"weight_decay": 0.1}),
}
ORACLES = {
    "all samples": None,
    "a sample a step": ddln.Sampling(batch=1, label_noise=0.1),
    "sharpness-aware": ddln.SharpnessAware(rho=0.05),
}


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("rule", ["gradient descent", pytest.param("Adam", marks=pytest.mark.slow)])
def test_descent_on_a_product_is_that_on_its_layers(rule, oracle):
    layers = np.random.default_rng(0).uniform(0.3, 1.0, (3, 4))
    name, options = RULES[rule]
    optimiser = ddln.optimiser(name, learning_rate=0.02, **options)
    runs = [
        ddln.descend(
            LIMIT, start, optimiser, steps=60, oracle=ORACLES[oracle], key=jax.random.key(1)
        )
        for start in (layers, ddln.Parametrisation(product, layers))
    ]
    np.testing.assert_allclose(runs[1].layers, runs[0].layers, rtol=1e-11)
    np.testing.assert_allclose(runs[1].gap, runs[0].gap, rtol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_descent_on_a_parametrisation_agrees_with_a_loop_and_is_certified(rule):
    entropy = ddln.Parametrisation(difference, STARTS[difference])
    name, options = RULES[rule]
    optimiser = ddln.optimiser(name, learning_rate=0.01, **options)
    run = ddln.descend(LIMIT, entropy, optimiser, steps=200, record_every=50)
    features, targets = map(np.asarray, (LIMIT.features, LIMIT.targets))
    w = np.asarray(entropy.start)
    first, second = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, 201):
        u, v = w
        slope = 2 * features.T @ (features @ (u**3 - v**3) - targets)
        gradient = np.stack([3 * u**2 * slope, -3 * v**2 * slope])
        gradient = gradient + options.get("weight_decay", 0.0) * w
        first = options.get("momentum", 0.9 if name == "adam" else 0.0) * first
        if name == "adam":
            first = first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            root = np.sqrt(second / (1 - 0.999**step))
            w = w - 0.01 * first / (1 - 0.9**step) / (root + 1e-8)
        else:
            first = first + gradient
            w = w - 0.01 * first
    np.testing.assert_allclose(run.layers[-1], w, rtol=1e-11)
    np.testing.assert_allclose(run.theta[-1], w[0] ** 3 - w[1] ** 3, rtol=1e-10)
    certificates = ddln.certify(LIMIT, run, start=entropy.start)
    assert certificates.ok, certificates
    assert certificates["recursion"].applies
    assert bool(certificates["descent lemma"].applies) == (rule == "gradient descent")
    assert not certificates["exact identity"].applies  # it is of two layers


def test_descent_on_a_parametrisation_continues_and_batches():
    entropy = ddln.Parametrisation(difference, STARTS[difference])
    rule = ddln.optimiser("adam", learning_rate=0.01)
    whole = ddln.descend(LIMIT, entropy, rule, steps=40, record_every=20)
    half = ddln.descend(LIMIT, entropy, rule, steps=20, record_every=20)
    rest = ddln.descend(LIMIT, half.state, rule, steps=20, record_every=20)
    np.testing.assert_array_equal(rest.layers[-1], whole.layers[-1])

    def end(scale):
        start = ddln.Parametrisation(difference, scale * entropy.start)
        return ddln.descend(LIMIT, start, rule, steps=40, throw=False).theta[-1]

    scales = jnp.array([0.5, 1.0])
    np.testing.assert_allclose(jax.vmap(end)(scales)[1], whole.theta[-1], rtol=1e-12)


def test_corruptions_of_a_descent_on_a_parametrisation_are_caught():
    entropy = ddln.Parametrisation(difference, STARTS[difference])
    rule = ddln.optimiser("sgd", learning_rate=0.01)
    run = ddln.descend(LIMIT, entropy, rule, steps=200, record_every=50)
    wrong = (
        {"theta": run.theta.at[2, 1].multiply(1 + 1e-6)},
        {"gap": run.gap.at[2].multiply(1.001)},
        {"layers": run.layers.at[2].multiply(1.001)},
        {"state": dataclasses.replace(run.state, function=lambda w: w[0] ** 3 - 2 * w[1] ** 3)},
    )
    for change in wrong:
        assert not ddln.certify(LIMIT, dataclasses.replace(run, **change)).ok, change.keys()


@pytest.mark.slow
def test_distance_to_flow_of_a_parametrisation_is_to_its_own_flow():
    entropy = ddln.Parametrisation(difference, STARTS[difference])
    rule = ddln.optimiser("sgd", learning_rate=0.01)
    run = ddln.descend(LIMIT, entropy, rule, steps=200, record_every=50)
    flow = ddln.gradient_flow(LIMIT, entropy, np.linspace(0.0, 2.0, 5))
    distance = np.linalg.norm(np.asarray(run.theta - flow.theta), axis=1)
    found = ddln.diagnostics.distance_to_flow(LIMIT, run)
    np.testing.assert_allclose(found, distance, rtol=1e-6, atol=1e-9)


def test_diagnostics_of_a_parametrisation_are_its_own():
    entropy = ddln.Parametrisation(difference, STARTS[difference])
    times = np.linspace(0.0, 2.0, 5)
    flow = ddln.gradient_flow(LIMIT, entropy, times)
    rule = ddln.optimiser("sgd", learning_rate=0.01)
    run = ddln.descend(LIMIT, entropy, rule, steps=200, record_every=50)

    def loss(w):
        return LIMIT.loss(w[0] ** 3 - w[1] ** 3)

    for one in (flow, run):
        hessian = jax.hessian(loss)(one.layers[-1]).reshape(8, 8)
        top = np.linalg.eigvalsh(hessian)[-1]
        np.testing.assert_allclose(ddln.diagnostics.sharpness(LIMIT, one)[-1], top, rtol=1e-12)
        with pytest.raises(ValueError, match="must be of depth 2, got another parametrisation"):
            ddln.diagnostics.gain(one)


@pytest.mark.parametrize(
    ("function", "start", "message"),
    [
        (eg, [[1.0, 0.0]], r"`start` must have finite G\(w_k\) and ∇G\(w_k\) ≠ 0 .* at index 1"),
        (product, [[0.0], [0.0], [1.0]], "no gradient ever moves θ_k"),
        (lambda w: jnp.log(w[0]), [[-1.0]], "`start` must have finite G"),
        (lambda w: w, [[1.0]], "`function` must return a number"),
        (eg, [1.0], r"`start` must have 2 dimension"),
        (eg, [[]], r"`start` must have shape \(m, dim\)"),
    ],
)
def test_invalid_parametrisations_are_refused(function, start, message):
    with pytest.raises(ValueError, match=message):
        ddln.Parametrisation(function, start)


def test_arguments_beyond_the_table_are_refused():
    entropy = ddln.Parametrisation(cube, np.array([[0.3, 1.1, 0.7, 2.0]]))
    with pytest.raises(ValueError, match="lie within the tabulated values"):
        entropy.value(np.array([1.0, 1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="some coordinate has no θ"):
        entropy.inverse(np.array([0.0, 0.0, 0.0, 0.2]))  # the end is 1/6
    with pytest.raises(ValueError, match="must have 4 coordinates, got an entropy of 1"):
        ddln.limit_point(LIMIT, ddln.Parametrisation(eg, [[1.0]]))
    with pytest.raises(ValueError, match="`weight_decay` must be None"):
        ddln.gradient_flow(LIMIT, entropy, [0.0, 1.0], weight_decay=0.1)
