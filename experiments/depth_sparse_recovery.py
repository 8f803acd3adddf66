"""Deeper networks pass nearer to a sparse signal, and stay there longer (Li et al. 2021).

Rademacher features, y = Xw* + noise with five entries ±1 of w*, and the model u^N − v^N started at
u^N = v^N = 1e-6. On its way to fitting the noise the flow comes near w*; how long it stays is the
time there is to stop. Smaller than in the paper: 100 samples of 200 features, not 500 of 3000.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, parts

DEPTH = "network.depth"
NEAR = 1.5
"""The window is where the error is at most so many times that of least squares on the support."""


def errors(dataset: xr.Dataset) -> xr.DataArray:
    """‖w − w*‖ along each run."""
    return ((dataset["predictor"] - dataset["truth"]) ** 2).sum("feature") ** 0.5


def oracle(dataset: xr.Dataset) -> float:
    """The error of least squares on the support of w*, which no network knows."""
    problem, _ = parts.rebuild(dataset.isel({DEPTH: 0}))
    features, targets = np.asarray(problem.unsigned.features), np.asarray(problem.unsigned.targets)
    truth = dataset["truth"].isel({DEPTH: 0}).values
    support = truth != 0
    fitted = np.linalg.lstsq(features[:, support], targets, rcond=None)[0]
    return float(np.linalg.norm(fitted - truth[support]))


def windows(dataset: xr.Dataset) -> xr.DataArray:
    """The flow time between the first and the last of the window; 0 where there is none."""
    inside = dataset["time"].where(errors(dataset) <= NEAR * oracle(dataset))
    return (inside.max("time") - inside.min("time")).fillna(0.0)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The best error falls with depth, to that of an oracle; the window grows."""
    best, window = errors(dataset).min("time"), windows(dataset)
    several = dataset.sizes[DEPTH] > 1
    late = errors(dataset).isel(time=-1) / best
    made = [
        ddln.Claim(
            name="nearer than it ends",
            source="Vaškevičius et al. 2019",
            statement="stopped early, every depth is nearer to w* than at the end: least ratio of "
            "the errors, upside down",
            measured=float((1 / late).max()),
            predicted=0.5,
            tolerance=0.0,
            relation="<=",
            reason="only that there is much to gain",
            applies=several,
        ),
        ddln.Claim(
            name="oracle",
            source="Li et al. 2021",
            statement="the best error of the deepest over that of least squares on the support",
            measured=float(best[-1]) / oracle(dataset),
            predicted=1.0,
            tolerance=0.02,
            reason="to which the saved times tell it",
            applies=several,
        ),
    ]
    for name, values, statement in (
        ("best error", best, "the best error over that of the depth before"),
        ("window", 1 / window, "the window of the depth before over this one's, in flow time"),
    ):
        made += [
            ddln.Claim(
                name=f"{name}, depth {int(values[DEPTH][i])}",
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
    for depth, look in zip(dataset[DEPTH], figures.looks(dataset.sizes[DEPTH]), strict=True):
        error = errors(dataset.sel({DEPTH: depth})).isel(time=slice(1, None))
        axes.plot(
            error["time"], error, label=f"$N$ = {depth.item()}", markevery=(0.05, 0.15), **look
        )
    level = oracle(dataset)
    axes.axhline(level, color="0.5", linestyle=figures.DOTS, zorder=0)
    axes.axhspan(level, NEAR * level, color="0.9", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset["time"]))
    axes.set(ylabel=r"$\|w_t - w^*\|_2$", xlim=(1, float(dataset["time"][-1])))
    figures.legend(figure, {"least squares on the support": figures.DOTS})
    return figure
