"""Data as people have it: every quirk is read right or refused in words, whatever the file."""

import gzip
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import h5py
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from typer.testing import CliRunner

import ddln
from ddln.cli import main as cli
from ddln.config.data_schema import FileDataConfig
from ddln.config.datasets import DataError, outputs, prepared
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.status import Status
from ddln.sweeps import build
from tests.messy_files import CASES, ROWS

ARRAY = np.array(ROWS)
NAMES = ("size", "age", "target")
# The same numbers in another order: roundings, which the flow does not amplify.
SAME_THETA = 1e-9


def file_table(path, **options):
    return FileDataConfig(kind="file", path=str(path), **options)


def test_the_list_of_quirks_is_long_and_without_repetition():
    assert len({case.name for case in CASES}) == len(CASES) >= 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_messy_file_is_read_right_or_refused_in_words(tmp_path, case):
    path = tmp_path / f"data{case.suffix}"
    path.write_bytes(case.content)
    table = file_table(path, **case.options)
    if case.refusal:
        with pytest.raises(DataError, match=case.refusal):
            prepared(table, "least_squares")
        return
    data = prepared(table, "least_squares")
    rows = np.column_stack([data.train.features, data.train.targets])
    np.testing.assert_allclose(rows, case.rows, rtol=1e-15)


def written(folder, form) -> tuple[Path, dict[str, Any]]:
    """The list's rows in a file of some form, and the options that it needs."""
    arrays = {"X": ARRAY[:, :2], "y": ARRAY[:, 2:]}
    own = {"features_array": "X", "targets_array": "y"}
    text = "size,age,target\n" + "\n".join(",".join(map(repr, row)) for row in ROWS)
    path = folder / f"data.{form}"
    match form:
        case "csv":
            path.write_text(text, encoding="utf-8")
        case "csv.gz":
            path.write_bytes(gzip.compress(text.encode()))
        case "npz":
            np.savez(path, X=arrays["X"], y=arrays["y"])
            return path, own
        case "mat":
            scipy.io.savemat(path, arrays)
            return path, own
        case "h5":
            with h5py.File(path, "w") as file:
                for name, array in arrays.items():
                    file[f"group/{name}"] = array.astype(">f8")
            return path, {name: f"group/{array}" for name, array in own.items()}
        case "zarr":
            group = pytest.importorskip("zarr").open_group(path, mode="w")
            for name, array in arrays.items():
                group.create_array(name, data=array)
            return path, own
        case "svm":
            rows = [f"{y!r} 1:{a!r} 2:{b!r}" for a, b, y in ROWS]
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        case "parquet":
            arrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            columns = {name: ARRAY[:, k] for k, name in enumerate(NAMES)}
            notes = {"note": ["é", None, "a", "b", "c", "d"]}
            parquet.write_table(arrow.table(columns | notes), path)
            return path, {"features": ("size", "age")}
    return path, {}


FORMS = ("csv", "csv.gz", "npz", "mat", "h5", "zarr", "svm", "parquet")


def experiment(path, loss="least_squares", **options):
    return ddln.load(
        "configs/figure4.toml",
        [
            f"problem.data={{kind='file', path='{path}'}}",
            f"problem.loss.kind={loss}",
            *(f"problem.data.{name}={json.dumps(value)}" for name, value in options.items()),
            *("network.depth=2", "sweep={}", "dynamics.until=3.0"),
        ],
    )


@pytest.fixture(scope="module")
def final_theta():
    """θ at the end of the flow of an experiment's problem from fixed layers."""
    layers, times = jnp.array([[0.0, 0.0], [1.0, 0.5]]), jnp.linspace(0.0, 0.02, 5)

    def final_theta(experiment):
        problem = build.build_problem(experiment)
        return np.asarray(ddln.gradient_flow(problem, layers, times).theta[-1])

    return final_theta


@pytest.fixture(scope="module")
def plain_theta(final_theta, tmp_path_factory):
    path, _ = written(tmp_path_factory.mktemp("plain"), "csv")
    return final_theta(experiment(path, standardise="all"))


