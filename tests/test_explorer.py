"""The explorer's charts against independent computations, its states, addresses and server."""

import builtins
import socket

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import ddln
from ddln.cli import main as cli
from ddln.config.experiment import ConfigError, parse
from ddln.plotting.explorer import network_controls, network_view, run_browser, server
from ddln.sweeps import build, plan
from ddln.sweeps.run_folder import RunFolder
from tests.reading import PIXEL, curve_of, flow, mark_of

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def base():
    return network_controls.initial_state(
        ddln.load("configs/explore.toml").with_({"dynamics.points": 41})
    )


@pytest.fixture(scope="module")
def seen(base):
    """A state at another scale and imbalance, and its view."""
    state = network_controls.with_values(
        base, {"network.scale": 1.12, "network.init.imbalance": 0.6}
    )
    return state, network_controls.run_state(state)


@pytest.mark.slow
def test_charts_match_an_independent_integration(seen):
    _, view = seen
    times = view.data["time"].values
    theta, gap = flow(view.problem.features, view.problem.targets, view.layers, times)
    t, logs, pixel = curve_of(network_view.gap_chart(view), "loss gap")
    np.testing.assert_allclose(t, times[: t.size], atol=PIXEL * times[-1] / 100)
    np.testing.assert_allclose(logs, np.log10(gap[: t.size]), atol=PIXEL * pixel + 1e-6)
    first, second, pixel = curve_of(network_view.plane_chart(view), "θ(t)")
    np.testing.assert_allclose(np.stack([first, second], 1), theta, atol=PIXEL * pixel)


@pytest.mark.slow
def test_level_set_touches_the_minimisers_at_the_limit(seen):
    _, view = seen
    plane = network_view.plane_chart(view)
    limit, pixel = mark_of(plane, "predicted limit")
    assert isinstance(view.problem, ddln.LeastSquares)
    X, y = np.asarray(view.problem.features), np.asarray(view.problem.targets)
    assert abs(X @ limit - y)[0] < 2 * pixel * np.abs(X).sum()
    x, z, pixel = curve_of(plane, "level sets of D_Q(·, θ(0))")
    level = np.stack([x, z], 1)
    signed = (level @ X.T - y).ravel() * np.sign((view.theta[0] @ X.T - y)[0])
    # The level set lies on one side of the line and touches it at the limit.
    assert signed.min() > -2 * pixel * np.abs(X).sum()
    assert np.linalg.norm(level - limit, axis=1).min() < 0.02 * np.ptp(level)


@pytest.mark.slow
def test_entropy_chart_matches_its_derivative_chart(seen):
    _, view = seen
    entropy, mirror = network_view.entropy_charts(view, 0)
    theta, q, _ = curve_of(entropy)
    _, slope, pixel = curve_of(mirror)
    middle = (theta[1:] + theta[:-1]) / 2
    measured = np.diff(q) / np.diff(theta)
    rough = 0.01 * np.ptp(slope) + pixel  # differences of numbers read from pixels
    np.testing.assert_allclose(measured, np.interp(middle, theta, slope), atol=10 * rough)
    entropy = ddln.Entropy(view.layers[:, :1])
    exact = [float(entropy.mirror_map([x])[0]) for x in theta[::40]]
    np.testing.assert_allclose(slope[::40], exact, atol=rough)


@pytest.mark.slow
def test_descent_is_drawn_against_steps(base):
    state = network_controls.with_kinds(base, {"dynamics": "sgd"})
    state = network_controls.with_values(state, {"dynamics.steps": 100})
    view = network_controls.run_state(state)
    assert isinstance(view.problem, ddln.LeastSquares)
    X, y = np.asarray(view.problem.features), np.asarray(view.problem.targets)
    layers, gaps = np.asarray(view.layers), []
    for _ in range(101):
        residual = X @ layers.prod(axis=0) - y
        gaps.append(float(residual @ residual))
        others = np.array([np.delete(layers, j, axis=0).prod(axis=0) for j in range(3)])
        layers = layers - 0.002 * 2 * (X.T @ residual) * others
    steps, logs, pixel = curve_of(network_view.gap_chart(view), "loss gap")
    chosen = np.rint(steps).astype(int)
    assert chosen[-1] == 100
    np.testing.assert_allclose(logs, np.log10(np.array(gaps)[chosen]), atol=2 * PIXEL * pixel)
    assert "largest stable step" in network_view.overview(view)


