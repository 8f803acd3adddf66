"""Deeper networks come closer to a sparse signal and stay there longer (Li et al. 2021).

Rademacher features, y = Xw* + noise with five entries ±1 of w*, and the model u^N − v^N started at
u^N = v^N = 1e-6. On its way to fitting the noise the flow comes near w*; how long it stays is the
time there is to stop.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Li et al. 2021"
DEPTH = "network.depth"
NEAR = 1.5
"""The window is where the error is at most this many times that of least squares on the support."""
ORDER = "only the order is claimed"


def oracle_error(dataset: xr.Dataset) -> float:
    """The error of least squares on the support of w*, which no network knows."""
    (features, targets), truth = dataset.ddln.first.samples, dataset["truth"][0].values
    support = truth != 0
    fitted = np.linalg.lstsq(features[:, support], targets, rcond=None)[0]
    return float(np.linalg.norm(fitted - truth[support]))


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Stopped early, every depth has the rates of sparse recovery; the window grows with depth."""
    error, level, depths = dataset.ddln.distance_to_truth, oracle_error(dataset), dataset[DEPTH]
    best, several = error.min("time"), dataset.sizes[DEPTH] > 1
    near = dataset.ddln.flow_time.where(error <= NEAR * level)
    window = (near.max("time") - near.min("time")).fillna(0.0)
    data = dataset.ddln.experiment.problem.data
    unit = data.noise * np.sqrt(2 * data.nonzeros / data.samples)
    minimax, parametric = unit * np.sqrt(np.log([data.features, 2 * data.nonzeros]))
    made = [
        ddln.claim.at_most(
            "minimax rate",
            best.max() / minimax,
            1.0,
            statement=f"largest best error of a depth, {best.max() / level:.4f} of that of least "
            "squares on the support, over σ√(2k ln(p)/n)",
            why="the rate, with the constant of the threshold σ√(2 ln(p)/n) on k entries",
        ),
        ddln.claim.at_most(
            "parametric rate",
            best.max() / parametric,
            1.0,
            statement="largest best error of a depth over σ√(2k ln(2k)/n), without p",
            source="Vaškevičius et al. 2019",
            why="about the largest of k normal errors, on all k entries",
        ),
        ddln.claim.at_most(
            "stopping is needed",
            parametric / error[:, -1].min(),
            1.0,
            statement="σ√(2k ln(2k)/n) over the least error of a depth at the end of its run",
            why="without stopping, its gain is lost, however long the runs go on",
            applies=several,
        ),
    ]
    for i in range(1, depths.size):
        made += [
            ddln.claim.at_most(
                f"best error, depth {depths[i].item()}",
                best[i] / best[i - 1],
                1.0,
                statement=f"from one start, the best error, {best[i] / level:.4f} of that of least "
                f"squares on the support, over that of the depth before, {best[i - 1] / level:.4f}",
                why=ORDER,
                applies=several,
            ),
            ddln.claim.at_most(
                f"window, depth {depths[i].item()}",
                window[i - 1] / max(window[i], np.finfo(float).tiny),
                1.0,
                statement=f"the window of the depth before, {window[i - 1]:,.0f} of flow time, "
                f"over that of this one, {window[i]:,.0f}",
                why=ORDER,
                applies=several,
            ),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The error against flow time, a curve for each depth."""
    figure, axes = figures.canvas()
    later = dataset.isel(time=slice(1, None)).ddln
    error, time, level = later.distance_to_truth, later.flow_time, oracle_error(dataset)
    name = "$N$ = {:d}".format
    figures.curves(axes, error, DEPTH, against=time, label=name, markevery=(0.05, 0.15))
    axes.axhline(level, color="0.3", linestyle=figures.DOTS, zorder=1)
    axes.axhspan(level, NEAR * level, color="0.9", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset["time"]))
    axes.set(ylabel=r"$\|w_t - w^*\|_2$", xlim=(1, float(time.max())))
    figures.legend(figure, {"least squares on the support": figures.DOTS})
    return figure
