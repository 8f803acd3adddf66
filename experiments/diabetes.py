"""How depth and scale set the training time on real data (scikit-learn's diabetes; Theorem 2).

442 patients, ten features. Networks of depth 2, 4 and 6 start from θ = 0 at scales from small to
large; each is timed until its gap has fallen to a hundredth. Theorem 2 bounds that time.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

DEPTH, SCALE = "network.depth", "network.scale"
TARGET = 1e-2


def log(values: xr.DataArray) -> xr.DataArray:
    """The natural logarithm, labels kept."""
    return xr.apply_ufunc(np.log, values)


def times_to_target(dataset: xr.Dataset) -> xr.DataArray:
    """Flow time at which each lane's relative gap first meets `TARGET`; NaN where it never does."""
    gap = dataset["gap"] / dataset["gap"].isel(time=0)
    after = gap["time"].where(gap <= TARGET).min("time")
    before = gap["time"].where(gap["time"] < after).max("time")
    high, low = (log(gap.sel(time=time.fillna(0.0)) / TARGET) for time in (before, after))
    return before + (after - before) * high / (high - low)


def bounds_on_time(dataset: xr.Dataset) -> xr.DataArray:
    """Flow time by which the bound of Theorem 2 has come down to `TARGET`."""
    return -np.log(TARGET) / (2 * dataset["rate_bound"])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Theorem 2 holds for the time as for the gap; large scales follow its power."""
    times, scale = times_to_target(dataset), dataset[SCALE]
    # A lane that is still under way has taken at least this long.
    taken = times.fillna(dataset["time"][-1]).where(dataset["gap"].isel(time=-1).notnull())
    slopes = log(times).diff(SCALE) / log(scale).diff(SCALE)
    steepest = slopes.isel({SCALE: -1}) / (-2 * (dataset[DEPTH] - 1))
    return [
        ddln.Claim(
            name="bound",
            source="Theorem 2",
            statement=f"the time to a relative gap of {TARGET:g} over its bound: largest ratio",
            measured=float((taken / bounds_on_time(dataset)).max()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="a bound on the time, as it is one on the gap",
        ),
        ddln.Claim(
            name="order",
            source="Theorem 2",
            statement="a larger scale is faster at every depth: largest d log time / d log scale",
            measured=float(slopes.max()),
            predicted=0.0,
            tolerance=0.0,
            relation="<=",
            reason="only the sign is claimed",
        ),
        *(
            ddln.Claim(
                name=f"large scales at depth {ratio[DEPTH].item()}",
                source="derived in docs",
                statement="the time falls as the bound does, as scale^−2(L−1): ratio of the powers",
                measured=float(ratio),
                predicted=1.0,
                tolerance=0.1,
                reason="a limit: at scale 3 the layers still move by a few per cent",
                applies=float(scale[-1]) >= 3,
            )
            for ratio in steepest
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """The time against the scale, and the curves it is read from."""
    return {"diabetes_time": draw_times(dataset), "diabetes_gap": draw_gaps(dataset)}


def draw_times(dataset: xr.Dataset) -> Figure:
    """How long each network takes, and how long it may: a curve for each depth."""
    figure, axes = figures.canvas()
    times, bounds = times_to_target(dataset), bounds_on_time(dataset)
    depths, scales = dataset[DEPTH], dataset[SCALE]
    for depth, look in zip(depths, figures.looks(depths.size), strict=True):
        network = {DEPTH: depth}
        axes.plot(scales, times.sel(network), label=figures.value_label(depth), **look)
        look = {"color": look["color"], "linestyle": figures.DASHES[0], "linewidth": 1.2}
        axes.plot(scales, bounds.sel(network), **look)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(scales))
    axes.set_ylabel(f"{figures.axis_label(dataset['time'])} to a relative gap of {TARGET:g}")
    axes.set_xticks(scales.values, [f"{scale:.2g}" for scale in scales.values])
    axes.set_xticks([], minor=True)
    figures.legend(figure, {"bound of Theorem 2": figures.DASHES[0]})
    return figure


def draw_gaps(dataset: xr.Dataset) -> Figure:
    """The gap's way down: a panel for each depth, a curve for each scale."""
    depths, time = dataset[DEPTH], dataset["time"]
    figure, panels = figures.canvas(7.0, 3.0, ncols=depths.size, sharey=True, squeeze=False)
    for depth, axes in zip(depths, panels.flat, strict=True):
        figures.gap_against_time(dataset.sel({DEPTH: depth}), axes, over=SCALE, bounds={})
        axes.set(title=figures.value_label(depth), xscale="log")
        axes.set_xlim(float(time[1]), float(time[-1]))
        axes.label_outer()
    figures.legend(figure, {})
    return figure
