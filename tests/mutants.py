"""Which changes to the mathematics no test notices: `make mutants`, or `python -m tests.mutants`.

Operators, comparisons, signs and numbers of a module are changed, one at a time, in a copy of the
project; a change that its tests let pass is printed. What a survivor may be: a number that decides
speed only, a guard for what rounding does, or a test that is not there.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = {
    "entropy": ["test_entropy.py"],
    "network": ["test_network.py", "test_init.py"],
    "flow": ["test_flow.py"],
    "certificates": ["test_certificates.py"],
    "theory/bounds": ["test_theory.py"],
    "theory/design": ["test_design.py"],
    "theory/limit": ["test_limit.py"],
    "theory/references": ["test_theory.py"],
    "theory/saddles": ["test_saddles.py"],
    "theory/steps": ["test_steps.py"],
}
HANGS = 900
"""Seconds after which a mutant counts as noticed."""
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
    """Line, what was changed there, and the changed source, for each change."""
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
    """What is only said, of types and in words, or drawn."""
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
    if isinstance(new, ast.Constant) and type(new.value) in (int, float):
        new.value = new.value + 1 if isinstance(new.value, int) else new.value * 1.5
        return new
    return None


def survives(copy_of: Path, module: str, source: str) -> bool:
    """Whether the module's tests let a change pass."""
    (copy_of / "ddln" / f"{module}.py").write_text(source, encoding="utf-8")
    tests = [f"tests/{name}" for name in TESTS[module]]
    # What noticed the last change is likely to notice this one: first.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--ff", "-m", "not slow", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy_of)}
    try:
        done = subprocess.run(
            command, cwd=copy_of, env=environment, capture_output=True, timeout=HANGS
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="; ".join(TESTS))
    parser.add_argument("--most", type=int, default=10**6, help="changes of each module, at random")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "copy"
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".*", "runs", "htmlcov"))
        for module in options.modules:
            source = (ROOT / "ddln" / f"{module}.py").read_text(encoding="utf-8")
            if not survives(copied, module, source):
                sys.exit(f"{module}: its tests fail as it is")
            every = list(mutants(source))
            chosen = random.Random(0).sample(every, min(options.most, len(every)))
            alive = 0
            for line, change, changed in sorted(chosen, key=lambda mutant: mutant[0]):
                if survives(copied, module, changed):
                    alive += 1
                    print(f"ddln/{module}.py:{line}: {change}", flush=True)
            (copied / "ddln" / f"{module}.py").write_text(source, encoding="utf-8")
            killed = 1 - alive / max(len(chosen), 1)
            print(f"{module}: {killed:.0%} of {len(chosen)} of {len(every)} noticed", flush=True)


if __name__ == "__main__":
    main()