@pytest.mark.parametrize("form", FORMS)
def test_theta_does_not_depend_on_the_form_of_the_file(tmp_path, form, final_theta, plain_theta):
    path, options = written(tmp_path, form)
    theta = final_theta(experiment(path, **options, standardise="all"))
    np.testing.assert_allclose(theta, plain_theta, rtol=SAME_THETA)


@pytest.mark.parametrize("unit", [1e-3, 2.54, 1e6])
def test_theta_does_not_depend_on_units_or_the_order_of_columns(
    tmp_path, unit, final_theta, plain_theta
):
    columns = np.column_stack([ARRAY[:, 2] * unit, ARRAY[:, 1], ARRAY[:, 0] / unit - 3])
    path = tmp_path / "data.csv"
    np.savetxt(path, columns, "%.17g", ";", header="target;age;size", comments="")
    theta = final_theta(experiment(path, standardise="all", features=["size", "age"]))
    np.testing.assert_allclose(theta, plain_theta, rtol=SAME_THETA)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", ">f8", ">i4", "u1"])
@pytest.mark.parametrize("form", ["npz", "h5", "mat"])
def test_arrays_of_any_byte_order_and_size_are_read(tmp_path, form, dtype):
    whole = np.arange(6).reshape(3, 2).astype(dtype)
    path = tmp_path / f"a.{form}"
    if form == "npz":
        np.savez(path, features=whole, targets=whole[:, :1])
    elif form == "mat":
        # MATLAB has no half precision.
        known = whole if dtype[1:] != "f2" else whole.astype("f4")
        scipy.io.savemat(path, {"features": known, "targets": known[:, 0]})
    else:
        with h5py.File(path, "w") as file:
            file["features"], file["targets"] = whole, whole[:, 0]
    data = prepared(file_table(path), "least_squares").train
    assert data.features.dtype == data.targets.dtype == np.float64
    assert data.features.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.targets.tolist() == [0, 2, 4]


def test_matlab_files_of_either_version_and_sparse_ones_are_read(tmp_path):
    new, sparse = tmp_path / "new.mat", tmp_path / "sparse.mat"
    with h5py.File(new, "w") as file:  # as MATLAB 7.3 writes it, with a header before the HDF5
        file["features"], file["targets"] = ARRAY[:, :2].T, ARRAY[:, 2:].T
    content = b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM"
    new.write_bytes(content.ljust(512, b"\0") + new.read_bytes())
    scipy.io.savemat(
        sparse, {"features": scipy.sparse.csc_matrix(ARRAY[:, :2]), "targets": ARRAY[:, 2]}
    )
    for path in (new, sparse):
        data = prepared(file_table(path), "least_squares").train
        np.testing.assert_array_equal(np.column_stack([data.features, data.targets]), ARRAY)


@pytest.mark.parametrize("form", ["npz", "mat", "h5", "zarr", "parquet", "svm"])
def test_corrupt_file_is_refused_by_name(tmp_path, form):
    if form in ("zarr", "parquet"):
        pytest.importorskip({"parquet": "pyarrow"}.get(form, form))
    path, options = written(tmp_path, form)
    content = next(each for each in sorted(path.rglob("zarr.json")) or [path])
    content.write_bytes(b"\x00\x01junk\xff" * 20)
    with pytest.raises(DataError, match=rf"^data\.{form}: not an? "):
        prepared(file_table(path, **options), "least_squares")


def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, X=np.ones((3, 2)), y=np.ones((3, 2)), z=np.ones(4))
    named = {"features_array": "X", "targets_array": "y"}
    with pytest.raises(DataError, match=r'no array "features" \(it has X, y, z\)'):
        prepared(file_table(path), "least_squares")
    with pytest.raises(DataError, match=r'"y" must have shape \(n,\), got \(3, 2\)'):
        prepared(file_table(path, **named), "least_squares")
    named["targets_array"] = "z"
    with pytest.raises(DataError, match=r"X \(3, 2\) and z \(4,\) differ in rows"):
        prepared(file_table(path, **named), "least_squares")


