"""From a small start the flow's average goes the lasso's path (Berthier 2023; real data).

scikit-learn's diabetes with products and squares, 64 features; signed networks of depths 2 and 3.
Of all models that fit as well, the lasso's has the least ℓ1 norm; the time average of θ comes near
it from small starts, not from large ones.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config import datasets
from ddln.config.experiment import parse

DEPTH, SCALE = "network.depth", "network.scale"
NORM = r"$\|\bar\theta\|_1$, $\bar\theta = \frac{1}{t}\int_0^t \theta$"
FITTED = 0.5
"""Of the fall of the loss: from here on paths are compared, having more than a few weights."""


def lasso(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Losses along the lasso's path, falling, and the ℓ1 norms there; by scikit-learn."""
    from sklearn.linear_model import lasso_path

    features, targets = datasets.draw(parse(dataset.attrs["config"]).problem.data)
    strengths = np.geomspace(2.0, 1e-3, 160)
    _, weights, _ = lasso_path(features, targets, alphas=strengths, tol=1e-6, max_iter=100_000)
    misfit = features @ weights - targets[:, None]
    return (misfit**2).mean(axis=0) / 2, abs(weights).sum(axis=0)


def averages(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """θ̄(t) = ∫₀ᵗ θ / t, its loss and its ℓ1 norm, from the second saved time on."""
    features, targets = datasets.draw(parse(dataset.attrs["config"]).problem.data)
    integral = dataset["predictor"].cumulative_integrate("time").isel(time=slice(1, None))
    mean = integral / integral["time"]
    misfit = xr.dot(xr.DataArray(features, dims=("sample", "feature")), mean, dim="feature")
    loss = ((misfit - xr.DataArray(targets, dims="sample")) ** 2).mean("sample") / 2
    return mean, loss, abs(mean).sum("feature")


def excess(dataset: xr.Dataset) -> xr.DataArray:
    """The ℓ1 norm over the lasso's at the same loss, where that is on its path."""
    losses, norms = lasso(dataset)
    _, loss, norm = averages(dataset)
    least = xr.apply_ufunc(lambda at: np.interp(at, losses[::-1], norms[::-1]), loss)
    start = loss.isel(time=0)
    seen = (loss > losses[-1]) & (loss < start - FITTED * (start - losses[-1]))
    return (norm / least).where(seen)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """How far above the lasso's norm the averages are."""
    ratio = excess(dataset)
    mean = ratio.mean("time")
    small = mean.isel({SCALE: 0})
    logarithm = 2 * float(np.log(1 / dataset[SCALE][0]))
    return [
        ddln.Claim(
            name="lasso is least",
            source="Tibshirani 1996",
            statement="largest ℓ1 norm of the lasso over that of θ̄ at the same loss",
            measured=float(1 / ratio.min()),
            predicted=1.0,
            tolerance=1e-3,
            relation="<=",
            reason="strengths are 5 % apart, and norms interpolated: 0.05²/8, or a few times that "
            "where an entry joins",
        ),
        ddln.Claim(
            name="small start",
            source="Berthier 2023",
            statement="mean excess of the ℓ1 norm over the lasso's, smallest scale at depth 2",
            measured=float(small.isel({DEPTH: 0})) - 1,
            predicted=0.0,
            tolerance=1 / logarithm,
            relation="<=",
            reason="of order 1 / ln(1/ε) as in lasso_path, ε the scale squared; its constant as 1",
            applies=bool(dataset[SCALE][0] <= 1e-3 and dataset[DEPTH][0] == 2),
        ),
        ddln.Claim(
            name="order",
            source="Berthier 2023",
            statement="a smaller start is nearer: largest ratio of mean excesses, next scale below",
            measured=float((mean / mean.shift({SCALE: -1})).max()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="a limit: only the order is claimed, at depth 3 as well",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Loss against ℓ1 norm beside the lasso's; the weights along the way of the smallest start."""
    depths, scales = dataset[DEPTH], dataset[SCALE]
    figure, panels = figures.canvas(8.6, 3.2, ncols=depths.size + 1, squeeze=False)
    mean, loss, norm = averages(dataset)
    losses, norms = lasso(dataset)
    for depth, axes in zip(depths, panels.flat, strict=False):
        for scale, look in zip(scales, figures.looks(scales.size), strict=True):
            place = {DEPTH: depth, SCALE: scale}
            look |= {"label": figures.value_label(scale), "markevery": 40}
            axes.plot(norm.sel(place), loss.sel(place), **look)
        axes.plot(norms, losses, color="0.15", linestyle=figures.DASHES[0], zorder=4)
        axes.set(title=figures.value_label(depth), xlabel=NORM)
        axes.set(xlim=(0, 1.2 * norms[-1]), ylim=(0.97 * losses[-1], 0.51))
    panels[0, 0].set_ylabel(r"loss $\mathcal{L}(\bar\theta)$")
    place = {DEPTH: depths[0], SCALE: scales[0]}
    axes = panels[0, -1]
    axes.plot(norm.sel(place), mean.sel(place).transpose("time", "feature"), linewidth=0.9)
    axes.set(title=f"{figures.value_label(depths[0])}, {figures.value_label(scales[0])}")
    axes.set(xlabel=NORM, ylabel=r"$\bar\theta_j$", xlim=(0, norms[-1]), ylim=(-0.6, 0.6))
    figures.legend(figure, {"lasso": figures.DASHES[0]})
    return figure
