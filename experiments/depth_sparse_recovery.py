"""Deeper networks pass nearer to a sparse signal, and stay there longer (Li et al. 2021).

Rademacher features, y = Xw* + noise with five entries ±1 of w*, and the model u^N − v^N started at
u^N = v^N = 1e-6. On its way to fitting the noise the flow comes near w*; how long it stays is the
time there is to stop.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config.experiment import parse
from ddln.sweeps import build

DEPTH = "network.depth"
NEAR = 1.5
"""The window is where the error is at most so many times that of least squares on the support."""


def errors(dataset: xr.Dataset) -> list[xr.DataArray]:
    """‖w − w*‖ along each run, against its own flow time."""
    return [
        ((run["predictor"] - run["truth"]) ** 2).sum("feature") ** 0.5
        for run in figures.lanes(dataset, DEPTH)
    ]


def oracle(dataset: xr.Dataset) -> float:
    """The error of least squares on the support of w*, which no network knows."""
    problem, _ = build.rebuild(dataset.isel({DEPTH: 0}))
    features, targets = np.asarray(problem.unsigned.features), np.asarray(problem.unsigned.targets)
    truth = dataset["truth"].isel({DEPTH: 0}).values
    support = truth != 0
    fitted = np.linalg.lstsq(features[:, support], targets, rcond=None)[0]
    return float(np.linalg.norm(fitted - truth[support]))


def windows(dataset: xr.Dataset) -> list[float]:
    """The flow time between the first and the last of each window; 0 where there is none."""
    most, found = NEAR * oracle(dataset), []
    for error in errors(dataset):
        inside = error["time"].values[error.values <= most]
        found.append(float(np.ptp(inside)) if inside.size else 0.0)
    return found


def rate(dataset: xr.Dataset, candidates: str) -> float:
    """σ √(2k ln m / n), m the number of features, or twice that of the support's entries."""
    table = parse(dataset.attrs["config"]).problem.data
    k, m = table.nonzeros, {"features": table.features, "support": 2 * table.nonzeros}[candidates]
    return float(table.noise * np.sqrt(2 * k * np.log(m) / table.samples))


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Stopped early, every depth has the rates of sparse recovery; the window grows with depth."""
    best = np.array([float(error.min()) for error in errors(dataset)])
    end = np.array([float(error[-1]) for error in errors(dataset)])
    window, several = windows(dataset), dataset.sizes[DEPTH] > 1
    level, depths = oracle(dataset), dataset[DEPTH].values.tolist()
    minimax, parametric = rate(dataset, "features"), rate(dataset, "support")
    rows = [
        (
            *("minimax rate", "Li et al. 2021"),
            f"largest best error of a depth, {best.max() / level:.4f} of the support's least "
            "squares, over σ√(2k ln(p)/n)",
            best.max() / minimax,
            *("the rate, with the constant of the threshold σ√(2 ln(p)/n) on k entries", True),
        ),
        (
            *("parametric rate", "Vaškevičius et al. 2019"),
            "largest best error of a depth over σ√(2k ln(2k)/n), without p",
            best.max() / parametric,
            *("on all k entries, what the largest of k normal errors is about", True),
        ),
        (
            *("stopping is needed", "Li et al. 2021"),
            "σ√(2k ln(2k)/n) over the least error of a depth at the end of its run",
            parametric / end.min(),
            *("what stopping attains is lost without it, however long runs go on", several),
        ),
    ]
    order = "only the order is claimed", several
    for i in range(1, len(depths)):
        rows += [
            (
                *(f"best error, depth {depths[i]}", "Li et al. 2021"),
                f"from one start, the best error, {best[i] / level:.4f} of the support's least "
                f"squares, over that of the depth before, {best[i - 1] / level:.4f}",
                *(best[i] / best[i - 1], *order),
            ),
            (
                *(f"window, depth {depths[i]}", "Li et al. 2021"),
                f"the window of the depth before, {window[i - 1]:,.0f} of flow time, over this "
                f"one's, {window[i]:,.0f}",
                *(window[i - 1] / max(window[i], np.finfo(float).tiny), *order),
            ),
        ]
    return [
        ddln.Claim(name, source, statement, float(value), 1.0, 0.0, "<=", reason, applies)
        for name, source, statement, value, reason, applies in rows
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The error against flow time, a curve for each depth."""
    figure, axes = figures.canvas()
    for error, look in zip(errors(dataset), figures.looks(dataset.sizes[DEPTH]), strict=True):
        label = f"$N$ = {int(error[DEPTH])}"
        axes.plot(error["time"][1:], error[1:], label=label, markevery=(0.05, 0.15), **look)
    last = max(float(error["time"][-1]) for error in errors(dataset))
    level = oracle(dataset)
    axes.axhline(level, color="0.3", linestyle=figures.DOTS, zorder=1)
    axes.axhspan(level, NEAR * level, color="0.9", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset["time"]))
    axes.set(ylabel=r"$\|w_t - w^*\|_2$", xlim=(1, last))
    figures.legend(figure, {"least squares on the support": figures.DOTS})
    return figure
