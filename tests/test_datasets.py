"""Data: random draws, files, and the refusal of invalid files."""

import math
import zipfile
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ddln.cli import main as cli
from ddln.config._standardise import standardise
from ddln.config.data_files import DataError, read_table
from ddln.config.data_schema import (
    ClassificationDataConfig,
    CountsDataConfig,
    DiabetesDataConfig,
    DigitsDataConfig,
    FileDataConfig,
    GaussianDataConfig,
    SparseDataConfig,
)
from ddln.config.datasets import DIGITS, draw, has_truth, shape_of, truth, validate

# A few roundings, of numbers of order 1.
ROUNDING = 1e-14


def write(tmp_path, text, name="data.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_file_becomes_named_columns(tmp_path):
    path = write(tmp_path, "\ufeffage, bmi,target\r\n1,2.5,3\r\n4,-5e1,6\r\n\r\n")
    names, features, targets = read_table(path)
    assert names == ("age", "bmi")
    assert features.tolist() == [[1.0, 2.5], [4.0, -50.0]]
    assert targets.tolist() == [3.0, 6.0]
    names, features, targets = read_table(path, "age", ["target"])
    assert (names, features.tolist(), targets.tolist()) == (("target",), [[3.0], [6.0]], [1.0, 4.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,bmi,target\n1,2,3\n4,,6\n", r'^data\.csv: row 3, column "bmi": missing value\n'),
        ("a,bmi,target\n1,tall,3\n", r'row 2, column "bmi": not a number: "tall"'),
        ("a,target\n1,2\n12_03,2\n", r'row 3, column "a": not a number: "12_03"'),
        ("a,target\n１２,2\n", r'row 2, column "a": not a number: "１２"'),
        ("a,target\n−5,2\n", 'not a number: "−5"'),
        ("a,target\n\xa05,2\n", 'not a number: "\xa05"'),
        ("a,target\n1 000,2\n", 'not a number: "1 000"'),
        ('a,target\n"1,5",2\n', 'not a number: "1,5"'),
        ("a,target\n0x1F,2\n", 'not a number: "0x1F"'),
        ("a,target\nTrue,2\n", 'not a number: "True"'),
        ("a,target\n1e400,2\n", 'not a finite number: "1e400"'),
        ("a,target\n1e-400,2\n", 'too small for float64: "1e-400"'),
        ('a,target,b\n1,2,"12 in\n3,4,6 in"\n', "row 2: a cell goes over more than one line; is a"),
        ('a,target,b\n1,2,3\n1,2,"3\n3,4,5\n', "row 3: unexpected end of data; is a quote not"),
        ('a,target\n"1"1,2\n', "row 2: ',' expected after"),
        ("a,target\n1,nan\n", r'row 2, column "target": missing value "nan"'),
        ("a,target\ninf,1\n", r'row 2, column "a": not a finite number: "inf"'),
        ("a,target\n1,2\n1,2,3\n", r"row 3: 3 value\(s\) where the header names 2"),
        ("a,target\n1,2\n\n1,2\n", r"row 3: 0 value\(s\)"),
        ("a,a,target\n1,2,3\n", r'row 1, column "a" appears twice'),
        ("a,targets\n1,2\n", r'no column "target", did you mean "targets"\?'),
        ("target\n1\n", "there is no feature column"),
        ("a,target\n", r"needs a header and at least one row, has 1 row\(s\)"),
        ("", r"has 0 row\(s\)"),
    ],
)
def test_invalid_csv_is_refused_by_row_and_column(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, text))


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("+5", 5),
        (".5", 0.5),
        ("5.", 5),
        ("1E+05", 1e5),
        (" 1e5\t", 1e5),
        ('"7"', 7),
        ("007", 7),
        ("0e-999", 0),
        ("5e-324", 5e-324),
        ("123456789012345678901", 1.2345678901234568e20),
    ],
)
def test_all_forms_of_decimal_numbers_are_read(tmp_path, cell, value):
    features = read_table(write(tmp_path, f"a,target\n{cell},1\n"))[1]
    assert features.tolist() == [[value]]


def test_file_without_features_is_refused(tmp_path):
    with pytest.raises(DataError, match="`features` must name at least one column"):
        read_table(write(tmp_path, "a,target\n1,2\n"), features=[])


