"""The order of the modules: data goes one way."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import ddln

PACKAGE = Path(ddln.__file__).parent
ORDER = [
    "__init__",
    *(
        "_checks",
        "costs",
        "markup",
        "charts",
        "init",
        "network",
        "problem",
        "sharding",
        "blocks",
        "infima",
        "losses",
        "custom",
        "positions",
    ),
    *("entropy", "runs", "pictures", "flow", "steppers", "march", "batches", "engine"),
    *("mirror", "oracles", "optimisers", "descent", "stochastic"),
    *("hypotheses", "hermite", "theory", "diagnostics"),
    *("tables", "claims", "stepwise", "accuracy", "certificates"),
    *("_files", "datafiles", "data", "schema", "dynamics", "_document", "_faults"),
    *("axes", "config", "variables", "plan", "_netcdf", "grid", "parts", "lanes"),
    *("_records", "store", "figures", "profiles", "views", "explorer", "browser"),
    *("studies", "report", "runtime", "progress", "execution", "cluster", "apps"),
    *("exits", "terminal", "cli"),
]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ddln":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def files(name):
    """A module, or those of a package."""
    folder = PACKAGE / name
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{name}.py"]


def test_every_module_has_its_place():
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(ORDER) == sorted([*(path.stem for path in PACKAGE.glob("*.py")), *packages])


@pytest.mark.parametrize("name", ORDER[1:])
def test_modules_import_only_from_above(name):
    above = ORDER[: ORDER.index(name)]
    typing_only = {"schema"} if name == "data" else set()
    imported = {module for path in files(name) for module in imports(path)}
    below = imported - set(above) - typing_only - {name}
    assert not below & set(ORDER)


def test_no_exported_name_is_a_modules():
    assert not (set(ddln.__all__) - {"diagnostics", "init", "theory"}) & set(ORDER)
    for name in ddln.__all__:
        assert getattr(ddln, name) is not None


def test_the_page_on_reliability_names_tests_that_exist():
    root = PACKAGE.parent
    page = (root / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").glob("*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 40
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_the_theory_page_names_tests_and_functions_that_exist():
    root = PACKAGE.parent
    page = (root / "docs" / "theory.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").glob("*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []
    modules = "diagnostics|hermite|init|stepwise|theory"
    for module, function in re.findall(rf"`({modules})\.(\w+)`", page):
        assert hasattr(importlib.import_module(f"ddln.{module}"), function)
