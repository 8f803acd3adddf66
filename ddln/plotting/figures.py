r"""The house style, and the drawings that studies share.

Colours are Paul Tol's high-contrast set: told apart by every common kind of colour blindness, and
in grey. Curves also differ by their markers, and a theorem's line from a measured one by dashes, so
that nothing depends on colour. Words on an axis come from the dataset's attributes, its symbol from
`SYMBOLS`. All is drawn on `Figure`, never through pyplot: no display, no global state.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddln.plotting._labels import SYMBOLS as SYMBOLS
from ddln.plotting._labels import WORDS as WORDS
from ddln.plotting._labels import axis_label as axis_label
from ddln.plotting._labels import describe as describe
from ddln.plotting._labels import power_label as power_label
from ddln.plotting._labels import value_label as value_label
from ddln.plotting._labels import words as words
from ddln.sweeps.accessor import ROUNDING as ROUNDING

COLOURS = ("#004488", "#bb5566", "#ddaa33", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = ((0, (4, 1.6)), (0, (5, 1.5, 1, 1.5)))
DOTS = (0, (1, 1.3))
CURVES = 64
"""More curves than this are not told apart: of a larger sweep so many are drawn."""
NAMED = 8
"""With more curves than this the legend names every other one, or every third, and so on."""

_STYLE: dict[Any, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 220,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: journals refuse the default, Type 3
}


@contextmanager
def style() -> Iterator[None]:
    """The house style, as a context, or as a decorator of a study's `draw`.

    >>> with style():
    ...     matplotlib.rcParams["pdf.fonttype"]
    42
    """
    with matplotlib.rc_context(_STYLE):
        yield


def looks(count: int) -> list[dict[str, Any]]:
    """Colour and marker of each of `count` curves; beyond four, colours that lighten in order."""
    ramp = [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 0.92, count))]
    colours = COLOURS if count <= len(COLOURS) else ramp
    return [{"color": colours[i], "marker": MARKERS[i % len(MARKERS)]} for i in range(count)]


class HouseFigure(Figure):
    """A figure that is in the house style wherever it is saved, with its description inside.

    The description, `describe(figure)`, is a PNG's text `Description` and a PDF's subject.
    """

    def _repr_png_(self) -> bytes:
        """What a notebook shows, though pyplot does not know of it."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()

    def savefig(
        self, fname: Any, *, format: str | None = None, metadata: Any = None, **options: Any
    ) -> None:
        kind = format or str(fname).rpartition(".")[2]
        key = {"pdf": "Subject"}.get(kind, "Description")
        inside = {key: describe(self)} if kind in ("pdf", "png", "svg") else {}
        with style():
            super().savefig(fname, format=kind, metadata=inside | (metadata or {}), **options)


def canvas(width: float = 5.2, height: float = 3.6, **subplots: Any) -> tuple[HouseFigure, Any]:
    """A figure of `width` × `height` inches and its axes, with `Figure.subplots`' own arguments."""
    figure = HouseFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def lanes(dataset: xr.Dataset, over: str | None) -> list[xr.Dataset]:
    """The dataset at each value of its dimension `over`; itself where `over` is None.

    Of more than `CURVES` values so many, evenly spaced from the first to the last. Each dataset has
    flow time as its coordinate `time`, also where the lanes' times differ.

    Raises:
        ValueError: another swept axis is left, so that a lane would not be one curve.
    """
    left = [str(name) for name in dataset["gap"].dims if name not in (over, "time")]
    if left:
        raise ValueError(f"`dataset` must have one value of each other axis, got {left}.")
    if over is not None:
        count = dataset.sizes[over]
        shown = np.linspace(0, count - 1, min(count, CURVES)).astype(int)
        found = [dataset.isel({over: int(i)}) for i in shown]
    else:
        found = [dataset]
    if "flow_time" in dataset:
        return [lane.assign_coords(time=lane["flow_time"]) for lane in found]
    return found


def resolved(dataset: xr.Dataset) -> xr.DataArray:
    """The gap, (…, time), with NaN where it is lost in rounding."""
    return dataset.ddln.resolved_gap


