"""Fuzzing: every input is accepted, and then read back unchanged, or refused with a message.

A seeded generator damages valid documents and files, so that failures are reproducible. No input
may take five seconds of processor time.
"""

import contextlib
import io
import math
import random
import re
import signal
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ddln.cli import main as cli
from ddln.config._toml import _toml_key
from ddln.config.data_files import DataError, read_table
from ddln.config.experiment import ConfigError, load
from ddln.problems.out_of_core import StoredRows
from ddln.sweeps.plan import is_recomputed, make_plan

ROOT = Path(__file__).parent.parent
CONFIGS = [
    tomllib.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "configs").glob("*.toml"))
]
for config in CONFIGS:
    if "path" in (data := config["problem"]["data"]):
        data["path"] = str(ROOT / "configs" / data["path"])
HANG_SECONDS = 5.0  # of processor time
QUICK, SLOW = 300, 100_000
TRIALS = [(0, QUICK), pytest.param(1, SLOW, marks=pytest.mark.slow)]

WORDS = ["", "x", "../x", "a\x00b", "\x1b[2J", "é", "ß" * 300, "𝛉", "kind", "figure4", "1", "nan"]
NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    1000,
    10**6,
    10**9,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**400,
]
REALS = [
    0.0,
    -0.0,
    0.5,
    1.0,
    1e-320,
    1e-300,
    1e-9,
    1e9,
    1e300,
    -1e308,
    math.inf,
    -math.inf,
    math.nan,
]
NAMES = ["problem.data.seed", "network.scale", "network.depth", "dynamics.until", "network", "x.y"]


