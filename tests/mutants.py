"""Mutation testing of the mathematics: `make mutants`, or `python -m tests.mutants`.

Operators, comparisons, signs and numbers of a module are changed, one at a time, in a copy of the
project; a change that its tests and doctests let pass is printed. What a survivor may be: a number
that decides speed only, a guard for what rounding does, or a test that is not there.

Compiling is most of the time that a change takes: each is tried in a process that finds all but the
project imported, with the programs that it leaves alone compiled, cheapest test first.
"""

import argparse
import ast
import contextlib
import copy
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = {
    "networks/entropy": ["test_entropy.py"],
    "networks/layers": ["test_layers.py", "test_init.py"],
    "networks/reparametrisation": ["test_layers.py", "test_formulations.py"],
    "solvers/gradient_flow": ["test_gradient_flow.py"],
    "verification/certify": ["test_certify.py"],
    "verification/consistency": ["test_consistency.py"],
    "verification/_shared_tolerances": ["test_certify.py", "test_consistency.py"],
    "verification/_conservation_laws": ["test_certify.py"],
    "verification/_mirror_flow": ["test_certify.py"],
    "verification/_convergence_bounds": ["test_certify.py"],
    "theory/convergence": ["test_convergence.py", "test_inverse_design.py"],
    "theory/inverse_design": ["test_inverse_design.py"],
    "theory/implicit_bias": ["test_implicit_bias.py"],
    "theory/reference_solutions": ["test_implicit_bias.py"],
    "theory/saddle_to_saddle": ["test_saddle_to_saddle.py"],
    "theory/linearised_flow": ["test_convergence.py"],
    "theory/stability": ["test_stability.py"],
}
PRELOADED = ["diffrax", "optax", "pytest", "beartype.beartype", "scipy.integrate", "mpmath"]
PATIENCE = 10
"""A mutant that takes so many times as long as its module counts as noticed."""
_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, a description and the changed source of each change."""
    tree = ast.parse(source)
    words = {id(inner) for node in ast.walk(tree) for inner in _of_words(node)}
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in words or not (changed := _changed(node)):
            continue
        other = copy.deepcopy(tree)
        target = next(n for i, n in enumerate(ast.walk(other)) if i == place)
        vars(target).update(vars(changed))
        line, was = getattr(node, "lineno", 0), ast.unparse(node)
        yield line, f"{was}  →  {ast.unparse(target)}", ast.unparse(other)


def _of_words(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that do not compute: types, texts and displays."""
    if isinstance(node, ast.FunctionDef) and node.name in ("__repr__", "_repr_html_"):
        yield from ast.walk(node)
    for name in ("annotation", "returns"):
        if (part := getattr(node, name, None)) is not None:
            yield from ast.walk(part)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
        yield from ast.walk(node)


def _changed(node: ast.AST) -> ast.AST | None:
    new = copy.deepcopy(node)
    if isinstance(new, ast.BinOp | ast.BoolOp) and type(new.op) in _SWAPS:
        new.op = _SWAPS[type(new.op)]()
        return new
    if isinstance(new, ast.Compare) and type(new.ops[0]) in _SWAPS:
        new.ops[0] = _SWAPS[type(new.ops[0])]()
        return new
    if isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.USub):
        new.op = ast.UAdd()
        return new
    if isinstance(new, ast.Constant) and isinstance(new.value, float):
        new.value = new.value * 1.5 or 0.5
        return new
    if isinstance(new, ast.Constant) and type(new.value) is int:
        new.value += 1
        return new
    return None


class Cheapest:
    """A pytest plugin: runs first the tests that detect many changes per second, and times them."""

    def __init__(self, seconds: dict[str, float], noticed: Counter[str]):
        self.seconds, self.noticed = seconds, noticed
        self.failed = ""

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings  # pytest has to come first

        # What fails need not be made small.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", phases=phases, derandomize=True, database=None)
        settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.seconds[item.nodeid] / (1 + self.noticed[item.nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed = report.nodeid


def run_tests(
    copied: Path, module: str, seconds: dict[str, float], noticed: Counter[str], results: Connection
) -> None:
    """Run a module's tests in this process until one fails; send its name and the times."""
    os.chdir(copied)
    sys.path.insert(0, str(copied))
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    # A change may be no longer than what it changes, and as old: no byte code of it.
    sys.dont_write_bytecode = bool(seconds)
    order = Cheapest(seconds, noticed)
    preloaded = ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    options = ["-q", "-x", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow", *preloaded]
    paths = [f"ddln/{module}.py", *(f"tests/{name}" for name in TESTS[module])]
    code = pytest.main([*options, *paths], [order])
    results.send(("" if code == 0 else order.failed or f"exit {code}", order.seconds))
    results.close()
    os._exit(0)


def first_to_fail(
    copied: Path, module: str, seconds: dict[str, float], noticed: Counter[str]
) -> tuple[str, dict[str, float]]:
    """The name of the failing test, empty if all pass, and the seconds of each test that ran."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    hears, tells = context.Pipe(duplex=False)
    given = (copied, module, seconds, noticed, tells)
    process = context.Process(target=run_tests, args=given)
    process.start()
    tells.close()
    patience = PATIENCE * sum(seconds.values()) if seconds else None
    try:
        with contextlib.suppress(EOFError):  # it died
            if hears.poll(patience):
                return hears.recv()
        return "took too long, or died", seconds
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="; ".join(TESTS))
    parser.add_argument("--most", type=int, default=10**6, help="changes of each module, at random")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/programs")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        copied = Path(folder) / "copy"
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".*", "runs", "htmlcov"))
        for module in options.modules:
            examine(copied, module, options.most)


def examine(copied: Path, module: str, most: int) -> None:
    """Print the changes to a module that no test detects, and the share that is detected."""
    path = copied / "ddln" / f"{module}.py"
    source, noticed = path.read_text(encoding="utf-8"), Counter[str]()
    failed, seconds = first_to_fail(copied, module, defaultdict(float), noticed)
    if failed:
        sys.exit(f"{module}: its tests fail as it is: {failed}")
    every = list(mutants(source))
    chosen = random.Random(0).sample(every, min(most, len(every)))
    for line, change, changed in sorted(chosen, key=lambda mutant: mutant[0]):
        path.write_text(changed, encoding="utf-8")
        failed, _ = first_to_fail(copied, module, seconds, noticed)
        noticed[failed] += 1
        if not failed:
            print(f"ddln/{module}.py:{line}: {change}", flush=True)
    path.write_text(source, encoding="utf-8")
    share = 1 - noticed[""] / max(len(chosen), 1)
    print(f"{module}: {share:.0%} of {len(chosen)} of {len(every)} noticed", flush=True)


if __name__ == "__main__":
    main()
