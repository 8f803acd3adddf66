"""How depth and scale set the training time on real data (scikit-learn's diabetes; Theorem 2).

442 patients, ten features. Networks of depth 2, 4 and 6 start from θ = 0 at scales from small to
large; each is timed until its gap has fallen to a hundredth. Theorem 2 bounds that time.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Theorem 2"
DEPTH, SCALE = "network.depth", "network.scale"
TARGET = 1e-2


def times_to_target(dataset: xr.Dataset) -> xr.DataArray:
    """Flow time at which each relative gap first meets `TARGET`; NaN if it never does."""
    gap = dataset["gap"] / dataset["gap"].isel(time=0)
    return dataset.ddln.first_crossing(np.log(gap), np.log(TARGET))


def bounds_on_time(dataset: xr.Dataset) -> xr.DataArray:
    """Flow time by which the bound of Theorem 2 has come down to `TARGET`."""
    return -np.log(TARGET) / (2 * dataset["rate_bound"])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Theorem 2 holds for the time as for the gap; large scales follow its power."""
    times, scale, end = times_to_target(dataset), dataset[SCALE], dataset.ddln.end
    # A network that has not met the target has taken at least as long as its run.
    taken = times.fillna(dataset["time"][-1]).where(end["gap"].notnull())
    slopes = dataset.ddln.powers(times, SCALE)
    steepest = slopes.isel({SCALE: -1}) / (-2 * (dataset[DEPTH] - 1))
    return [
        ddln.claim.at_most(
            "bound",
            (taken / bounds_on_time(dataset)).max(),
            1.0,
            statement=f"the time to a relative gap of {TARGET:g} over its bound: largest ratio",
            why="a bound on the gap is a bound on the time",
        ),
        ddln.claim.at_most(
            "order",
            slopes.max(),
            0.0,
            statement="a larger scale is faster at every depth: largest d log time / d log scale",
            why="only the sign is claimed",
        ),
        *(
            ddln.claim.equal(
                f"large scales at depth {ratio[DEPTH].item()}",
                ratio,
                1.0,
                tol=0.1,
                statement="the time falls as the bound does, as scale^−2(L−1): ratio of the powers",
                source="derived in docs",
                why="a limit: at scale 3 the layers still move by a few per cent",
                applies=scale[-1] >= 3,
            )
            for ratio in steepest
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """The time against the scale, and the gaps from which it is read."""
    return {"diabetes_time": draw_times(dataset), "diabetes_gap": draw_gaps(dataset)}


def draw_times(dataset: xr.Dataset) -> Figure:
    """How long each network takes, and its bound: a curve for each depth."""
    figure, axes = figures.canvas()
    figures.curves(axes, times_to_target(dataset), DEPTH)
    dashed = {"linestyle": figures.DASHES[0], "linewidth": 1.2, "marker": ""}
    figures.curves(axes, bounds_on_time(dataset), DEPTH, label=None, **dashed)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset[SCALE]))
    axes.set_ylabel(f"{figures.axis_label(dataset['time'])} to a relative gap of {TARGET:g}")
    figures.ticks_at(axes, dataset[SCALE])
    figures.legend(figure, {"bound of Theorem 2": figures.DASHES[0]})
    return figure


def draw_gaps(dataset: xr.Dataset) -> Figure:
    """The gap against time: a panel for each depth, a curve for each scale."""
    depths, time = dataset[DEPTH], dataset["time"]
    figure, panels = figures.canvas(7.0, 3.0, ncols=depths.size, sharey=True, squeeze=False)
    for depth, axes in zip(depths, panels.flat, strict=True):
        figures.gap_against_time(dataset.sel({DEPTH: depth}), axes, over=SCALE, bounds={})
        axes.set(title=figures.value_label(depth), xscale="log")
        axes.set_xlim(float(time[1]), float(time[-1]))
        axes.label_outer()
    figures.legend(figure, {})
    return figure