def test_many_faults_are_listed_and_counted(tmp_path):
    path = write(tmp_path, "a,target\n" + "x,1\n" * 9)
    with pytest.raises(DataError, match=r'row 6, column "a".*\n.*and 4 more') as caught:
        read_table(path)
    *_, remedy = lines = str(caught.value).splitlines()
    assert len(lines) == 7
    assert remedy == "data.csv: for columns of words, set `categories` = ['a']"


def test_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "data.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_table(tmp_path / "data.csv")
    with pytest.raises(DataError, match='no column "c"'):
        read_table(write(tmp_path, "a,target\n1,2\n"), features=["c"])
    with pytest.raises(DataError, match='target "target" cannot be a feature'):
        read_table(write(tmp_path, "a,target\n1,2\n"), features=["target"])


def test_npz_file_becomes_numbered_columns(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, features=np.arange(6).reshape(3, 2), targets=np.arange(3))
    names, features, targets = read_table(path)
    assert names == ("x1", "x2")
    assert features.dtype == targets.dtype == np.float64
    assert read_table(path, features=["x2"])[1].tolist() == [[1.0], [3.0], [5.0]]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.ones((3, 2))}, 'no array "targets"'),
        ({"features": np.ones(3), "targets": np.ones(3)}, r'"features" must have shape \(n, d\)'),
        ({"features": np.ones((3, 0)), "targets": np.ones(3)}, r"got \(3, 0\)"),
        ({"features": np.ones((3, 2)), "targets": np.ones(4)}, "differ in rows"),
        ({"features": np.full((3, 2), "a"), "targets": np.ones(3)}, "must hold real numbers"),
        ({"features": np.array([[1, np.nan]]), "targets": np.ones(1)}, 'row 1, column "x2"'),
        ({"features": np.ones((1, 2)), "targets": np.array([np.inf])}, 'column "targets"'),
        (
            {"features": np.full((2, 1), np.longdouble("1e400")), "targets": np.ones(2)},
            'row 1, column "x1": not a finite number: "inf"',
        ),
        ({"features": np.array([[None]]), "targets": np.ones(1)}, "not an NPZ file of numbers"),
    ],
)
def test_invalid_npz_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "data.npz")


@pytest.mark.skipif(np.finfo(np.longdouble).nmant != 63, reason="needs 80-bit long doubles")
@pytest.mark.parametrize("name", ["targets", "truth"])
def test_bytes_of_no_long_double_are_refused(tmp_path, name):
    # An exponent, but a significand without the leading 1 that the format requires.
    unnormal = np.frombuffer(bytes.fromhex("0000000000000000f03f000000000000"), np.longdouble)
    arrays: Any = {"features": np.ones((1, 1)), "targets": np.ones(1), "truth": np.ones(1)}
    np.savez(tmp_path / "data.npz", **(arrays | {name: unnormal}))
    with pytest.raises(DataError, match="not a finite number" if name == "targets" else '"truth"'):
        read_table(tmp_path / "data.npz")


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">f4", "<f2", ">f2", ">i4", ">u8", "?", "g"])
def test_numbers_of_any_type_are_read_from_an_npz_file(tmp_path, dtype):
    array = np.array([[1, 0], [0, 1], [1, 1]]).astype(dtype)
    np.savez(tmp_path / "data.npz", features=array, targets=array[:, 0], truth=array[0])
    _, features, targets = read_table(tmp_path / "data.npz")
    assert (features.dtype, features.tolist()) == (np.dtype(float), [[1, 0], [0, 1], [1, 1]])
    assert targets.tolist() == [1, 0, 1]
    assert truth(FileDataConfig(kind="file", path=str(tmp_path / "data.npz"))).tolist() == [1, 0]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_duplicate_array_names_are_refused(tmp_path):
    np.savez(tmp_path / "data.npz", features=np.ones((3, 2)), targets=np.ones(3))
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        archive.writestr("targets.npy", archive.read("targets.npy"))
    with pytest.raises(DataError, match="two of its arrays have one name"):
        read_table(tmp_path / "data.npz")


def test_corrupt_npz_is_refused(tmp_path):
    with pytest.raises(DataError, match="not an NPZ file"):
        read_table(write(tmp_path, "a,b", "data.npz"))


def test_standardised_columns_have_mean_zero_and_deviation_one(tmp_path):
    path = write(tmp_path, "a,b,target\n1,5,3\n4,7,6\n9,0,1\n")
    features, targets = draw(FileDataConfig(kind="file", path=str(path), standardise=True))
    columns = np.column_stack([features, targets])
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose(columns.std(axis=0), 1)
    path = write(tmp_path, "a,b,target\n1,5,3\n4,5,6\n", "constant.csv")
    with pytest.raises(DataError, match=r'constant\.csv: column "b" is constant'):
        draw(FileDataConfig(kind="file", path=str(path), standardise=True))