def test_parquet_without_pyarrow_is_refused_with_the_command_that_installs_it(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet: Parquet needs pyarrow: .* -m pip install"):
        prepared(file_table(tmp_path / "a.parquet"), "least_squares")


def text_file(tmp_path, text):
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("cells", "options", "labels"),
    [
        ("0 1 1 0", {}, [-1, 1, 1, -1]),
        ("-1 1 1 -1", {}, [-1, 1, 1, -1]),
        ("no yes yes no", {}, [-1, 1, 1, -1]),
        ("no yes yes no", {"labels": ("yes", "no")}, [1, -1, -1, 1]),
        ("2 1 1 2", {"labels": (1, 2)}, [1, -1, -1, 1]),
        ("False True True False", {}, [-1, 1, 1, -1]),
    ],
)
def test_labels_become_minus_one_and_one(tmp_path, cells, options, labels):
    rows = "".join(f"{k},{cell}\n" for k, cell in enumerate(cells.split()))
    data = prepared(file_table(text_file(tmp_path, "a,target\n" + rows), **options), "logistic")
    assert data.train.targets.tolist() == labels


@pytest.mark.parametrize(
    ("cells", "options", "told"),
    [
        ("no yes maybe", {}, "must have two labels, got 3: maybe, no, yes"),
        ("no no no", {}, "must have two labels, got 1: no"),
        ("2 1 1", {}, 'row 2, column "target": must be -1 or 1, got 2'),
        ("no yes maybe", {"labels": ("no", "yes")}, "row 4, .*must be one of no, yes, got maybe"),
        ("no yes yes", {"standardise": "all"}, 'row 2, column "target": must be a number, got no'),
    ],
)
def test_targets_that_are_no_labels_are_refused(tmp_path, cells, options, told):
    rows = "".join(f"{k},{cell}\n" for k, cell in enumerate(cells.split()))
    with pytest.raises(DataError, match=told):
        prepared(file_table(text_file(tmp_path, "a,target\n" + rows), **options), "logistic")


@pytest.mark.parametrize(
    ("cells", "options", "labels"),
    [
        ("b c a b", {}, {"a": 0, "b": 1, "c": 2}),
        ("10 3 3 7", {}, {"3": 0, "7": 1, "10": 2}),
        ("no yes", {}, {"no": 0, "yes": 1}),
        ("1 -1", {}, {"-1": 0, "1": 1}),
        ("b c a", {"labels": ("c", "b", "a")}, {"c": 0, "b": 1, "a": 2}),
        ("2 1", {"labels": (2, 1, 0)}, {"2": 0, "1": 1, "0": 2}),
        ("2.5 1", {"labels": (1, 2.5)}, {"1": 0, "2.5": 1}),
    ],
)
def test_classes_are_numbered_in_sorted_order(tmp_path, cells, options, labels):
    rows = "".join(f"{k},{cell}\n" for k, cell in enumerate(cells.split()))
    table = file_table(text_file(tmp_path, "a,target\n" + rows), **options)
    data = prepared(table, "multinomial")
    assert data.labels == labels
    assert list(data.labels) == list(labels)
    assert data.train.targets.tolist() == [labels[cell] for cell in cells.split()]
    assert outputs(table, "multinomial") == len(labels)


@pytest.mark.parametrize(
    ("cells", "options", "told"),
    [
        ("a a", {}, "must have from 2 to 1,000 labels, got 1: a"),
        ("1 2 2.5", {}, 'row 4, column "target": must be a word or a whole number, got 2.5'),
        ("1 2 a", {}, 'row 4, column "target": not a number: "a"'),
        ("a b c", {"labels": ("a", "b")}, "row 4, .*must be one of a, b, got c"),
        ("1 2 3", {"standardise": "all"}, "must be a class 0, 1, 2, … once standardised"),
        (
            " ".join(map(str, range(1001))),
            {},
            "from 2 to 1,000 labels, got 1,001: 0, 1, 2, 3, 4, …",
        ),
    ],
)
def test_targets_that_are_no_classes_are_refused(tmp_path, cells, options, told):
    rows = "".join(f"{k},{cell}\n" for k, cell in enumerate(cells.split()))
    with pytest.raises(DataError, match=told):
        prepared(file_table(text_file(tmp_path, "a,target\n" + rows), **options), "multinomial")


