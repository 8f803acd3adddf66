"""Steps too large for the flow's minimiser train at the edge of stability (Even et al. 2023).

Two layers, fifty samples in R¹⁰⁰, and a θ* with the entries 100 and −100. The flow's minimiser has
a sharpness of about 220: below 2/γ for the small step, which goes there, and above it for the large
one, which bounces until it has found a flatter one.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

STEP = "dynamics.optimiser.learning_rate"


def data() -> dict[str, np.ndarray]:
    """Standard normal features; of θ* two large entries of opposite signs."""
    rng = np.random.default_rng(0)
    truth = np.append([100.0, -100.0], np.zeros(98))
    features = rng.standard_normal((50, 100))
    return {"features": features, "targets": features @ truth, "truth": truth}


def share(dataset: xr.Dataset) -> xr.DataArray:
    """The sharpness as a share of 2/γ, along each run."""
    return dataset["sharpness"] * dataset[STEP] / 2


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Where the two steps end, and what they have passed."""
    edge = share(dataset)
    small, large = edge.isel({STEP: 0}), edge.isel({STEP: -1})
    loss = dataset["loss"].isel({STEP: -1})
    is_as_long = int(dataset["step"][-1]) >= 10_000
    return [
        ddln.Claim(
            name="small step",
            source="Even et al. 2023",
            statement="its sharpness at the end over 2/γ: the flow's minimiser is stable",
            measured=float(small.isel(time=-1)),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="the meaning of stable",
            applies=bool(dataset[STEP][0] < 0.009),
        ),
        ddln.Claim(
            name="beyond the edge",
            source="Even et al. 2023; Cohen et al. 2021",
            statement="2/γ over the largest sharpness that the large step has seen",
            measured=float(1 / large.max()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="only that it was beyond is claimed",
        ),
        ddln.Claim(
            name="at the edge",
            source="Even et al. 2023; Cohen et al. 2021",
            statement="the large step's sharpness at the end over 2/γ",
            measured=float(large.isel(time=-1)),
            predicted=1.0,
            tolerance=0.01,
            reason="it comes to rest where it is stable at last: just below 1",
            applies=is_as_long,
        ),
        ddln.Claim(
            name="not monotone",
            source="Cohen et al. 2021",
            statement="smallest share of a later loss that an earlier saved one was",
            measured=float((loss / loss.shift(time=-1)).min()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="only that the loss has risen is claimed",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Sharpness and loss gap step by step, each step size with its line 2/γ."""
    figure, (above, below) = figures.canvas(5.2, 4.8, nrows=2, sharex=True)
    for step, look in zip(dataset[STEP], figures.looks(dataset.sizes[STEP]), strict=True):
        lane, look = dataset.sel({STEP: step}), look | {"markevery": 24}
        above.plot(lane["step"], lane["sharpness"], label=figures.value_label(step), **look)
        above.axhline(2 / float(step), color=look["color"], linestyle=figures.DASHES[0])
        below.plot(lane["step"], figures.resolved(lane), **look)
    above.set(yscale="log", ylabel="sharpness $S$", xscale="log")
    above.set_xlim(1, float(dataset["step"][-1]))
    below.set(yscale="log", xlabel=figures.axis_label(dataset["step"]))
    below.set_ylabel(r"loss gap $\mathcal{L}(\theta_k) - \mathcal{L}^*$")
    figures.legend(figure, {r"$2/\gamma$": figures.DASHES[0]})
    return figure
