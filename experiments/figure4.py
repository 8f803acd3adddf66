"""The larger the initialisation, the faster the loss falls (arXiv 2412.16765, Figure 4).

Three six-layer networks on one random least-squares problem: the first layer zero, the others
random and multiplied by a scale. All start from θ = 0, at the same loss: only the speed differs.
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Theorem 2"
SCALE = "network.scale"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The bound holds; larger is faster; the exponent of the bound grows as the theorem says."""
    gap, scale, rate = dataset.ddln.resolved_gap, dataset[SCALE], dataset["rate_bound"]
    share = gap / gap.isel(time=0)
    level = share.min("time").max()  # the smallest that all of them reach
    times = share["time"].where(share <= level).min("time")
    power = 2 * (dataset.sizes["layer"] - 1)
    growth, predicted = rate / rate.isel({SCALE: 0}), (scale / scale.isel({SCALE: 0})) ** power
    return [
        ddln.claim.at_most(
            "bound",
            (gap / dataset["bound"]).max(),
            1.0,
            tol=1e-6,
            statement="the gap stays below its exponential bound: largest ratio of the two",
            why="equal at t = 0; the error of the solver is far below 1e-6",
        ),
        ddln.claim.at_most(
            "order",
            (times / times.shift({SCALE: 1})).max(),
            1.0,
            statement="a larger scale is faster: largest ratio of successive times to one same gap",
            source="Figure 4",
            why="the times differ by more than the spacing of the saved times",
        ),
        ddln.claim.equal(
            "growth",
            abs(growth / predicted - 1).max(),
            0.0,
            tol=1e-9,
            statement=f"the exponent of the bound grows as scale to the power 2(L−1) = {power}: "
            "largest relative difference",
            why="exact up to rounding",
        ),
    ]


def draw(dataset: xr.Dataset) -> Figure:
    """The gap of each network, the theorem's bound on it, and the slope it ends with."""
    return figures.gap_against_time(dataset, over=SCALE, slope=True)
