"""SVG line charts for the explorer and notebooks.

A chart takes some milliseconds where a figure of `ddln.figures` takes half a second, and is drawn
in the reader's own ink, so that it is legible on light and on dark. Colours are Paul Tol's bright
set; curves differ by their dashes or marks as well. Every curve carries its name, and the chart the
range of its axes (`data-x`, `data-y`), from which its numbers can be read back.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddln._internal.html import Markup, element, join

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
DASHED, DOTTED, DASH_DOTTED = "7 4", "2 3", "8 3 2 3"
SHAPES = ("circle", "square", "triangle", "diamond")

_LEFT, _RIGHT, _BOTTOM, _LINE = 58, 16, 42, 17
_LETTER = 6.3  # pixels, on average
_FAR = 1e5  # beyond it a browser's numbers give out


class Curve(NamedTuple):
    """A line through points; NaN breaks it."""

    x: Any
    """Shape (points,)."""
    y: Any
    name: str = ""
    """In the legend; without one, not there."""
    colour: int | None = 0
    """Place in `COLOURS`, again from the first after the last; None is the ink."""
    dashes: str = ""
    width: float = 1.8
    shape: int | None = None
    """Place in `SHAPES` of its marks: a few along the line, or the single point's."""


class Axis(NamedTuple):
    """What is along an axis."""

    label: str = ""
    low: float | None = None
    """Where it begins; None: where the curves do."""
    high: float | None = None
    log: bool = False


def chart(
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    *,
    size: tuple[int, int] = (430, 300),
    square: bool = False,
) -> Markup:
    """The curves on their axes, with a legend above.

    Args:
        curves: at least one point of them finite, and > 0 on a logarithmic axis.
        x, y: the axes.
        size: width and height, pixels.
        square: the same length for 1 on both axes, by widening one of them.

    Returns:
        One `svg` element.

    >>> curve = Curve([0.0, 1.0], [1.0, 0.01], "gap")
    >>> drawn = chart([curve], Axis("t"), Axis("ℒ", 0.01, 1.0, log=True))
    >>> "gap" in drawn, 'data-y="0.01 1.0"' in drawn
    (True, True)
    """
    width, height = size
    rows = _legend_rows([curve for curve in curves if curve.name], float(width - _LEFT))
    top = 8.0 + _LINE * len(rows)
    inner = float(width - _LEFT - _RIGHT), float(height - top - _BOTTOM)
    low_x, high_x = _ends(x, [np.asarray(curve.x, float) for curve in curves])
    low_y, high_y = _ends(y, [np.asarray(curve.y, float) for curve in curves])
    if square:
        (low_x, high_x), (low_y, high_y) = _squared((low_x, high_x), (low_y, high_y), inner)
    across = _to_pixels(low_x, high_x, x.log, 0.0, inner[0])
    up = _to_pixels(low_y, high_y, y.log, inner[1], 0.0)
    frame = {"width": inner[0], "height": inner[1], "x": float(_LEFT), "y": top}
    (ticks_x, unit_x), (ticks_y, unit_y) = (
        _ticks(low_x, high_x, x.log),
        _ticks(low_y, high_y, y.log),
    )
    parts = [
        *_grid(ticks_x, across, frame, is_x=True),
        *_grid(ticks_y, up, frame, is_x=False),
        element("svg", join(*[_drawn(curve, across, up) for curve in curves]), frame),
        element("rect", "", {**frame, "fill": "none", "stroke": "currentColor", "opacity": 0.5}),
        _text(x.label + unit_x, _LEFT + inner[0] / 2, height - 6.0, anchor="middle"),
        _text(y.label + unit_y, 0.0, 0.0, anchor="middle", turn=(13.0, top + inner[1] / 2)),
        *_legend(rows, 8.0),
    ]
    named = ", ".join(curve.name for curve in curves if curve.name)
    attributes = {
        "viewBox": f"0 0 {width} {height}",
        "style": f"width: 100%; max-width: {width}px; height: auto; display: block",
        "font-size": 12,
        "font-family": "system-ui, sans-serif",
        "role": "img",
        "aria-label": f"{y.label} against {x.label}: {named}",
        "data-x": f"{low_x!r} {high_x!r}",
        "data-y": f"{low_y!r} {high_y!r}",
        "data-log": f"{x.log:d} {y.log:d}",
    }
    return element("svg", join(*parts), attributes)