def test_held_out_rows_are_a_share_that_only_the_seed_chooses(tmp_path):
    path = text_file(tmp_path, "a,target\n" + "".join(f"{k},{k * k}\n" for k in range(50)))
    table = file_table(path, test=0.2, standardise="features", intercept=True)
    data = prepared(table, "least_squares")
    assert data.test is not None
    held_out = data.test.targets
    # The order of SHA-256 of "seed:row", as it is defined: of no generator's version.
    assert sorted(held_out**0.5) == [7, 15, 18, 20, 25, 33, 36, 44, 45, 46]
    assert len(data.train.targets) == 40
    assert set(held_out).isdisjoint(data.train.targets)
    np.testing.assert_allclose(data.train.features.mean(axis=0), [0, 1], atol=1e-14)
    np.testing.assert_allclose(data.train.features.std(axis=0), [1, 0], atol=1e-14)
    used = np.sqrt(data.train.targets)
    scaled = (np.sqrt(held_out) - used.mean()) / used.std()
    np.testing.assert_allclose(data.test.features[:, 0], scaled, rtol=1e-12)
    other = prepared(table.model_copy(update={"test_seed": 1}), "least_squares")
    assert other.test is not None
    assert set(other.test.targets) != set(held_out)


def test_missing_values_get_the_mean_of_the_rows_to_train_on(tmp_path):
    rows = "".join(f"{'' if k == 3 else k},{k}\n" for k in range(20))
    table = file_table(text_file(tmp_path, "a,target\n" + rows), test=0.25, missing="mean")
    data = prepared(table, "least_squares")
    assert data.test is not None
    known = {int(y): x for x, y in zip(data.train.features[:, 0], data.train.targets, strict=True)}
    both = known | {
        int(y): x for x, y in zip(data.test.features[:, 0], data.test.targets, strict=True)
    }
    known.pop(3, None)
    assert both[3] == pytest.approx(np.mean(list(known)), rel=1e-14)


@eqx.filter_jit
def quantities(problem, theta):
    """The values of a loss and its derivatives, by name."""
    return {name: getattr(problem, name)(theta) for name in ("loss", "gap", "gradient", "hessian")}


def test_weights_count_rows_and_exposures_scale_means(tmp_path):
    """A row of weight 2 is that row twice; exposure e is an offset log e of the predictor."""
    path = text_file(tmp_path, "a,target,w\n1,2,1\n2,0,2\n-1,3,3\n")
    twice = text_file(tmp_path / "..", "a,target\n1,2\n2,0\n2,0\n-1,3\n-1,3\n-1,3\n")
    for loss in ("least_squares", "poisson"):
        weighted = build.build_problem(experiment(path, loss, weights="w"))
        repeated = build.build_problem(experiment(twice, loss))
        for theta in ([0.3], [-1.0]):
            expected = quantities(repeated, np.array(theta))
            for name, value in quantities(weighted, np.array(theta)).items():
                np.testing.assert_allclose(value, expected[name], 1e-12)
        np.testing.assert_allclose(weighted.minimiser, repeated.minimiser, 1e-10)
    exposed = build.build_problem(experiment(path, "poisson", exposure="w"))
    x, y, e = np.array([1.0, 2, -1]), np.array([2.0, 0, 3]), np.array([1.0, 2, 3])
    theta = 0.4
    expected = np.sum(np.exp(x * theta + np.log(e)) - y * x * theta)
    np.testing.assert_allclose(exposed.loss(jnp.array([theta])), expected, 1e-13)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weights": "w"}, 'row 3, column "w": must be > 0, got 0'),
        ({"exposure": "age"}, "exposure: is for loss poisson, got least_squares"),
        ({"test": 0.1}, "test = 0.1 holds out 0 of 2 rows, and leaves 2 to train on"),
        ({"intercept": True, "features": ["intercept"]}, 'already has a column "intercept"'),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(tmp_path, options, told):
    path = text_file(tmp_path, "age,intercept,target,w\n1,1,2,1\n2,3,4,0\n")
    with pytest.raises(ValueError, match=told):
        experiment(path, **options)


def test_new_keys_do_not_change_the_digest_of_an_older_configuration(tmp_path):
    path = text_file(tmp_path, "a,target\n1,2\n2,5\n")
    first = {"kind", "path", "target", "standardise"}
    assert set(file_table(path).model_dump(exclude_none=True)) == first
    assert experiment(path).digest() == experiment(path, missing="refuse", test_seed=0).digest()
    assert experiment(path).digest() != experiment(path, intercept=True).digest()


