"""Arithmetic for axes of a sweep that depend on other axes: `{ expr = "4e-3 * scale**-10" }`.

An expression is parsed with Python's `ast` and evaluated by the few rules below: numbers, the names
of axes, + − * / **, parentheses, sqrt, exp and log. Nothing is passed to `eval`.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ddln.config._errors import hint

LONGEST = 200
"""Characters of an expression; it also bounds how deeply one can be nested."""
# math.pow stays real and quick where ** would return a complex number or a huge integer.
_BINARY: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
}
_UNARY: dict[type[ast.AST], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
}


class ExpressionError(ValueError):
    """An expression that cannot be parsed, resolved or evaluated."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: as written.
        names: of the axes it depends on, as written, in the order of their first use.
    """

    text: str
    names: tuple[str, ...]
    _root: ast.expr

    def __call__(self, values: Mapping[str, int | float]) -> float:
        """The value for given values of `names`.

        Raises:
            ExpressionError: the value is not a finite real number.
        """
        try:
            result = _evaluate(self._root, values)
        except OverflowError:
            result = math.inf
        except ZeroDivisionError:
            raise ExpressionError(f"division by zero{_at(values)}") from None
        except ValueError:  # of `math`: log(−1), sqrt(−1), 0**−1, (−8)**0.5
            raise ExpressionError(f"not a real number{_at(values)}") from None
        if not math.isfinite(result):
            raise ExpressionError(f"must be finite, got {result}{_at(values)}")
        return result


def parse(text: str) -> Expression:
    """Parse an expression.

    Raises:
        ExpressionError: it is too long, or contains anything but the arithmetic above.

    >>> half = parse("-7 * log(scale) / 2")
    >>> half.names, half({"scale": 1.0})
    (('scale',), -0.0)
    >>> parse("__import__('os')")
    Traceback (most recent call last):
    ddln.config._expressions.ExpressionError: unknown function "__import__", known: sqrt, exp, log
    """
    if len(text) > LONGEST:
        raise ExpressionError(f"must have {LONGEST} or fewer characters, got {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of dubious literals, such as 1if
            root = ast.parse(source := text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ExpressionError(f'not an arithmetic expression: "{text}"') from None
    return Expression(text, tuple(dict.fromkeys(_names(root, source))), root)


def resolve(name: str, axes: Iterable[str]) -> str:
    """The axis a name stands for: its whole dotted name, or the end of it if no other has that.

    Raises:
        ExpressionError: there is none, or more than one.

    >>> resolve("scale", ["network.scale", "network.depth"])
    'network.scale'
    """
    axes = list(axes)
    if name in axes:
        return name
    found = [axis for axis in axes if axis.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ExpressionError(f'"{name}" could be {" or ".join(found)}: write more of the name')
    known = [*axes, *(axis.rpartition(".")[2] for axis in axes)]
    raise ExpressionError(
        f'"{name}" is not an axis of the sweep with values of its own{hint(name, known)}'
    )


def _names(node: ast.expr, source: str) -> Iterator[str]:
    """The names of axes in a tree; anything else but the arithmetic above is an error."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            yield from _names(left, source)
            yield from _names(right, source)
        case ast.UnaryOp(op, operand) if type(op) in _UNARY:
            yield from _names(operand, source)
        case ast.Call(ast.Name(name), [argument], []):
            if name not in _FUNCTIONS:
                known = ", ".join(_FUNCTIONS)
                raise ExpressionError(f'unknown function "{name}", known: {known}')
            yield from _names(argument, source)
        case ast.Constant(value) if type(value) in (int, float):
            if not _is_finite(value):
                raise ExpressionError(f"numbers must be finite, got {_excerpt(node, source)}")
        case _:
            name = _name_of(node)
            if name is None:
                allowed = "numbers, names of axes, + - * / **, parentheses, sqrt, exp and log"
                raise ExpressionError(f"may have {allowed}, got {_excerpt(node, source)}")
            yield name


def _name_of(node: ast.expr) -> str | None:
    """`scale`, `network.scale` or `"network.scale"`; None of everything else."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(inner, last):
            head = None if isinstance(inner, ast.Constant) else _name_of(inner)
            return None if head is None else f"{head}.{last}"
        case ast.Constant(str(name)):
            return name
    return None


def _evaluate(node: ast.expr, values: Mapping[str, int | float]) -> float:
    match node:
        case ast.BinOp(left, op, right):
            return _BINARY[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.UnaryOp(op, operand):
            return _UNARY[type(op)](_evaluate(operand, values))
        case ast.Call(ast.Name(name), [argument]):
            return _FUNCTIONS[name](_evaluate(argument, values))
        case ast.Constant(int() | float() as value):
            return float(value)
    return float(values[_name_of(node) or ""])


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _excerpt(node: ast.expr, source: str) -> str:
    text = ast.get_source_segment(source, node) or source
    return text if len(text) <= 40 else text[:37] + "..."


def _at(values: Mapping[str, int | float]) -> str:
    shown = {name: f"{x:g}" if _is_finite(x) else f"{str(x)[:8]}…" for name, x in values.items()}
    place = ", ".join(f"{name} = {x}" for name, x in shown.items())
    return f" at {place}" if place else ""
