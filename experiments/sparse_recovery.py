"""Descent from a small start, stopped early, finds a sparse signal (Vaškevičius et al. 2019).

The data are n Rademacher samples, with noise, of a w* in R^d with k entries ±1; the theorem needs
n ≥ k² ln d, which is 230 here. Gradient descent trains u⊙u − v⊙v from u = v = α. Entries of the
support reach half their size after the flow time ln(1/α) and the others grow later. Stopping in
between leaves the error ‖w − w*‖² of sparse regression, the smaller the smaller α.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Vaškevičius et al. 2019"
SAMPLES, SCALE = "problem.data.samples", "network.scale"


def off_support(runs: xr.Dataset) -> xr.DataArray:
    """The largest |w_i| with w*_i = 0."""
    return abs(runs["predictor"]).where(runs["truth"] == 0).max("feature")


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The smaller α, the smaller the error; with enough samples, the rates are the paper's."""
    at_most, equal, made = ddln.claim.at_most, ddln.claim.equal, []
    data = dataset.ddln.experiment.problem.data
    for n in dataset[SAMPLES].values:
        runs = dataset.sel({SAMPLES: n}).sortby(SCALE)
        alpha, rate = runs[SCALE], runs.ddln.first.sparse_rate
        distance = runs.ddln.distance_to_truth
        error, best = distance.min("time") ** 2, runs.isel(time=distance.argmin("time"))
        off = (off_support(best) / np.sqrt(alpha)).max()
        times = runs.ddln.first_crossing(runs.ddln.relative_distance_to_truth, 0.5)
        delay = (times[0] - times[-1]) / np.log(alpha[-1] / alpha[0])
        minimax, parametric = error[0] / rate(data.features), error[0] / rate(2 * data.nonzeros)
        enough = n >= data.nonzeros**2 * np.log(data.features)
        normal = {"why": "each entry is off by the largest of d or 2k errors", "applies": enough}
        constant = {"why": "the bound of the theorem, its constant taken as 1", "applies": enough}
        others = "two standard deviations of what k − 1 other entries add to a gradient"
        spread = {"why": others, "applies": enough and alpha.size > 1}
        tol = 2 * np.sqrt((data.nonzeros - 1) / n)
        made += [
            at_most(f"n = {n}: error, smallest α over largest", error[0] / error[-1], 1.0),
            at_most(f"n = {n}: error over the minimax 2kσ² ln(d)/n", minimax, 1.0, **normal),
            at_most(f"n = {n}: error over the parametric 2kσ² ln(2k)/n", parametric, 1.0, **normal),
            at_most(f"n = {n}: largest |w_i| off the support over √α", off, 1.0, **constant),
            equal(f"n = {n}: flow time to ‖w*‖/2 per ln(1/α)", delay, 1.0, tol=tol, **spread),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The squared error step by step for each n; entries of w with the most samples."""
    step, alpha, dim = dataset["step"], figures.power_label(r"\alpha"), dataset.sizes["feature"]
    axis = {"xlim": (0, float(step[-1])), "xlabel": figures.axis_label(step), "yscale": "log"}
    columns = dataset.sizes[SAMPLES] + 1
    figure, (*panels, last) = figures.canvas(8.6, 3.1, ncols=columns, subplot_kw=axis)
    for n, axes in zip(dataset[SAMPLES].values, panels, strict=True):
        runs = dataset.sel({SAMPLES: n}).ddln
        error, support = runs.distance_to_truth**2, runs.first.support_error**2
        rate = {"minimax rate": runs.first.sparse_rate(dim)}
        figures.curves(axes, error, SCALE, against=step, label=alpha, markevery=20)
        figures.levels(axes, {"least squares on the support": support, **rate})
        axes.set(title=f"$n$ = {n}", ylim=(5e-4, 8))
    panels[0].set_ylabel(r"$\|w_t - w^*\|_2^2$")
    runs = dataset.isel({SAMPLES: -1, "time": slice(1, None)})
    thin = {"against": step[1:], "label": None, "marker": "", "linewidth": 0.9}
    figures.curves(last, off_support(runs), SCALE, linestyle=figures.DASHES[1], **thin)
    for i in np.flatnonzero(runs.ddln.first.data["truth"]):
        figures.curves(last, abs(runs["predictor"].isel(feature=i)), SCALE, **thin)
    last.set(ylim=(1e-8, 3), title=f"$|w_i|$, $n$ = {runs[SAMPLES].item()}")
    figures.legend(figure, {"largest off the support": figures.DASHES[1]})
    return figure