def standardised_exactly(column):
    """Standardised values in rational arithmetic, up to the last root and division."""
    exact = [Fraction(x) for x in column]
    changes = [x - sum(exact) / len(exact) for x in exact]
    squares = sum(change**2 for change in changes) / len(exact)
    unit = max(map(abs, changes))
    return [float(change / unit) / math.sqrt(squares / unit**2) for change in changes]


def standardised(path):
    return draw(FileDataConfig(kind="file", path=str(path), standardise=True))[0][:, 0]


@pytest.mark.parametrize(
    "column",
    [
        ["1e155", "3e155", "2e155"],
        ["1e-170", "3e-170", "2e-170"],
        ["1e-320", "3e-320", "2e-320"],
        ["-1.7e308", "1.7e308", "1.5e308"],
        ["1700000000000000000", "1700000000000100000", "1700000000000300000"],
        ["1700000000000000001", "1700000000000000002", "1700000000000000004"],
        ["-9223372036854775808", "9223372036854775807", "0"],
        ["18446744073709551615", "18446744073709551613", "18446744073709551614"],
        ["1999.5", "2000.25", "2001.125"],
    ],
)
def test_columns_in_any_units_are_standardised(tmp_path, column):
    rows = "".join(f"{cell},{k * k}\n" for k, cell in enumerate(column))
    whole = all("." not in cell and "e" not in cell for cell in column)
    # Whole numbers are meant as they stand, others as float64 has them.
    expected = standardised_exactly(map(int if whole else float, column))
    np.testing.assert_allclose(
        standardised(write(tmp_path, "a,target\n" + rows)), expected, rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize(
    "dtype", [np.int64, np.uint64, ">i8", np.int32, np.int8, "?", "<f2", ">f4"]
)
def test_integer_columns_are_standardised_exactly(tmp_path, dtype):
    dtype = np.dtype(dtype)
    last = np.iinfo(dtype).max if dtype.kind in "iu" else 1
    column = np.array([last, last - 1, last - 1, last - 1], dtype)
    np.savez(tmp_path / "a.npz", features=column[:, None], targets=np.arange(4))
    expected = standardised_exactly(map(int, column))
    np.testing.assert_allclose(standardised(tmp_path / "a.npz"), expected, rtol=ROUNDING)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=6).filter(lambda x: len(set(x)) > 1),
    st.integers(-(2**40), 2**40),
    st.integers(-900, 900),
)
def test_standardisation_removes_unit_and_offset(column, offset, unit):
    moved = np.ldexp(np.array(column, float) + offset, unit)[:, None]
    expected = standardised_exactly(column)
    ours = standardise(moved, ["a"], "a.csv")[:, 0]
    np.testing.assert_allclose(ours, expected, rtol=ROUNDING, atol=ROUNDING)


def test_column_constant_up_to_rounding_is_not_standardised(tmp_path):
    path = write(tmp_path, f"a,target\n{0.1 + 0.2},1\n0.3,2\n")
    with pytest.raises(DataError, match='column "a" is constant'):
        standardised(path)


def test_quadratic_diabetes_has_the_64_columns_of_efron_et_al_2004():
    features, targets = draw(DiabetesDataConfig(kind="diabetes", quadratic=True))
    assert (
        features.shape == shape_of(DiabetesDataConfig(kind="diabetes", quadratic=True)) == (442, 64)
    )
    assert np.linalg.matrix_rank(features) == 64
    plain, _ = draw(DiabetesDataConfig(kind="diabetes"))
    np.testing.assert_allclose(features[:, :10], plain, atol=1e-12)
    bmi_by_pressure = plain[:, 2] * plain[:, 3]
    largest = max(abs(np.corrcoef(bmi_by_pressure, features.T)[0, 11:]))
    np.testing.assert_allclose(largest, 1.0, rtol=1e-12)
    np.testing.assert_allclose([features.std(axis=0), 0 * features[0] + targets.std()], 1.0)


@pytest.mark.parametrize(("positive", "negative"), [(3, 8), (0, 1)])
def test_digits_are_two_classes_of_pixels(positive, negative):
    table = DigitsDataConfig(kind="digits", positive=positive, negative=negative)
    features, labels = draw(table)
    assert features.shape == shape_of(table)
    assert (features.min(), features.max()) == (0.0, 1.0)
    assert set(labels) == {-1.0, 1.0}
    assert [(labels == 1).sum(), (labels == -1).sum()] == [DIGITS[positive], DIGITS[negative]]


