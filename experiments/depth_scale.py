"""The guaranteed and the true rate over depth and scale (Theorem 2, 2412.16765).

Networks of depth L = 2 to 5 start from θ = 0 at scales a from small to large. Theorem 2 guarantees
the rate μc, which grows as a^{2(L−1)}. The rate r with which a run ends is that of the flow
linearised at its limit: at large scales it follows the same power, at small ones it depends on the
solution alone.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "derived in docs"
DEPTH, SCALE = "network.depth", "network.scale"


def measured_rates(dataset: xr.Dataset) -> xr.DataArray:
    """r, the slope with which each gap ends; NaN if the run does not determine it to 5 %."""
    rate = dataset.sel(certificate="asymptotic rate")
    return rate["certificate_measured"].where(rate["certificate_applies"])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """No run is slower than μc; r has the power of μc at large scales and none at small ones."""
    rates, bounds, scale = measured_rates(dataset), dataset["rate_bound"], dataset[SCALE]
    powers, expected = dataset.ddln.powers(rates, SCALE), 2 * (dataset[DEPTH] - 1)
    wrong = abs(dataset.ddln.powers(bounds, SCALE) - expected).max()
    shallow = powers.sel({DEPTH: dataset[DEPTH] <= 3})  # deeper ones are not there yet
    theorem, fit = "Theorem 2", "the run determines its rate to 5 %"
    return [
        ddln.claim.at_most(
            "μc over r", (bounds / rates).max(), 1.0, tol=0.05, why=fit, source=theorem
        ),
        ddln.claim.equal(
            "power of a in μc, less 2(L − 1)", wrong, 0.0, tol=1e-9, why="rounding", source=theorem
        ),
        *(
            ddln.claim.equal(
                f"power of a in r at large scales, depth {depth}",
                powers.sel({DEPTH: depth}).isel({SCALE: -1}),
                2 * (depth - 1),
                tol=0.05,
                why="a limit: at scale 4 the layers still move by one per cent",
                applies=scale[-1] >= 5,
            )
            for depth in dataset[DEPTH].values
        ),
        ddln.claim.at_most(
            "power of a in r at small scales, depths 2 and 3",
            abs(shallow.isel({SCALE: 0})).max(),
            0.0,
            tol=0.05,
            why="a limit; the powers of the bound there are 2 and 4",
            applies=scale[0] <= 0.2,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """Both rates against the scale, and their ratio over depth and scale."""
    rates, bounds, scale = measured_rates(dataset), dataset["rate_bound"], dataset[SCALE]
    figure, axes = figures.canvas()
    figures.curves(axes, rates, DEPTH)
    figures.curves(axes, bounds, DEPTH, label=None, **figures.DASHED)
    axes.set(yscale="log", ylabel="rate of the distance (1 / flow time)")
    axes.set_ylim(bottom=1e-3 * float(rates.min()))
    figures.legend(figure, {r"$\mu c$ of Theorem 2": figures.DASHES[0]})
    other, cells = figures.canvas(5.2, 2.6)
    cells.set_facecolor("0.85")
    ratio = xr.apply_ufunc(np.log10, (rates / bounds).transpose(DEPTH, SCALE))
    figures.heatmap(cells, ratio, label=r"$\log_{10}\ r \,/\, \mu c$", vmin=0)
    for panel in (axes, cells):
        panel.set(xscale="log", xlabel=figures.axis_label(scale))
        figures.ticks_at(panel, xr.DataArray([0.2, 0.5, 1, 2, 5]))
    return {"depth_scale": figure, "depth_scale_map": other}
