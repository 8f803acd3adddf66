"""Two layers of pixel weights converge to the largest ℓ1 margin (Lyu & Li 2020; real data).

scikit-learn's handwritten threes against eights: 357 images of 64 pixels, signed networks of depths
2 and 3, logistic loss, gradient descent. The classes are separable: the loss goes to 0, θ to
infinity, and its share of the largest margin grows.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.optimize import linprog

import ddln
from ddln import figures

SOURCE = "Lyu and Li 2020"
DEPTH, SCALE = "network.depth", "network.scale"


def largest_margin(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """y_i x_i, and θ of the largest min_i y_i x_iᵀθ with ‖θ‖₁ ≤ 1, by a linear program."""
    features, labels = dataset.ddln.first.samples
    rows = labels[:, None] * features
    doubled = np.hstack([rows, -rows])
    found = linprog(np.ones(doubled.shape[1]), A_ub=-doubled, b_ub=-np.ones(len(rows)))
    positive, negative = np.split(found.x / found.fun, 2)
    signed = xr.DataArray(rows, dims=("sample", "feature"))
    return signed, xr.DataArray(positive - negative, dims="feature")


def margins(dataset: xr.Dataset) -> xr.DataArray:
    """min_i y_i x_iᵀθ / ‖θ‖₁ over the largest there is, along each run."""
    (rows, best), theta = largest_margin(dataset), dataset["predictor"]
    least = xr.dot(rows, theta, dim="feature").min("sample")
    norm = abs(theta).sum("feature")
    return least / norm.where(norm > 0) / xr.dot(rows, best, dim="feature").min()


def smoothed_margins(dataset: xr.Dataset) -> xr.DataArray:
    """−ln(eⁿℒ − 1) / ‖u‖ᴸ once nℒ < ln 2; the flow never lowers it."""
    total = dataset["loss"] * len(dataset.ddln.first.samples[1])
    squares = (dataset["layers"] ** 2).sum(["layer", "coordinate"])
    shrunk = np.log(np.expm1(total.where(total < np.log(2))))
    return -(squares ** (-dataset[DEPTH] / 2)) * shrunk


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """All images are separated, and the margin grows towards its largest."""
    share, smoothed, step = margins(dataset), smoothed_margins(dataset), dataset["step"].values
    end, before = share.isel(time=-1), share.isel(time=int(np.searchsorted(step, step[-1] / 10)))
    growing, is_two = (smoothed / smoothed.shift(time=-1)).max(), dataset[DEPTH] == 2
    return [
        ddln.claim.equal(
            "separated",
            (end <= 0).sum(),
            0,
            tol=0,
            statement="number of networks that misclassify an image at the end",
            why="a count",
            applies=step[-1] >= 100_000,
        ),
        ddln.claim.at_most(
            "largest margin",
            share.max(),
            1.0,
            tol=1e-9,
            statement="largest ℓ1 margin of any θ over that of SciPy's linear program",
            source="by its definition; SciPy's",
            why="rounding in the solution of the program",
        ),
        ddln.claim.at_most(
            "growing",
            growing,
            1.0,
            statement="largest ratio of a smoothed margin to the next saved one, nℒ < ln 2",
            why="a theorem for the flow, and for steps that are small enough",
            applies=np.isfinite(growing),
        ),
        ddln.claim.at_most(
            "towards ℓ1",
            (before / end).where(is_two).max(),
            1.0,
            statement="depth 2: largest ratio of the ℓ1 margin at a tenth of the steps to that at "
            "the end",
            why="it grows as ln t: only the order is claimed",
            applies=step[-1] >= 100_000 and is_two.any(),
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The margin step by step; weights at the end beside those of the largest margin."""
    depths, scales, step = dataset[DEPTH], dataset[SCALE], dataset["step"]
    figure, (left, *images) = figures.canvas(8.6, 3.0, ncols=3, width_ratios=[1.4, 1, 1])
    share = margins(dataset).where(step > 0)
    for depth, dashes in zip(depths, ("-", figures.DASHES[0]), strict=False):
        label = figures.value_label if depth == depths[0] else None
        style = {"against": step, "label": label, "linestyle": dashes, "markevery": 20}
        figures.curves(left, share.sel({DEPTH: depth}), SCALE, **style)
    left.set(xscale="log", xlabel=figures.axis_label(step), ylim=(-1, 1.05))
    left.set(xlim=(10, float(step[-1])), ylabel=r"$\ell_1$ margin over the largest")
    left.axhline(1, color="0.15", linestyle=figures.DOTS)
    end = dataset.ddln.end["predictor"].isel({DEPTH: 0, SCALE: 0})
    title = f"{figures.value_label(depths[0])}, {figures.value_label(scales[0])}"
    ends = {title: end, "largest margin": largest_margin(dataset)[1]}
    for axes, (name, theta) in zip(images, ends.items(), strict=True):
        most = float(abs(theta).max())
        axes.imshow(theta.values.reshape(8, 8), cmap="RdBu", vmin=-most, vmax=most)
        axes.set(title=rf"$\theta$ of {name}", xticks=[], yticks=[])
    figures.legend(figure, {figures.value_label(depth): figures.DASHES[0] for depth in depths[1:]})
    return figure
