"""SVG line charts for the explorer and notebooks.

A chart takes a few milliseconds, a figure of `ddln.figures` half a second. Text and axes have the
text colour of the page, so that charts are legible on light and on dark backgrounds. Colours are
Paul Tol's bright set; curves differ by their dashes or markers as well. Every curve carries its
name and the chart the ranges of its axes (`data-x`, `data-y`), so that tests can read numbers back.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddln.plotting.html import Markup, element, join

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
DASHED, DOTTED, DASH_DOTTED = "7 4", "2 3", "8 3 2 3"
SHAPES = ("circle", "square", "triangle", "diamond")

_CHART_ATTRIBUTES = {"font-size": 12, "font-family": "system-ui, sans-serif", "role": "img"}
_LEFT, _RIGHT, _BOTTOM, _LINE = 58, 16, 42, 17  # margins and line height in pixels
_LETTER = 6.3  # average width in pixels
_LARGEST_COORDINATE = 1e5  # pixels; browsers lose precision beyond


class Curve(NamedTuple):
    """A line through points; NaN breaks it."""

    x: Any
    """Shape (points,)."""
    y: Any
    name: str = ""
    """In the legend; a curve without a name has no entry."""
    colour: int | None = 0
    """Index into `COLOURS`, modulo their number; None is the text colour."""
    dashes: str = ""
    width: float = 1.8
    shape: int | None = None
    """Index into `SHAPES` of its markers, a few along the line; None for no markers."""


class Axis(NamedTuple):
    """An axis: its label and its range."""

    label: str = ""
    low: float | None = None
    """The lower end; by default that of the curves. `high` likewise."""
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
    """A chart of curves with a legend above.

    Args:
        curves: points that are not finite, or not positive on a logarithmic axis, are left out.
        x: the horizontal axis.
        y: the vertical axis.
        size: width and height in pixels.
        square: give both axes the same scale by widening one of them.

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
    x_range = _ends(x, [np.asarray(curve.x, float) for curve in curves])
    y_range = _ends(y, [np.asarray(curve.y, float) for curve in curves])
    if square:
        x_range, y_range = _equal_scales(x_range, y_range, inner)
    x_pixels = _to_pixels(*x_range, x.log, 0.0, inner[0])
    y_pixels = _to_pixels(*y_range, y.log, inner[1], 0.0)
    frame = {"width": inner[0], "height": inner[1], "x": float(_LEFT), "y": top}
    x_ticks, x_unit = _ticks(*x_range, x.log)
    y_ticks, y_unit = _ticks(*y_range, y.log)
    parts = [
        *_grid(x_ticks, x_pixels, frame, is_x=True),
        *_grid(y_ticks, y_pixels, frame, is_x=False),
        element("svg", join(*[_draw(curve, x_pixels, y_pixels) for curve in curves]), frame),
        element("rect", "", {**frame, "fill": "none", "stroke": "currentColor", "opacity": 0.5}),
        _text(x.label + x_unit, _LEFT + inner[0] / 2, height - 6.0, anchor="middle"),
        _text(y.label + y_unit, 0.0, 0.0, anchor="middle", vertical_at=(13.0, top + inner[1] / 2)),
        *_legend(rows, 8.0),
    ]
    names = ", ".join(curve.name for curve in curves if curve.name)
    attributes = {
        "viewBox": f"0 0 {width} {height}",
        "style": f"width: 100%; max-width: {width}px; height: auto; display: block",
        **_CHART_ATTRIBUTES,
        "aria-label": f"{y.label} against {x.label}: {names}",
        "data-x": f"{x_range[0]!r} {x_range[1]!r}",
        "data-y": f"{y_range[0]!r} {y_range[1]!r}",
        "data-log": f"{x.log:d} {y.log:d}",
    }
    return element("svg", join(*parts), attributes)


def beside(*charts: Markup) -> Markup:
    """Charts side by side, or one below the other on a narrow page."""
    cells = [element("div", drawn, {"style": "flex: 0 1 21rem"}) for drawn in charts]
    return element("div", join(*cells), {"style": "display: flex; flex-wrap: wrap; gap: .5rem"})


