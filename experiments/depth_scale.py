"""The guaranteed and the true rate over depth and scale (Theorem 2, 2412.16765).

Networks of depth 2 to 5 start from θ = 0 at scales a from small to large. Theorem 2 guarantees the
rate μc, which grows as a^{2(L−1)}. In the end the flow has the rate r of its limit: at large scales
it follows the same power, at small ones the solution decides it, not the start.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "derived in docs"
DEPTH, SCALE = "network.depth", "network.scale"


def measured_rates(dataset: xr.Dataset) -> xr.DataArray:
    """The slope that each gap ends with; NaN if the run does not determine it to 5 %."""
    rate = dataset.sel(certificate="asymptotic rate")
    return rate["certificate_measured"].where(rate["certificate_applies"])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The bound is one and has its power; the rate has it at large scales and none at small."""
    rates, bounds, scale = measured_rates(dataset), dataset["rate_bound"], dataset[SCALE]
    power, found = 2 * (dataset[DEPTH] - 1), dataset.ddln.powers(rates, SCALE)
    shallow = found.sel({DEPTH: dataset[DEPTH] <= 3})  # deeper ones are not there yet
    return [
        ddln.claim.at_most(
            "bound",
            (bounds / rates).max(),
            1.0,
            tol=0.05,
            statement="no network is slower than guaranteed: largest μc over the measured rate",
            source="Theorem 2",
            why="the run determines its rate to 5 %; a margin above 1 would be a fault",
        ),
        ddln.claim.equal(
            "power of the bound",
            abs(dataset.ddln.powers(bounds, SCALE) - power).max(),
            0.0,
            tol=1e-9,
            statement="μc grows as a^{2(L−1)}: largest difference of the power",
            source="Theorem 2",
            why="exact up to rounding",
        ),
        *(
            ddln.claim.equal(
                f"large scales, depth {depth.item()}",
                found.sel({DEPTH: depth}).isel({SCALE: -1}),
                power.sel({DEPTH: depth}),
                tol=0.05,
                statement="the rate grows with the same power, 2(L−1), between the largest scales",
                why="a limit: at scale 4 the layers still move by one per cent",
                applies=scale[-1] >= 5,
            )
            for depth in dataset[DEPTH]
        ),
        ddln.claim.at_most(
            "small scales",
            abs(shallow.isel({SCALE: 0})).max(),
            0.0,
            tol=0.05,
            statement="depths 2 and 3: the rate no longer depends on the scale: largest power",
            why="a limit; the powers of the bound there are 2 and 4",
            applies=scale[0] <= 0.2,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """Both rates against the scale, and their ratio over depth and scale."""
    figure, axes = figures.canvas()
    rates, bounds, scale = measured_rates(dataset), dataset["rate_bound"], dataset[SCALE]
    figures.curves(axes, rates, DEPTH)
    dashed = {"linestyle": figures.DASHES[0], "linewidth": 1.2, "marker": ""}
    figures.curves(axes, bounds, DEPTH, label=None, **dashed)
    axes.set(yscale="log", ylabel="rate of the distance (1 / flow time)")
    axes.set_ylim(bottom=1e-3 * float(rates.min()))
    other, cells = figures.canvas(5.2, 2.6)
    ratio = np.log10((rates / bounds).transpose(DEPTH, SCALE))
    cells.set_facecolor("0.85")
    tints = cells.pcolormesh(scale, range(len(ratio)), ratio, cmap="cividis", vmin=0)
    cells.set(ylabel=figures.axis_label(dataset[DEPTH]))
    cells.set_yticks(range(len(ratio)), dataset[DEPTH].values)
    other.colorbar(tints, ax=cells, label=r"$\log_{10}\ r \,/\, \mu c$")
    for panel in (axes, cells):
        panel.set(xscale="log", xlabel=figures.axis_label(scale))
        figures.ticks_at(panel, xr.DataArray([0.2, 0.5, 1, 2, 5]))
    figures.legend(figure, {r"$\mu c$ of Theorem 2": figures.DASHES[0]})
    return {"depth_scale": figure, "depth_scale_map": other}
