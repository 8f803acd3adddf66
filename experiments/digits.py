"""Two layers of pixel weights go to the largest ℓ1 margin (Lyu & Li 2020; real data).

scikit-learn's handwritten threes against eights: 357 images of 64 pixels, signed networks of depths
2 and 3, logistic loss, gradient descent. The classes are separable: the loss goes to 0, θ to
infinity, and what it has of the margin grows.
"""

from functools import cache

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config import datasets
from ddln.config.experiment import parse

DEPTH, SCALE = "network.depth", "network.scale"


@cache
def samples(config: str) -> tuple[np.ndarray, np.ndarray]:
    """y_i x_i, and θ of the largest min_i y_i x_iᵀθ among ‖θ‖₁ ≤ 1, a linear program's."""
    from scipy.optimize import linprog

    features, labels = datasets.draw(parse(config).problem.data)
    rows = labels[:, None] * features
    doubled = np.hstack([rows, -rows])
    found = linprog(np.ones(doubled.shape[1]), A_ub=-doubled, b_ub=-np.ones(len(rows)))
    positive, negative = np.split(found.x / found.fun, 2)
    return rows, positive - negative


def margins(dataset: xr.Dataset) -> xr.DataArray:
    """min_i y_i x_iᵀθ / ‖θ‖₁ over the largest there is, along each run."""
    rows, best = samples(dataset.attrs["config"])
    theta = dataset["predictor"]
    least = xr.dot(xr.DataArray(rows, dims=("sample", "feature")), theta, dim="feature")
    norm = abs(theta).sum("feature")
    return (least.min("sample") / norm.where(norm > 0)) / (rows @ best).min()


def smoothed_margins(dataset: xr.Dataset) -> xr.DataArray:
    """−ln(eⁿℒ − 1) / ‖u‖ᴸ once nℒ < ln 2, which the flow never lowers."""
    total = dataset["loss"] * len(samples(dataset.attrs["config"])[0])
    squares = (dataset["layers"] ** 2).sum(["layer", "coordinate"])
    return (-np.log(np.expm1(total)) / squares ** (dataset[DEPTH] / 2)).where(total < np.log(2))


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """All images are told apart, and the margin grows towards its largest."""
    share, smoothed = margins(dataset), smoothed_margins(dataset)
    last, is_as_long = share.isel(time=-1), int(dataset["step"][-1]) >= 100_000
    growing = (smoothed / smoothed.shift(time=-1)).max()
    before = share.isel(time=int(np.searchsorted(dataset["step"], dataset["step"][-1] / 10)))
    is_two = dataset[DEPTH] == 2
    return [
        ddln.Claim(
            name="separated",
            source="Lyu and Li 2020",
            statement="how many of the networks have an image on the wrong side at the end",
            measured=float((last <= 0).sum()),
            predicted=0.0,
            tolerance=0.0,
            reason="a count",
            applies=is_as_long,
        ),
        ddln.Claim(
            name="largest margin",
            source="by its definition; SciPy's",
            statement="largest ℓ1 margin of any θ over that of SciPy's linear program",
            measured=float(share.max()),
            predicted=1.0,
            tolerance=1e-9,
            relation="<=",
            reason="rounding in the program's solution",
        ),
        ddln.Claim(
            name="growing",
            source="Lyu and Li 2020",
            statement="largest ratio of a smoothed margin to the next saved one, nℒ < ln 2",
            measured=float(growing),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="a theorem for the flow, and for steps that are small enough",
            applies=bool(np.isfinite(growing)),
        ),
        ddln.Claim(
            name="towards ℓ1",
            source="Lyu and Li 2020",
            statement="depth 2: largest ratio of the ℓ1 margin at a tenth of the steps to that at "
            "the end",
            measured=float((before / last).where(is_two).max()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="it grows as ln t: only the order is claimed",
            applies=is_as_long and bool(is_two.any()),
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The margin step by step; weights at the end beside those of the largest margin."""
    depths, scales, step = dataset[DEPTH], dataset[SCALE], dataset["step"]
    figure, panels = figures.canvas(8.6, 3.0, ncols=3, width_ratios=[1.4, 1, 1])
    share = margins(dataset).where(step > 0)
    for depth, dashes in zip(depths, ("-", figures.DASHES[0]), strict=False):
        for scale, look in zip(scales, figures.looks(scales.size), strict=True):
            name = figures.value_label(scale) if depth == depths[0] else None
            look |= {"linestyle": dashes, "markevery": 20}
            panels[0].plot(step, share.sel({DEPTH: depth, SCALE: scale}), label=name, **look)
    panels[0].set(xscale="log", xlabel=figures.axis_label(step), ylim=(-1, 1.05))
    panels[0].set(xlim=(10, float(step[-1])), ylabel=r"$\ell_1$ margin over the largest")
    panels[0].axhline(1, color="0.15", linestyle=figures.DOTS)
    end = dataset["predictor"].isel(time=-1).isel({DEPTH: 0, SCALE: 0}).values
    title = f"{figures.value_label(depths[0])}, {figures.value_label(scales[0])}"
    best = samples(dataset.attrs["config"])[1]
    for axes, theta, name in zip(panels[1:], (end, best), (title, "largest margin"), strict=True):
        most = abs(theta).max()
        axes.imshow(theta.reshape(8, 8), cmap="RdBu", vmin=-most, vmax=most)
        axes.set(title=rf"$\theta$ of {name}", xticks=[], yticks=[])
    kinds = {figures.value_label(depth): figures.DASHES[0] for depth in depths[1:]}
    figures.legend(figure, kinds)
    return figure
