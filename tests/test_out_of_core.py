"""Least squares in blocks of rows gives the problem of all rows in the memory of one block."""

import tracemalloc

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln._internal.validation import as_floats
from ddln.problems.out_of_core import StoredRows, least_squares_of_blocks, stored_least_squares

# Rounding of a QR factorisation, times the condition number of these features.
AGREES = 1e-9
CONDITION = 1e6
# Rounding of 200 steps with numbers of order 1, compiled differently.
SAME_STEPS = 1e-12


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 5)) @ np.diag(np.geomspace(1.0, 1 / CONDITION, 5))
    return features, rng.standard_normal(300)


@pytest.mark.parametrize("normalisation", ["sum", "half", "mean", "half_mean"])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_least_squares_of_blocks_matches_least_squares_of_all_rows(data, normalisation, rows):
    features, targets = data
    whole = ddln.least_squares(features, targets, normalisation=normalisation)
    cut = range(0, 300, rows)
    blocks = ((features[k : k + rows], targets[k : k + rows]) for k in cut)
    problem = least_squares_of_blocks(blocks, normalisation=normalisation)
    theta = np.linspace(-1.0, 1.0, 5)
    for name in ("loss", "gap", "gradient", "hessian"):
        ours, expected = (getattr(p, name)(theta) for p in (problem, whole))
        np.testing.assert_allclose(ours, expected, rtol=AGREES, err_msg=name)
    for name in ("minimum", "minimiser", "pl_constant", "smoothness"):
        ours, expected = (getattr(p, name) for p in (problem, whole))
        np.testing.assert_allclose(ours, expected, rtol=AGREES, err_msg=name)
    assert problem.core.shape == (5, 5)


def stored(data, kind, folder):
    """`StoredRows` of a new file of the given kind."""
    features, targets = data
    match kind:
        case "npy":
            np.save(folder / "x.npy", features)
            np.save(folder / "y.npy", targets)
            return StoredRows(folder / "x.npy", folder / "y.npy")
        case "npz" | "npz of columns":
            order = np.asfortranarray if "columns" in kind else np.ascontiguousarray
            np.savez(folder / "data.npz", targets=targets, features=order(features))
        case "h5":
            with h5py.File(folder / "data.h5", "w") as file:
                file["features"], file["targets"] = data
        case "zarr":
            group = pytest.importorskip("zarr").open_group(folder / "data.zarr", mode="w")
            group.create_array("features", data=features, chunks=(32, 5))
            group.create_array("targets", data=targets)
    return StoredRows(folder / f"data.{kind.split()[0]}")


KINDS = ("npy", "npz", "npz of columns", "h5", "zarr")


