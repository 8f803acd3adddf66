"""Figures of data sets in one style, and parts from which studies build their own figures.

An axis takes its words from the data set's attributes and its symbol from `SYMBOLS`. Figures are
matplotlib's `Figure` objects, without pyplot: they need no display and no global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddln.plotting._labels import SYMBOLS as SYMBOLS
from ddln.plotting._labels import WORDS as WORDS
from ddln.plotting._labels import axis_label as axis_label
from ddln.plotting._labels import describe as describe
from ddln.plotting._labels import power_label as power_label
from ddln.plotting._labels import value_label as value_label
from ddln.plotting._labels import words as words
from ddln.plotting._network_diagram import network_diagram as network_diagram
from ddln.plotting._style import COLOURS as COLOURS
from ddln.plotting._style import DASHED as DASHED
from ddln.plotting._style import DASHES as DASHES
from ddln.plotting._style import DOTS as DOTS
from ddln.plotting._style import MARKERS as MARKERS
from ddln.plotting._style import StyledFigure as StyledFigure
from ddln.plotting._style import canvas as canvas
from ddln.plotting._style import legend as legend
from ddln.plotting._style import line_styles as line_styles
from ddln.plotting._style import style as style
from ddln.sweeps.accessor import ROUNDING as ROUNDING

CURVES = 64
"""Most curves drawn of one sweep; more could not be distinguished."""
NAMED = 8
"""Most curves named in a legend; of more, it names every other one, every third, and so on."""


def single_networks(dataset: xr.Dataset, over: str | None) -> list[xr.Dataset]:
    """The data set at each value of its dimension `over`; the data set itself if `over` is None.

    At most `CURVES` values, evenly spaced from the first to the last. The coordinate `time` of each
    is flow time, also if it differs from network to network.

    Raises:
        ValueError: a swept axis besides `over` has more than one value.
    """
    others = [str(name) for name in dataset["gap"].dims if name not in (over, "time")]
    if others:
        raise ValueError(f"`dataset` must have one value of each other axis, got {others}.")
    selected = [dataset]
    if over is not None:
        count = dataset.sizes[over]
        indices = np.linspace(0, count - 1, min(count, CURVES)).astype(int)
        drawn = dataset.isel({over: indices}).load()  # at once, not variable by variable
        selected = [drawn.isel({over: i}) for i in range(indices.size)]
    if "flow_time" in dataset:
        return [network.assign_coords(time=network["flow_time"]) for network in selected]
    return selected


def resolved(dataset: xr.Dataset) -> xr.DataArray:
    """The gap, (…, time), with NaN where it is below its rounding error."""
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
    """Draw a curve for each value of one dimension, each with its own colour and marker.

    Args:
        axes: where to draw.
        values: along `over` and one other dimension.
        over: the dimension in which the curves differ.
        against: the abscissa, along the other dimension and perhaps `over`; the other dimension's
            coordinate by default.
        label: names a curve by its value of `over`; `None` leaves the curves without names.
        style: arguments of `Axes.plot`, which override the curve's own colour and marker.

    >>> axes = canvas()[1]
    >>> gaps = xr.DataArray([[1.0, 0.1], [2.0, 0.3]], [("network.scale", [1, 2]), ("time", [0, 1])])
    >>> curves(axes, gaps, "network.scale")
    >>> [line.get_label() for line in axes.lines]
    ['$a$ = 1', '$a$ = 2']
    """
    (along,) = (name for name in values.dims if name != over)
    x, every = values[along] if against is None else against, style.get("markevery")
    for i, line_style in enumerate(line_styles(values.sizes[over])):
        curve, selection = values.isel({over: i}), {over: i} if over in x.dims else {}
        name = None if label is None else label(curve[over])
        # Neighbouring curves have their markers at different points.
        shifted = {"markevery": (i * every // 6 % every, every)} if isinstance(every, int) else {}
        axes.plot(x.isel(selection), curve, label=name, **{**line_style, **style, **shifted})


def levels(axes: Axes, values: Mapping[str, SupportsFloat]) -> None:
    """Draw up to three reference values as grey horizontal lines, with their names for the legend.

    The first line is dotted, the second dashed and the third dashed and dotted.

    >>> axes = canvas()[1]
    >>> levels(axes, {"least squares": 0.1, "minimax rate": 0.4})
    >>> [line.get_label() for line in axes.lines]
    ['least squares', 'minimax rate']
    """
    for (name, value), dashes in zip(values.items(), (DOTS, *DASHES), strict=False):
        axes.axhline(float(value), color="0.5", linestyle=dashes, zorder=0.5, label=name)


def heatmap(axes: Axes, values: xr.DataArray, *, label: str, **style: Any) -> None:
    """Draw values over two axes of a sweep as colours, with a colour bar.

    Args:
        axes: where to draw. Every value of the axes of the sweep has a tick.
        values: the first dimension goes up, the second to the right.
        label: of the colour bar.
        style: arguments of `Axes.pcolormesh`.

    >>> axes = canvas()[1]
    >>> scale, depth = ("network.scale", [1.0, 2.0]), ("network.depth", [2, 3])
    >>> heatmap(axes, xr.DataArray(np.eye(2), [depth, scale]), label="rate")
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('initialisation scale $a$', 'depth $L$')
    """
    rows, columns = (values[name] for name in values.dims)
    style = {"cmap": "cividis", "shading": "nearest", **style}
    colours = axes.pcolormesh(columns, rows, values, **style)
    axes.set(xlabel=axis_label(columns), ylabel=axis_label(rows), xticks=columns, yticks=rows)
    _figure_of(axes).colorbar(colours, ax=axes, label=label)


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
        dataset: of a run; `gap` has dimensions (`over`, time), or (time,) of a single network.
        axes: draw here, without a legend; by default on a new figure with a legend.
        over: the swept axis in which the curves differ; by default the only one, if there is one.
        bounds: up to two variables, drawn dashed in the colour of each curve, and their names for
            the legend; by default `{"bound": "bound of Theorem 2"}`, if the data set has it.
        slope: draw exp(−2 r t) dotted through each curve's end; r is `asymptotic_rate`.
        against: "time", or "step" for the steps of a descent.

    Returns:
        The figure drawn on.

    Raises:
        ValueError: `dataset` has an axis besides `over` and time.

    >>> decay = xr.Dataset({"gap": ("time", [1.0, 0.1])}, {"time": [0.0, 1.0]})
    >>> describe(gap_against_time(decay, bounds={}))
    'loss gap ℒ(θ(t)) - ℒ* against time t.'
    """
    if over is None and dataset["gap"].ndim == 2:
        (over,) = (str(name) for name in dataset["gap"].dims if name != "time")
    if bounds is None:
        bounds = {"bound": "bound of Theorem 2"} if "bound" in dataset else {}
    kinds = dict(zip(bounds.values(), DASHES, strict=False))
    if slope:
        kinds["asymptotic rate"] = DOTS
    target = canvas()[1] if axes is None else axes
    used = {"gap", "flow_time", "asymptotic_rate", against, *bounds}
    drawn = dataset[[name for name in dataset.data_vars if name in used]]
    networks = single_networks(drawn, over)
    if against != "time":
        networks = [network.assign_coords(time=network[against].variable) for network in networks]
    label_every = -(-len(networks) // NAMED)
    for i, (network, line) in enumerate(zip(networks, line_styles(len(networks)), strict=True)):
        named = over is not None and i % label_every == 0
        gap = resolved(network).dropna("time")
        _draw_curve(target, gap, i, label=value_label(network[over]) if named else None, **line)
        for name, dashes in zip(bounds, DASHES, strict=False):
            bound = {**DASHED, "color": line["color"], "linestyle": dashes}
            target.plot(network["time"], network[name], **bound)
        if slope:
            _draw_slope(target, gap, network["asymptotic_rate"].item())
    target.set_yscale("log")
    target.set(xlabel=axis_label(networks[0][against]), ylabel=axis_label(dataset["gap"]))
    _set_limits(target, networks)
    figure = _figure_of(target)
    if axes is None:
        legend(figure, kinds)
    return figure


def _set_limits(axes: Axes, networks: list[xr.Dataset]) -> None:
    """All times, and all gaps above rounding with a margin."""
    # Steps after a network's last are −1.
    times = np.array(
        [np.where(network["time"] < 0, np.nan, network["time"]) for network in networks]
    )
    axes.set_xlim(np.nanmin(times), np.nanmax(times))
    gaps = np.array([resolved(network).values for network in networks])
    lowest, highest = np.nanquantile(gaps, [0, 1]) if np.isfinite(gaps).any() else (1.0, 1.0)
    if lowest < highest:
        margin = (highest / lowest) ** 0.04
        axes.set_ylim(lowest / margin, highest * margin)


@style()
def nodes_against_time(
    dataset: xr.Dataset, axes: Axes | None = None, *, coordinate: int = 0
) -> Figure:
    """One coordinate's node in every layer, u^j_k(t), against flow time.

    A dashed line marks the level ±√λ_jk that node j does not cross; the smallest has none.

    Args:
        dataset: of one network; `layers` has dimensions (time, layer, coordinate).
        axes: draw here, without a legend; by default on a new figure with a legend.
        coordinate: k, counted from 0.

    Returns:
        The figure drawn on.

    Raises:
        ValueError: `dataset` has more than one network.

    Source: Proposition 1, arXiv 2412.16765.
    """
    target = canvas()[1] if axes is None else axes
    (network,) = single_networks(dataset, None)
    nodes = network["layers"].isel(coordinate=coordinate).dropna("layer", how="all")
    levels, k = floor(nodes).values, coordinate + 1
    target.axhline(0, color="0.6", linewidth=0.7, zorder=0)
    for j, (level, line) in enumerate(zip(levels, line_styles(levels.size), strict=True)):
        label = f"$u^{{{j + 1}}}_{{{k}}}$" + (" (smallest)" if np.isnan(level) else "")
        _draw_curve(target, nodes.isel(layer=j).dropna("time"), j, label=label, **line)
        target.axhline(level, color=line["color"], linestyle=DASHES[0], linewidth=1.0, zorder=1)
    target.set(xlabel=axis_label(network["time"]), ylabel=f"node $u^j_{{{k}}}(t)$")
    target.set_xlim(float(nodes["time"].min()), float(nodes["time"].max()))
    figure = _figure_of(target)
    if axes is None:
        legend(figure, {r"floor $\pm\sqrt{\lambda_j}$": DASHES[0]})
    return figure


def floor(layers: xr.DataArray) -> xr.DataArray:
    """The level sign(u^j_k)·√λ_jk that a node does not cross; NaN for the smallest, which may.

    Args:
        layers: (…, time, layer, …); NaN where a network has no such layer.

    Returns:
        The levels, with the same dimensions except time; λ_jk = u^j_k(0)² − min_i u^i_k(0)².

    Source: Proposition 1, arXiv 2412.16765.
    """
    start = layers.isel(time=0)
    excess = start**2 - (start**2).min("layer")
    return (excess**0.5).where(excess > 0) * np.sign(start)


def _draw_slope(axes: Axes, gap: xr.DataArray, rate: float) -> None:
    """Draw exp(−2 r t) through the end of a curve, if the curve has become as steep as that."""
    tail = gap.isel(time=slice(gap.size // 2, None))
    if tail.size < 2:
        return
    end = tail.isel(time=-1)
    line = end * np.exp(-2 * rate * (tail["time"] - end["time"]))
    if abs(np.log(line[-2] / tail[-2])) < 0.1 * np.log(line[-2] / end):
        axes.plot(tail["time"], line, color="0.15", linestyle=DOTS, linewidth=1.3, zorder=4)


def _draw_curve(axes: Axes, values: xr.DataArray, i: int, **line_style: Any) -> None:
    """Draw curve i with a few markers, at other places than its neighbours' markers."""
    # Spacings are fractions of the diagonal, along the curve; an empty curve cannot have them.
    spacing = 0.13 * max(1.0, 0.6 * _relative_variation(values.values))
    markers = (0.02 + 0.03 * (i % 4), spacing) if values.size else None
    axes.plot(values["time"], values, markevery=markers, zorder=3, **line_style)


def _relative_variation(values: np.ndarray) -> float:
    """The total variation over the range, of the logarithm if all are positive; 1 if monotone."""
    heights = np.log(values) if (values > 0).all() else values
    extent = np.ptp(heights) if heights.size else 0.0
    return float(np.abs(np.diff(heights)).sum() / extent) if extent > 0 else 1.0


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("`axes` must belong to a figure.")
    return figure
