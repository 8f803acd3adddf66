"""Compiled programs are dropped before the process runs out of memory maps."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln._internal import compiled_programs

ROOM = 250
"""Maps beyond those at the start at which programs are dropped; fewer than the first flow adds."""
ONE = 1200
"""The most maps that a flow of a new shape adds; 380 were measured."""

needs_maps = pytest.mark.skipif(
    compiled_programs.memory_maps() is None, reason="memory maps are counted on Linux only"
)


def used():
    with open("/proc/self/maps", "rb") as maps:
        return sum(1 for _ in maps)


def compile_programs(count):
    for size in range(2, 2 + count):
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((size, size)))


@needs_maps
@pytest.mark.slow
def test_memory_maps_stay_bounded_over_many_shapes(monkeypatch):
    jax.clear_caches()
    most = used() + ROOM
    monkeypatch.setattr(compiled_programs, "memory_maps", lambda: (used(), 2 * most))
    seen, ends = [], []
    for dim in (2, 3, 4, 5, 2):
        problem = ddln.least_squares(np.eye(dim), np.ones(dim))
        run = ddln.gradient_flow(problem, jnp.ones((2, dim)) * 0.5, [0.0, 1.0])
        seen.append(used())
        ends.append(np.asarray(run.theta[-1]))
    assert max(seen) < most + ONE
    assert min(np.diff(seen)) < 0
    np.testing.assert_array_equal(ends[0], ends[-1])


@pytest.fixture
def drops(monkeypatch):
    """Record the calls of `jax.clear_caches` in place of making them."""
    times = []
    monkeypatch.setattr(jax, "clear_caches", lambda: times.append(1))
    monkeypatch.setattr(compiled_programs._Compiled, "since_count", 0)
    monkeypatch.setattr(compiled_programs._Compiled, "since_drop", 0)
    return times


def test_programs_are_kept_while_there_is_room(drops, monkeypatch):
    monkeypatch.setattr(compiled_programs, "memory_maps", lambda: (32_000, 65_530))
    compile_programs(10)
    compiled_programs.drop_programs()
    assert not drops


def test_maps_are_counted_only_after_compilations(drops, monkeypatch):
    monkeypatch.setattr(compiled_programs, "memory_maps", lambda: (33_000, 65_530))
    compiled_programs.drop_programs()
    assert not drops
    compile_programs(10)
    for _ in range(3):
        compiled_programs.drop_programs()
    assert len(drops) == 1


def test_programs_are_dropped_by_number_without_a_count_of_maps(drops, monkeypatch):
    monkeypatch.setattr(compiled_programs, "memory_maps", lambda: None)
    compile_programs(10)
    compiled_programs.drop_programs()
    assert not drops
    monkeypatch.setattr(compiled_programs, "_MAX_PROGRAMS", 20)
    compile_programs(25)
    compiled_programs.drop_programs()
    assert len(drops) == 1


def test_no_program_is_dropped_under_a_transformation(drops, monkeypatch):
    monkeypatch.setattr(compiled_programs, "memory_maps", lambda: (1, 1))
    compile_programs(10)
    jax.jit(lambda x: (compiled_programs.drop_programs(), x)[1])(1.0)
    assert not drops


@pytest.mark.parametrize("missing", ["_MAPS", "_MAX_MAPS"])
def test_maps_of_other_systems_are_not_counted(missing, monkeypatch, tmp_path):
    monkeypatch.setattr(compiled_programs, missing, tmp_path / "none")
    assert compiled_programs.memory_maps() is None


SWEEP = """
import ddln
from ddln.sweeps.environment import start_jax
start_jax()
experiment = ddln.load("configs/figure4.toml").with_({
    "dynamics.points": 11, "sweep": {}, "sweep.network.depth": list(range(2, 12)),
    "sweep.problem.data.features": list(range(2, 22)),
})
dataset = ddln.run(experiment)
print(dict(dataset["gap"].sizes), bool((dataset["status"] == 0).all()))
"""


@pytest.mark.slow
def test_sweep_over_two_hundred_shapes_ends(tmp_path):
    """Each shape compiles programs with 1,000 to 1,800 memory maps."""
    done = subprocess.run(
        [sys.executable, "-c", SWEEP],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{'network.depth': 10, 'problem.data.features': 20")