def subscript(number: int) -> str:
    """A whole number in subscript digits.

    >>> "θ" + subscript(12)
    'θ₁₂'
    """
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _ends(axis: Axis, values: Sequence[np.ndarray]) -> tuple[float, float]:
    """The ends of an axis: its own, or those of the values with a margin."""
    finite = np.concatenate([value.ravel() for value in values])
    finite = finite[np.isfinite(finite) & (finite > (0 if axis.log else -np.inf))]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.1, 1.0)
    if axis.log:
        margin = (high / low) ** 0.04
        ends = low / margin, high * margin
    else:
        margin = 0.05 * (high - low)
        ends = low - margin, high + margin
    low = ends[0] if axis.low is None else float(axis.low)
    high = ends[1] if axis.high is None else float(axis.high)
    if not low < high:
        spread = abs(low) * 0.1 or 0.1
        low, high = low - spread, high + spread
    return low, high


_Range = tuple[float, float]


def _equal_scales(x: _Range, y: _Range, inner: _Range) -> tuple[_Range, _Range]:
    """The ends of both axes, with the shorter axis widened about its middle."""
    scale = max((x[1] - x[0]) / inner[0], (y[1] - y[0]) / inner[1])
    x_middle, y_middle = sum(x) / 2, sum(y) / 2
    x_half, y_half = scale * inner[0] / 2, scale * inner[1] / 2
    return (x_middle - x_half, x_middle + x_half), (y_middle - y_half, y_middle + y_half)


def _to_pixels(
    low: float, high: float, log: bool, start: float, end: float
) -> Callable[[Any], Any]:
    """The map from values on an axis to pixels between `start` and `end`."""
    first, last = (math.log10(low), math.log10(high)) if log else (low, high)

    def to_pixels(values: Any) -> Any:
        values = np.asarray(values, float)
        if log:
            values = np.log10(np.where(values > 0, values, np.nan))
        return np.clip(
            start + (values - first) / (last - first) * (end - start),
            -_LARGEST_COORDINATE,
            _LARGEST_COORDINATE,
        )

    return to_pixels


def _ticks(low: float, high: float, log: bool) -> tuple[list[tuple[float, str]], str]:
    """The ticks of an axis with their labels, and the power of ten by which labels are divided."""
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
    labels = [f"{mark / 10.0**power:.6g}".replace("-", "−") for mark in marks]
    return list(zip(marks, labels, strict=True)), f"  (×{_power(power)})" if power else ""


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _grid(
    ticks: Sequence[tuple[float, str]],
    to_pixels: Callable[[Any], Any],
    frame: Mapping[str, float],
    *,
    is_x: bool,
) -> Iterator[Markup]:
    """The grid lines of one axis and their labels."""
    left, top, width, height = (frame[key] for key in ("x", "y", "width", "height"))
    for value, label in ticks:
        at = float(to_pixels(value))
        if is_x:
            ends = {"x1": left + at, "x2": left + at, "y1": top, "y2": top + height}
            text = _text(label, left + at, top + height + 15, anchor="middle")
        else:
            ends = {"x1": left, "x2": left + width, "y1": top + at, "y2": top + at}
            text = _text(label, left - 6, top + at + 4, anchor="end")
        yield element("line", "", {**ends, "stroke": "currentColor", "opacity": 0.13})
        yield text


def _draw(curve: Curve, x_pixels: Callable[[Any], Any], y_pixels: Callable[[Any], Any]) -> Markup:
    """The line and the markers of a curve; its name appears under the pointer."""
    x, y = x_pixels(curve.x), y_pixels(curve.y)
    style = {
        "fill": "none",
        "stroke": _colour(curve),
        "stroke-width": curve.width,
        "stroke-dasharray": curve.dashes or "none",
        "stroke-linejoin": "round",
    }
    parts = [element("title", curve.name)] if curve.name else []
    parts.append(element("path", "", {"d": _path(x, y), **style}))
    if curve.shape is not None:
        parts += [_marker(*at, curve) for at in _marker_positions(x, y, curve.shape)]
    return element("g", join(*parts), {"data-name": curve.name})


