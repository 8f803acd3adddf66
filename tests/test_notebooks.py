"""Every notebook runs as a script, and its statements hold."""

import runpy
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
ORDER = 0.15  # of Runge–Kutta's 4, by halving steps that are not infinitely small
SAME = 1e-8  # two integrators at their own tolerances
POWER = 1e-9  # exact but for rounding


def run(name, monkeypatch):
    """The outputs and names of a notebook, run from its own folder as Jupyter does."""
    monkeypatch.chdir(FOLDER)
    shown, defined = runpy.run_path(str(FOLDER / f"{name}.py"))["app"].run()
    return shown, defined


@pytest.mark.slow
def test_first_steps_ends_at_the_predicted_limit(monkeypatch):
    shown, defined = run("first_steps", monkeypatch)
    assert defined["certificates"].ok
    np.testing.assert_allclose(defined["run"].theta[-1], defined["predicted"], atol=1e-5)
    assert np.linalg.norm(defined["predicted"] - defined["least_norm"]) > 0.01
    assert sum(hasattr(value, "_repr_html_") for value in shown) >= 4


@pytest.mark.slow
def test_mirror_flow_by_hand_converges_to_the_flow_of_the_layers(monkeypatch):
    _, defined = run("mirror_flow_by_hand", monkeypatch)
    np.testing.assert_allclose(defined["product"], np.eye(2), atol=SAME)
    np.testing.assert_allclose(defined["orders"][1:4], 4, atol=ORDER)
    assert defined["errors"][-1] < SAME
    assert defined["apart"] < SAME


@pytest.mark.slow
def test_guaranteed_rate_has_its_power_of_the_scale_and_the_true_rate_a_lower_one(monkeypatch):
    _, defined = run("sweeping_the_scale", monkeypatch)
    for depth, bound, rate in zip(
        (2, 4), defined["bound_slopes"], defined["rate_slopes"], strict=True
    ):
        np.testing.assert_allclose(bound, 2 * (depth - 1), atol=POWER)
        assert (rate < 2 * (depth - 1)).all()
        assert rate[-1] > rate[0]


@pytest.mark.slow
def test_user_defined_loss_and_optimiser_are_certified(monkeypatch):
    _, defined = run("own_parts", monkeypatch)
    assert defined["certificates"].ok
    assert not defined["certificates"]["exponential bound"].applies
    assert defined["certificates"]["mirror identity"].applies
    assert defined["apart"] < POWER
    assert defined["trained"].gap[-1] < 1e-2 * defined["trained"].gap[0]
    assert defined["trained"].gap[20] < defined["plain"].gap[20]
    assert defined["claim"].holds


@pytest.mark.slow
def test_network_of_a_data_set_is_reconstructed(monkeypatch):
    _, defined = run("reading_a_dataset", monkeypatch)
    assert defined["apart"] < SAME
    assert (defined["failing"] == 0).all()
    later = defined["reached"].median("network.init.seed").values
    assert (np.diff(later) < 0).all()


def test_every_notebook_is_run_by_a_test():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        assert f'run("{path.stem}", monkeypatch)' in text
