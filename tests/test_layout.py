"""The packages of `ddln` import one way, in the order of the table in CONTRIBUTING.md."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ddln

PACKAGE = Path(ddln.__file__).parent
ROOT = PACKAGE.parent
PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
ORDER = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)


def imported_packages(package):
    """The packages of `ddln` that the modules of one of them import, at any depth of nesting."""
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and parts[0] == "ddln":
                yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def test_contributing_lists_every_package_in_import_order():
    assert sorted(ORDER) == sorted(PACKAGES)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_those_before_them(package):
    allowed = {*ORDER[: ORDER.index(package) + 1], "__version__"}
    assert set(imported_packages(package)) <= allowed


NUMERICAL = ("_internal", "networks", "problems", "solvers", "theory", "verification")
SHAPED = re.compile(r"\b(Float|Int|UInt|Bool|Key|Num|Inexact|Shaped)\[[^\[\]]*\]")
BARE_ARRAYS = {"Array", "jax.Array", "np.ndarray", "jnp.ndarray"}
NOT_NUMERICAL = {"matplotlib", "rich", "xarray", "pydantic", "typer", "marimo", "h5py", "h5netcdf"}


def test_numerical_packages_load_no_display_or_file_library():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in NUMERICAL
        for path in sorted((PACKAGE / package).rglob("*.py"))
    ]
    assert len(modules) > 30
    program = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n"
    program += "print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "jax" in loaded
    assert NOT_NUMERICAL.isdisjoint(loaded)


def functions_of(package):
    """The path and node of every function of a package, nested functions included."""
    for path in sorted((PACKAGE / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(PACKAGE), node


@pytest.mark.parametrize("package", NUMERICAL)
def test_every_argument_is_annotated_and_every_array_has_a_shape(package):
    faults = []
    for path, function in functions_of(package):
        args = function.args
        named = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
        for arg in (arg for arg in named if arg is not None and arg.arg not in ("self", "cls")):
            kind = "" if arg.annotation is None else ast.unparse(arg.annotation)
            if not kind or set(re.split(r"[^\w.]+", SHAPED.sub("", kind))) & BARE_ARRAYS:
                faults.append(f"{path}:{arg.lineno}: {function.name}({arg.arg}: {kind})")
    assert faults == []


def test_sweeps_load_no_library_that_few_of_them_need():
    program = "import sys, ddln.sweeps.compute\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "ddln.solvers.batched_flow" in loaded
    assert {"diffrax", "optimistix", "scipy.special", "matplotlib"}.isdisjoint(loaded)


def test_no_class_name_is_defined_twice():
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                modules.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def test_top_level_holds_packages_and_the_scikit_learn_adapter():
    names = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "shipped"}
    assert names == PACKAGES | {"__init__.py", "py.typed", "sklearn.py"}
    assert len(PACKAGES) <= 10


def test_no_exported_name_is_a_package():
    modules = {"claim", "diagnostics", "figures", "init", "theory"}
    assert not (set(ddln.__all__) - modules) & PACKAGES
    for name in ddln.__all__:
        assert getattr(ddln, name) is not None


def test_names_for_type_checkers_are_those_imported_at_run_time():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    static = {
        alias.name: (node.module or "").removeprefix("ddln").lstrip(".")
        for node in imports
        if (node.module or "").startswith("ddln")
        for alias in node.names
        if alias.asname
    }
    modules = {name: home.rpartition(".")[0] for name, home in ddln._MODULES.items()}
    assert static == ddln._MODULE_OF | modules


def test_every_package_describes_itself():
    for package in sorted(PACKAGES):
        described = importlib.import_module(f"ddln.{package}").__doc__
        assert len((described or "").split()) > 10, package


def test_reliability_page_names_existing_test_files():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)`", page)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_theory_page_names_existing_tests_and_functions():
    page = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert named
    assert [name for name in named if f"def {name}(" not in tests] == []
    homes = {
        "_hermite": "ddln.theory._hermite",
        "discretisation": "ddln.verification.discretisation",
        "diagnostics": "ddln.verification.diagnostics",
        "init": "ddln.networks.init",
        "theory": "ddln.theory",
    }
    for module, function in re.findall(rf"`({'|'.join(homes)})\.(\w+)`", page):
        assert hasattr(importlib.import_module(homes[module]), function)
