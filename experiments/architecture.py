"""A deep diagonal linear network is a chain of weights per feature (arXiv 2412.16765, Figures 1–2).

Drawn from each depth and width in the dataset. Large networks are abridged, never squeezed.
"""

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import ddln
from ddln import figures

SOURCE = "Figures 1 and 2"
RADIUS, PITCH, SHOWN = 0.34, 1.35, 6


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The output is ⟨x, θ⟩ with θ the product of the layers."""
    product = dataset["layers"].prod("layer")
    error = abs(product - dataset["theta"]).max() / abs(dataset["theta"]).max()
    return [
        ddln.claim.at_most(
            "product",
            error,
            0.0,
            tol=1e-12,
            statement="θ is the product of the layers, entry by entry: largest relative difference",
            why="rounding in a product of a few factors",
        )
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """A drawing for each depth."""
    depths = dataset["layers"].isel(time=0, coordinate=0).notnull().sum("layer").values.ravel()
    width = dataset.sizes["coordinate"]
    return {
        f"architecture_depth_{depth}": draw_network(int(depth), width)
        for depth in sorted(set(depths))
    }


def draw_network(depth: int, width: int) -> Figure:
    """The network of `depth` layers in R^`width`: inputs, layers, and the sum of the chains."""
    columns, rows = abridge(depth), abridge(width)
    wide, high = PITCH * (len(columns) + 2.2), len(rows) + 0.9
    figure, axes = figures.canvas(0.62 * (wide + 1), 0.62 * high)
    axes.set(xlim=(-0.6, wide), ylim=(-len(rows) + 0.05, 0.95), aspect="equal")
    axes.axis("off")
    end = PITCH * (len(columns) + 1)
    middle = -(len(rows) - 1) / 2
    for row, k in enumerate(rows):
        if k is None:
            for column, j in enumerate([0, *columns]):
                axes.text(PITCH * column, -row, "" if j is None else r"$\vdots$", ha="center")
        else:
            tint = figures.COLOURS[0] if k == 1 else "0.35"
            draw_chain(axes, -row, k, columns, tint)
            axes.plot([end - PITCH, end], [-row, middle], color=tint, linewidth=1, zorder=0)
    axes.text(end - 0.4 * PITCH, 0.35 * middle, r"$\theta_1 x_1$", color=figures.COLOURS[0])
    draw_node(axes, end, middle, r"$\Sigma$", "0.1", "white")
    axes.annotate(
        r"$\langle x, \theta\rangle$",
        (end + RADIUS, middle),
        (end + PITCH, middle),
        va="center",
        arrowprops={"arrowstyle": "<|-", "color": "0.1"},
    )
    for column, j in enumerate(["$x$", *(f"$u^{{{j}}}$" if j else "" for j in columns)]):
        axes.text(PITCH * column, 0.62, j, ha="center", va="center")
    product = r" \odot ".join(f"u^{{{j}}}" if j else r"\cdots" for j in columns)
    axes.set_title(rf"depth $L$ = {depth}, width $d$ = {width}, $\theta = {product}$")
    return figure


def draw_chain(axes: Axes, y: float, k: int, columns: list[int | None], tint: str) -> None:
    """One feature's way through the layers: x_k · u^1_k · … · u^L_k."""
    end = PITCH * len(columns)
    axes.plot([0, end], [y, y], color=tint, linewidth=1, zorder=0)
    draw_node(axes, 0, y, f"$x_{{{k}}}$", tint, "white")
    for x, j in enumerate(columns, start=1):
        if j:
            face = "#dce6f2" if k == 1 else "0.93"
            draw_node(axes, PITCH * x, y, f"$u^{{{j}}}_{{{k}}}$", tint, face)
        else:
            axes.text(PITCH * x, y, r"$\cdots$", ha="center", va="center", backgroundcolor="white")


def draw_node(axes: Axes, x: float, y: float, text: str, edge: str, face: str) -> None:
    """A circle with a name in it."""
    axes.add_patch(Circle((x, y), RADIUS, edgecolor=edge, facecolor=face, linewidth=1))
    axes.text(x, y, text, ha="center", va="center", color="0.1")


def abridge(count: int) -> list[int | None]:
    """1, …, count, with None for the middle that is left out.

    >>> abridge(9)
    [1, 2, 3, 4, None, 9]
    """
    if count <= SHOWN:
        return list(range(1, count + 1))
    return [*range(1, SHOWN - 1), None, count]