def test_equal_digits_are_refused():
    with pytest.raises(ValueError, match="positive and negative must differ, got 3 twice"):
        DigitsDataConfig(kind="digits", positive=3, negative=3)


def test_diabetes_data_are_the_raw_measurements_or_standardised():
    for is_standardised in (False, True):
        table = DiabetesDataConfig(kind="diabetes", standardise=is_standardised)
        features, targets = draw(table)
        assert features.shape == shape_of(table)
        assert targets.shape == (442,)
    np.testing.assert_allclose(features.std(axis=0), 1)


def test_traced_seed_draws_the_same_data():
    table = GaussianDataConfig(kind="gaussian", samples=4, features=3)
    drawn = jax.vmap(lambda seed: draw(table.model_copy(update={"seed": seed})))(np.arange(3))
    for seed in range(3):
        features, targets = draw(table.model_copy(update={"seed": seed}))
        np.testing.assert_array_equal(drawn[0][seed], features)
        np.testing.assert_array_equal(drawn[1][seed], targets)
    assert not np.array_equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("nonzeros", [0, 3, 8])
def test_noiseless_sparse_data_have_a_planted_truth_of_signs(nonzeros):
    table = SparseDataConfig(kind="sparse", samples=20, features=8, nonzeros=nonzeros, seed=2)
    features, targets = draw(table)
    truth = np.linalg.lstsq(np.asarray(features), np.asarray(targets), rcond=None)[0]
    signs = np.sort(np.abs(truth))
    np.testing.assert_allclose(signs, [0.0] * (8 - nonzeros) + [1.0] * nonzeros, atol=1e-5)


def test_noise_has_the_requested_deviation():
    quiet = SparseDataConfig(kind="sparse", samples=4000, features=2, nonzeros=1)
    noisy = quiet.model_copy(update={"noise": 0.5})
    noise = np.asarray(draw(noisy)[1] - draw(quiet)[1])
    assert abs(noise.std() - 0.5) < 0.03


def test_rademacher_entries_are_plus_or_minus_one_equally_often():
    table = GaussianDataConfig(kind="gaussian", samples=400, features=50, design="rademacher")
    features, _ = draw(table)
    assert set(np.unique(features)) == {-1.0, 1.0}
    assert abs(np.mean(features)) < 0.02  # 3 deviations of 20,000 signs


def test_planted_truth_reproduces_the_targets():
    table = SparseDataConfig(
        kind="sparse", samples=5, features=8, nonzeros=3, design="rademacher", seed=4
    )
    features, targets = draw(table)
    np.testing.assert_allclose(features @ truth(table), targets, atol=1e-6)
    assert not has_truth(GaussianDataConfig(kind="gaussian", samples=5, features=8))


def test_truth_follows_the_selected_columns(tmp_path):
    path = tmp_path / "data.npz"
    arrays = {"features": np.ones((4, 3)), "targets": np.ones(4)}
    np.savez(path, **arrays, truth=np.array([1.0, 2.0, 3.0]))
    table = FileDataConfig(kind="file", path=str(path), features=("x3", "x1"))
    assert has_truth(table)
    assert truth(table).tolist() == [3.0, 1.0]
    assert not has_truth(table.model_copy(update={"standardise": True}))
    np.savez(path, **arrays, truth=np.ones(2))
    with pytest.raises(DataError, match=r'data\.npz: "truth" must be 3 finite numbers'):
        read_table(path)


def labels(tmp_path, name, targets):
    """A file with these targets, and the number of its first row."""
    if name.endswith("csv"):
        rows = "".join(f"{k % 3},{y}\n" for k, y in enumerate(targets))
        return write(tmp_path, "x1,targets\n" + rows, name), 2
    np.savez(tmp_path / name, features=np.arange(len(targets))[:, None] % 3, targets=targets)
    return tmp_path / name, 1


