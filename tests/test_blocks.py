"""Least squares in blocks of rows: as on all of them at once, in the memory of one."""

import tracemalloc

import h5py
import jax
import numpy as np
import pytest

import ddln
from ddln.problems.out_of_core import StoredRows, least_squares_of_blocks, stored_least_squares

# Of a QR decomposition, times the condition number of these features.
AGREES = 1e-9
CONDITION = 1e6
# Of 200 steps with numbers of order 1, compiled otherwise.
SAME_STEPS = 1e-12


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((300, 5)) @ np.diag(np.geomspace(1.0, 1 / CONDITION, 5))
    return features, rng.standard_normal(300)


@pytest.mark.parametrize("normalisation", ["sum", "half", "mean", "half_mean"])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_blocks_make_the_problem_of_all_rows(data, normalisation, rows):
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
    """A file of that kind, opened."""
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
def test_rows_of_a_file_are_those_that_were_written(data, tmp_path, kind):
    features, targets = data
    rows = stored(data, kind, tmp_path)
    assert rows.shape == (300, 5)
    blocks = list(rows.blocks(rows=128))
    assert [len(block[1]) for block in blocks] == [128, 128, 44]
    for k, expected in enumerate((features, targets)):
        np.testing.assert_array_equal(np.concatenate([block[k] for block in blocks]), expected)
    for chosen in ([7], [299, 0, 0, 5], [[3, 2], [2, 8]]):
        for read, expected in zip(rows.take(chosen), (features, targets), strict=True):
            np.testing.assert_array_equal(read, expected[np.array(chosen)])


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_files_are_read_in_blocks_and_never_whole(tmp_path, kind):
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
def test_training_on_rows_in_a_file_is_training_on_them_in_memory(data, layers, tmp_path, oracle):
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
def test_lanes_with_draws_of_their_own_read_rows_of_their_own(data, layers, tmp_path):
    problems = stored_least_squares(stored(data, "h5", tmp_path)), ddln.least_squares(*data)
    rule, oracle = ddln.optimiser("sgd", learning_rate=1e-4), ddln.Sampling(batch=3)

    def last(problem, key):
        return ddln.descend(problem, layers, rule, steps=50, oracle=oracle, key=key).theta[-1]

    keys = jax.random.split(jax.random.key(0), 3)
    ours, expected = (jax.vmap(lambda key, p=p: last(p, key))(keys) for p in problems)
    np.testing.assert_allclose(ours, expected, rtol=SAME_STEPS)
    assert len(np.unique(ours[:, 0])) == 3


def test_blocks_that_make_no_problem_are_refused():
    with pytest.raises(ValueError, match="must hold at least one block"):
        least_squares_of_blocks([])
    with pytest.raises(ValueError, match="must have 2 columns each, got 1"):
        least_squares_of_blocks([([[1.0, 2.0]], [1.0]), ([[1.0]], [1.0])])
    with pytest.raises(ValueError, match="`features` must be finite, got nan at index"):
        least_squares_of_blocks([([[np.nan]], [1.0])])


def test_files_that_hold_no_rows_are_refused(tmp_path):
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
    np.savez(tmp_path / "text.npz", features=np.eye(2), targets=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="`targets` must hold real numbers, got <U1"):
        StoredRows(tmp_path / "text.npz")


def test_what_a_file_does_not_give_at_once_is_refused(data, layers, tmp_path):
    rows = stored(data, "npy", tmp_path)
    with pytest.raises(ValueError, match="`rows` must be ≥ 1, got 0"):
        list(rows.blocks(0))
    noisy = {"steps": 1, "oracle": ddln.Sampling(label_noise=0.1), "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="`batch` must be given where the samples are in a file"):
        ddln.descend(
            stored_least_squares(rows), layers, ddln.optimiser("sgd", learning_rate=0.1), **noisy
        )
