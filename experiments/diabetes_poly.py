"""From a small initialisation the time average follows the lasso path (Berthier 2023; real data).

scikit-learn's diabetes with products and squares, 64 features; signed networks of depths 2 and 3.
Of all models that fit as well, the lasso's has the least ℓ1 norm; the time average of θ comes near
it from small starts, not from large ones.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Berthier 2023"
DEPTH, SCALE = "network.depth", "network.scale"
NORM = r"$\|\bar\theta\|_1$, $\bar\theta = \frac{1}{t}\int_0^t \theta$"
FITTED = 0.5
"""Paths are compared after this share of the fall of the loss: earlier they have few weights."""


def lasso(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Losses along the lasso's path, falling, and the ℓ1 norms there; by scikit-learn."""
    from sklearn.linear_model import lasso_path

    features, targets = dataset.ddln.first.samples
    strengths: Any = np.geomspace(2.0, 1e-3, 160)
    _, weights, _ = lasso_path(features, targets, alphas=strengths, tol=1e-6, max_iter=100_000)
    misfit = features @ weights - targets[:, None]
    return (misfit**2).mean(axis=0) / 2, abs(weights).sum(axis=0)


def averages(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """θ̄(t) = ∫₀ᵗ θ / t, its loss and its ℓ1 norm, from the second saved time on."""
    features, targets = dataset.ddln.first.samples
    integral = dataset["predictor"].cumulative_integrate("time").isel(time=slice(1, None))
    mean = integral / integral["time"]
    predictions = xr.dot(xr.DataArray(features, dims=("sample", "feature")), mean, dim="feature")
    misfit = predictions - xr.DataArray(targets, dims="sample")
    return mean, (misfit**2).mean("sample") / 2, abs(mean).sum("feature")


def excess(dataset: xr.Dataset) -> xr.DataArray:
    """The ℓ1 norm over the lasso's at the same loss, where that is on its path."""
    losses, norms = lasso(dataset)
    _, loss, norm = averages(dataset)
    least = xr.apply_ufunc(lambda at: np.interp(at, losses[::-1], norms[::-1]), loss)
    start = loss.isel(time=0)
    is_compared = (loss > losses[-1]) & (loss < start - FITTED * (start - losses[-1]))
    return (norm / least).where(is_compared)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """How far the averages are above the lasso's norm."""
    ratio, scale = excess(dataset), dataset[SCALE]
    mean = ratio.mean("time")
    return [
        ddln.claim.at_most(
            "lasso is least",
            1 / ratio.min(),
            1.0,
            tol=1e-3,
            statement="largest ℓ1 norm of the lasso over that of θ̄ at the same loss",
            source="Tibshirani 1996",
            why="strengths are 5 % apart and norms interpolated: 0.05²/8, or a few times that "
            "where an entry joins",
        ),
        ddln.claim.at_most(
            "small start",
            mean.isel({SCALE: 0, DEPTH: 0}) - 1,
            0.0,
            tol=1 / (2 * np.log(1 / scale[0])),
            statement="mean excess of the ℓ1 norm over the lasso's, smallest scale at depth 2",
            why="of order 1 / ln(1/ε) as in lasso_path, ε the scale squared; its constant as 1",
            applies=scale[0] <= 1e-3 and dataset[DEPTH][0] == 2,
        ),
        ddln.claim.at_most(
            "order",
            (mean / mean.shift({SCALE: -1})).max(),
            1.0,
            statement="a smaller start is nearer: largest ratio of mean excesses, next scale below",
            why="a limit: only the order is claimed, at depth 3 as well",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Loss against ℓ1 norm beside the lasso's; the weights along the path of the smallest start."""
    depths, scales = dataset[DEPTH], dataset[SCALE]
    figure, (*panels, last) = figures.canvas(8.6, 3.2, ncols=depths.size + 1)
    (mean, loss, norm), (losses, norms) = averages(dataset), lasso(dataset)
    for depth, axes in zip(depths, panels, strict=True):
        at = {DEPTH: depth}
        figures.curves(axes, loss.sel(at), SCALE, against=norm.sel(at), markevery=40)
        axes.plot(norms, losses, color="0.15", linestyle=figures.DASHES[0], zorder=4)
        axes.set(title=figures.value_label(depth), xlabel=NORM)
        axes.set(xlim=(0, 1.2 * norms[-1]), ylim=(0.97 * losses[-1], 0.51))
    panels[0].set_ylabel(r"loss $\mathcal{L}(\bar\theta)$")
    first = {DEPTH: 0, SCALE: 0}
    last.plot(norm[first], mean[first].transpose("time", "feature"), linewidth=0.9)
    last.set(title=f"{figures.value_label(depths[0])}, {figures.value_label(scales[0])}")
    last.set(xlabel=NORM, ylabel=r"$\bar\theta_j$", xlim=(0, norms[-1]), ylim=(-0.6, 0.6))
    figures.legend(figure, {"lasso": figures.DASHES[0]})
    return figure
