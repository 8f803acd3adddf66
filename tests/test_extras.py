"""What works with the numerical packages alone, and what names the extra that it needs."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ddln._internal.extras import needed_for

ROOT = Path(__file__).parent.parent
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}
"""Packages whose modules have another name."""


def optional_modules():
    """The modules that the extras of pyproject.toml install, `jax` excepted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {line.partition(">")[0].partition("[")[0] for line in lines} - {"jax"}
    return sorted(MODULES.get(name) or name for name in names)


WITHOUT_EXTRAS = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run_without_extras(program):
    """Run a program in a process that finds none of the optional modules."""
    program = WITHOUT_EXTRAS.format(modules=optional_modules()) + program
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_python_of_the_readme_runs_without_extras():
    done = run_without_extras(
        """
import doctest
result = doctest.testfile("README.md", module_relative=False)
print(result.attempted > 5, result.failed)
"""
    )
    assert done.stderr == ""
    assert done.stdout == "True 0\n"


def test_certificates_and_notebook_displays_work_without_extras():
    done = run_without_extras(
        """
import ddln
claim = ddln.Claim("half", "", "", measured=0.5, predicted=0.5, tolerance=0.0)
print(ddln.Certificates((claim,)))
print(ddln.least_squares([[1.0]], [2.0])._repr_html_())
"""
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "Certificates"
    assert done.stdout.splitlines()[-1] == "None"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import ddln; ddln.load", "ddln.load needs the package "),
        ("import ddln; ddln.figures", "ddln.figures needs the package "),
        ("import ddln.sklearn", "ddln.sklearn needs the package sklearn: "),
        ("from ddln.cli.__main__ import start; start()", "the command ddln needs the package "),
        (
            "import ddln; ddln.theory.lasso(ddln.least_squares([[1.0]], [1.0]), 0.1)",
            "ddln.theory.lasso needs the package sklearn: ",
        ),
    ],
)
def test_what_needs_an_extra_names_it(program, message):
    done = run_without_extras(program)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.removeprefix("ImportError: ").startswith(message)
    assert " -m pip install " in last


def test_faults_of_ddln_itself_are_not_blamed_on_an_extra():
    with (
        pytest.raises(ModuleNotFoundError, match=r"ddln\.nowhere"),
        needed_for("this", "run"),
    ):
        importlib.import_module("ddln.nowhere")