def _path(x: np.ndarray, y: np.ndarray) -> str:
    known = np.isfinite(x) & np.isfinite(y)
    begins = known & ~np.concatenate([[False], known[:-1]])
    return "".join(
        f"{'M' if begin else 'L'}{a:.2f} {b:.2f}"
        for a, b, begin, is_known in zip(x, y, begins, known, strict=True)
        if is_known
    )


def _marker_positions(
    x: np.ndarray, y: np.ndarray, shape: int, count: int = 5
) -> list[tuple[float, float]]:
    """A few points at equal arc lengths, which differ between shapes."""
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not known.size:
        return []
    length = np.append(0.0, np.cumsum(np.hypot(np.diff(x[known]), np.diff(y[known]))))
    fractions = (np.arange(count) + 0.3 + 0.15 * (shape % 4)) / count
    nearest = np.searchsorted(length, fractions * length[-1]).clip(max=known.size - 1)
    return [(float(x[i]), float(y[i])) for i in known[np.unique(nearest)]]


def _marker(x: float, y: float, curve: Curve) -> Markup:
    """The marker of a curve at one point, in pixels."""
    style = {"fill": _colour(curve), "stroke": "none"}
    shape = SHAPES[(curve.shape or 0) % len(SHAPES)]
    if shape == "circle":
        return element("circle", "", {"cx": f"{x:.2f}", "cy": f"{y:.2f}", "r": 3.4, **style})
    corners = {
        "square": ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        "triangle": ((0, -4), (4, 3), (-4, 3)),
        "diamond": ((0, -4.4), (4.4, 0), (0, 4.4), (-4.4, 0)),
    }[shape]
    points = " ".join(f"{x + a:.2f},{y + b:.2f}" for a, b in corners)
    return element("polygon", "", {"points": points, **style})


def _colour(curve: Curve) -> str:
    return "currentColor" if curve.colour is None else COLOURS[curve.colour % len(COLOURS)]


def _legend_rows(curves: Sequence[Curve], width: float) -> list[list[Curve]]:
    """The named curves in rows that fit the width; names longer than a row are shortened."""
    rows: list[list[Curve]] = []
    left, longest = 0.0, int((width - 40) / _LETTER)
    for curve in curves:
        if len(curve.name) > longest:
            curve = curve._replace(name=curve.name[: longest - 1] + "…")
        entry = _entry_width(curve)
        if not rows or entry > left:
            rows.append([])
            left = width
        rows[-1].append(curve)
        left -= entry
    return rows


def _entry_width(curve: Curve) -> float:
    return 40 + _LETTER * len(curve.name)


def _legend(rows: Sequence[Sequence[Curve]], top: float) -> Iterator[Markup]:
    for i, row in enumerate(rows):
        x, y = float(_LEFT), top + _LINE * (i + 0.5)
        for curve in row:
            stroke = {"stroke": _colour(curve), "stroke-width": curve.width}
            dashes = {"stroke-dasharray": curve.dashes or "none"}
            yield element("line", "", {"x1": x, "x2": x + 24, "y1": y, "y2": y, **stroke, **dashes})
            if curve.shape is not None:
                yield _marker(x + 12, y, curve)
            yield _text(curve.name, x + 29, y + 4)
            x += _entry_width(curve)


def _text(
    content: str,
    x: float,
    y: float,
    *,
    anchor: str = "start",
    vertical_at: tuple[float, float] | None = None,
) -> Markup:
    position: dict[str, Any] = {"x": round(x, 2), "y": round(y, 2)}
    if vertical_at is not None:
        position["transform"] = f"translate({vertical_at[0]} {vertical_at[1]:.2f}) rotate(-90)"
    return element("text", content, {**position, "fill": "currentColor", "text-anchor": anchor})
