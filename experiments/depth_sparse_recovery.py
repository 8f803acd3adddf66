"""Deeper networks pass nearer to a sparse signal, and stay there longer (Li et al. 2021).

Rademacher features, y = Xw* + noise with five entries ±1 of w*, and the model u^N − v^N started at
u^N = v^N = 1e-6. On its way to fitting the noise the flow comes near w*; how long it stays is the
time there is to stop.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, parts
from ddln.config import parse

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
    problem, _ = parts.rebuild(dataset.isel({DEPTH: 0}))
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
    made = [
        ddln.Claim(
            name="minimax rate",
            source="Li et al. 2021",
            statement="largest best error of a depth over σ√(2k ln(p)/n)",
            measured=float(best.max()) / rate(dataset, "features"),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="the rate, with the constant of the threshold σ√(2 ln(p)/n) on k entries",
        ),
        ddln.Claim(
            name="parametric rate",
            source="Vaškevičius et al. 2019",
            statement="largest best error of a depth over σ√(2k ln(2k)/n), without p",
            measured=float(best.max()) / rate(dataset, "support"),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="on all k entries, what the largest of k normal errors is about",
        ),
        ddln.Claim(
            name="stopping is needed",
            source="Li et al. 2021",
            statement="σ√(2k ln(2k)/n) over the least error of a depth at the end of its run",
            measured=rate(dataset, "support") / float(end.min()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="what stopping attains is lost without it, however long runs go on from there",
            applies=dataset.sizes[DEPTH] > 1,
        ),
    ]
    for name, values, statement in (
        ("best error", best, "from one start, the best error over that of the depth before"),
        (
            "window",
            1 / np.maximum(windows(dataset), np.finfo(float).tiny),
            "the window of the depth before over this one's, in flow time",
        ),
    ):
        made += [
            ddln.Claim(
                name=f"{name}, depth {int(dataset[DEPTH][i])}",
                source="Li et al. 2021",
                statement=statement,
                measured=float(values[i] / values[i - 1]),
                predicted=1.0,
                tolerance=0.0,
                relation="<=",
                reason="only the order is claimed",
            )
            for i in range(1, dataset.sizes[DEPTH])
        ]
    return made


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
