"""How depth and scale set the training time on real data (scikit-learn's diabetes; Theorem 2).

442 patients, ten features. Networks of depth L = 2, 4 and 6 start from θ = 0 at scales from small
to large. The time until the gap has fallen to a hundredth stays below the bound of Theorem 2, and
at large scales falls as the bound does, with the power −2(L − 1) of the scale.
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
    return dataset.ddln.first_crossing(np.log(dataset.ddln.relative_gap), np.log(TARGET))


def bounds_on_time(dataset: xr.Dataset) -> xr.DataArray:
    """Flow time by which the bound of Theorem 2 has come down to `TARGET`."""
    return -np.log(TARGET) / (2 * dataset["rate_bound"])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Theorem 2 holds for the time as for the gap; large scales follow its power."""
    times, scale, end = times_to_target(dataset), dataset[SCALE], dataset.ddln.end
    # A network that has not met the target has taken at least as long as its run.
    taken = times.fillna(dataset["time"][-1]).where(end["gap"].notnull())
    powers, ratio = dataset.ddln.powers(times, SCALE), (taken / bounds_on_time(dataset)).max()
    steepest = powers.isel({SCALE: -1}) / (-2 * (dataset[DEPTH] - 1))
    theorem = "a bound on the gap is a bound on the time"
    return [
        ddln.claim.at_most(
            f"time to a relative gap of {TARGET:g}, over its bound", ratio, 1.0, why=theorem
        ),
        ddln.claim.at_most("largest power of the scale in the time", powers.max(), 0.0),
        *(
            ddln.claim.equal(
                f"power of the scale over −2(L − 1), depth {power[DEPTH].item()}",
                power,
                1.0,
                tol=0.1,
                source="derived in docs",
                why="a limit: at scale 3 the layers still move by a few per cent",
                applies=scale[-1] >= 3,
            )
            for power in steepest
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """The time against the scale with its bound, and the gaps from which it is read."""
    figure, axes = figures.canvas()
    figures.curves(axes, times_to_target(dataset), DEPTH)
    figures.curves(axes, bounds_on_time(dataset), DEPTH, label=None, **figures.DASHED)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset[SCALE]))
    axes.set_ylabel(f"{figures.axis_label(dataset['time'])} to a relative gap of {TARGET:g}")
    figures.ticks_at(axes, dataset[SCALE])
    figures.legend(figure, {"bound of Theorem 2": figures.DASHES[0]})
    depths, time = dataset[DEPTH], dataset["time"]
    gaps, panels = figures.canvas(7.0, 3.0, ncols=depths.size, sharey=True, squeeze=False)
    for depth, panel in zip(depths, panels.flat, strict=True):
        figures.gap_against_time(dataset.sel({DEPTH: depth}), panel, over=SCALE, bounds={})
        panel.set(title=figures.value_label(depth), xscale="log")
        panel.set_xlim(float(time[1]), float(time[-1]))
        panel.label_outer()
    figures.legend(gaps)
    return {"diabetes_time": figure, "diabetes_gap": gaps}