def junk(rng, deep=2):
    kind = rng.randrange(7 if deep else 4)
    if kind == 0:
        return rng.choice(WORDS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(REALS)
    if kind == 3:
        return rng.random() < 0.5
    if kind == 4:
        return [junk(rng, deep - 1) for _ in range(rng.randrange(4))]
    if kind == 5:
        form = rng.choice(["linspace", "logspace", "range", "values", "zip", "kind"])
        return {
            form: junk(rng, deep - 1),
            **({"zip": rng.choice(NAMES)} if rng.random() < 0.3 else {}),
        }
    return {rng.choice([*WORDS, *NAMES]): junk(rng, deep - 1) for _ in range(rng.randrange(3))}


def like(value, rng):
    """Another value of the same type, which is valid more often than junk."""
    if type(value) in (int, float):
        return rng.choice(NUMBERS if type(value) is int else REALS)
    return junk(rng)


def containers(node, found=None):
    found = [] if found is None else found
    if isinstance(node, dict | list) and node:
        found.append(node)
        for child in node.values() if isinstance(node, dict) else node:
            containers(child, found)
    return found


def mutated(node, rng):
    """A copy of a document with one to three random changes."""
    node = copied(node)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = containers(node)
        if not places:
            break
        place = rng.choice(places)
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        match rng.randrange(5):
            case 0:
                del place[key]
            case 1:
                place[key] = junk(rng)
            case 2:
                place[key] = like(place[key], rng)
            case 3 if isinstance(place, dict):
                new = rng.choice([*WORDS, *NAMES, str(key) + "s", str(key)[1:]])
                place[new] = junk(rng) if rng.random() < 0.5 else copied(place[key])
            case _:
                place[key] = copied(rng.choice(places))
    return node


def copied(node, deep=6):
    if isinstance(node, dict):
        return {key: copied(child, deep - 1) for key, child in node.items()} if deep else 1
    if isinstance(node, list):
        return [copied(child, deep - 1) for child in node] if deep else 1
    return node


def as_toml(value):
    """The TOML text of any value."""
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {as_toml(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in value) + '"'
    return str(value).lower()


def documents(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        document: Any = mutated(rng.choice(CONFIGS), rng)
        pairs = (f"{_toml_key(key)} = {as_toml(value)}\n" for key, value in document.items())
        text = "".join(pairs).encode()
        yield damaged(text, rng) if rng.random() < 0.3 else text


def damaged(content, rng):
    """A copy with a few bytes replaced, deleted, inserted or repeated."""
    content = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(content) + 1)
        end = min(at + rng.randrange(1, 20), len(content))
        match rng.randrange(4):
            case 0:
                content[at:end] = rng.randbytes(end - at)
            case 1:
                del content[at:end]
            case 2:
                content[at:at] = rng.choice([b'"', b"[", b"{", b"\n", b"\x00", b".", b",", b"\xff"])
            case _:
                content[at:at] = content[at:end] * rng.randrange(1, 40)
    return bytes(content)


@contextlib.contextmanager
def no_hang(given):
    def stop(*_):
        raise TimeoutError(f"took {HANG_SECONDS} s: {given!r}")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def refused(has_message, error):
    if not has_message:
        raise error
    return False


def take(path):
    """Load and plan a config, as `ddln check` does; returns whether it is accepted."""
    try:
        experiment = load(path)
        plan = make_plan(experiment)
    except ConfigError as error:
        return refused(error.problems and all(map(str.strip, error.problems)), error)
    text = experiment.to_toml()
    path.write_text(text, encoding="utf-8")
    again = load(path)
    assert again == experiment
    assert again.digest() == experiment.digest()
    assert sum(chunk.lanes.size for chunk in plan.chunks) == plan.lanes
    assert plan.nbytes > 0
    assert plan.peak_bytes > 0
    assert is_recomputed(plan.chunks[0]) in (True, False)
    return True


def fuzz_configs(folder, seed, count):
    taken, path = 0, folder / "a.toml"
    for content in documents(seed, count):
        path.write_bytes(content)
        with no_hang(content):
            try:
                taken += take(path)
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}; of {content!r}") from error
    assert [file.name for file in folder.iterdir()] == ["a.toml"]
    return taken


def test_any_config_is_accepted_unchanged_or_refused_with_a_message(tmp_path):
    assert QUICK / 100 < fuzz_configs(tmp_path, 0, QUICK) < QUICK


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_100000_configs_are_accepted_or_refused_with_a_message(tmp_path, seed):
    assert fuzz_configs(tmp_path, seed, SLOW // 4) > SLOW / 400


def test_refused_config_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in documents(7, 40):
        Path("a.toml").write_bytes(content)
        try:
            load("a.toml")
        except ConfigError as error:
            done = CliRunner().invoke(cli.app, ["run", "a.toml"])
            assert done.exit_code == 2
            assert isinstance(done.exception, SystemExit)
            assert done.stderr.startswith("ddln: a.toml")
            refused(len(done.stderr.splitlines()) <= len(error.problems) + 1, error)
        assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]


OVERRIDES = [
    "network.depth=8",
    "sweep.network.scale=[1, 2]",
    "problem.data={kind='file', path='a'}",
]


@pytest.mark.parametrize(("seed", "count"), TRIALS)
def test_any_override_is_accepted_or_refused_with_a_message(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        override = damaged(rng.choice(OVERRIDES).encode(), rng).decode(errors="surrogateescape")
        with no_hang(override), contextlib.suppress(ConfigError):
            load(ROOT / "configs" / "figure4.toml", [override])


CELLS = [
    "1",
    "-2.5e3",
    "0",
    "",
    " ",
    "nan",
    "inf",
    "1e400",
    "1e-400",
    "x",
    '"1"',
    '"a\nb"',
    "1_0",
    "12_03",
    "+",
    "é",
    "１２",
    '"',
    '"1',
    '1"',
    "1700000000000000001",
    "18446744073709551615",
    "-9223372036854775808",
    "1.7976931348623157e308",
    "5e-324",
]
NUMBER = re.compile(r'"?[ \t]*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?[ \t]*"?', re.ASCII | re.IGNORECASE)


def tables(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        width = rng.randrange(1, 4)
        head = [rng.choice(["a", "b", "c", "target", "target", "", "é"]) for _ in range(width)]
        good = rng.random() < 0.5
        rows = [
            [rng.choice(CELLS[:3] if good else CELLS) for _ in range(width)]
            for _ in range(rng.randrange(4))
        ]
        text = "\n".join(",".join(row) for row in [head, *rows]).encode()
        yield damaged(text, rng) if rng.random() < 0.3 else text


def archives(seed, count):
    rng = random.Random(seed)
    types = ["<f8", "<f4", ">f8", "<f2", ">f2", "g", ">i2", ">i8", "<u8", "?"]
    types += ["<c16", "<U3", "O", "<M8[s]", "V3"]
    for _ in range(count):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", rng.choice([0, 8])) as archive:
            for name in rng.sample(["features", "targets", "targets", "x", "../y"], 3):
                array = np.ones(rng.choice([(3, 2), (3,), (0, 2), (3, 0), (), (2, 2, 2)]), "f8")
                if rng.random() < 0.7:
                    array = np.ones((3, 2) if name == "features" else 3)
                inner = io.BytesIO()
                with contextlib.suppress(TypeError, ValueError):
                    array = array.astype(rng.choice(types) if rng.random() < 0.2 else "<f8")
                np.save(inner, array)
                content = inner.getvalue()
                with contextlib.suppress(UserWarning):
                    archive.writestr(
                        f"{name}.npy", damaged(content, rng) if rng.random() < 0.2 else content
                    )
        yield damaged(file.getvalue(), rng) if rng.random() < 0.3 else file.getvalue()


def fuzz_files(path, contents):
    taken = 0
    for content in contents:
        path.write_bytes(content)
        with no_hang(content):
            try:
                _, features, targets = read_table(path)
            except DataError as error:
                refused(str(error).startswith(path.name), error)
                continue
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}; of {content!r}") from error
        assert features.shape[0] == targets.shape[0] > 0
        assert features.ndim == 2
        assert np.isfinite(features).all()
        assert np.isfinite(targets).all()
        taken += 1
    return taken


@pytest.mark.parametrize(("seed", "count"), TRIALS)
@pytest.mark.parametrize(("name", "made"), [("a.csv", tables), ("a.npz", archives)])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_any_data_file_is_read_as_finite_numbers_or_refused(tmp_path, name, made, seed, count):
    assert fuzz_files(tmp_path / name, made(seed, count)) > count / 50


def test_accepted_table_has_a_number_in_every_cell(tmp_path):
    path, taken = tmp_path / "a.csv", 0
    rng = random.Random(3)
    for _ in range(2 * QUICK):
        cells = [[rng.choice(CELLS) for _ in range(2)] for _ in range(rng.randrange(1, 4))]
        text = "a,target\n" + "".join(",".join(row) + "\n" for row in cells)
        path.write_text(text, encoding="utf-8")
        try:
            _, features, _ = read_table(path)
        except DataError:
            continue
        lines = text.splitlines()[1:]
        assert len(features) == len(lines)
        assert all(NUMBER.fullmatch(cell) for line in lines for cell in line.split(",")), text
        taken += 1
    assert taken > QUICK / 50


def test_arrays_of_any_type_are_read_exactly_or_refused_with_a_message(tmp_path):
    rng, taken = random.Random(4), 0
    npz, npy, targets = (tmp_path / name for name in ("a.npz", "x.npy", "y.npy"))
    doors = {
        "a.npz": lambda: read_table(npz)[1],
        f"{npz}": lambda: next(StoredRows(npz).blocks())[0],
        f"{npy}": lambda: next(StoredRows(npy, targets).blocks())[0],
    }
    np.save(targets, np.zeros(3))
    for k in range(QUICK):
        numbers = np.array([[rng.choice([0, 1, 2, 3]) for _ in range(2)] for _ in range(3)])
        order, form, size = rng.choice("<>"), rng.choice("fiubcSUV"), rng.choice([1, 2, 4, 8, 16])
        try:
            array = numbers.astype(f"{order}{form}{size}")
        except TypeError:  # no such type
            continue
        np.savez(npz, features=array, targets=array[:, 0])
        np.save(npy, array)
        if is_damaged := k % 3 == 0:
            for path in (npz, npy):
                path.write_bytes(damaged(path.read_bytes(), rng))
        for name, door in doors.items():
            try:
                features = door()
            except ValueError as error:
                is_right = is_damaged or array.dtype.kind not in "fiub"
                refused(is_right and str(error).startswith(name), error)
                continue
            taken += 1
            if not is_damaged:
                np.testing.assert_array_equal(features, array.astype(float))
    assert taken > QUICK / 2
