"""Times of finished runs: kept for runs of the same form, and harmless if they cannot be."""

from pathlib import Path

import pytest

from ddln.config.experiment import load
from ddln.sweeps import run_times
from ddln.sweeps.plan import make_plan

FIGURE4 = Path(__file__).parent.parent / "configs" / "figure4.toml"


def plan_of(networks, *overrides):
    scales = f"sweep.network.scale={{linspace=[0.7, 1.8, {networks}]}}"
    return make_plan(load(FIGURE4, [scales, *overrides]))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_time_grows_with_the_networks_of_runs_of_the_same_form():
    run_times.record(plan_of(1000), 10.0, 0.004)
    assert run_times.estimate(plan_of(1000, "network.init.seed=5")) == 10.0
    assert run_times.estimate(plan_of(3000)) == pytest.approx(10.0 + 0.004 * 2000)
    assert run_times.estimate(plan_of(1000, "network.depth=3")) is None


def test_run_of_one_chunk_estimates_only_its_like_and_keeps_the_known_rate():
    run_times.record(plan_of(3), 9.0, None)
    assert run_times.estimate(plan_of(3)) == 9.0
    assert run_times.estimate(plan_of(1000)) is None
    run_times.record(plan_of(1000), 12.0, 0.003)
    run_times.record(plan_of(3), 8.0, None)
    assert run_times.estimate(plan_of(1003)) == pytest.approx(8.0 + 0.003 * 1000)


@pytest.mark.parametrize("content", ["", "[]", '{"a": {"lanes": "x"}}', "{"])
def test_damaged_file_of_times_counts_as_none(content):
    run_times.record(plan_of(3), 9.0, None)
    run_times._path().write_text(content)
    assert run_times.estimate(plan_of(3)) is None
    run_times.record(plan_of(3), 9.0, None)
    assert run_times.estimate(plan_of(3)) == 9.0


def test_run_goes_on_if_its_time_cannot_be_kept(cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    run_times.record(plan_of(3), 9.0, None)
    assert run_times.estimate(plan_of(3)) is None