def beside(*charts: Markup) -> Markup:
    """Charts side by side, or one below the other where there is no room."""
    cells = [element("div", drawn, {"style": "flex: 0 1 21rem"}) for drawn in charts]
    return element("div", join(*cells), {"style": "display: flex; flex-wrap: wrap; gap: .5rem"})


def subscript(number: int) -> str:
    """A whole number as an index.

    >>> "θ" + subscript(12)
    'θ₁₂'
    """
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _ends(axis: Axis, values: Sequence[np.ndarray]) -> tuple[float, float]:
    """From where to where an axis goes: as told, or as far as there are values."""
    seen = np.concatenate([value.ravel() for value in values])
    seen = seen[np.isfinite(seen) & (seen > (0 if axis.log else -np.inf))]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.1, 1.0)
    if axis.log:
        room = (high / low) ** 0.04
        ends = low / room, high * room
    else:
        room = 0.05 * (high - low)
        ends = low - room, high + room
    low = ends[0] if axis.low is None else float(axis.low)
    high = ends[1] if axis.high is None else float(axis.high)
    if not low < high:
        spread = abs(low) * 0.1 or 0.1
        low, high = low - spread, high + spread
    return low, high


def _squared(x, y, inner):
    """The ends of both axes, one of them widened about its middle."""
    scale = max((x[1] - x[0]) / inner[0], (y[1] - y[0]) / inner[1])
    return [
        ((low + high - scale * length) / 2, (low + high + scale * length) / 2)
        for (low, high), length in ((x, inner[0]), (y, inner[1]))
    ]


def _to_pixels(
    low: float, high: float, log: bool, start: float, end: float
) -> Callable[[Any], Any]:
    first, last = (math.log10(low), math.log10(high)) if log else (low, high)

    def place(values: Any) -> Any:
        values = np.asarray(values, float)
        if log:
            values = np.log10(np.where(values > 0, values, np.nan))
        return np.clip(start + (values - first) / (last - first) * (end - start), -_FAR, _FAR)

    return place