@pytest.mark.slow
def test_other_values_of_controls_compile_nothing(base, seen):
    counts = []

    def count(event, *_, **__):
        counts.extend([event] if "backend_compile" in event else [])

    jax.monitoring.register_event_duration_secs_listener(count)
    state = network_controls.with_values(base, {"network.scale": 1.26, "problem.data.seed": 3})
    network_view.overview(network_controls.run_state(state))
    first = len(counts)
    state = network_controls.with_values(
        base, {"network.scale": 0.891, "network.init.smallest": 0.22}
    )
    network_view.overview(network_controls.run_state(state))
    assert len(counts) == first


def test_address_encodes_the_state(base):
    state = network_controls.with_kinds(base, {"network.init": "normal", "dynamics": "heavy_ball"})
    state = network_controls.with_values(
        state, {"network.scale": 1.41, "dynamics.optimiser.momentum": 0.5}
    )
    query = network_controls.to_query(base, state)
    assert query == {
        "network.init": "normal",
        "dynamics": "heavy_ball",
        "network.scale": "1.41",
        "dynamics.optimiser.momentum": "0.5",
    }
    assert network_controls.from_query(base, query) == state
    assert network_controls.from_query(base, {**query, "session_id": "s_1"}) == state


def test_saved_config_can_be_run(base):
    state = network_controls.with_kinds(base, {"dynamics": "nesterov"})
    assert parse(state.to_toml()) == state
    assert plan.make_plan(parse(state.to_toml())).lanes == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"network.depth": "1000"}, r"network\.depth: must be from 2 to 10, got 1000"),
        ({"network.scale": "x"}, r"network\.scale: must be a number, got 'x'"),
        ({"network.scale": "nan"}, r"network\.scale: must be from .*, got nan"),
        ({"problem.data.path": "/etc/passwd"}, r"problem\.data\.path: not a control"),
        ({"problem.data": "file"}, r"problem\.data: must be one of gaussian, sparse, got 'file'"),
        ({"network.init": HOSTILE}, r"network\.init: must be one of"),
    ],
)
def test_address_outside_the_ranges_is_an_error(base, query, message):
    with pytest.raises(ValueError, match=message):
        network_controls.from_query(base, query)


def test_inconsistent_values_are_an_error(base):
    state = network_controls.with_kinds(base, {"problem.data": "sparse"})
    with pytest.raises(ConfigError, match="nonzeros must be ≤ features"):
        network_controls.with_values(state, {"problem.data.nonzeros": 30})


def test_every_control_can_be_moved_to_its_ends(base):
    for table in network_controls.TABLES:
        for kind in network_controls.choices(base, table):
            state = network_controls.with_kinds(base, {table: kind})
            for control in network_controls.controls(state):
                assert control.value in control.steps
                if control.name.rpartition(".")[2] in ("low", "high", "nonzeros", "features"):
                    continue  # these are constrained by another control
                for end in {control.steps[0], control.steps[-1]}:
                    moved = network_controls.with_values(state, {control.name: end})
                    assert (
                        network_controls.from_query(base, network_controls.to_query(base, moved))
                        == moved
                    )


@pytest.fixture(scope="module")
def swept(base):
    """The data set of a small sweep."""
    return ddln.run(
        base.with_(
            {"sweep.network.scale": [0.5, 1.0, 1.5], "sweep.network.init.imbalance": [0.2, 0.4]}
        )
    )


