"""Data sets: what is drawn, what is read, and how a bad file is refused."""

import jax
import numpy as np
import pytest

from ddln.config.data_files import DataError, read_table
from ddln.config.datasets import DIGITS, draw, has_truth, shape_of, truth
from ddln.config.schema import Diabetes, Digits, File, Gaussian, Sparse


def write(tmp_path, text, name="data.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_file_becomes_named_columns(tmp_path):
    path = write(tmp_path, "\ufeffage, bmi,target\r\n1,2.5,3\r\n4,-5e1,6\r\n\r\n")
    names, features, targets = read_table(path)
    assert names == ("age", "bmi")
    assert features.tolist() == [[1.0, 2.5], [4.0, -50.0]]
    assert targets.tolist() == [3.0, 6.0]
    names, features, targets = read_table(path, "age", ["target"])
    assert (names, features.tolist(), targets.tolist()) == (("target",), [[3.0], [6.0]], [1.0, 4.0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,bmi,target\n1,2,3\n4,,6\n", r'^data\.csv: row 3, column "bmi": missing value$'),
        ("a,bmi,target\n1,tall,3\n", r'row 2, column "bmi": not a number: "tall"'),
        ("a,target\n1,nan\n", r'row 2, column "target": not a finite number: "nan"'),
        ("a,target\ninf,1\n", r'row 2, column "a": not a finite number: "inf"'),
        ("a,target\n1,2\n1,2,3\n", r"row 3: 3 value\(s\) where the header names 2"),
        ("a,target\n1,2\n\n1,2\n", r"row 3: 0 value\(s\)"),
        ("a,a,target\n1,2,3\n", r'row 1, column "a" appears twice'),
        ("a,,target\n1,2,3\n", "row 1, a column has no name"),
        ("a,targets\n1,2\n", r'no column "target", did you mean "targets"\?'),
        ("target\n1\n", "there is no feature column"),
        ("a,target\n", r"needs a header and at least one row, has 1 row\(s\)"),
        ("", r"has 0 row\(s\)"),
    ],
)
def test_a_bad_csv_file_is_refused_by_row_and_column(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        read_table(write(tmp_path, text))


def test_many_faults_are_listed_and_counted(tmp_path):
    path = write(tmp_path, "a,target\n" + "x,1\n" * 9)
    with pytest.raises(DataError, match=r'row 6, column "a".*\n.*and 4 more') as caught:
        read_table(path)
    assert len(str(caught.value).splitlines()) == 6


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "data.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        read_table(tmp_path / "data.csv")
    with pytest.raises(DataError, match='no column "c"'):
        read_table(write(tmp_path, "a,target\n1,2\n"), features=["c"])
    with pytest.raises(DataError, match='target "target" cannot be a feature'):
        read_table(write(tmp_path, "a,target\n1,2\n"), features=["target"])


def test_an_npz_file_becomes_numbered_columns(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, features=np.arange(6).reshape(3, 2), targets=np.arange(3))
    names, features, targets = read_table(path)
    assert names == ("x1", "x2")
    assert features.dtype == targets.dtype == np.float64
    assert read_table(path, features=["x2"])[1].tolist() == [[1.0], [3.0], [5.0]]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"features": np.ones((3, 2))}, 'no array "targets"'),
        ({"features": np.ones(3), "targets": np.ones(3)}, r'"features" must have shape \(n, d\)'),
        ({"features": np.ones((3, 0)), "targets": np.ones(3)}, r"got \(3, 0\)"),
        ({"features": np.ones((3, 2)), "targets": np.ones(4)}, "differ in rows"),
        ({"features": np.full((3, 2), "a"), "targets": np.ones(3)}, "must hold real numbers"),
        ({"features": np.array([[1, np.nan]]), "targets": np.ones(1)}, 'row 1, column "x2"'),
        ({"features": np.ones((1, 2)), "targets": np.array([np.inf])}, 'column "targets"'),
        ({"features": np.array([[None]]), "targets": np.ones(1)}, "not an NPZ file of numbers"),
    ],
)
def test_a_bad_npz_file_is_refused(tmp_path, arrays, told):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=told):
        read_table(tmp_path / "data.npz")


def test_a_file_that_only_claims_to_be_npz_is_refused(tmp_path):
    with pytest.raises(DataError, match="not an NPZ file"):
        read_table(write(tmp_path, "a,b", "data.npz"))


def test_standardised_columns_have_mean_zero_and_deviation_one(tmp_path):
    path = write(tmp_path, "a,b,target\n1,5,3\n4,7,6\n9,0,1\n")
    features, targets = draw(File(kind="file", path=str(path), standardise=True))
    columns = np.column_stack([features, targets])
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose(columns.std(axis=0), 1)
    path = write(tmp_path, "a,b,target\n1,5,3\n4,5,6\n", "constant.csv")
    with pytest.raises(DataError, match=r'constant\.csv: column "b" is constant'):
        draw(File(kind="file", path=str(path), standardise=True))


