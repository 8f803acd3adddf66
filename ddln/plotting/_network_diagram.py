"""The drawing of a diagonal linear network, layer by layer."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ddln.plotting._style import COLOURS, canvas, style

_RADIUS, _PITCH, _SHOWN = 0.34, 1.35, 6
"""The radius of a node, the distance of two layers, and the most layers and features drawn."""


@style()
def network_diagram(depth: int, width: int) -> Figure:
    """Draw the network of `depth` layers in R^`width`: inputs, chains of weights, and their sum.

    Of more than six layers or features, the first four and the last are drawn.

    Args:
        depth: the number of layers, at least 1.
        width: the number of features, at least 1.

    Raises:
        ValueError: `depth` or `width` is not positive.

    Source: Figures 1 and 2, arXiv 2412.16765.

    >>> figure = network_diagram(depth=2, width=5)
    >>> len(figure.axes[0].patches)  # five inputs, two layers of five nodes, and the sum
    16
    """
    if min(depth, width) < 1:
        raise ValueError(f"`depth` and `width` must be at least 1, got {depth} and {width}.")
    columns, rows = _abridge(depth), _abridge(width)
    wide, high = _PITCH * (len(columns) + 2.2), len(rows) + 0.9
    figure, axes = canvas(0.62 * (wide + 1), 0.62 * high)
    axes.set(xlim=(-0.6, wide), ylim=(-len(rows) + 0.05, 0.95), aspect="equal")
    axes.axis("off")
    end = _PITCH * (len(columns) + 1)
    middle = -(len(rows) - 1) / 2
    for row, k in enumerate(rows):
        if k is None:
            for column, j in enumerate([0, *columns]):
                axes.text(_PITCH * column, -row, "" if j is None else r"$\vdots$", ha="center")
        else:
            tint = COLOURS[0] if k == 1 else "0.35"
            _chain(axes, -float(row), k, columns, tint)
            axes.plot([end - _PITCH, end], [-row, middle], color=tint, linewidth=1, zorder=0)
    axes.text(end - 0.4 * _PITCH, 0.35 * middle, r"$\theta_1 x_1$", color=COLOURS[0])
    _node(axes, end, middle, r"$\Sigma$", "0.1", "white")
    axes.annotate(
        r"$\langle x, \theta\rangle$",
        (end + _RADIUS, middle),
        (end + _PITCH, middle),
        va="center",
        arrowprops={"arrowstyle": "<|-", "color": "0.1"},
    )
    for column, j in enumerate(["$x$", *(f"$u^{{{j}}}$" if j else "" for j in columns)]):
        axes.text(_PITCH * column, 0.62, j, ha="center", va="center")
    product = r" \odot ".join(f"u^{{{j}}}" if j else r"\cdots" for j in columns)
    axes.set_title(rf"depth $L$ = {depth}, width $d$ = {width}, $\theta = {product}$")
    return figure


def _chain(axes: Axes, y: float, k: int, columns: list[int | None], tint: str) -> None:
    """One feature's way through the layers: x_k · u^1_k · … · u^L_k."""
    end = _PITCH * len(columns)
    axes.plot([0, end], [y, y], color=tint, linewidth=1, zorder=0)
    _node(axes, 0.0, y, f"$x_{{{k}}}$", tint, "white")
    for x, j in enumerate(columns, start=1):
        if j:
            face = "#dce6f2" if k == 1 else "0.93"
            _node(axes, _PITCH * x, y, f"$u^{{{j}}}_{{{k}}}$", tint, face)
        else:
            axes.text(_PITCH * x, y, r"$\cdots$", ha="center", va="center", backgroundcolor="white")


def _node(axes: Axes, x: float, y: float, text: str, edge: str, face: str) -> None:
    """A circle with a name in it."""
    axes.add_patch(Circle((x, y), _RADIUS, edgecolor=edge, facecolor=face, linewidth=1))
    axes.text(x, y, text, ha="center", va="center", color="0.1")


def _abridge(count: int) -> list[int | None]:
    """1, …, count, with None for the middle that is left out.

    >>> _abridge(9)
    [1, 2, 3, 4, None, 9]
    """
    if count <= _SHOWN:
        return list(range(1, count + 1))
    return [*range(1, _SHOWN - 1), None, count]
