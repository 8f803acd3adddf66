"""Numbers at the ends of their range, and networks and data of which hardly anything is left: a
status, a refusal or the right number, never a wrong one."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import ddln
from ddln.config.datasets import draw
from ddln.config.experiment import ConfigError, load

CONFIG = "configs/figure4.toml"
TINY = [
    *("sweep={}", "problem.data.samples=4", "problem.data.features=3", "network.depth=3"),
    *("dynamics.points=11", "dynamics.max_steps=20000"),
]
# scale and horizon, and how the run ends
ENDS = {
    (1e-60, 1.0): "ok",  # next to rest: the mobility is 1e-240, and has no square
    (1e-30, 1.0): "ok",  # and 1e-120
    (1e-3, 1.0): "ok",
    (1.0, 1e-300): "ok",
    (1.0, 1e12): "ok",
    (1.0, 1e300): "diverged",
    (30.0, 1e3): "ok",  # stiff: rates of 1e6 for 1e3 times as long
    (1e30, 1.0): "diverged",
    (1e60, 1.0): "diverged",
}
ROUNDING = 1e-12  # of a loss of order 1, relative
SEEN = 1e-6  # the error at rtol 1e-9 over a whole run, with room


@pytest.fixture(scope="module")
def extremes():
    scales, horizons = zip(*ENDS, strict=True)
    axes = {
        "network.scale": list(scales),
        "dynamics.until": {"values": list(horizons), "zip": "network.scale"},
    }
    with np.errstate(all="ignore"):
        return ddln.sweep(load(CONFIG, TINY), over=axes)


def names_of(status):
    return [status.attrs["flag_meanings"].split()[int(code)] for code in status.values]


@pytest.mark.slow
def test_extreme_scales_and_horizons_end_with_the_expected_status(extremes):
    assert names_of(extremes["status"]) == list(ENDS.values())


@pytest.mark.slow
def test_failed_run_is_nan_afterwards_and_its_certificate_fails(extremes):
    for lane, name in enumerate(ENDS.values()):
        run = extremes.isel({"network.scale": lane})
        finite = np.isfinite(run["loss"].values)
        completed = run.sel(certificate="completed")["certificate_holds"].item()
        assert completed == (name == "ok") == bool(finite.all())
        # Once it is not a number, it stays none: no hole passes for a curve.
        assert not (~finite[:-1] & finite[1:]).any()
        assert not np.isinf(run["theta"].values).any()


@pytest.mark.slow
def test_extreme_runs_that_finish_are_accurate(extremes):
    done = extremes.isel({"network.scale": [name == "ok" for name in ENDS.values()]})
    assert bool((done["certificate_holds"] | ~done["certificate_applies"]).all())
    loss = done["loss"].values
    assert (np.diff(loss, axis=1) <= ROUNDING * loss[:, :1]).all()
    # Of a million rates and more, the end is the least-squares solution; of next to none, where
    # the first moment's speed 2 M Xᵀy leads to.
    features, targets = map(np.asarray, draw(load(CONFIG, TINY).problem.data))
    best = np.linalg.lstsq(features, targets, rcond=None)[0]
    for lane, scale in enumerate(done["network.scale"].values):
        run = done.isel({"network.scale": lane})
        theta, until = run["theta"].values, run["dynamics.until"].item()
        if scale == 30.0 or until == 1e12:
            np.testing.assert_allclose(theta[-1], best, atol=SEEN)
        if scale <= 1e-30 or until == 1e-300:
            speed = 2 * np.prod(run["layers"].values[0, 1:] ** 2, axis=0) * (features.T @ targets)
            np.testing.assert_allclose(theta[-1], until * speed, rtol=SEEN)


@pytest.mark.slow
def test_identities_beyond_the_range_of_float64_do_not_apply(extremes):
    identities = extremes["certificate_applies"].sel(
        certificate=["mirror identity", "entropy Hessian"]
    )
    applies = identities.isel({"network.scale": slice(3)})  # 1e-60, 1e-30, 1e-3
    assert applies.values.tolist() == [[False, False], [True, True], [True, True]]


def test_start_at_a_saddle_is_reported_before_the_run():
    for init in ("{kind='constant', value=0.0}", "{kind='constant', value=1e-300}"):
        experiment = load(CONFIG, [*TINY, f"network.init={init}"])
        with pytest.raises(ConfigError, match="every coordinate is frozen, so that nothing would"):
            ddln.run(experiment)


def test_overflowing_start_is_reported_before_the_run():
    with pytest.raises(ConfigError, match="the mobility M must be finite at the start, got inf"):
        ddln.run(load(CONFIG, [*TINY, "network.scale=1e100"]))


def test_stiffness_of_1e12_is_integrated_to_its_tolerance():
    """Decoupled coordinates of rates 1 and 1e12; SciPy integrates the slow one alone."""
    problem = ddln.least_squares([[1.0, 0.0], [0.0, 1e6]], [2.0, 3e6])
    layers = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    flows = ddln.gradient_flows(problem, layers[None], [0.0, 0.3, 1.0])
    assert flows.status.tolist() == [0]
    slow = solve_ivp(
        lambda _, u: -2 * (u[0] * u[1] - 2) * u[::-1],
        (0, 1),
        [0.0, 1.0],
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
        t_eval=[0.3, 1.0],
    ).y.prod(axis=0)
    np.testing.assert_allclose(flows.theta[0, 1:, 0], slow, rtol=SEEN)
    np.testing.assert_allclose(flows.theta[0, 1:, 1], 3.0, rtol=SEEN)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 2.0, 1.0], "strictly increasing"),
        ([0.0, 1.0, 1.0], "strictly increasing"),
        ([-1.0, 0.0, 1.0], "must be ≥ 0"),
        ([0.0, np.inf], "must be finite"),
        ([np.nan, 1.0], "must be finite"),
        ([], "`times`"),
        ([[0.0, 1.0], [0.0, 1.0]], "`times`"),
        ([0.0, 1j], "must be real"),
    ],
)
def test_invalid_times_are_refused(times, message):
    problem = ddln.least_squares([[1.0]], [2.0])
    for flow in (ddln.gradient_flow, lambda p, u, t: ddln.gradient_flows(p, u[None], t)):
        with pytest.raises(ValueError, match=message):
            flow(problem, jnp.array([[0.0], [1.0]]), times)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_data_and_layers_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="`features` must be finite"):
        ddln.least_squares([[1.0, bad]], [2.0])
    with pytest.raises(ValueError, match="`targets` must be finite"):
        ddln.least_squares([[1.0, 1.0]], [bad])
    with pytest.raises(ValueError, match="`layers` must be finite"):
        ddln.gradient_flow(ddln.least_squares([[1.0]], [2.0]), [[bad], [1.0]], [0.0, 1.0])


SIZES = st.sampled_from([0.0, 1e-200, 1e-9, 0.3, 1.0, -1.0, 2.5, 1e4, -1e9])
WEIGHTS = st.sampled_from([0.0, 1e-150, 1e-6, 0.5, -0.5, 1.0, -1.2, 3.0])


def arrays(elements, *shape):
    count = int(np.prod(shape))
    numbers = st.lists(elements, min_size=count, max_size=count)
    return numbers.map(lambda values: np.reshape(values, shape))


@st.composite
def networks(draw, samples, dim, depth):
    features, targets = draw(arrays(SIZES, samples, dim)), draw(arrays(SIZES, samples))
    kind = draw(
        st.sampled_from(["as drawn", "no data", "no targets", "twice the column", "rank 0"])
    )
    if kind == "no targets":
        targets = np.zeros(samples)
    if kind in ("no data", "rank 0"):
        features = np.zeros((samples, dim))
        targets = targets * (kind == "rank 0")
    if kind == "twice the column":
        features = np.repeat(features[:, :1], dim, axis=1)
    return (
        features,
        targets,
        draw(arrays(WEIGHTS, depth, dim)),
        draw(st.sampled_from([1e-9, 1, 1e6])),
    )


def assert_sound(network):
    """A run has a status, its loss decreases, and it conserves the imbalances."""
    features, targets, layers, horizon = network
    problem = ddln.least_squares(features, targets)
    flows = ddln.gradient_flows(problem, layers[None], [0.0, horizon / 2, horizon], max_steps=3000)
    status, loss = int(flows.status[0]), np.asarray(flows.loss[0])
    assert np.isfinite(loss[0]) or status
    if status:
        assert np.isnan(loss[-1])
        return
    assert np.isfinite(loss).all()
    size = float(np.sum(targets**2)) + float(np.max(np.abs(loss)))
    # The absolute tolerance holds for a layer, and moves θ by at most the product of the others.
    others = np.prod(np.maximum(np.abs(layers), 1.0), axis=0).max()
    unresolved = np.sum(features**2) * (float(flows.atol[0]) * others) ** 2
    assert (np.diff(loss) <= SEEN * size + unresolved).all()
    path = np.asarray(flows.trajectories().layers[0])
    kept = path[-1] ** 2 - path[-1, :1] ** 2 - (layers**2 - layers[:1] ** 2)
    assert np.abs(kept).max() <= SEEN * max(np.square(path).max(), 1e-300)


QUIETLY = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@pytest.mark.slow
def test_any_small_network_on_any_data_has_a_sound_run():
    settings(max_examples=30, **QUIETLY)(given(networks(2, 3, 3))(assert_sound))()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 3), (3, 1, 5), (1, 2, 4)])
def test_thousand_small_networks_have_sound_runs(shape):
    settings(max_examples=1000, **QUIETLY)(given(networks(*shape))(assert_sound))()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32, jnp.bool_])
def test_integer_input_is_converted_to_reals(dtype):
    features = jnp.array([[1, 0], [1, 1]], dtype)
    problem = ddln.least_squares(features, jnp.array([1, 0], dtype))
    layers = jnp.array([[1, 1], [1, 0]], dtype)
    run = ddln.gradient_flow(problem, layers, [0.0, 0.5])
    assert jnp.issubdtype(run.theta.dtype, jnp.floating)
    exact = ddln.gradient_flow(
        ddln.least_squares(np.asarray(features, float), [1.0, 0.0]),
        np.asarray(layers, float),
        [0.0, 0.5],
    )
    np.testing.assert_allclose(run.theta, exact.theta, atol=1e-4)  # float32 keeps seven digits


WIDE, KINDS, ROWS = 1_000_000, 50, 20
REPEATED = (
    """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import ddln