def curves(
    axes: Axes,
    values: xr.DataArray,
    over: str,
    *,
    against: xr.DataArray | None = None,
    label: Callable[[xr.DataArray], str] | None = value_label,
    **style: Any,
) -> None:
    """Draw a curve for each value of one dimension, in a colour and with a marker of its own.

    Args:
        axes: where to draw.
        values: along `over` and one other dimension.
        over: the dimension that tells the curves apart.
        against: the abscissa, along the other dimension and perhaps `over`; the other dimension's
            coordinate by default.
        label: gives a curve's name of its value of `over`; `None` for curves without names.
        style: passed to `Axes.plot`; it overrides the curve's own colour and marker.

    >>> axes = canvas()[1]
    >>> gaps = xr.DataArray([[1.0, 0.1], [2.0, 0.3]], [("network.scale", [1, 2]), ("time", [0, 1])])
    >>> curves(axes, gaps, "network.scale")
    >>> [line.get_label() for line in axes.lines]
    ['$a$ = 1', '$a$ = 2']
    """
    (along,) = (name for name in values.dims if name != over)
    x, every = values[along] if against is None else against, style.get("markevery")
    for i, look in enumerate(looks(values.sizes[over])):
        curve, place = values.isel({over: i}), {over: i} if over in x.dims else {}
        name = None if label is None else label(curve[over])
        # Markers apart from those of the curves beside it.
        shifted = {"markevery": (i * every // 6 % every, every)} if isinstance(every, int) else {}
        axes.plot(x.isel(place), curve, label=name, **{**look, **style, **shifted})


def ticks_at(axes: Axes, values: xr.DataArray) -> None:
    """Mark these values on the x axis as plain numbers, and no others."""
    axes.set_xticks(values.values, [f"{value:.2g}" for value in values.values])
    axes.set_xticks([], minor=True)


@style()
def gap_against_time(
    dataset: xr.Dataset,
    axes: Axes | None = None,
    *,
    over: str | None = None,
    bounds: Mapping[str, str] | None = None,
    slope: bool = False,
    against: str = "time",
) -> Figure:
    """The gap ℒ − ℒ* on a logarithmic axis against flow time, a curve for each value of `over`.

    Args:
        dataset: a run's; `gap` has dimensions (`over`, time), or (time,) where `over` is None.
        axes: where to draw, without a legend; a new figure with one where None.
        over: the swept axis that tells the curves apart.
        bounds: up to two variables drawn broken beside each curve in its colour, and their names
            for the legend; where None `{"bound": "bound of Theorem 2"}`, or none of a descent.
        slope: draw exp(−2 r t) through each curve's end, dotted; r is the lane's `asymptotic_rate`.
        against: "time", or "step" for a descent's steps.

    Returns:
        The figure drawn on.

    Raises:
        ValueError: `dataset` has an axis besides `over` and time.

    >>> decay = xr.Dataset({"gap": ("time", [1.0, 0.1])}, {"time": [0.0, 1.0]})
    >>> describe(gap_against_time(decay, bounds={}))
    'loss gap ℒ(θ(t)) - ℒ* against time t.'
    """
    if bounds is None:
        bounds = {"bound": "bound of Theorem 2"} if "bound" in dataset else {}
    kinds = dict(zip(bounds.values(), DASHES, strict=False))
    if slope:
        kinds["asymptotic rate"] = DOTS
    place = canvas()[1] if axes is None else axes
    curves = lanes(dataset, over)
    if against != "time":
        curves = [lane.assign_coords(time=lane[against].variable) for lane in curves]
    for i, (lane, look) in enumerate(zip(curves, looks(len(curves)), strict=True)):
        named = over is not None and i % -(-len(curves) // NAMED) == 0
        label = value_label(lane[over]) if named else None
        gap = resolved(lane).dropna("time")
        _curve(place, gap, i, label=label, zorder=3, **look)
        for name, dashes in zip(bounds, DASHES, strict=False):
            place.plot(
                lane["time"], lane[name], color=look["color"], linestyle=dashes, linewidth=1.2
            )
        if slope:
            _draw_slope(place, gap, lane["asymptotic_rate"].item())
    # Steps after a lane's last are −1.
    times = np.array([np.where(lane["time"] < 0, np.nan, lane["time"]) for lane in curves])
    place.set(
        yscale="log", xlabel=axis_label(curves[0][against]), ylabel=axis_label(dataset["gap"])
    )
    place.set_xlim(np.nanmin(times), np.nanmax(times))
    gaps = np.array([resolved(lane).values for lane in curves])
    lowest, highest = np.nanquantile(gaps, [0, 1]) if np.isfinite(gaps).any() else (1.0, 1.0)
    if lowest < highest:
        margin = (highest / lowest) ** 0.04
        place.set_ylim(lowest / margin, highest * margin)
    figure = _figure(place)
    if axes is None:
        legend(figure, kinds)
    return figure


@style()
def nodes_against_time(
    dataset: xr.Dataset, axes: Axes | None = None, *, coordinate: int = 0
) -> Figure:
    """One coordinate's node in every layer, u^j_k(t), against flow time.

    Dashed is the level ±√λ_jk that node j does not cross; the smallest has none (Proposition 1).

    Args:
        dataset: one lane's; `layers` has dimensions (time, layer, coordinate).
        axes: where to draw, without a legend; a new figure with one where None.
        coordinate: k, counted from 0.

    Returns:
        The figure drawn on.

    Raises:
        ValueError: `dataset` is more than one lane.
    """
    place = canvas()[1] if axes is None else axes
    (lane,) = lanes(dataset, None)
    nodes = lane["layers"].isel(coordinate=coordinate).dropna("layer", how="all")
    levels, k = floor(nodes).values, coordinate + 1
    place.axhline(0, color="0.6", linewidth=0.7, zorder=0)
    for j, (level, look) in enumerate(zip(levels, looks(levels.size), strict=True)):
        label = f"$u^{{{j + 1}}}_{{{k}}}$" + (" (smallest)" if np.isnan(level) else "")
        _curve(place, nodes.isel(layer=j).dropna("time"), j, label=label, **look)
        place.axhline(level, color=look["color"], linestyle=DASHES[0], linewidth=1.0, zorder=1)
    place.set(xlabel=axis_label(lane["time"]), ylabel=f"node $u^j_{{{k}}}(t)$")
    place.set_xlim(float(nodes["time"].min()), float(nodes["time"].max()))
    figure = _figure(place)
    if axes is None:
        legend(figure, {r"floor $\pm\sqrt{\lambda_j}$": DASHES[0]})
    return figure


def floor(layers: xr.DataArray) -> xr.DataArray:
    """The level sign(u^j_k)·√λ_jk that a node does not cross; NaN for the smallest, which may.

    Args:
        layers: (…, time, layer, …); NaN where a network has no such layer.

    Returns:
        The same without time; λ_jk = u^j_k(0)² − min_i u^i_k(0)² (Proposition 1).
    """
    start = layers.isel(time=0)
    excess = start**2 - (start**2).min("layer")
    return (excess**0.5).where(excess > 0) * np.sign(start)


def legend(figure: Figure, kinds: Mapping[str, Any]) -> None:
    """Above the figure: its named curves, once each, then the kinds of line, name to dashes."""
    curves: dict[str, Any] = {}
    for axes in figure.axes:
        drawn, names = axes.get_legend_handles_labels()
        curves |= dict(zip(names, drawn, strict=True))
    lines = {
        name: Line2D([], [], color="0.3", linestyle=dashes, linewidth=1.2)
        for name, dashes in kinds.items()
    }
    room = max(1, int(figure.get_figwidth() / 1.25))
    groups = [curves | lines] if len(curves | lines) <= room else [curves, lines]
    rows = [row for group in groups for row in _rows(group, room)]
    columns = max(map(len, rows), default=0)
    blank = (Line2D([], [], linestyle=""), "")
    padded = [row + [blank] * (columns - len(row)) for row in rows]
    entries = [row[i] for i in range(columns) for row in padded]  # matplotlib fills columns first
    if entries:
        handles, names = zip(*entries, strict=True)
        figure.legend(handles, names, loc="outside upper center", ncols=columns, columnspacing=1.4)


def _draw_slope(axes: Axes, gap: xr.DataArray, rate: float) -> None:
    """exp(−2 r t) through the curve's end, unless the curve is not yet as steep as that."""
    tail = gap.isel(time=slice(gap.size // 2, None))
    if tail.size < 2:
        return
    end = tail.isel(time=-1)
    line = end * np.exp(-2 * rate * (tail["time"] - end["time"]))
    if abs(np.log(line[-2] / tail[-2])) < 0.1 * np.log(line[-2] / end):
        axes.plot(tail["time"], line, color="0.15", linestyle=DOTS, linewidth=1.3, zorder=4)


def _rows(entries: dict[str, Any], room: int) -> list[list[tuple[Any, str]]]:
    """The entries as (handle, name), in rows of equal length, at most `room`."""
    pairs = [(handle, name) for name, handle in entries.items()]
    count = -(-len(pairs) // room)
    length = -(-len(pairs) // max(count, 1))
    return [pairs[i * length : (i + 1) * length] for i in range(count)]


def _curve(axes: Axes, values: xr.DataArray, i: int, **look: Any) -> None:
    """Curve i, its markers apart from its neighbours', and few also where it goes up and down."""
    # In shares of the diagonal, along the curve; matplotlib cannot place those on an empty one.
    far = 0.13 * max(1.0, 0.6 * _ups_and_downs(values.values))
    spread = (0.02 + 0.03 * (i % 4), far) if values.size else None
    axes.plot(values["time"], values, markevery=spread, **look)


def _ups_and_downs(values: np.ndarray) -> float:
    """The way up and down over the height; 1 of what only falls."""
    height = np.log(values) if (values > 0).all() else values
    extent = np.ptp(height) if height.size else 0.0
    return float(np.abs(np.diff(height)).sum() / extent) if extent > 0 else 1.0


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("`axes` must belong to a figure.")
    return figure