@pytest.mark.parametrize("name", ["labels.csv", "labels.npz"])
@pytest.mark.parametrize(
    ("loss", "targets", "place", "message"),
    [
        ("logistic", [1, 0, 1, 2], 1, "must be -1 or 1, got 0"),
        ("exponential", [1, -1, -1.0000000000000002], 2, r"got -1\.0000000000000002"),
        ("poisson", [0, 3, 2.5], 2, "must be a whole number ≥ 0, got 2.5"),
        ("poisson", [-1, 3, 2], 0, "got -1"),
    ],
)
def test_invalid_targets_are_named_by_row(tmp_path, name, loss, targets, place, message):
    path, first = labels(tmp_path, name, targets)
    table = FileDataConfig(kind="file", path=str(path), target="targets")
    where = rf'^{name}: row {first + place}, column "targets": '
    with pytest.raises(DataError, match=where + ".*" + message):
        validate(table, loss)
    validate(table, "huber")
    right = {"poisson": [0.0, 3.0, 2.0]}.get(loss, [1, -1, 1])
    path, _ = labels(tmp_path, f"right-{name}", right)
    validate(table.model_copy(update={"path": str(path)}), loss)


def test_labels_are_validated_after_standardisation(tmp_path):
    for targets, holds in (([0, 1, 1, 0], True), ([-1, 1, 1], False)):
        path, _ = labels(tmp_path, "labels.csv", targets)
        table = FileDataConfig(kind="file", path=str(path), target="targets", standardise=True)
        if holds:
            validate(table, "logistic")
        else:
            with pytest.raises(DataError, match="must be -1 or 1 once standardised, got -1"):
                validate(table, "logistic")


@pytest.mark.parametrize("loss", ["least_squares", "huber", "logistic", "exponential", "poisson"])
def test_data_kinds_are_refused_exactly_if_their_problem_is(loss):
    drawn: dict[str, Any] = {"samples": 9, "features": 3}
    for table in (
        GaussianDataConfig(kind="gaussian", **drawn),
        SparseDataConfig(kind="sparse", **drawn, nonzeros=2),
        ClassificationDataConfig(kind="classification", **drawn, nonzeros=2),
        CountsDataConfig(kind="counts", **drawn, nonzeros=2),
        DiabetesDataConfig(kind="diabetes"),
        DiabetesDataConfig(kind="diabetes", standardise=False),
        DigitsDataConfig(kind="digits", positive=3, negative=8),
    ):
        targets = np.asarray(draw(table)[1])
        fits = {
            "poisson": (targets >= 0).all() and (targets % 1 == 0).all(),
            "logistic": (abs(targets) == 1).all(),
            "exponential": (abs(targets) == 1).all(),
        }
        if fits.get(loss, True):
            validate(table, loss)
        else:
            with pytest.raises(
                DataError, match=f'{loss} loss must be .*: not of kind "{table.kind}"'
            ):
                validate(table, loss)


def test_counts_beyond_integers_are_refused():
    table = CountsDataConfig(kind="counts", samples=20, features=8, nonzeros=8, strength=30.0)
    with pytest.raises(ValueError, match=r"problem\.data\.strength: .* must be ≤ 2\^30"):
        draw(table)


CONFIG = """
study = "figure4"
network = { depth = 2, init = { kind = "normal" } }
dynamics = { until = 1.0 }
[problem]
loss = { kind = "LOSS" }
data = { kind = "file", path = "PATH", standardise = STANDARDISE }
"""


@pytest.mark.parametrize(
    ("loss", "text", "standardise", "message"),
    [
        ("logistic", "1,1\n2,0\n3,2\n", False, 'row 3, column "target": must be -1 or 1, got 0'),
        ("least_squares", "7,1\n7,2\n", True, 'column "a" is constant, it cannot be standardised'),
        ("least_squares", "12_03,1\n", False, 'row 2, column "a": not a number: "12_03"'),
        ("least_squares", "1e200,1\n2e200,1\n", False, "the loss must be finite at the start"),
        pytest.param(
            *("poisson", "9e5,1\n-9e5,0\n", False, "the loss must be finite at the start"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_check_and_run_refuse_data_with_the_same_message(
    tmp_path, monkeypatch, loss, text, standardise, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddln.cli.main.start_jax", lambda *_: None)
    write(tmp_path, "a,target\n" + text)
    config = CONFIG.replace("LOSS", loss).replace("PATH", "data.csv")
    write(tmp_path, config.replace("STANDARDISE", str(standardise).lower()), "own.toml")
    write(tmp_path, "", "experiments.py")
    done = [CliRunner().invoke(cli.app, [verb, "own.toml"]) for verb in ("check", "run", "verify")]
    assert [one.exit_code for one in done] == [2, 2, 2], done[0].output
    assert message in done[0].stderr
    assert len({one.stderr for one in done}) == 1
    assert done[0].stdout == ""