features, targets, layers, times, rtol = (np.array(x) for x in json.load(sys.stdin))
wide = np.tile(features, sys.argv[1]), np.tile(layers, sys.argv[1])
""".replace("sys.argv[1]", f"{WIDE // KINDS}")
    + """
run = ddln.gradient_flow(ddln.least_squares(wide[0], targets), wide[1], times, rtol=float(rtol))
imbalance = run.layers[-1, 1] ** 2 - run.layers[-1, 0] ** 2
kept = np.abs(imbalance - (wide[1][1] ** 2 - wide[1][0] ** 2)).max()
theta = np.asarray(run.theta).reshape(len(times), -1, features.shape[1])
spread = np.abs(theta - theta[:, :1]).max()
(peak,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if "VmHWM" in line)
print(json.dumps([theta[:, 0].tolist(), run.gap.tolist(), float(kept), float(spread), peak]))
"""
)


@pytest.mark.slow
def test_flow_of_a_million_coordinates_matches_fifty_in_bounded_memory():
    # k equal columns, from equal layers, are one column √k times as large on targets y/√k.
    rng = np.random.default_rng(0)
    copies = WIDE // KINDS
    features = rng.standard_normal((ROWS, KINDS)) / np.sqrt(copies)
    targets = rng.standard_normal(ROWS)
    layers = np.concatenate([np.zeros((1, KINDS)), rng.uniform(0.5, 1.0, (2, KINDS))])
    times, rtol = np.linspace(0.0, 0.2, 5), 1e-6
    given = json.dumps([x.tolist() for x in (features, targets, layers, times, np.array(rtol))])
    done = subprocess.run(
        [sys.executable, "-c", REPEATED], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theta, gap, kept, spread, peak = json.loads(done.stdout)

    def field(_, state):
        u = state.reshape(3, KINDS)
        gradient = 2 * features.T @ (copies * features @ u.prod(axis=0) - targets)
        return -(gradient * np.stack([u[1] * u[2], u[0] * u[2], u[0] * u[1]])).ravel()

    solved = solve_ivp(
        field, (0.0, times[-1]), layers.ravel(), "DOP853", times, rtol=1e-11, atol=1e-13
    )
    expected = solved.y.T.reshape(-1, 3, KINDS).prod(axis=1)
    np.testing.assert_allclose(theta, expected, rtol=0, atol=100 * rtol * np.abs(expected).max())
    residual = copies * features @ expected.T - targets[:, None]
    least = np.linalg.lstsq(copies * features, targets, rcond=None)[1].sum()
    gaps = (residual**2).sum(axis=0) - least
    np.testing.assert_allclose(gap, gaps, rtol=1e-3, atol=1e-4 * gaps[0])
    assert gaps[-1] < 0.1 * gaps[0]
    assert kept < ROUNDING
    assert spread < 1e-9
    assert peak < 16 * ROWS * WIDE * 8, peak / 1e9