def _ticks(low: float, high: float, log: bool) -> tuple[list[tuple[float, str]], str]:
    """Where an axis is marked, and with what; and the power of ten that its label is to tell."""
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        if last > first:
            step = -(-(last - first) // 5)
            return [(10.0**k, _power(k)) for k in range(first, last + 1, step)], ""
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(step - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    size = math.floor(math.log10(max(abs(low), abs(high))))
    power = size if size < -2 or size > 4 else 0
    marks = [k * step for k in range(first, last + 1)]
    told = [f"{mark / 10.0**power:.6g}".replace("-", "−") for mark in marks]
    return list(zip(marks, told, strict=True)), f"  (×{_power(power)})" if power else ""


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _grid(ticks, place, frame, is_x):
    left, top, width, height = (frame[key] for key in ("x", "y", "width", "height"))
    for value, words in ticks:
        at = float(place(value))
        if is_x:
            ends = {"x1": left + at, "x2": left + at, "y1": top, "y2": top + height}
            words = _text(words, left + at, top + height + 15, anchor="middle")
        else:
            ends = {"x1": left, "x2": left + width, "y1": top + at, "y2": top + at}
            words = _text(words, left - 6, top + at + 4, anchor="end")
        yield element("line", "", {**ends, "stroke": "currentColor", "opacity": 0.13})
        yield words


def _drawn(curve: Curve, across, up) -> Markup:
    """The curve and its marks, named where the pointer is on it."""
    x, y = across(curve.x), up(curve.y)
    look = {
        "fill": "none",
        "stroke": _ink(curve),
        "stroke-width": curve.width,
        "stroke-dasharray": curve.dashes or "none",
        "stroke-linejoin": "round",
    }
    parts = [element("title", curve.name)] if curve.name else []
    parts.append(element("path", "", {"d": _path(x, y), **look}))
    if curve.shape is not None:
        parts += [_mark(*at, curve) for at in _spread(x, y, curve.shape)]
    return element("g", join(*parts), {"data-name": curve.name})


def _path(x: np.ndarray, y: np.ndarray) -> str:
    known = np.isfinite(x) & np.isfinite(y)
    begins = known & ~np.concatenate([[False], known[:-1]])
    return "".join(
        f"{'M' if begin else 'L'}{a:.2f} {b:.2f}"
        for a, b, begin, is_known in zip(x, y, begins, known, strict=True)
        if is_known
    )


def _spread(x: np.ndarray, y: np.ndarray, shape: int, count: int = 5) -> list[tuple[float, float]]:
    """A few points at equal ways along the curve, each shape's apart from the others'."""
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not known.size:
        return []
    way = np.append(0.0, np.cumsum(np.hypot(np.diff(x[known]), np.diff(y[known]))))
    shares = (np.arange(count) + 0.3 + 0.15 * (shape % 4)) / count
    places = known[np.unique(np.searchsorted(way, shares * way[-1]).clip(max=known.size - 1))]
    return [(float(x[place]), float(y[place])) for place in places]


def _mark(x: float, y: float, curve: Curve) -> Markup:
    look = {"fill": _ink(curve), "stroke": "none"}
    shape = SHAPES[(curve.shape or 0) % len(SHAPES)]
    if shape == "circle":
        return element("circle", "", {"cx": f"{x:.2f}", "cy": f"{y:.2f}", "r": 3.4, **look})
    corners = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "triangle": ((0, -4), (4, 3), (-4, 3)),
        "diamond": ((0, -4.4), (4.4, 0), (0, 4.4), (-4.4, 0)),
    }[shape]
    points = " ".join(f"{x + a:.2f},{y + b:.2f}" for a, b in corners)
    return element("polygon", "", {"points": points, **look})


def _ink(curve: Curve) -> str:
    return "currentColor" if curve.colour is None else COLOURS[curve.colour % len(COLOURS)]


def _legend_rows(curves: Sequence[Curve], room: float) -> list[list[Curve]]:
    rows: list[list[Curve]] = []
    left, longest = 0.0, int((room - 40) / _LETTER)
    for curve in curves:
        if len(curve.name) > longest:
            curve = curve._replace(name=curve.name[: longest - 1] + "…")
        needs = _needs(curve)
        if not rows or needs > left:
            rows.append([])
            left = room
        rows[-1].append(curve)
        left -= needs
    return rows


def _needs(curve: Curve) -> float:
    return 40 + _LETTER * len(curve.name)


def _legend(rows: Sequence[Sequence[Curve]], top: float):
    for i, row in enumerate(rows):
        x, y = float(_LEFT), top + _LINE * (i + 0.5)
        for curve in row:
            stroke = {"stroke": _ink(curve), "stroke-width": curve.width}
            dashes = {"stroke-dasharray": curve.dashes or "none"}
            yield element("line", "", {"x1": x, "x2": x + 24, "y1": y, "y2": y, **stroke, **dashes})
            if curve.shape is not None:
                yield _mark(x + 12, y, curve)
            yield _text(curve.name, x + 29, y + 4)
            x += _needs(curve)


def _text(
    words: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    turn: tuple[float, float] | None = None,
) -> Markup:
    place: dict[str, Any] = {"x": round(x, 2), "y": round(y, 2)}
    if turn is not None:
        place["transform"] = f"translate({turn[0]} {turn[1]:.2f}) rotate(-90)"
    return element("text", words, {**place, "fill": "currentColor", "text-anchor": anchor})
