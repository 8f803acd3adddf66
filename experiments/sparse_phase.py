"""How many samples sparse signals need, of the flow and of basis pursuit (Vaškevičius et al. 2019).

Noiseless Rademacher samples of k entries ±1 in forty, many draws of each number of samples n and
each k. From a small start two layers end near the solution of least ℓ1 norm, and so recover the
signal just where basis pursuit does. Smaller than in the papers: 40 features, not 3000 and more.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, parts, theory

SAMPLES, NONZEROS, SEED = "problem.data.samples", "problem.data.nonzeros", "problem.data.seed"
RECOVERED = 0.1
"""‖w − w*‖ / ‖w*‖ below which a signal counts as recovered."""


def errors(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """‖w − w*‖ / ‖w*‖ at the end of each run, and of basis pursuit on the same data."""
    truth = dataset["truth"]
    size = (truth**2).sum("feature") ** 0.5
    end = dataset["predictor"].isel(time=-1)
    found = ((end - truth) ** 2).sum("feature") ** 0.5 / size
    pursuit = found.copy()
    for place in np.ndindex(found.shape):
        where = dict(zip(found.dims, place, strict=True))
        lane = dataset[["truth"]].isel(where)
        solution = theory.min_l1(parts.rebuild(lane)[0].unsigned)
        pursuit[where] = np.linalg.norm(solution - lane["truth"]) / size[where]
    return found, pursuit


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Flow and basis pursuit agree; both succeed with many samples and fail with few."""
    found, pursuit = (error < RECOVERED for error in errors(dataset))
    many = dataset[SAMPLES] >= 3 * dataset[NONZEROS] + 10
    few = dataset[SAMPLES] <= 2 * dataset[NONZEROS]
    return [
        ddln.Claim(
            name="agreement",
            source="Woodworth et al. 2020",
            statement="the share of draws on which flow and basis pursuit come to different ends",
            measured=float((found != pursuit).mean()),
            predicted=0.0,
            tolerance=0.05,
            relation="<=",
            reason="draws at the threshold, and those with several solutions of least ℓ1 norm",
        ),
        ddln.Claim(
            name="many samples",
            source="Vaškevičius et al. 2019",
            statement="of draws with n ≥ 3k + 10, the share that the flow does not recover",
            measured=float(1 - found.where(many).mean()),
            predicted=0.0,
            tolerance=0.05,
            relation="<=",
            reason="a draw in twenty",
            applies=bool(many.any()),
        ),
        ddln.Claim(
            name="few samples",
            source="Donoho & Tanner 2005",
            statement="of draws with n ≤ 2k, the share that the flow recovers",
            measured=float(found.where(few).mean()),
            predicted=0.0,
            tolerance=0.05,
            relation="<=",
            reason="a draw in twenty",
            applies=bool(few.any()),
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The share of draws recovered over n and k; half of those of basis pursuit is a line."""
    figure, axes = figures.canvas()
    found, pursuit = ((error < RECOVERED).mean(SEED) for error in errors(dataset))
    samples, nonzeros = dataset[SAMPLES], dataset[NONZEROS]
    order = (NONZEROS, SAMPLES)
    tints = axes.pcolormesh(
        samples,
        nonzeros,
        found.transpose(*order),
        cmap="cividis",
        vmin=0,
        vmax=1,
        shading="nearest",
    )
    if min(found.sizes[name] for name in order) > 1:
        look = {"colors": "white", "linewidths": 1.5, "linestyles": "dashed"}
        axes.contour(samples, nonzeros, pursuit.transpose(*order), levels=[0.5], **look)
    axes.set(xlabel="samples $n$", ylabel="entries that are not zero $k$")
    axes.set(xticks=samples, yticks=nonzeros)
    axes.set_title("white: half the draws of basis pursuit", fontsize=9)
    figure.colorbar(tints, ax=axes, label="share of draws recovered")
    return figure
