"""Least squares in blocks of rows: as on all of them at once, in the memory of one."""

import tracemalloc

import h5py
import numpy as np
import pytest

import ddln
from ddln.blocks import least_squares_of_blocks, row_blocks

# Of a QR decomposition, times the condition number of these features.
AGREES = 1e-9
CONDITION = 1e6


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


def test_files_are_read_in_blocks_and_never_whole(data, tmp_path):
    features = np.lib.format.open_memmap(
        tmp_path / "features.npy", mode="w+", dtype=float, shape=(200_000, 8)
    )
    features[:] = np.random.default_rng(1).standard_normal((200_000, 8))
    truth = np.arange(8.0)
    np.save(tmp_path / "targets.npy", features @ truth)
    names = tmp_path / "features.npy", tmp_path / "targets.npy"
    least_squares_of_blocks(row_blocks(*names, rows=1000))  # imports and compiles
    tracemalloc.start()
    problem = least_squares_of_blocks(row_blocks(*names, rows=1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(problem.minimiser, truth, atol=AGREES)
    assert peak < features.nbytes / 10
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["features"], file["targets"] = data
    problem = least_squares_of_blocks(row_blocks(tmp_path / "data.h5", rows=32))
    expected = ddln.least_squares(*data)
    np.testing.assert_allclose(problem.minimum, expected.minimum, rtol=AGREES)


def test_blocks_that_make_no_problem_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold at least one block"):
        least_squares_of_blocks([])
    with pytest.raises(ValueError, match="must have 2 columns each, got 1"):
        least_squares_of_blocks([([[1.0, 2.0]], [1.0]), ([[1.0]], [1.0])])
    with pytest.raises(ValueError, match="`features` must be finite, got nan at index"):
        least_squares_of_blocks([([[np.nan]], [1.0])])
    np.save(tmp_path / "x.npy", np.eye(2))
    with pytest.raises(ValueError, match=r"must have shapes \(n, dim\) and \(n,\), got \(2, 2\)"):
        list(row_blocks(tmp_path / "x.npy", tmp_path / "x.npy"))
    with pytest.raises(ValueError, match="`targets` must be given with an NPY file"):
        list(row_blocks(tmp_path / "x.npy"))
    with h5py.File(tmp_path / "empty.h5", "w"), pytest.raises(ValueError, match="`rows` must be"):
        list(row_blocks(tmp_path / "empty.h5", rows=0))
    with pytest.raises(ValueError, match="no array 'features'"):
        list(row_blocks(tmp_path / "empty.h5"))
