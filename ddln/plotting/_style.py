"""The style of figures: colours, markers, fonts, saved files and legends.

Colours are Paul Tol's high-contrast set, which common kinds of colour blindness and greyscale leave
distinct. Curves also differ by their markers, and a theorem's line from a measured one by its
dashes, so that nothing depends on colour alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddln.plotting._labels import describe

COLOURS = ("#004488", "#bb5566", "#ddaa33", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = ((0, (4, 1.6)), (0, (5, 1.5, 1, 1.5)))
DOTS = (0, (1, 1.3))
DASHED: dict[str, Any] = {"linestyle": DASHES[0], "linewidth": 1.2, "marker": ""}
"""A curve from theory, as arguments of `Axes.plot`; it has the colour of the measured one."""

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
    """The figure style, as a context or as a decorator of a study's `draw`.

    >>> with style():
    ...     matplotlib.rcParams["pdf.fonttype"]
    42
    """
    with matplotlib.rc_context(_STYLE):
        yield


def line_styles(count: int) -> list[dict[str, Any]]:
    """The colour and the marker of each of `count` curves, as arguments of `Axes.plot`.

    Up to four curves take `COLOURS`; more take a sequential colour map, from dark to light.

    >>> line_styles(1)
    [{'color': '#004488', 'marker': 'o'}]
    """
    ramp = [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 0.92, count))]
    colours = COLOURS if count <= len(COLOURS) else ramp
    return [{"color": colours[i], "marker": MARKERS[i % len(MARKERS)]} for i in range(count)]


class StyledFigure(Figure):
    """A figure that is saved in the figure style, with its description in the file's metadata.

    The description, `describe(figure)`, is the text `Description` of a PNG or SVG and the subject
    of a PDF.
    """

    def _repr_png_(self) -> bytes:
        """The figure as a PNG, for notebooks: pyplot, which would show it, does not know it."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()

    def savefig(
        self, fname: Any, *, format: str | None = None, metadata: Any = None, **options: Any
    ) -> None:
        kind = format or str(fname).rpartition(".")[2]
        key = "Subject" if kind == "pdf" else "Description"
        description = {key: describe(self)} if kind in ("pdf", "png", "svg") else {}
        with style():
            super().savefig(fname, format=kind, metadata=description | (metadata or {}), **options)


def canvas(width: float = 5.2, height: float = 3.6, **subplots: Any) -> tuple[StyledFigure, Any]:
    """A new figure and its axes.

    Args:
        width: in inches.
        height: in inches.
        subplots: arguments of `Figure.subplots`.
    """
    figure = StyledFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def legend(figure: Figure, kinds: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Add a legend above the figure: its named curves, then kinds of lines.

    Args:
        figure: each name in it appears once.
        kinds: dashes by name, for lines that differ by their dashes rather than their colours.
    """
    curves: dict[str, Any] = {}
    for axes in figure.axes:
        drawn, names = axes.get_legend_handles_labels()
        curves |= dict(zip(names, drawn, strict=True))
    lines = {
        name: Line2D([], [], color="0.3", linestyle=dashes, linewidth=1.2)
        for name, dashes in kinds.items()
    }
    most = max(1, int(figure.get_figwidth() / 1.25))  # entries in a row
    groups = [curves | lines] if len(curves | lines) <= most else [curves, lines]
    rows = [row for group in groups for row in _rows(group, most)]
    columns = max(map(len, rows), default=0)
    blank = (Line2D([], [], linestyle=""), "")
    padded = [row + [blank] * (columns - len(row)) for row in rows]
    entries = [row[i] for i in range(columns) for row in padded]  # matplotlib fills columns first
    if entries:
        handles, names = zip(*entries, strict=True)
        figure.legend(handles, names, loc="outside upper center", ncols=columns, columnspacing=1.4)


def _rows(entries: dict[str, Any], most: int) -> list[list[tuple[Any, str]]]:
    """The entries as (handle, name), in rows of equal length, at most `most`."""
    pairs = [(handle, name) for name, handle in entries.items()]
    count = -(-len(pairs) // most)
    length = -(-len(pairs) // max(count, 1))
    return [pairs[i * length : (i + 1) * length] for i in range(count)]