@pytest.mark.parametrize("kind", KINDS)
def test_stored_rows_are_read_back_exactly(data, tmp_path, kind):
    features, targets = data
    rows = stored(data, kind, tmp_path)
    assert rows.shape == (300, 5)
    blocks = list(rows.blocks(rows=128))
    assert [np.size(block[1]) for block in blocks] == [128, 128, 44]
    for k, expected in enumerate((features, targets)):
        np.testing.assert_array_equal(np.concatenate([block[k] for block in blocks]), expected)
    for chosen in ([7], [299, 0, 0, 5], [[3, 2], [2, 8]]):
        for read, expected in zip(rows.take(chosen), (features, targets), strict=True):
            np.testing.assert_array_equal(read, expected[np.array(chosen)])


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_files_are_read_in_blocks(tmp_path, kind):
    features = np.random.default_rng(1).standard_normal((200_000, 8))
    truth = np.arange(8.0)
    rows = stored((features, features @ truth), kind, tmp_path)
    least_squares_of_blocks(rows.blocks(1000))  # imports and compiles
    tracemalloc.start()
    problem = least_squares_of_blocks(rows.blocks(1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(problem.minimiser, truth, atol=AGREES)
    assert peak < features.nbytes / 10


@pytest.fixture(scope="module")
def layers():
    return np.stack([np.full(5, 0.1), np.linspace(0.5, 1.0, 5)])


@pytest.mark.parametrize(
    "oracle",
    [
        ddln.Sampling(batch=4, replacement=False, label_noise=0.1),
        pytest.param(ddln.Sampling(batch=4), marks=pytest.mark.slow),
        pytest.param(
            ddln.SharpnessAware(0.1, group=2, sampling=ddln.Sampling(batch=4)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["in passes, noisy", "drawn anew", "uphill"],
)
def test_training_from_a_file_matches_training_in_memory(data, layers, tmp_path, oracle):
    rule = ddln.optimiser("heavy_ball", learning_rate=0.01, momentum=0.5)
    options = {"steps": 200, "oracle": oracle, "key": jax.random.key(3)}
    in_file = stored_least_squares(stored(data, "npz", tmp_path), normalisation="mean")
    runs = [
        ddln.descend(problem, layers, rule, **options)
        for problem in (in_file, ddln.least_squares(*data, normalisation="mean"))
    ]
    assert np.ptp(runs[1].theta, axis=0).max() > 0.01
    for name in ("layers", "loss", "gap"):
        ours, expected = (getattr(run, name) for run in runs)
        np.testing.assert_allclose(ours, expected, rtol=SAME_STEPS, err_msg=name)


@pytest.mark.slow
def test_networks_with_separate_keys_read_separate_rows(data, layers, tmp_path):
    problems = stored_least_squares(stored(data, "h5", tmp_path)), ddln.least_squares(*data)
    rule, oracle = ddln.optimiser("sgd", learning_rate=1e-4), ddln.Sampling(batch=3)

    def last(problem, key):
        return ddln.descend(problem, layers, rule, steps=50, oracle=oracle, key=key).theta[-1]

    keys = jax.random.split(jax.random.key(0), 3)
    ours, expected = (jax.vmap(lambda key, p=p: last(p, key))(keys) for p in problems)
    np.testing.assert_allclose(ours, expected, rtol=SAME_STEPS)
    assert len(np.unique(ours[:, 0])) == 3


TYPES = ["<f8", ">f8", ">f4", "<f2", ">f2", ">i4", ">u2", "g"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["array", "npy", "npz", "h5"])
def test_any_dtype_and_byte_order_is_read(tmp_path, kind, dtype):
    features = np.random.default_rng(0).integers(0, 17, size=(40, 3)).astype(dtype)
    targets = (features.astype(float) @ [1.0, 2.0, 3.0]).astype(dtype)  # below 2^11: exact in all
    if kind == "array":
        problem = ddln.least_squares(features, targets)
    else:
        rows = stored((features, targets), kind, tmp_path)
        problem = stored_least_squares(rows)
        for part, expected in zip(rows.take([3, 1]), (features, targets), strict=True):
            assert part.dtype == np.dtype("=f4" if "f4" in dtype or "f2" in dtype else "=f8")
            np.testing.assert_array_equal(part, expected[[3, 1]].astype(float))
    single = problem.minimiser.dtype == np.float32
    np.testing.assert_allclose(problem.minimiser, [1, 2, 3], rtol=1e-5 if single else AGREES)
    assert problem.dim == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0], [1.0, 2.0]], "must be an array of real numbers: setting an array element"),
        ([["1"]], "must be real, got <U1"),
        ([[None]], "must be real, got object"),
        (np.array([["2020"]], "M8[s]"), r"must be real, got datetime64\[s\]"),
        ([[1j]], "must be real, got complex128"),
        (np.ma.masked_array([[1.0, 2.0]], [[False, True]]), "must have no masked entries"),
        (np.array([[np.longdouble("1e400")]]), "must fit into float64, got 1e[+]400 at index"),
    ],
)
def test_input_that_is_not_real_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match="`features` " + message):
        as_floats("features", values, 2)
    with pytest.raises(ValueError, match="`features` " + message):
        least_squares_of_blocks([(values, [1.0])])


