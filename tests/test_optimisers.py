"""Each rule against its recursion in NumPy, and the numbers that it accepts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddln
from ddln import weight_decay
from ddln.solvers import optimisers

START = np.array([[1.0, -2.0], [0.5, 3.0]])
SAME = 1e-12
STEPS, RATE, BETA = 60, 0.02, 0.8


def slope(u):
    """Gradient of Σ u⁴/4 + u², an arbitrary smooth function of the layers."""
    return u**3 + 2 * u


def heavy_ball():
    before, u = START, START
    for _ in range(STEPS):
        before, u = u, u - RATE * slope(u) + BETA * (u - before)
    return u


def nesterov():
    """In the variable at which the gradient is taken: z + β (z − z_before), z = u − γ g."""
    u, before = START, START
    for _ in range(STEPS):
        z = u - RATE * slope(u)
        u, before = z + BETA * (z - before), z
    return u


def adam(b1=0.9, b2=0.999, eps=1e-8):
    u, m, v = START, 0.0, 0.0
    for k in range(1, STEPS + 1):
        m, v = b1 * m + (1 - b1) * slope(u), b2 * v + (1 - b2) * slope(u) ** 2
        u = u - RATE * (m / (1 - b1**k)) / (np.sqrt(v / (1 - b2**k)) + eps)
    return u


def sign():
    u = START
    for _ in range(STEPS):
        u = u - RATE * np.sign(slope(u))
    return u


def decayed():
    u = START
    for _ in range(STEPS):
        u = u - RATE * (slope(u) + 0.3 * u)
    return u


def adamw(omega=0.3, b1=0.9, b2=0.999, eps=1e-8):
    u, m, v = START, 0.0, 0.0
    for k in range(1, STEPS + 1):
        m, v = b1 * m + (1 - b1) * slope(u), b2 * v + (1 - b2) * slope(u) ** 2
        u = u - RATE * ((m / (1 - b1**k)) / (np.sqrt(v / (1 - b2**k)) + eps) + omega * u)
    return u


def clipped():
    """The norm is that of all layers together; the decay is added after it is bounded."""
    u = START
    for _ in range(STEPS):
        g = slope(u)
        u = u - RATE * (g * min(1, 5.0 / np.linalg.norm(g)) + 0.3 * u)
    return u


def dropped():
    u = START
    for k in range(STEPS):
        u = u - RATE * (0.5 if k >= 10 else 1.0) * (0.1 if k >= 30 else 1.0) * slope(u)
    return u


CASES = {
    "heavy_ball": (heavy_ball, ("heavy_ball",), {"momentum": BETA}),
    "nesterov": (nesterov, ("nesterov",), {"momentum": BETA}),
    "adam": (adam, ("adam",), {}),
    "sign": (sign, ("sign",), {}),
    "weight decay": (decayed, ("sgd",), {"weight_decay": 0.3}),
    "adamw": (adamw, ("adamw",), {"weight_decay": 0.3}),
    "clip": (clipped, ("sgd",), {"clip": 5.0, "weight_decay": 0.3}),
    "drops": (dropped, ("sgd",), {"drops": [(10, 0.5), (30, 0.1)]}),
    "of optax": (adam, (optax.adam,), {"b1": 0.9}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_rule_agrees_with_its_recursion(case):
    expected, rule, numbers = CASES[case]
    rule = ddln.optimiser(*rule, learning_rate=RATE, **numbers)

    def step(_, carry):
        u, memory = carry
        updates, memory = rule.update(slope(u), memory, u)
        return optax.apply_updates(u, updates), memory

    u = jnp.asarray(START)
    u, _ = jax.jit(lambda u: jax.lax.fori_loop(0, STEPS, step, (u, rule.init(u))))(u)
    np.testing.assert_allclose(u, expected(), rtol=SAME, atol=SAME)


STRICT = {
    "sgd, drops": ("sgd", {"drops": [(2, 0.5)]}),
    "heavy ball": ("heavy_ball", {"momentum": 0.5}),
    "sign": ("sign", {}),
    "adam, a schedule": ("adam", {"learning_rate": optax.cosine_decay_schedule(RATE, 10)}),
    "adamw": (optax.adamw, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("case", STRICT)
def test_rules_work_under_strict_dtype_promotion(case):
    problem = ddln.least_squares([[1.0]], [2.0])
    name, numbers = STRICT[case]
    with jax.numpy_dtype_promotion("strict"):
        rule = ddln.optimiser(name, **{"learning_rate": RATE} | numbers)
        run = ddln.descend(problem, jnp.ones((2, 1)), rule, steps=4)
    assert run.ok


def by_hand(rule, steps=200):
    """The end of a run with optax alone, in NumPy but for the rule."""
    u = jnp.asarray(START)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes the types of its numbers
        memory = rule.init(u)
        update = jax.jit(rule.update)
        for _ in range(steps):
            updates, memory = update(2 * u[::-1] * (u[0] * u[1] - TARGET)[None], memory, u)
            u = u + updates
    return u


TARGET = np.array([2.0, -1.0])
TAKEN = {
    "adamw": (optax.adamw, {"learning_rate": 0.01, "weight_decay": 0.1}),
    "lion": (optax.lion, {"learning_rate": 0.001, "weight_decay": 0.2}),
    "adamw under any wrapper": (
        optax.inject_hyperparams(optax.adamw),
        {"learning_rate": 0.01, "weight_decay": 0.1},
    ),
    "a rule with all our names": (
        lambda intrinsic_step, drops, weight_decay: optax.adamw(
            intrinsic_step, weight_decay=weight_decay * drops[0][1]
        ),
        {"intrinsic_step": 0.01, "drops": [(0, 2.0)], "weight_decay": 0.05},
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_options_go_to_a_rule_with_such_arguments(case):
    make, numbers = TAKEN[case]
    problem = ddln.least_squares(np.eye(2), TARGET)
    end = ddln.descend(problem, START, ddln.optimiser(make, **numbers), steps=200).layers[-1]
    np.testing.assert_allclose(end, by_hand(make(**numbers)), rtol=SAME, atol=SAME)


@pytest.mark.parametrize("number", [{"weight_decay": 0.1}, {"drops": [(1, 0.5)]}, {"clip": 1.0}])
def test_ambiguous_options_are_errors(number):
    def rule(learning_rate, **options):
        return optax.adamw(learning_rate, **options)

    (name,) = number
    with pytest.raises(
        ValueError, match=f"`{name}` must be for either `ddln.optimiser` or rule, got"
    ):
        ddln.optimiser(rule, learning_rate=0.01, **number)
    bound = ddln.optimiser(functools.partial(rule, weight_decay=0.1), learning_rate=0.01)
    assert bound.weight_decay is None


def test_momentum_none_does_not_change_flow_time():
    rule = ddln.optimiser(optax.sgd, learning_rate=0.1, momentum=None)
    run = ddln.descend(ddln.least_squares([[1.0]], [2.0]), jnp.ones((2, 1)), rule, steps=3)
    np.testing.assert_allclose(run.times[-1], 0.3, rtol=SAME)


def test_only_plain_steps_are_gradient_descent():
    plain = ddln.optimiser("sgd", learning_rate=0.1)
    assert plain.is_gradient_descent
    for other in (
        ddln.optimiser("sgd", learning_rate=0.1, weight_decay=0.0),
        ddln.optimiser("heavy_ball", learning_rate=0.1, momentum=0.0),
        optimisers.as_optimiser(optax.sgd(0.1)),
    ):
        assert not other.is_gradient_descent


@pytest.mark.parametrize(
    ("rule", "numbers", "message"),
    [
        ("adm", {}, '`rule` "adm" is unknown, did you mean "adam"'),
        (
            "newton",
            {},
            '`rule` "newton" is unknown, known are sgd, heavy_ball, nesterov, adam, adamw, sign',
        ),
        ("sgd", {"learning_rate": 0.1, "clip": 0.0}, "`clip` must be > 0, got 0"),
        ("sgd", {}, "must be arguments of sgd: missing a required argument: 'learning_rate'"),
        ("sgd", {"learning_rate": 0.1, "momentum": 0.9}, "arguments of sgd: .* 'momentum'"),
        ("sgd", {"learning_rate": -0.1}, "`learning_rate` must be > 0, got -0.1"),
        ("sgd", {"learning_rate": 0.1, "weight_decay": -1.0}, "`weight_decay` must be ≥ 0, got -1"),
        ("sgd", {"learning_rate": np.inf}, "`learning_rate` must be finite, got inf"),
        ("nesterov", {"learning_rate": 1, "momentum": 1}, "`momentum` must be ≥ 0 and < 1, got 1"),
        ("adam", {"learning_rate": 1.0, "b2": -0.5}, "`b2` must be ≥ 0 and < 1, got -0.5"),
        ("adam", {"learning_rate": 1.0, "eps": 0.0}, "`eps` must be > 0, got 0"),
        ("sgd", {"intrinsic_step": 1.0}, r"`intrinsic_step` must come with a `momentum` .* got no"),
        ("adam", {"intrinsic_step": 1.0, "b1": 0.5}, r"`intrinsic_step` must come .* got b1"),
        (
            "nesterov",
            {"intrinsic_step": 1.0, "learning_rate": 1.0, "momentum": 0.5},
            r"without a `learning_rate`, got learning_rate, momentum",
        ),
        ("nesterov", {"intrinsic_step": 0.0, "momentum": 0.5}, "`intrinsic_step` must be > 0, got"),
        ("nesterov", {"intrinsic_step": 1.0, "momentum": 1.5}, "`momentum` must be ≥ 0 and < 1"),
        ("sgd", {"learning_rate": 0.1, "drops": [(5, 0.0)]}, "`drops` must have factors > 0, got"),
        (
            "sgd",
            {"learning_rate": lambda step: 0.1, "drops": [(5, 0.1)]},
            "`drops` must come with a `learning_rate` that is a number, got a schedule",
        ),
    ],
)
def test_invalid_numbers_are_errors(rule, numbers, message):
    with pytest.raises(ValueError, match=message):
        ddln.optimiser(rule, **numbers)


def test_intrinsic_step_determines_the_learning_rate():
    rule = ddln.optimiser("heavy_ball", intrinsic_step=0.4, momentum=0.5)
    assert rule.numbers == {"momentum": 0.5, "learning_rate": 0.1}


def test_flow_time_follows_the_step_schedule():
    rule = ddln.optimiser("sgd", learning_rate=0.1, drops=[(4, 0.5)])
    run = ddln.descend(
        ddln.least_squares([[1.0]], [2.0]), jnp.ones((2, 1)), rule, steps=6, record_every=2
    )
    np.testing.assert_allclose(run.times, [0.0, 0.2, 0.4, 0.5], rtol=SAME)


@pytest.mark.parametrize("warm_up", [0, 4])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_step_size_warms_up_and_then_falls_to_its_final_fraction(kind, warm_up):
    rate, final, steps = 0.3, 0.1, 20
    schedule = optimisers.DecayingSteps(jnp.array(rate), jnp.array(final), kind, warm_up, steps)
    step = np.arange(steps + 1)
    share = np.clip((step - warm_up) / (steps - warm_up), 0, 1)
    fall = {
        "constant": 1 + 0 * share,
        "linear": 1 - share,
        "cosine": np.cos(np.pi * share / 2) ** 2,
    }
    after = final + (1 - final) * fall[kind]
    expected = rate * np.where(step < warm_up, step / max(warm_up, 1), after)
    np.testing.assert_allclose(
        jax.vmap(schedule)(jnp.asarray(step)), expected, rtol=SAME, atol=SAME
    )


def test_invalid_traced_numbers_become_nan():
    made = jax.jit(lambda beta: ddln.optimiser("nesterov", learning_rate=0.1, momentum=beta))(1.0)
    assert jnp.isnan(made.numbers["momentum"])


def test_objects_other_than_transformations_are_errors():
    with pytest.raises(ValueError, match=r"`optimiser` must be an optax transformation.* got 0\.1"):
        optimisers.as_optimiser(0.1)


COSINE = weight_decay.cosine(0.5, until=6.0, final=0.1)


def trained_by_numpy(problem, layers, gamma, beta, steps, omega, *, decoupled):
    """Heavy ball with decay ω(t), in the gradient or beside the rule, one step at a time."""
    features, targets = np.asarray(problem.features), np.asarray(problem.targets)
    u, velocity = np.array(layers), np.zeros_like(layers)
    for k in range(steps):
        length = gamma / (1 - beta)
        decay = omega(k * length)
        gradient = 2 * features.T @ (features @ u.prod(0) - targets)
        g = gradient * np.array([np.delete(u, j, 0).prod(0) for j in range(len(u))])
        velocity = beta * velocity - gamma * (g if decoupled else g + decay * u)
        u = u + velocity - (length * decay * u if decoupled else 0.0)
    return u


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("decay", [0.3, COSINE], ids=["constant", "cosine"])
def test_decay_by_a_schedule_in_flow_time_matches_its_formula(decay, decoupled):
    rng = np.random.default_rng(1)
    problem = ddln.least_squares(rng.standard_normal((4, 3)), rng.standard_normal(4))
    layers, gamma, beta, steps = rng.uniform(0.2, 1.0, (3, 3)), 0.01, 0.5, 300
    omega = (lambda t: 0.3) if decay is not COSINE else (lambda t: float(COSINE.rate(t)))
    expected = trained_by_numpy(problem, layers, gamma, beta, steps, omega, decoupled=decoupled)
    rule = ddln.optimiser("heavy_ball", learning_rate=gamma, momentum=beta)
    chosen = {"weight_decay": decay, "decoupled": decoupled}
    run = ddln.descend(problem, layers, rule, steps=steps, **chosen)
    np.testing.assert_allclose(run.layers[-1], expected, rtol=1e-10)
    half = ddln.descend(problem, layers, rule, steps=100, **chosen)
    rest = ddln.descend(problem, half.state, rule, steps=200, **chosen)
    np.testing.assert_array_equal(rest.layers[-1], run.layers[-1])
    assert ddln.certify(problem, run)["recursion"].applies
    assert ddln.certify(problem, run).ok


def test_decoupled_adam_is_adamw():
    problem = ddln.least_squares([[1.0, 0.5]], [1.0])
    layers = [[0.3, 0.4], [0.8, -0.2]]
    ours = ddln.optimiser("adam", learning_rate=0.01, weight_decay=0.2, decoupled=True)
    theirs = optax.adamw(0.01, weight_decay=0.2)
    ends = [ddln.descend(problem, layers, rule, steps=200).layers[-1] for rule in (ours, theirs)]
    np.testing.assert_allclose(*ends, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decay": weight_decay.cosine(0.1, until=0.5)}, "must cover all steps"),
        ({"weight_decay": -1.0}, "`weight_decay` must be ≥ 0"),
        ({"weight_decay": 0.1, "rule": {"weight_decay": 0.1}}, "must be None if the optimiser has"),
        ({"rule": {"decoupled": True}}, "`decoupled` must come with a `weight_decay`"),
    ],
)
def test_invalid_decay_of_a_descent_is_refused(options, message):
    problem = ddln.least_squares([[1.0, 0.5]], [1.0])
    numbers = options.pop("rule", {})

    def train():
        rule = ddln.optimiser("sgd", learning_rate=0.01, **numbers)
        ddln.descend(problem, [[0.3, 0.4], [0.8, -0.2]], rule, steps=100, **options)

    with pytest.raises(ValueError, match=message):
        train()
