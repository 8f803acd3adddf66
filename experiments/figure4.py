"""The larger the initialisation, the faster the loss falls (arXiv 2412.16765, Figure 4).

Three six-layer networks on one random least-squares problem: the first layer zero, the others
random and multiplied by a scale. All start from θ = 0, at the same loss: only the speed differs.
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SCALE = "network.scale"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The bound holds; larger is faster; the bound's exponent grows as the theorem says."""
    gap, scale = figures.resolved(dataset), dataset[SCALE]
    times = reach(gap / gap.isel(time=0))
    power = 2 * (dataset.sizes["layer"] - 1)
    growth = dataset["rate_bound"] / dataset["rate_bound"].isel({SCALE: 0})
    predicted = (scale / scale.isel({SCALE: 0})) ** power
    return [
        ddln.Claim(
            name="bound",
            source="Theorem 2",
            statement="the gap stays below its exponential bound: largest ratio of the two",
            measured=float((gap / dataset["bound"]).max()),
            predicted=1.0,
            tolerance=1e-6,
            relation="<=",
            reason="equal at t = 0; the solver's error is far below 1e-6",
        ),
        ddln.Claim(
            name="order",
            source="Figure 4",
            statement="a larger scale is faster: largest ratio of successive times to one same gap",
            measured=float((times / times.shift({SCALE: 1})).max()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="the times differ by more than the saved times' spacing",
        ),
        ddln.Claim(
            name="growth",
            source="Theorem 2",
            statement=f"the bound's exponent grows as the scale to the power 2(L−1) = {power}: "
            "largest relative difference from it",
            measured=float(abs(growth / predicted - 1).max()),
            predicted=0.0,
            tolerance=1e-9,
            reason="exact but for rounding",
        ),
    ]


def reach(gap: xr.DataArray) -> xr.DataArray:
    """The time at which each lane first has the smallest relative gap that all of them reach."""
    level = gap.min("time").max()
    return gap["time"].where(gap <= level).min("time")


def draw(dataset: xr.Dataset) -> Figure:
    """The gap of each network, the theorem's bound on it, and the slope it ends with."""
    return figures.gap_against_time(dataset, over=SCALE, slope=True)