def test_check_prints_what_it_understood_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("ddln.cli.main.start_jax", lambda: None)
    text = ";id;size;kind;sold\n0;9;1,5;house;no\n1;8;2,5;flat;yes\n2;4;;flat;no\n3;7;4;flat;yes\n"
    path = text_file(tmp_path, text)
    (tmp_path / "own.toml").write_text(
        f"""study = "figure4"
network = {{ depth = 2, init = {{ kind = "normal" }} }}
dynamics = {{ until = 1.0 }}
[problem]
loss = {{ kind = "logistic" }}
[problem.data]
kind = "file"
path = "{path}"
target = "sold"
ignore = ["id"]
categories = "text"
missing = "drop"
intercept = true
""",
        encoding="utf-8",
    )
    done = CliRunner().invoke(cli.app, ["check", str(tmp_path / "own.toml")])
    assert done.exit_code == 0, done.output
    lines = dict(line.strip().split("  ", 1) for line in done.output.splitlines())
    assert lines["data"] == "data.csv: text in UTF-8, semicolons, decimal ,, a header"
    assert lines["rows"] == "3 to train on, 1 dropped for a missing value"
    assert lines["columns"] == (
        "size, kind=flat, kind=house, intercept; target sold; words in kind; "
        "ignored: 1 without a name, id"
    )
    assert lines["labels"] == "no → −1, yes → 1"
    assert lines["scales"] == "largest entries from 1 (kind=flat) to 4 (size)"


def test_held_out_loss_is_measured_and_stops_a_run(tmp_path):
    """The held-out rows contradict the others, so their loss only rises: patience ends the run."""
    table = file_table("x", test=0.25)
    path = text_file(tmp_path, "a,target\n" + "1,1\n" * 12)
    held_out = prepared(table.model_copy(update={"path": str(path)}), "least_squares")
    assert held_out.test is not None
    assert len(held_out.test.targets) == 3
    digests = [hashlib.sha256(f"0:{row}".encode()).digest() for row in range(12)]
    chosen = sorted(range(12), key=digests.__getitem__)[:3]
    rows = "".join(f"1,{-1 if row in chosen else 1}\n" for row in range(12))
    path = text_file(tmp_path, "a,target\n" + rows)
    dynamics = {
        "kind": "descent",
        "steps": 40,
        "points": 41,
        "optimiser": {"kind": "sgd", "learning_rate": 1e-2},
        "measure": ["held_out_loss"],
        "patience": 5,
    }
    changes = {"dynamics": dynamics, "network.init": {"kind": "constant", "value": 0.1}}
    dataset = ddln.run(experiment(path, test=0.25).with_(changes))
    theta = dataset["theta"].values[:, 0]
    np.testing.assert_allclose(dataset["held_out_loss"].values, 9 * (theta + 1) ** 2, rtol=1e-12)
    assert dataset["status"].item() == list(Descent.statuses).index(Status.STOPPED)
    assert (np.diff(theta[:6]) > 0).all()
    assert (theta[5:] == theta[5]).all()
    assert bool(dataset["certificate_holds"].where(dataset["certificate_applies"], True).all())


def test_a_flow_stops_at_the_first_saved_point_with_the_target_norm(tmp_path):
    """θ grows from 1/4 to 1, since the targets are the feature."""
    path = text_file(tmp_path, "a,target\n1,1\n2,2\n3,3\n")
    changes = {
        "network.init": {"kind": "constant", "value": 0.5},
        "dynamics": {"until": 0.2, "points": 21, "target_norm": 0.5},
    }
    dataset = ddln.run(experiment(path).with_(changes))
    norms = np.abs(dataset["theta"].values).sum(axis=1)
    first = int(np.argmax(norms >= 0.5))
    assert 0 < first < 20
    assert (norms[first:] == norms[first]).all()
    assert dataset["status"].item() == ddln.Trajectory.code_of(Status.STOPPED)
    assert dataset["theta"]["column"].values.tolist() == ["a"]
    assert bool(dataset["certificate_holds"].where(dataset["certificate_applies"], True).all())
