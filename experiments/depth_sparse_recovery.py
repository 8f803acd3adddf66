"""Deeper networks come closer to a sparse signal and stay there longer (Li et al. 2021).

The data are n Rademacher samples, with noise, of a w* in R^p with k entries ±1. The flow of
u^N − v^N starts at u^N = v^N = 1e-6, comes near w* and then fits the noise. The best error along a
run is compared with the minimax and the parametric rate and with least squares on the support of
w*; the window is the time during which the error is at most 1.5 times the latter.
"""

from itertools import pairwise

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Li et al. 2021"
DEPTH = "network.depth"
NEAR = 1.5
"""The largest error in the window, over that of least squares on the support."""


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Stopped early, every depth has the rates of sparse recovery; the window grows with depth."""
    error, first, depths = dataset.ddln.distance_to_truth, dataset.ddln.first, dataset[DEPTH].values
    data, best = first.experiment.problem.data, error.min("time")
    near = dataset.ddln.flow_time.where(error <= NEAR * first.support_error)
    window = (near.max("time") - near.min("time")).fillna(0.0)
    minimax, parametric = (first.sparse_rate(x) ** 0.5 for x in (data.features, 2 * data.nonzeros))
    several, early = depths.size > 1, "Vaškevičius et al. 2019"
    constant = "the rate, with the constant of the threshold σ√(2 ln(p)/n) on k entries"
    normal = "about the largest of k normal errors, on all k entries"
    stop = "without stopping the gain is lost, however long the runs go on"
    made = [
        ddln.claim.at_most(
            "best error over σ√(2k ln(p)/n)", best.max() / minimax, 1.0, why=constant
        ),
        ddln.claim.at_most(
            "best error over σ√(2k ln(2k)/n)",
            best.max() / parametric,
            1.0,
            why=normal,
            source=early,
        ),
        ddln.claim.at_most(
            "σ√(2k ln(2k)/n) over the error at the end",
            parametric / error[:, -1].min(),
            1.0,
            why=stop,
            applies=several,
        ),
    ]
    for i, (shallow, deep) in enumerate(pairwise(depths)):
        ratio = window[i] / max(window[i + 1], np.finfo(float).tiny)
        made += [
            ddln.claim.at_most(
                f"best error, depth {deep} over {shallow}", best[i + 1] / best[i], 1.0
            ),
            ddln.claim.at_most(f"window, depth {shallow} over {deep}", ratio, 1.0),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The error against flow time, a curve for each depth."""
    figure, axes = figures.canvas()
    later, level = dataset.isel(time=slice(1, None)).ddln, dataset.ddln.first.support_error
    error, time, name = later.distance_to_truth, later.flow_time, "$N$ = {:d}".format
    figures.curves(axes, error, DEPTH, against=time, label=name, markevery=(0.05, 0.15))
    figures.levels(axes, {"least squares on the support": level})
    axes.axhspan(level, NEAR * level, color="0.9", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset["time"]))
    axes.set(ylabel=r"$\|w_t - w^*\|_2$", xlim=(1, float(time.max())))
    figures.legend(figure)
    return figure