def test_quadratic_diabetes_has_the_64_columns_of_efron_et_al_2004():
    features, targets = draw(Diabetes(kind="diabetes", quadratic=True))
    assert features.shape == shape_of(Diabetes(kind="diabetes", quadratic=True)) == (442, 64)
    assert np.linalg.matrix_rank(features) == 64
    plain, _ = draw(Diabetes(kind="diabetes"))
    np.testing.assert_allclose(features[:, :10], plain, atol=1e-12)
    bmi_by_pressure = plain[:, 2] * plain[:, 3]
    largest = max(abs(np.corrcoef(bmi_by_pressure, features.T)[0, 11:]))
    np.testing.assert_allclose(largest, 1.0, rtol=1e-12)
    np.testing.assert_allclose([features.std(axis=0), 0 * features[0] + targets.std()], 1.0)


@pytest.mark.parametrize(("positive", "negative"), [(3, 8), (0, 1)])
def test_digits_are_two_classes_of_pixels(positive, negative):
    table = Digits(kind="digits", positive=positive, negative=negative)
    features, labels = draw(table)
    assert features.shape == shape_of(table)
    assert (features.min(), features.max()) == (0.0, 1.0)
    assert set(labels) == {-1.0, 1.0}
    assert [(labels == 1).sum(), (labels == -1).sum()] == [DIGITS[positive], DIGITS[negative]]


def test_one_digit_is_no_two_classes():
    with pytest.raises(ValueError, match="positive and negative must differ, got 3 twice"):
        Digits(kind="digits", positive=3, negative=3)


def test_the_diabetes_data_are_the_raw_measurements_or_standardised():
    for standardise in (False, True):
        table = Diabetes(kind="diabetes", standardise=standardise)
        features, targets = draw(table)
        assert features.shape == shape_of(table)
        assert targets.shape == (442,)
    np.testing.assert_allclose(features.std(axis=0), 1)


def test_a_traced_seed_draws_what_the_number_draws():
    table = Gaussian(kind="gaussian", samples=4, features=3)
    drawn = jax.vmap(lambda seed: draw(table.model_copy(update={"seed": seed})))(np.arange(3))
    for seed in range(3):
        features, targets = draw(table.model_copy(update={"seed": seed}))
        np.testing.assert_array_equal(drawn[0][seed], features)
        np.testing.assert_array_equal(drawn[1][seed], targets)
    assert not np.array_equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("nonzeros", [0, 3, 8])
def test_noiseless_sparse_data_have_a_planted_truth_of_signs(nonzeros):
    table = Sparse(kind="sparse", samples=20, features=8, nonzeros=nonzeros, seed=2)
    features, targets = draw(table)
    truth = np.linalg.lstsq(np.asarray(features), np.asarray(targets), rcond=None)[0]
    signs = np.sort(np.abs(truth))
    np.testing.assert_allclose(signs, [0.0] * (8 - nonzeros) + [1.0] * nonzeros, atol=1e-5)


def test_noise_has_the_deviation_asked_for():
    quiet = Sparse(kind="sparse", samples=4000, features=2, nonzeros=1)
    noisy = quiet.model_copy(update={"noise": 0.5})
    noise = np.asarray(draw(noisy)[1] - draw(quiet)[1])
    assert abs(noise.std() - 0.5) < 0.03


def test_a_rademacher_design_has_entries_of_plus_and_minus_one_alike():
    table = Gaussian(kind="gaussian", samples=400, features=50, design="rademacher")
    features, _ = draw(table)
    assert set(np.unique(features)) == {-1.0, 1.0}
    assert abs(np.mean(features)) < 0.02  # 3 deviations of 20,000 signs


def test_the_truth_of_planted_data_made_their_targets():
    table = Sparse(kind="sparse", samples=5, features=8, nonzeros=3, design="rademacher", seed=4)
    features, targets = draw(table)
    np.testing.assert_allclose(features @ truth(table), targets, atol=1e-6)
    assert not has_truth(Gaussian(kind="gaussian", samples=5, features=8))


def test_the_truth_of_a_file_goes_with_its_columns(tmp_path):
    path = tmp_path / "data.npz"
    arrays = {"features": np.ones((4, 3)), "targets": np.ones(4)}
    np.savez(path, **arrays, truth=np.array([1.0, 2.0, 3.0]))
    table = File(kind="file", path=str(path), features=("x3", "x1"))
    assert has_truth(table)
    assert truth(table).tolist() == [3.0, 1.0]
    assert not has_truth(table.model_copy(update={"standardise": True}))
    np.savez(path, **arrays, truth=np.ones(2))
    with pytest.raises(DataError, match=r'data\.npz: "truth" must be 3 finite numbers'):
        read_table(path)
