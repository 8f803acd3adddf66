"""A smaller copy of every config runs, makes its claims, draws and saves."""

import ast
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import ddln
from ddln.plotting import figures
from ddln.sweeps import plan, studies

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
STUDIES = sorted((ROOT / "experiments").glob("[a-z]*.py"))
DRAWN = [path for path in STUDIES if "\ndef data(" in path.read_text(encoding="utf-8")]
QUICK = {"figure4", "saddle_to_saddle", "lasso_path", "logistic_margin", "large_steps"}
POINTS, STEPS, DEPTH, LANES, WIDE = 61, 2000, 3, 3, 120
FEWER_LANES = {"decay_dose": 2}  # a thousand steps of tight tolerances, in a grid
LONGEST, SCREEN = 100, 40  # lines of a study, and of a function in it
ROUNDING = 1e-12  # multivariate_normal goes through LAPACK, which differs from machine to machine


def smaller(path):
    """The experiment with fewer times, steps, layers, networks and features; a single program."""
    experiment = ddln.load(path)
    axes = plan.make_plan(experiment).axes
    kept = {axis.dimension: np.arange(axis.values.size) for axis in axes}
    for axis in axes:
        if axis.shape_changing:
            places = kept[axis.dimension]
            kept[axis.dimension] = places[axis.values[places] == axis.values[places[0]]]
    lanes = FEWER_LANES.get(path.stem, LANES)
    changes: dict[str, Any] = {
        f"sweep.{axis.name}": {
            "values": axis.values[kept[axis.dimension][-lanes:]],
            "zip": axis.dimension if axis.dimension != axis.name else None,
        }
        for axis in axes
    }
    limits = {"points": POINTS, "steps": STEPS}
    for name, most in limits.items():
        if getattr(experiment.dynamics, name, 0) > most:
            changes[f"dynamics.{name}"] = most
    if experiment.network.depth > DEPTH:
        changes["network.depth"] = DEPTH
    if experiment.features > WIDE:
        is_file = experiment.problem.data.kind == "file"
        columns = [f"x{k + 1}" for k in range(WIDE)]
        changes["problem.data.features"] = columns if is_file else WIDE
    return experiment.with_(changes)


def run_in(path):
    """The config as a parameter; slow unless it is one of each kind of study."""
    marks = [] if path.stem in QUICK else [pytest.mark.slow]
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.fixture(scope="module", params=[run_in(path) for path in CONFIGS])
def done(request):
    """A config's study, and the dataset of its smaller copy."""
    experiment = smaller(request.param)
    study = studies.find(experiment.study, request.param.parent)
    return study, ddln.run(experiment)


def test_every_network_finishes(done):
    _, dataset = done
    assert np.all(dataset["status"] == 0)


def test_every_certificate_holds(done):
    _, dataset = done
    assert dataset["certificate_applies"].any()
    assert dataset["certificate_holds"].all()


def test_every_claim_holds(done):
    claims = studies.claims(*done)
    assert claims
    assert len({claim["name"] for claim in claims}) == len(claims)
    for claim in claims:
        assert claim["holds"], claim
        assert claim["source"]
        assert claim["reason"]


def test_every_figure_can_be_saved_and_described(done):
    study, dataset = done
    for name, figure in studies.figures(study, dataset).items():
        assert isinstance(figure, Figure)
        assert len(figures.describe(figure)) > len(name)
        for kind in ("png", "pdf"):
            file = io.BytesIO()
            figure.savefig(file, format=kind)
            assert file.tell() > 1000


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_is_short_and_names_its_source(path):
    text = path.read_text(encoding="utf-8")
    first_line = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    assert "(" in first_line
    assert len(text.splitlines()) <= LONGEST


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_imports_public_names_only(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names if "ddln." in alias.name} == set()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddln"):
            assert node.module == "ddln"
            assert {alias.name for alias in node.names} <= {"figures", "theory"}


def functions_of(path):
    """The functions of a study, nested ones too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_no_function_of_a_study_is_longer_than_a_screen(path):
    assert max((node.end_lineno or 0) - node.lineno + 1 for node in functions_of(path)) <= SCREEN


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_has_its_study(path):
    assert studies.locate(ddln.load(path).study, path.parent) in STUDIES


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_data_file_equals_the_result_of_its_recipe(path, tmp_path):
    made = studies.write_data(path.stem, tmp_path)
    assert made == tmp_path / "configs" / "data" / f"{path.stem}.npz"
    with np.load(made) as fresh, np.load(ROOT / made.relative_to(tmp_path)) as kept:
        assert sorted(fresh) == sorted(kept)
        for name in fresh:
            np.testing.assert_allclose(kept[name], fresh[name], rtol=ROUNDING, atol=ROUNDING)


def test_every_data_file_has_a_recipe():
    files = {path.stem for path in (ROOT / "configs" / "data").glob("*.npz")}
    assert files == {path.stem for path in DRAWN}
