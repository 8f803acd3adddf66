"""Seeds draw the same numbers whatever jax's settings are, against Threefry in NumPy."""

import contextlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ddln._internal import random
from ddln.config import datasets
from ddln.config.data_schema import CountsDataConfig, SparseDataConfig
from ddln.config.experiment import load
from ddln.sweeps import build, compute, dask_executor, environment
from ddln.sweeps._manifest import differences
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder, StoreError

FIGURE4 = Path(__file__).parent.parent / "configs" / "figure4.toml"
ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
LOW, HIGH, DIM = 0.5, 1.2, 8
LAW = f"{{kind='uniform', low={LOW}, high={HIGH}}}"
BALANCED = f"network.init={{kind='balanced', law={LAW}, seed=7}}"


def threefry(key, counters):
    """Threefry-2x32 with 20 rounds: Salmon et al. 2011, section 4.2."""
    with np.errstate(over="ignore"):
        keys = [*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
        x, y = (counter + k for counter, k in zip(counters, key, strict=True))
        for group in range(5):
            for rotation in ROTATIONS[group % 2]:
                x = x + y
                y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
                y = y ^ x
            x = x + keys[(group + 1) % 3]
            y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def uniform(seed, size):
    """Draws from [0, 1) of 52 bits, the i-th from the counter i."""
    key = np.array([0, seed], np.uint32)
    high, low = threefry(key, (np.zeros(size, np.uint32), np.arange(size, dtype=np.uint32)))
    bits = (high.astype(np.uint64) << np.uint64(32)) | low
    return ((bits >> np.uint64(12)) | np.uint64(0x3FF << 52)).view(np.float64) - 1.0


@contextlib.contextmanager
def seed_offset(offset):
    before = jax.config.values["jax_random_seed_offset"]
    jax.config.update("jax_random_seed_offset", offset)
    try:
        yield
    finally:
        jax.config.update("jax_random_seed_offset", before)


SETTINGS = {
    "another generator": lambda: jax.default_prng_impl("rbg"),
    "another way to cut it up": lambda: jax.threefry_partitionable(False),
    "an offset": lambda: seed_offset(5),
}


@pytest.fixture(params=SETTINGS)
def ambient(request):
    with SETTINGS[request.param]():
        yield


def test_threefry_has_its_published_numbers():
    """The known answers of Random123 1.09, of 20 rounds."""
    zero, ones = np.zeros(2, np.uint32), np.full(2, 2**32 - 1, np.uint32)
    assert [int(x) for x in threefry(zero, zero)] == [0x6B200159, 0x99BA4EFE]
    assert [int(x) for x in threefry(ones, ones)] == [0x1CB996FC, 0xBB002BE7]


def test_layers_are_drawn_by_threefry_under_any_jax_settings(ambient):
    layers = build.build_layers(load(FIGURE4, [BALANCED, "network.depth=2", "sweep={}"]))
    expected = np.float64(HIGH - LOW) * uniform(7, DIM) + LOW
    np.testing.assert_array_max_ulp(np.asarray(layers[1]), expected, maxulp=1)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_seed_gives_the_key_of_jax_random(seed):
    np.testing.assert_array_equal(
        jax.random.key_data(random.key_from_seed(seed)), jax.random.key_data(jax.random.key(seed))
    )


@pytest.mark.parametrize(
    ("table", "kind"), [(SparseDataConfig, "sparse"), (CountsDataConfig, "counts")]
)
def test_data_do_not_depend_on_jax_settings(table, kind):
    drawn = table(kind=kind, samples=5, features=7, nonzeros=3)
    expected = *datasets.draw(drawn), datasets.truth(drawn)
    for setting in SETTINGS.values():
        with setting():
            for one, other in zip(
                (*datasets.draw(drawn), datasets.truth(drawn)), expected, strict=True
            ):
                np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_data_set_does_not_depend_on_jax_settings():
    """Training draws batches during the run, too, from a swept seed."""
    training = (
        "dynamics={kind='descent', steps=20, points=5, sampling={batch=3, label_noise=0.1},"
        " optimiser={kind='sgd', learning_rate=1e-3}}"
    )
    experiment = load(FIGURE4, [training, "sweep={network.init.seed=[1, 2]}", "network.depth=3"])
    expected = compute.run(experiment)
    with contextlib.ExitStack() as stack:
        for setting in SETTINGS.values():
            stack.enter_context(setting())
        assert compute.run(experiment).identical(expected)


def test_provenance_records_only_settings_that_change_numbers(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4 --xla_dump_to=x")
    assert environment.provenance()["settings"] == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_b=1 --xla_a=2")
    with jax.default_matmul_precision("highest"):
        recorded = environment.provenance()["settings"]
    assert recorded == {
        "XLA_FLAGS": "--xla_a=2 --xla_b=1",
        "jax_default_matmul_precision": "highest",
    }


def effort():
    settings: Any = jax.config
    before = settings.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", 0.5)
    return lambda: jax.config.update("jax_exec_time_optimization_effort", before)


def test_a_run_that_began_under_other_settings_is_not_resumed_and_names_them(tmp_path):
    plan = make_plan(load(FIGURE4, ["sweep={}"]))
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.open(plan, **environment.provenance())
    restore = effort()
    try:
        now = environment.provenance()
    finally:
        restore()
    changed = "begun with jax_exec_time_optimization_effort as it comes, now 0.5; its chunks"
    with folder.locked(), pytest.raises(StoreError, match=changed):
        folder.open(plan, **now)
    with folder.locked():
        folder.open(plan, **environment.provenance())


def test_versions_that_an_older_run_did_not_record_say_nothing():
    now = environment.provenance()
    older = {name: version for name, version in now["versions"].items() if name != "scipy"}
    assert differences({**now, "versions": older}, now) == []
    assert differences({**now, "versions": older | {"scipy": "0"}}, now) == [
        f"scipy 0, now {now['versions']['scipy']}"
    ]


def test_worker_with_different_settings_is_refused(monkeypatch):
    ground = {**environment.provenance(), "settings": {"XLA_FLAGS": "--xla_a=2"}}
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(dask_executor, "_refuse_profiler", lambda: None)
    monkeypatch.setattr(dask_executor, "start_jax", lambda *_: None)
    with pytest.raises(RuntimeError, match="begun with XLA_FLAGS --xla_a=2, now as it comes; a"):
        dask_executor.compute_chunk("nowhere", 0, ground)