def test_integers_do_not_wrap_around_in_single_precision():
    with jax.enable_x64(False):
        for values in ([3_000_000_000], np.array([3_000_000_000]), np.array([2**63], np.uint64)):
            assert as_floats("targets", values, 1).tolist() == [float(np.float32(values[0]))]
        with pytest.raises(ValueError, match=r"`targets` must fit into float32, got 1e[+]300 at"):
            as_floats("targets", [1e300], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_nonfinite_entry_is_named_by_file_row_and_column(tmp_path, kind):
    features, targets = np.ones((6000, 5)), np.ones(6000)
    features[5000, 1] = np.nan
    rows = stored((features, targets), kind, tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*`features` .* nan at index \(5000, 1\)"):
        stored_least_squares(rows)
    features[5000, 1], targets[4999] = 0.0, np.inf
    (tmp_path / "again").mkdir()
    rows = stored((features, targets), kind, tmp_path / "again")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*`targets` .* inf at index \(4999,\)"):
        stored_least_squares(rows)
    blocks = ((features[k : k + 100], targets[k : k + 100]) for k in range(0, 6000, 100))
    with pytest.raises(ValueError, match=r"^`targets` .* inf at index \(4999,\)"):
        least_squares_of_blocks(blocks)


def test_missing_and_packed_netcdf_values_are_refused(tmp_path):
    for name, message in (
        ("_FillValue", r"`targets` must be finite, got nan at index \(2,\)"),
        ("missing_value", r"`targets` must be finite, got nan at index \(2,\)"),
        ("scale_factor", "`targets` must not be packed, got a scale_factor"),
    ):
        with h5py.File(tmp_path / f"{name}.nc", "w") as file:
            file["features"], file["targets"] = np.eye(3), np.array([1, 2, -9999], "i2")
            file["targets"].attrs[name] = np.array([-9999.0])
            file["features"].attrs["_FillValue"] = np.nan
        with pytest.raises(ValueError, match=f"{name}.nc: " + message):
            stored_least_squares(StoredRows(tmp_path / f"{name}.nc"))


def test_unreadable_rows_are_reported_with_their_file(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.create_dataset("features", data=np.ones((64, 2)), chunks=(8, 2), fletcher32=True)
        file["targets"] = np.ones(64)
        at = file["features"].id.get_chunk_info(5).byte_offset
    with (tmp_path / "data.h5").open("r+b") as file:
        file.seek(at)
        file.write(b"damaged!")
    rows, message = StoredRows(tmp_path / "data.h5"), r"data\.h5: `features` cannot be read: "
    with pytest.raises(OSError, match=message):
        list(rows.blocks())
    np.savez(tmp_path / "whole.npz", features=np.ones((64, 2)), targets=np.ones(64))
    problem = stored_least_squares(StoredRows(tmp_path / "whole.npz"))
    monkeypatch.setattr(problem.stored, "_features", rows._features)  # as if damaged since
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        problem.batch(jnp.array([41]))


def test_invalid_blocks_are_refused():
    with pytest.raises(ValueError, match="must hold at least one block"):
        least_squares_of_blocks([])
    with pytest.raises(ValueError, match="must have 2 columns each, got 1"):
        least_squares_of_blocks([([[1.0, 2.0]], [1.0]), ([[1.0]], [1.0])])
    with pytest.raises(ValueError, match="`features` must be finite, got nan at index"):
        least_squares_of_blocks([([[np.nan]], [1.0])])


def test_invalid_row_files_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(2))
    with pytest.raises(ValueError, match=r"must have shapes \(n, dim\) and \(n,\), got \(2, 2\)"):
        StoredRows(tmp_path / "x.npy", tmp_path / "x.npy")
    with pytest.raises(ValueError, match="`targets` must be given with an NPY file"):
        StoredRows(tmp_path / "x.npy")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(ValueError, match="no array 'features'"):
        StoredRows(tmp_path / "empty.h5")
    np.savez(tmp_path / "half.npz", features=np.eye(2))
    with pytest.raises(ValueError, match="no array 'targets'"):
        StoredRows(tmp_path / "half.npz")
    np.savez_compressed(tmp_path / "packed.npz", features=np.eye(2), targets=np.ones(2))
    with pytest.raises(ValueError, match=r"must not be compressed \(np.savez\)"):
        StoredRows(tmp_path / "packed.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="not an NPZ file"):
        StoredRows(tmp_path / "bad.npz")
    for name in ("junk.npy", "empty.npy", "cut.npy", "junk.h5", "junk.zarr"):
        (tmp_path / name).write_bytes((tmp_path / "x.npy").read_bytes()[: 90 * ("cut" in name)])
        with pytest.raises((ValueError, OSError), match=name):
            StoredRows(tmp_path / name, tmp_path / "x.npy" if "npy" in name else None)
    with pytest.raises(FileNotFoundError, match=r"none\.h5"):
        StoredRows(tmp_path / "none.h5")
    with h5py.File(tmp_path / "shapeless.h5", "w") as file:
        file["features"], file["targets"] = h5py.Empty("f8"), np.ones(2)
    with pytest.raises(ValueError, match=r"shapeless\.h5: .* got \(\) and \(2,\)"):
        StoredRows(tmp_path / "shapeless.h5")
    np.savez(tmp_path / "lies.npz", features=np.eye(2), targets=np.ones(2))
    content = (tmp_path / "lies.npz").read_bytes()
    (tmp_path / "lies.npz").write_bytes(content.replace(b"'shape': (2,),", b"'shape': (9,),"))
    with pytest.raises(ValueError, match=r"lies\.npz: 'targets' claims shape \(9,\) but"):
        StoredRows(tmp_path / "lies.npz")
    np.savez(tmp_path / "text.npz", features=np.eye(2), targets=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="`targets` must hold real numbers, got <U1"):
        StoredRows(tmp_path / "text.npz")


def test_reading_all_samples_at_once_is_refused(data, layers, tmp_path):
    rows = stored(data, "npy", tmp_path)
    with pytest.raises(ValueError, match="`rows` must be ≥ 1, got 0"):
        list(rows.blocks(0))
    noisy = {"steps": 1, "oracle": ddln.Sampling(label_noise=0.1), "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="`batch` must be given if the samples are in a file"):
        ddln.descend(
            stored_least_squares(rows), layers, ddln.optimiser("sgd", learning_rate=0.1), **noisy
        )
