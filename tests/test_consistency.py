"""Certificates detect every corruption of a run and accept every correct run."""

import dataclasses
import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddln
from ddln._internal.validation import largest, smallest
from ddln.solvers import batched_flow
from ddln.sweeps import _runners
from ddln.verification._conservation_laws import conservation, dissipation, signs
from ddln.verification._shared_tolerances import steepness
from ddln.verification.consistency import clock, consistency

TIMES = 81
AT = 37  # where a single time is spoilt
SAMPLES, DIM = 6, 4
LOSSES = (
    *("least_squares", "signed", "huber", "logistic", "exponential", "poisson"),
    *("smooth", "far_from_zero"),
)
DEPTHS = (1, 2, 3, 5, 8, 12)


class Smooth(eqx.Module):
    """Σ √(1 + (x_iᵀθ − y_i)²) + offset."""

    features: jax.Array
    targets: jax.Array
    offset: jax.Array

    def __call__(self, theta):
        residual = self.features @ theta - self.targets
        return self.offset + jnp.sum(jnp.sqrt(1 + residual**2))


def a_problem(loss, rng):
    """A problem in DIM coordinates with random data."""
    features, targets = rng.normal(size=(SAMPLES, DIM)), rng.normal(size=SAMPLES)
    if loss == "signed":
        return ddln.signed(ddln.least_squares(features[:, : DIM // 2], targets))
    if loss in ("smooth", "far_from_zero"):
        offset = jnp.asarray(1e3 if loss == "far_from_zero" else 0.0)
        function = Smooth(jnp.asarray(features), jnp.asarray(targets), offset)
        return ddln.from_function(function, DIM, convex=True)
    if loss in ("logistic", "exponential"):
        targets = np.sign(targets)
    if loss == "poisson":
        targets = rng.poisson(1.5, size=SAMPLES).astype(float)
    return getattr(ddln, loss)(features, targets)


def some_layers(depth, rng, *, degenerate=True):
    """Layers with coordinates that start at 0, are tied, nearly tied, frozen, or tiny."""
    layers = rng.uniform(0.6, 1.2, (depth, DIM)) * rng.choice([-1, 1], (depth, DIM))
    for k in range(DIM if degenerate and depth > 1 else 0):
        first, second = np.argsort(np.abs(layers[:, k]))[:2]
        kind = rng.choice(["open", "zero", "tie", "near", "frozen", "tiny"])
        if kind == "zero":
            layers[first, k] = 0.0
        elif kind == "tie":
            layers[second, k] = np.copysign(layers[first, k], layers[second, k])
        elif kind == "near":
            layers[second, k] = layers[first, k] * (1 + 10 ** rng.uniform(-13, -2))
        elif kind == "frozen":
            layers[[first, second], k] = 0.0
        elif kind == "tiny":
            layers[first, k] *= 10 ** rng.uniform(-12, -1)
    return layers


def horizon(problem, layers):
    """A few times of the fastest mode at the start."""
    root = np.sqrt(ddln.mobility(layers))
    hessian = np.asarray(problem.hessian(ddln.effective_parameter(layers)))
    fastest = np.linalg.norm(root[:, None] * hessian * root, 2)
    return 3 / fastest if fastest > 0 else 1.0


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def at_one_time(name, change):
    """One field at one time."""
    return lambda run: {name: getattr(run, name).at[AT].set(change(getattr(run, name)[AT]))}


def two_times_swapped(run):
    """Exchange all saved values at two times, but not the times."""
    order = np.arange(TIMES)
    order[[AT, AT + 1]] = AT + 1, AT
    names = ("layers", "theta", "velocity", "loss", "gap")
    return {name: getattr(run, name)[order] for name in names}


def a_curve_of_another(run):
    """θ of the same network at a tenth of the times."""
    return {"theta": jnp.concatenate([run.theta[:1], run.theta[: TIMES - 1]])}


CORRUPTIONS = {
    "θ": at_one_time("theta", lambda theta: theta * 1.001),
    "one coordinate of θ": at_one_time("theta", lambda theta: theta.at[1].multiply(1 + 1e-6)),
    "velocity": at_one_time("velocity", lambda velocity: velocity * 1.01),
    "sign of the velocity": at_one_time("velocity", lambda velocity: -velocity),
    "one coordinate of the velocity": at_one_time("velocity", lambda v: v.at[2].multiply(0.999)),
    "gap": lambda run: {"gap": run.gap * 0.5},
    "gap at one time": at_one_time("gap", lambda gap: gap * 1.001),
    "loss": lambda run: {"loss": run.loss * 2},
    "loss at one time": at_one_time("loss", lambda loss: loss * 1.001),
    "gap of 0": lambda run: {"gap": run.gap.at[60:].set(0.0)},
    "offset of the gap": lambda run: {"gap": run.gap + 1e-6 * run.gap[0]},
    "clock": lambda run: {"times": run.times * 1.01},
    "slow clock": lambda run: {"times": run.times * 0.99},
    "clock off by a thousandth": lambda run: {"times": run.times * 1.001},
    "slow by a thousandth": lambda run: {"times": run.times * 0.999},
    "one time": lambda run: {"times": run.times.at[AT].add(0.02 * (run.times[1] - run.times[0]))},
    "uneven clock": lambda run: {
        "times": run.times + 1e-3 * run.times * (run.times[-1] - run.times) / run.times[-1]
    },
    "clock of the second half": lambda run: {
        "times": jnp.where(
            jnp.arange(TIMES) > AT, 1.02 * run.times - 0.02 * run.times[AT], run.times
        )
    },
    "two times in the wrong order": lambda run: {
        "times": run.times.at[jnp.array([AT, AT + 1])].set(run.times[jnp.array([AT + 1, AT])])
    },
    "two saved times": two_times_swapped,
    "one layer": at_one_time("layers", lambda layers: layers.at[-1, 0].multiply(1 + 1e-6)),
    "sign of a layer": at_one_time("layers", lambda layers: layers.at[0, 1].multiply(-1)),
    "signs of two layers": at_one_time("layers", lambda layers: layers.at[:2, 1].multiply(-1)),
    "order of the layers": at_one_time("layers", lambda layers: layers[::-1]),
    "θ of other times": a_curve_of_another,
    **{
        f"NaN in {name}": lambda run, name=name: {
            name: getattr(run, name).at[(AT,) + (-1,) * (getattr(run, name).ndim - 1)].set(jnp.nan)
        }
        for name in ("times", "layers", "theta", "velocity", "loss", "gap")
    },
}

QUICK = {(3, "logistic")}
EACH = [
    pytest.param(depth, loss, marks=[] if (depth, loss) in QUICK else pytest.mark.slow)
    for depth in DEPTHS
    for loss in LOSSES
]


@pytest.mark.parametrize(("depth", "loss"), EACH)
def test_every_corruption_is_caught_at_every_depth_and_loss(depth, loss):
    rng = np.random.default_rng(depth)
    problem, layers = a_problem(loss, rng), some_layers(depth, rng, degenerate=False)
    times = np.linspace(0.0, horizon(problem, layers), TIMES)
    run = ddln.gradient_flow(problem, layers, times)
    other = layers.copy()
    other[0, 0] *= 1.001  # a swapped network
    changes = dict(CORRUPTIONS)
    if depth == 1:
        del changes["order of the layers"]
    starts = np.stack([layers] * (1 + len(changes)) + [other])

    @jax.jit
    def certified(run, starts):
        spoilt = [dataclasses.replace(run, **change(run)) for change in changes.values()]
        runs = stack([run, *spoilt, run])
        return jax.vmap(lambda run, start: ddln.certify(problem, run, start=start))(runs, starts)

    certificates = certified(run, starts)
    right, *caught, swapped = (~certificates.ok).tolist()
    assert not right, [c.name for c in certificates.claims if not c.holds[0]]
    assert swapped
    missed = [name for name, is_caught in zip(changes, caught, strict=True) if not is_caught]
    assert missed == []


def test_swapped_network_of_a_sweep_is_caught(monkeypatch):
    smaller = {"network.depth": 2, "problem.data.samples": 3, "problem.data.features": 2}
    experiment = ddln.load("configs/figure4.toml").with_({**smaller, "dynamics.points": 11})
    true = batched_flow.Flows.trajectories

    def swapped(flows):
        runs = true(flows)
        return jax.tree.map(lambda x: x.at[jnp.array([0, 1])].set(x[jnp.array([1, 0])]), runs)

    monkeypatch.setattr(batched_flow.Flows, "trajectories", swapped)
    _runners.make_runner.cache_clear()
    holds = ddln.run(experiment)["certificate_holds"].sel(certificate="consistency")
    assert holds.values.tolist() == [False, False, True]


@pytest.mark.parametrize("size", [7, 4095, 4096, 100_000])
def test_largest_and_smallest_propagate_nan(size):
    for place in (0, size // 2, size - 1):
        values = jnp.zeros(size).at[place].set(jnp.nan)
        assert jnp.isnan(largest(values))
        assert jnp.isnan(jax.jit(smallest)(values))
    table = jnp.zeros((size, 2)).at[size // 2, 1].set(jnp.nan)
    assert jnp.isnan(largest(table, axis=0)).tolist() == [False, True]
    assert float(largest(jnp.arange(float(size)))) == size - 1
    assert float(smallest(jnp.array([1.0, -jnp.inf]))) == -jnp.inf


def test_one_nan_in_a_large_run_fails_its_claims():
    problem = ddln.least_squares(np.eye(8), np.ones(8))
    layers = ddln.init.zero_first_layer(jax.random.key(0), 2, 8)
    run = ddln.gradient_flow(problem, layers, np.linspace(0.0, 1.0, 301))
    spoilt = dataclasses.replace(run, layers=run.layers.at[150, 1, 3].set(jnp.nan))

    beta = steepness(problem, run.theta)
    claims = jax.jit(lambda run: (consistency(problem, run, beta), conservation(run), signs(run)))
    assert [bool(claim.holds) for claim in claims(run)] == [True] * 3
    assert [bool(claim.holds) for claim in claims(spoilt)] == [False] * 3


@pytest.mark.parametrize(("points", "applies"), [(33, False), (65, True)])
def test_clock_is_silent_where_the_errors_reach_a_twentieth_of_the_motion(points, applies):
    """There the quadrature estimate is a guess: once a fifth too small, and a false alarm."""
    problem = ddln.least_squares([[1.0]], [2.0])
    times = np.linspace(0.0, 6.0, points)
    run = ddln.gradient_flow(problem, [[0.3], [0.33]], times)
    claim_of = jax.jit(partial(clock, problem))
    assert claim_of(run).applies == applies
    assert claim_of(run).holds
    slower = dataclasses.replace(run, times=1.05 * run.times)
    assert claim_of(slower).holds != applies


def test_negative_gap_passes_only_within_rounding():
    rng = np.random.default_rng(0)
    problem = a_problem("far_from_zero", rng)
    layers = some_layers(3, rng, degenerate=False)
    run = ddln.gradient_flow(problem, layers, np.linspace(0.0, 20.0, TIMES))
    # ℒ* = 1e3 and more is known to some 1e-13.
    off = eqx.tree_at(lambda p: p.minimum, problem, problem.minimum + 1e-12)
    gap = jax.vmap(off.gap)(run.theta)
    assert gap.min() < 0
    certify = jax.jit(lambda problem, gap: ddln.certify(problem, dataclasses.replace(run, gap=gap)))
    certificates = certify(off, gap)
    assert certificates.ok, certificates
    for name in ("monotone loss", "divergence bound"):
        assert certificates[name].applies
        assert np.isfinite(certificates[name].measured)
    wrong = eqx.tree_at(lambda p: p.minimum, problem, problem.minimum + 1e-6)
    assert not certify(wrong, jax.vmap(wrong.gap)(run.theta))["consistency"].holds


def test_dissipation_in_layers_holds_to_rounding_near_a_tie():
    problem = ddln.least_squares([[1.0, 0.5]], [2.0])
    layers = [[0.5, 0.7], [0.5 * (1 + 1e-12), 0.9], [1.1, 1.0]]
    times = np.linspace(0.0, 0.5, TIMES)
    run = ddln.gradient_flow(problem, layers, times, coordinates="layers")
    claim_of = jax.jit(lambda run: dissipation(problem, run.flow_entropy, run))
    claim = claim_of(run)
    assert claim.holds
    assert float(claim.tolerance) < 1e-9
    assert not claim_of(dataclasses.replace(run, velocity=run.velocity * (1 + 1e-8))).holds


def test_consistency_measures_the_relative_error_of_a_record():
    problem, layers = ddln.least_squares([[1.0]], [2.0]), [[0.5], [1.0]]
    run = ddln.gradient_flow(problem, layers, np.linspace(0.0, 1.0, 9))
    claim_of = jax.jit(lambda spoilt: consistency(problem, spoilt, steepness(problem, run.theta)))
    for name, share in {"theta": 1e-6, "velocity": 1e-5, "loss": 1e-4, "gap": 1e-3}.items():
        off = np.array(getattr(run, name))
        off[1] *= 1 + share
        claim = claim_of(dataclasses.replace(run, **{name: jax.device_put(off)}))
        assert float(claim.measured) > share / 2  # some of it counts as noise
        assert not claim.holds


FLOWS = {
    "reduced": lambda problem, layers, times: ddln.gradient_flow(
        problem, layers, times, throw=False
    ),
    "layers": lambda problem, layers, times: ddln.gradient_flow(
        problem, layers, times, coordinates="layers", throw=False
    ),
    "mirror": lambda problem, layers, times: ddln.mirror_flow(problem, layers, times, throw=False),
}
BATCHED = {"tsit5": "tsit5", "rodas5p": "rodas5p"}
EACH_OF, AT_ONCE = 200, 27
"""Right runs of each kind, and how many share a program."""


def failures(kind, integrate, cases):
    """The claims that fail on correct runs, and the number of runs that finished."""
    found, ended = [], 0
    for number, (loss, depth) in enumerate(cases):
        rng = np.random.default_rng(number)
        problems, layers, times = [], [], []
        while len(problems) < AT_ONCE:
            try:
                problem = a_problem(loss, rng)
            except (ValueError, RuntimeError):
                continue  # data whose minimum float64 does not determine
            problems.append(problem)
            layers.append(some_layers(depth, rng))
            until = horizon(problem, layers[-1]) * rng.choice([0.1, 1.0, 10.0])
            times.append(np.linspace(0.0, until, TIMES))
        given = stack(problems), jnp.asarray(np.stack(layers)), jnp.asarray(np.stack(times))
        runs = integrate(*given)
        certificates = jax.jit(jax.vmap(ddln.certify))(given[0], runs)
        ended += int(runs.ok.sum())
        for claim in certificates.claims:
            for place in np.flatnonzero(runs.ok & ~claim.holds):
                numbers = float(claim.measured[place]), float(claim.tolerance[place])
                found.append((kind, loss, depth, int(place), claim.name, *numbers))
        jax.clear_caches()
    return found, ended


def some_cases(kind):
    """Every loss, each at other depths from 1 to 12."""
    shift = [*FLOWS, *BATCHED].index(kind)
    depths = np.roll([2, 5, 3, 8, 1, 12, 7, 10], shift)
    return list(zip(LOSSES, depths.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*FLOWS, *BATCHED])
def test_correct_flows_raise_no_false_alarm(kind):
    def batched(problems, layers, times):
        flows = ddln.gradient_flows(problems, layers, times, solver=kind)
        return flows.trajectories()

    integrate = jax.jit(jax.vmap(FLOWS[kind])) if kind in FLOWS else batched
    found, ended = failures(kind, integrate, some_cases(kind))
    assert found == []
    assert ended >= EACH_OF


def a_rule(name, rate):
    """A rule with a step size, and its gradient estimator."""
    momentum = {"learning_rate": rate / 5, "momentum": 0.8}
    shuffled = ddln.Sampling(batch=3, replacement=False, label_noise=0.1)
    return {
        "sgd": lambda: (ddln.optimiser("sgd", learning_rate=rate), None),
        "heavy_ball": lambda: (ddln.optimiser("heavy_ball", **momentum), None),
        "nesterov": lambda: (ddln.optimiser("nesterov", **momentum), None),
        "adam": lambda: (ddln.optimiser("adam", learning_rate=rate), None),
        "sign": lambda: (ddln.optimiser("sign", learning_rate=rate / 3), None),
        "step schedule": lambda: (
            ddln.optimiser("sgd", learning_rate=rate, drops=[(100, 0.1)]),
            None,
        ),
        "weight decay": lambda: (
            ddln.optimiser("sgd", learning_rate=rate, weight_decay=0.1),
            None,
        ),
        "adamw": lambda: (optax.adamw(0.01), None),
        "cosine schedule": lambda: (optax.adam(optax.cosine_decay_schedule(0.01, 300)), None),
        "batches": lambda: (ddln.optimiser("sgd", learning_rate=rate), ddln.Sampling(batch=2)),
        "shuffled Adam": lambda: (ddln.optimiser("adam", learning_rate=rate), shuffled),
        "sharpness-aware": lambda: (
            ddln.optimiser("sgd", learning_rate=rate),
            ddln.SharpnessAware(0.05, group=2),
        ),
    }[name]()


RULES = (
    *("sgd", "heavy_ball", "nesterov", "adam", "sign", "step schedule", "weight decay", "adamw"),
    *("cosine schedule", "batches", "shuffled Adam", "sharpness-aware"),
)
OF_SAMPLES = ("batches", "shuffled Adam", "sharpness-aware")


def descent_failures(name, loss, depth, runs):
    """The claims that fail on correct descents, and the number of runs that finished."""
    rng = np.random.default_rng(depth)
    problems, layers, rates = [], [], []
    while len(problems) < runs:
        try:
            problem = a_problem(loss, rng)
        except (ValueError, RuntimeError):
            continue  # data whose minimum float64 cannot tell
        problems.append(problem)
        layers.append(some_layers(depth, rng))
        # Of the largest stable step; that of Adam is a change of the layers.
        share = 10 ** rng.uniform(-2, 0.2)
        rates.append(0.02 * share if "dam" in name or name == "sign" else share)
    relative = "dam" not in name and name != "sign"

    def train(problem, layers, rate, key):
        rate = rate * ddln.theory.largest_stable_step(problem, layers) if relative else rate
        rule, estimator = a_rule(name, rate)
        key = None if estimator is None else key
        controls = {"steps": 300, "record_every": 5, "throw": False}
        return ddln.descend(problem, layers, rule, oracle=estimator, key=key, **controls)

    given = stack(problems), jnp.asarray(np.stack(layers)), jnp.asarray(rates)
    trained = jax.jit(jax.vmap(train))(*given, jax.random.split(jax.random.key(0), runs))
    certificates = jax.jit(jax.vmap(ddln.certify))(given[0], trained)
    found = [
        (name, loss, depth, int(i), claim.name, float(claim.measured[i]), float(claim.tolerance[i]))
        for claim in certificates.claims
        for i in np.flatnonzero(trained.ok & ~claim.holds)
    ]
    jax.clear_caches()
    return found, int(trained.ok.sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_correct_descents_raise_no_false_alarm(name):
    shift, found, ended = RULES.index(name), [], 0
    of_samples = (*LOSSES[:1], *LOSSES[2:6])  # `from_function` has none
    losses = of_samples if name in OF_SAMPLES else LOSSES
    for i in itertools.count():
        depth = (2, (3, 5, 8)[shift % 3])[i % 2]
        failed, completed = descent_failures(
            name, losses[(2 * shift + i) % len(losses)], depth, 125
        )
        assert completed > 0
        found, ended = found + failed, ended + completed
        if ended >= EACH_OF:
            break
    assert found == []
