"""How far the guaranteed rate is from the one that depth and scale give (Theorem 2, 2412.16765).

Networks of depth 2 to 5 start from θ = 0 at scales a from small to large. Theorem 2 guarantees the
rate μc, which grows as a^{2(L−1)}. In the end the flow has the rate r of its limit: at large scales
it follows the same power, at small ones the solution, not the start, decides it.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ddln
from ddln import figures

DEPTH, SCALE = "network.depth", "network.scale"


def measured_rates(dataset: xr.Dataset) -> xr.DataArray:
    """The slope that each gap ends with; NaN where the run does not tell it to 5 %."""
    rate = dataset.sel(certificate="asymptotic rate")
    return rate["certificate_measured"].where(rate["certificate_applies"])


def powers(rates: xr.DataArray) -> xr.DataArray:
    """d log rate / d log scale from each scale to the next."""
    logs = xr.apply_ufunc(np.log, rates), xr.apply_ufunc(np.log, rates[SCALE])
    return logs[0].diff(SCALE) / logs[1].diff(SCALE)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The bound is one, and has its power; the rate has it at large scales and none at small."""
    rates, bounds, scale = measured_rates(dataset), dataset["rate_bound"], dataset[SCALE]
    power = 2 * (dataset[DEPTH] - 1)
    large, small = float(scale[-1]) >= 5, float(scale[0]) <= 0.2
    told = powers(rates).sel({DEPTH: dataset[DEPTH] <= 3})  # deeper, these are still under way
    return [
        ddln.Claim(
            name="bound",
            source="Theorem 2",
            statement="no network is slower than guaranteed: largest μc over the measured rate",
            measured=float((bounds / rates).max()),
            predicted=1.0,
            tolerance=0.05,
            relation="<=",
            reason="to which the run tells its rate; a margin above 1 would be a fault",
        ),
        ddln.Claim(
            name="power of the bound",
            source="Theorem 2",
            statement="μc grows as a^{2(L−1)}: largest difference of the power",
            measured=float(abs(powers(bounds) - power).max()),
            predicted=0.0,
            tolerance=1e-9,
            reason="exact but for rounding",
        ),
        *(
            ddln.Claim(
                name=f"large scales, depth {depth.item()}",
                source="derived in docs",
                statement="the rate grows with the same power, 2(L−1), between the largest scales",
                measured=float(powers(rates).sel({DEPTH: depth}).isel({SCALE: -1})),
                predicted=float(power.sel({DEPTH: depth})),
                tolerance=0.05,
                reason="a limit: at scale 4 the layers still move by a per cent",
                applies=large,
            )
            for depth in dataset[DEPTH]
        ),
        ddln.Claim(
            name="small scales",
            source="derived in docs",
            statement="depths 2 and 3: the rate no longer depends on the scale: largest power",
            measured=float(abs(told.isel({SCALE: 0})).max()),
            predicted=0.0,
            tolerance=0.05,
            relation="<=",
            reason="a limit; the bound's powers there are 2 and 4",
            applies=small,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """Both rates against the scale, and their ratio over depth and scale."""
    return {"depth_scale": draw_rates(dataset), "depth_scale_map": draw_map(dataset)}


def draw_rates(dataset: xr.Dataset) -> Figure:
    """A curve for each depth, and its bound."""
    figure, axes = figures.canvas()
    rates, bounds, scale = measured_rates(dataset), dataset["rate_bound"], dataset[SCALE]
    for depth, look in zip(dataset[DEPTH], figures.looks(dataset.sizes[DEPTH]), strict=True):
        network = {DEPTH: depth}
        axes.plot(scale, rates.sel(network), label=figures.value_label(depth), **look)
        look = {"color": look["color"], "linestyle": figures.DASHES[0], "linewidth": 1.2}
        axes.plot(scale, bounds.sel(network), **look)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(scale))
    axes.set_ylabel("rate of the distance (1 / flow time)")
    axes.set_ylim(bottom=1e-3 * float(rates.min()))
    write_scales(axes)
    figures.legend(figure, {r"$\mu c$ of Theorem 2": figures.DASHES[0]})
    return figure


def draw_map(dataset: xr.Dataset) -> Figure:
    """Powers of ten between the rate and its bound."""
    figure, axes = figures.canvas(5.2, 2.6)
    spare = np.log10(measured_rates(dataset) / dataset["rate_bound"]).transpose(DEPTH, SCALE)
    axes.set_facecolor("0.85")
    tints = axes.pcolormesh(dataset[SCALE], range(len(spare)), spare, cmap="cividis", vmin=0)
    axes.set(xscale="log", xlabel=figures.axis_label(dataset[SCALE]))
    axes.set(ylabel=figures.axis_label(dataset[DEPTH]))
    axes.set_yticks(range(len(spare)), dataset[DEPTH].values)
    write_scales(axes)
    figure.colorbar(tints, ax=axes, label=r"$\log_{10}\ r \,/\, \mu c$")
    return figure


def write_scales(axes: Axes) -> None:
    """Plain numbers on the axis of scales."""
    axes.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes.set_xticks([], minor=True)
