"""Programs traced once serve later processes, and a damaged store does no harm."""

import errno
import os
import subprocess
import sys
import threading
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln._internal import program_store
from ddln._internal.program_store import ProgramStore, StoredJit
from ddln.sweeps import _runners
from ddln.verification import certify as certification

DESCENT = {
    "kind": "descent",
    "steps": 40,
    "optimiser": {"kind": "sgd", "learning_rate": 0.001},
    "sampling": {"batch": 2, "seed": 0},
}

traces: list[tuple[int, ...]] = []


class Pair(eqx.Module):
    """A tree of the kind that programs take and return."""

    first: jax.Array
    second: jax.Array
    name: str = eqx.field(static=True)


def swap(pair, power):
    """Swap the parts of a pair; Python notes each trace."""
    traces.append(pair.first.shape)
    return Pair(pair.second**power, jnp.sin(pair.first), pair.name.upper())


PAIR = Pair(jnp.arange(3.0), jnp.array([2.0]), "pair")


@pytest.fixture
def folder(tmp_path):
    """The folder of an opened store."""
    program_store.open_store(tmp_path / "store")
    traces.clear()
    yield tmp_path / "store"
    program_store.open_store(None)


def traced(function=swap, *, key="", arguments=(PAIR, 2)):
    """Call a function as a new process would, and return how often it was traced."""
    before = len(traces)
    swapped = StoredJit(function, key)(*arguments)
    assert swapped.name == "PAIR"
    np.testing.assert_array_equal(swapped.first, arguments[0].second ** arguments[1])
    np.testing.assert_array_equal(swapped.second, jnp.sin(arguments[0].first))
    return len(traces) - before


def test_second_process_does_not_trace(folder):
    assert traced() == 1
    assert traced() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other"},
        {"arguments": (PAIR, 3)},
        {"arguments": (Pair(jnp.arange(4.0), PAIR.second, "pair"), 2)},
        {"arguments": (Pair(PAIR.first.astype("float32"), PAIR.second, "pair"), 2)},
        {"arguments": (Pair(PAIR.first, PAIR.second, "Pair"), 2)},
    ],
)
def test_other_key_shape_dtype_or_static_value_is_traced_again(folder, change):
    traced()
    assert traced(**change) == 1
    assert traced(**change) == 0


def test_other_code_version_or_setting_is_traced_again(folder, monkeypatch):
    traced()
    with jax.debug_nans(False):
        monkeypatch.setattr(program_store, "_code", lambda: "a later version")
        assert traced() == 1
    monkeypatch.setenv("EQX_ON_ERROR", "breakpoint")
    assert traced() == 1


@pytest.mark.parametrize(
    "damage", [lambda entry: entry[:-1], lambda entry: b"", lambda entry: b"x"]
)
def test_truncated_entry_is_traced_and_written_again(folder, damage):
    traced()
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert traced() == 1
    assert traced() == 0


def test_flipped_bit_is_noticed(folder):
    traced()
    (entry,) = folder.iterdir()
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 1
    entry.write_bytes(content)
    assert traced() == 1


