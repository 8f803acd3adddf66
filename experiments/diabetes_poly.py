"""From a small initialisation the time average follows the lasso path (Berthier 2023; real data).

Signed networks of depths 2 and 3 on scikit-learn's diabetes data with products and squares, 64
features. Among all models with the same loss the lasso's has the least ℓ1 norm. The ℓ1 norm of the
time average θ̄(t) = (1/t) ∫₀ᵗ θ comes near it from small starts, once the loss has half fallen.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Berthier 2023"
DEPTH, SCALE = "network.depth", "network.scale"


def lasso(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Losses along the lasso's path, falling, and the ℓ1 norms there; by scikit-learn."""
    from sklearn.linear_model import lasso_path

    features, targets = dataset.ddln.first.samples
    strengths: Any = np.geomspace(2.0, 1e-3, 160)
    _, weights, _ = lasso_path(features, targets, alphas=strengths, tol=1e-6, max_iter=100_000)
    misfit = features @ weights - targets[:, None]
    return (misfit**2).mean(axis=0) / 2, abs(weights).sum(axis=0)


def averages(dataset: xr.Dataset) -> xr.Dataset:
    """θ̄, its loss and its ℓ1 norm, from the second saved time on."""
    features, targets = dataset.ddln.first.samples
    mean = dataset.ddln.time_average(dataset["predictor"])
    predictions = xr.dot(xr.DataArray(features, dims=("sample", "feature")), mean, dim="feature")
    misfit = predictions - xr.DataArray(targets, dims="sample")
    loss = (misfit**2).mean("sample") / 2
    return xr.Dataset({"theta": mean, "loss": loss, "norm": abs(mean).sum("feature")})


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The lasso's norm is the least, and a smaller start comes nearer to it."""
    (losses, norms), found, scale = lasso(dataset), averages(dataset), dataset[SCALE]
    loss, start = found["loss"], found["loss"].isel(time=0)
    least = xr.apply_ufunc(lambda at: np.interp(at, losses[::-1], norms[::-1]), loss)
    compared = (loss > losses[-1]) & (loss < start - 0.5 * (start - losses[-1]))
    ratio = (found["norm"] / least).where(compared)
    mean, is_small = ratio.mean("time"), scale[0] <= 1e-3 and dataset[DEPTH][0] == 2
    small, growth = mean[{SCALE: 0, DEPTH: 0}] - 1, mean / mean.shift({SCALE: -1})
    path: Any = {"source": "Tibshirani 1996", "why": "interpolation between penalties 5 % apart"}
    why = "of order 1 / ln(1/ε) as in lasso_path, ε the scale squared; its constant as 1"
    rate = {"tol": 1 / (2 * np.log(1 / scale[0])), "why": why, "applies": is_small}
    return [
        ddln.claim.at_most("‖lasso‖₁ / ‖θ̄‖₁ at one loss", 1 / ratio.min(), 1.0, tol=1e-3, **path),
        ddln.claim.at_most("mean excess of ‖θ̄‖₁, depth 2", small, 0.0, **rate),
        ddln.claim.at_most("mean ratio over that at the next scale", growth.max(), 1.0),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Loss against ℓ1 norm beside the lasso's; the weights along the path of the smallest start."""
    depths, scales = dataset[DEPTH], dataset[SCALE]
    figure, (*panels, last) = figures.canvas(8.6, 3.2, ncols=depths.size + 1)
    found, (losses, norms) = averages(dataset), lasso(dataset)
    norm = r"$\|\bar\theta\|_1$, $\bar\theta = \frac{1}{t}\int_0^t \theta$"
    for depth, axes in zip(depths, panels, strict=True):
        one = found.sel({DEPTH: depth})
        figures.curves(axes, one["loss"], SCALE, against=one["norm"], markevery=40)
        axes.plot(norms, losses, color="0.15", linestyle=figures.DASHES[0], zorder=4)
        axes.set(title=figures.value_label(depth), xlabel=norm)
        axes.set(xlim=(0, 1.2 * norms[-1]), ylim=(0.97 * losses[-1], 0.51))
    panels[0].set_ylabel(r"loss $\mathcal{L}(\bar\theta)$")
    first = found.isel({DEPTH: 0, SCALE: 0})
    last.plot(first["norm"], first["theta"].transpose("time", "feature"), linewidth=0.9)
    last.set(title=f"{figures.value_label(depths[0])}, {figures.value_label(scales[0])}")
    last.set(xlabel=norm, ylabel=r"$\bar\theta_j$", xlim=(0, norms[-1]), ylim=(-0.6, 0.6))
    figures.legend(figure, {"lasso": figures.DASHES[0]})
    return figure
