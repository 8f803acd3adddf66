"""The larger the initialisation, the faster the loss falls (arXiv 2412.16765, Figure 4).

Three six-layer networks on one random least-squares problem: the first layer is zero, the others
are random and multiplied by a scale a. All start from θ = 0, at the same loss. The gap stays below
the exponential bound of Theorem 2, whose exponent grows as a^{2(L−1)} (Corollary 1).
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Theorem 2"
SCALE = "network.scale"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The bound holds; a larger scale is faster; the exponent of the bound has its power."""
    scale, rate, share = dataset[SCALE], dataset["rate_bound"], dataset.ddln.relative_gap
    above = (dataset.ddln.resolved_gap / dataset["bound"]).max()
    times = share["time"].where(share <= share.min("time").max()).min("time")
    slower = (times / times.shift({SCALE: 1})).max()
    power = 2 * (dataset.sizes["layer"] - 1)
    growth, predicted = rate / rate.isel({SCALE: 0}), (scale / scale.isel({SCALE: 0})) ** power
    off, solver = abs(growth / predicted - 1).max(), "equal at t = 0, up to the error of the solver"
    return [
        ddln.claim.at_most("gap over its exponential bound", above, 1.0, tol=1e-6, why=solver),
        ddln.claim.at_most(
            "time to the same gap, over that at the next smaller scale",
            slower,
            1.0,
            source="Figure 4",
        ),
        ddln.claim.equal(
            f"exponent of the bound over a^{power}, less 1", off, 0.0, tol=1e-9, why="rounding"
        ),
    ]


def draw(dataset: xr.Dataset) -> Figure:
    """The gap of each network, the theorem's bound on it, and the slope it ends with."""
    return figures.gap_against_time(dataset, over=SCALE, slope=True)