def warnings_of(function):
    """The warnings of two calls of a function."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            function()
    return [str(warning.message) for warning in caught]


def test_folder_that_cannot_be_made_costs_one_warning(tmp_path, folder):
    (tmp_path / "file").touch()
    program_store.open_store(tmp_path / "file" / "store")
    (message,) = warnings_of(traced)
    assert message.endswith("Not a directory; later runs will start more slowly")


def test_full_disk_costs_one_warning(folder, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(program_store, "write_whole", fail)
    (message,) = warnings_of(traced)
    assert message.startswith(f"{folder}: No space left on device")


def test_read_only_folder_serves_its_programs(folder, monkeypatch):
    traced()

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.touch", fail)
    assert traced() == 0


def test_oldest_programs_go_first(tmp_path):
    entry = 1000 + 32
    store = ProgramStore(tmp_path, max_bytes=3 * entry)
    for age, name in enumerate("abc"):
        store.write(name, bytes(1000))
        os.utime(tmp_path / name, (age, age))
    store.read("a")  # now "b" is the oldest
    store.write("d", bytes(1000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_large_programs_are_not_stored(folder, monkeypatch):
    monkeypatch.setattr(program_store, "MAX_ENTRY_BYTES", 100)
    assert traced() == 1
    assert traced() == 1


def test_readers_and_writers_at_the_same_time_see_whole_entries(tmp_path):
    contents = [bytes([number]) * 10_000 for number in range(4)]
    found: list[bytes | None] = []

    def write(content):
        for _ in range(20):
            ProgramStore(tmp_path).write("entry", content)
            found.append(ProgramStore(tmp_path).read("entry"))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert set(found) <= set(contents)


PROGRAM = """
import pathlib, sys, jax.numpy as jnp
import ddln
from ddln._internal import program_store

def double(x):
    print("traced")
    return 2 * x

program_store.open_store(pathlib.Path(sys.argv[1]))
print(float(program_store.StoredJit(double)(jnp.ones(()))))
"""


def test_two_processes_at_once_leave_one_entry_that_a_third_uses(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all(process.communicate()[0].endswith("2.0\n") for process in both)
    assert len(list(tmp_path.iterdir())) == 1
    third = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert third.stdout == "2.0\n"


def test_error_of_the_function_is_raised_as_without_a_store(folder):
    def fail(x):
        raise ValueError("`x` must be of another kind.")

    with pytest.raises(ValueError, match="of another kind"):
        StoredJit(fail)(jnp.ones(3))


def test_function_that_cannot_be_stored_is_traced_in_every_process(folder):
    def doubled(x):
        traces.append(x.shape)
        return jax.pure_callback(lambda x: 2 * np.asarray(x), jax.typeof(x), x)

    for calls in (1, 2):
        np.testing.assert_array_equal(StoredJit(doubled)(jnp.ones(3)), 2.0)
        assert len(traces) >= calls
    assert not folder.exists()


def test_traced_arguments_are_inlined(folder):
    doubled = StoredJit(lambda x: 2 * x)
    assert float(jax.jit(jax.grad(lambda x: doubled(x)))(1.0)) == 2.0
    np.testing.assert_array_equal(jax.vmap(doubled)(jnp.arange(3.0)), [0.0, 2.0, 4.0])


def test_prepared_function_runs_as_any_other():
    traces.clear()
    swapped = StoredJit(swap)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PAIR)
    like = swapped.prepare(shapes, 2)
    assert (like.first.shape, like.second.shape, like.name) == ((1,), (3,), "PAIR")
    np.testing.assert_array_equal(swapped(PAIR, 2).first, [4.0])
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dynamics.solver": "kvaerno5"},
        {"dynamics": DESCENT},
    ],
)
def test_run_with_a_store_has_the_same_bytes(folder, changes):
    experiment = ddln.load("configs/figure4.toml").with_({"dynamics.points": 11} | changes)
    runs = []
    for store in (None, folder, folder):  # none, an empty one, one with the programs
        program_store.open_store(store)
        _runners.make_runner.cache_clear()
        runs.append(ddln.run(experiment))
    alone, *stored = ({name: x.values.tobytes() for name, x in run.items()} for run in runs)
    assert stored == [alone, alone]
    assert len(list(folder.iterdir())) > 2


@pytest.mark.slow
def test_certificates_are_traced_once_while_the_flow_is_integrated(folder, monkeypatch):
    calls = []
    certify = certification.certify
    monkeypatch.setattr(
        certification, "certify", lambda *a, **k: calls.append(1) or certify(*a, **k)
    )
    _runners.make_runner.cache_clear()
    ddln.run(ddln.load("configs/figure4.toml").with_({"dynamics.points": 11}))
    assert len(calls) == 1
