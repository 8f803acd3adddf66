"""Two layers of pixel weights converge to the largest ℓ1 margin (Lyu & Li 2020; real data).

scikit-learn's handwritten threes against eights are 357 images of 64 pixels. Gradient descent
trains signed networks of depths 2 and 3 on the logistic loss. Some θ separates the classes, so the
loss goes to 0, θ goes to infinity, and the margin min_i y_i x_iᵀθ / ‖θ‖₁ grows. The theorem is
about the smoothed margin −ln(eⁿℒ − 1) / ‖u‖ᴸ, which the flow never lowers once nℒ < ln 2.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Lyu and Li 2020"
DEPTH, SCALE = "network.depth", "network.scale"


def margins(dataset: xr.Dataset) -> xr.DataArray:
    """The ℓ1 margin over the largest there is, along each run."""
    return dataset.ddln.relative_margin(dataset["predictor"], norm=1)


def smoothed_margins(dataset: xr.Dataset) -> xr.DataArray:
    """−ln(eⁿℒ − 1) / ‖u‖ᴸ where nℒ < ln 2."""
    total = dataset["loss"] * dataset.ddln.first.problem.samples
    squares = (dataset["layers"] ** 2).sum(["layer", "coordinate"])
    return -np.log(np.expm1(total.where(total < np.log(2)))) * squares ** (-dataset[DEPTH] / 2)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """All images are separated, and the margin grows towards its largest."""
    share, smoothed, step = margins(dataset), smoothed_margins(dataset), dataset["step"].values
    end, before = share.isel(time=-1), share.isel(time=int(np.searchsorted(step, step[-1] / 10)))
    wrong, falls = (end <= 0).sum(), (smoothed / smoothed.shift(time=-1)).max()
    finished, is_two = step[-1] >= 100_000, dataset[DEPTH] == 2
    flow = "a theorem for the flow, and for steps that are small enough"
    scipy, exact = "by its definition; SciPy's", "rounding in the linear program"
    slow = "it grows as ln t: only the order is claimed"
    gain, has_two = (before / end).where(is_two).max(), finished and is_two.any()
    return [
        ddln.claim.equal("misclassified images", wrong, 0, why="a count", applies=finished),
        ddln.claim.at_most(
            "ℓ1 margin over the largest", share.max(), 1.0, tol=1e-9, why=exact, source=scipy
        ),
        ddln.claim.at_most(
            "smoothed margin over the next one", falls, 1.0, why=flow, applies=np.isfinite(falls)
        ),
        ddln.claim.at_most(
            "depth 2: ℓ1 margin after k/10 over k steps", gain, 1.0, why=slow, applies=has_two
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
    end = dataset.ddln.end["predictor"].isel({DEPTH: 0, SCALE: 0}).values
    title = f"{figures.value_label(depths[0])}, {figures.value_label(scales[0])}"
    best = theory.max_margin(dataset.ddln.first.problem.unsigned, norm=1)
    for axes, (name, theta) in zip(
        images, {title: end, "largest margin": best}.items(), strict=True
    ):
        most = float(abs(theta).max())
        axes.imshow(theta.reshape(8, 8), cmap="RdBu", vmin=-most, vmax=most)
        axes.set(title=rf"$\theta$ of {name}", xticks=[], yticks=[])
    figures.legend(figure, {figures.value_label(depth): figures.DASHES[0] for depth in depths[1:]})
    return figure