@pytest.mark.slow
def test_quantity_of_every_network_is_drawn(swept):
    chart = run_browser.across(
        swept, "guaranteed rate μc", "network.scale", "network.init.imbalance", {}
    )
    lane = run_browser.pick(swept, {"network.scale": 0, "network.init.imbalance": 0})
    problem, *_ = build.reconstruct(lane)
    assert isinstance(problem, ddln.LeastSquares)
    mu = 2 * float((problem.features**2).sum())  # a single sample
    scales = np.array([0.5, 1.0, 1.5])
    for imbalance in (0.2, 0.4):
        x, rate, pixel = curve_of(chart, f"imbalance = {imbalance}")
        np.testing.assert_allclose(x, scales, atol=0.01)
        exact = mu * (imbalance * scales**2) ** 2  # c = λ² with two other layers
        np.testing.assert_allclose(rate, np.log10(exact), atol=PIXEL * pixel)


@pytest.mark.slow
def test_network_of_a_run_equals_the_network_alone(base, swept):
    places = {"network.scale": 2, "network.init.imbalance": 1}
    view = network_view.view(run_browser.pick(swept, places))
    alone = network_controls.run_state(
        base.with_({"network.scale": 1.5, "network.init.imbalance": 0.4})
    )
    assert view.theta is not None
    assert alone.theta is not None
    np.testing.assert_allclose(view.theta, alone.theta, rtol=1e-9, atol=1e-12)
    assert run_browser.name_of(swept, places) == "scale = 1.5, imbalance = 0.4"
    kept = {"one": view, HOSTILE: alone}
    assert "loss gap" in network_view.gap_chart(view, kept)
    for drawn in (network_view.overview(view, 0, kept), run_browser.compare(kept)):
        assert "<script" not in drawn
        assert "&lt;script" in drawn


@pytest.mark.slow
def test_networks_along_one_axis_are_drawn_together(swept):
    drawn = run_browser.side_by_side(swept, "network.scale", {"network.init.imbalance": 1})
    assert all(f'data-name="scale = {a}"' in drawn for a in ("0.5", "1", "1.5"))


def test_page_opens_on_a_config_or_a_run_only(tmp_path, base):
    page, words = server.open_subject("figure4", ["network.depth=3"], tmp_path)
    assert page == "network"
    assert words[0].endswith("figure4.toml")
    assert words[1:] == ["network.depth=3"]
    with pytest.raises(ValueError, match=r"no such file(.|\n)*not a run folder"):
        server.open_subject("nothing", [], tmp_path)
    with pytest.raises(ConfigError, match=r"network\.depth"):
        server.open_subject("figure4", ["network.depth=0"], tmp_path)
    folder = RunFolder.of(base, tmp_path)
    with folder.locked():
        folder.open(plan.make_plan(base), versions={}, device="cpu", dtype="float64")
    with pytest.raises(ValueError, match=r"dataset\.nc is missing"):
        server.open_subject(folder.path.name, [], tmp_path)


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_impossible_port_is_an_error(port):
    done = CliRunner().invoke(cli.app, ["explore", "--port", port, "--no-browser"])
    assert done.exit_code == 2
    assert "Invalid value for '--port'" in done.output


def test_missing_marimo_and_a_taken_port_give_one_message(monkeypatch):
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(cli.app, ["explore", "--port", str(port), "--no-browser"])
    assert done.exit_code == 2
    assert f"ddln: port {port}: Address already in use; --port takes another" in done.stderr
    found = builtins.__import__

    def without(name, *rest, **more):
        if name == "marimo":
            raise ImportError("No module named 'marimo'")
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    done = CliRunner().invoke(cli.app, ["explore", "--no-browser"])
    assert done.exit_code == 2
    assert done.stderr.startswith("ddln: explore needs marimo")
    # The command names marimo, because ddln itself is on no index.
    assert "-m pip install 'marimo>=" in done.stderr
    assert len(done.stderr.splitlines()) == 1
