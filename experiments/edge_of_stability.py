"""Steps too large for the minimiser of the flow train at the edge of stability (Even et al. 2023).

Two layers, fifty samples in R¹⁰⁰, and a θ* with the entries 100 and −100. The minimiser of the flow
has a sharpness of about 220: below 2/γ for the small step, which goes there, and above it for the
large one, which bounces until it has found a flatter one.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Even et al. 2023; Cohen et al. 2021"
STEP = "dynamics.optimiser.learning_rate"


def data() -> dict[str, np.ndarray]:
    """Standard normal features; two large entries of opposite signs in θ*."""
    rng = np.random.default_rng(0)
    truth = np.append([100.0, -100.0], np.zeros(98))
    features = rng.standard_normal((50, 100))
    return {"features": features, "targets": features @ truth, "truth": truth}


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Where the two steps end, and what they have passed."""
    share = dataset["sharpness"] * dataset[STEP] / 2
    small, large, loss = share.isel({STEP: 0}), share.isel({STEP: -1}), dataset["loss"]
    rises = loss / loss.shift(time=-1)
    return [
        ddln.claim.at_most(
            "small step",
            small[-1],
            1.0,
            statement="its sharpness at the end over 2/γ: the minimiser of the flow is stable",
            source="Even et al. 2023",
            why="the definition of stable",
            applies=dataset[STEP][0] < 0.009,
        ),
        ddln.claim.at_most(
            "beyond the edge",
            1 / large.max(),
            1.0,
            statement="2/γ over the largest sharpness along the run of the large step",
            why="only that it was beyond the edge is claimed",
        ),
        ddln.claim.equal(
            "at the edge",
            large[-1],
            1.0,
            tol=0.01,
            statement="the sharpness of the large step at the end over 2/γ",
            why="it comes to rest where it is stable at last: just below 1",
            applies=dataset["step"][-1] >= 10_000,
        ),
        ddln.claim.at_most(
            "not monotone",
            rises.isel({STEP: -1}).min(),
            1.0,
            statement="smallest ratio of a saved loss to the next one",
            source="Cohen et al. 2021",
            why="only that the loss has risen is claimed",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Sharpness and loss gap step by step, each step size with its line 2/γ."""
    figure, (above, below) = figures.canvas(5.2, 4.8, nrows=2, sharex=True)
    step, rates = dataset["step"], dataset[STEP]
    figures.curves(above, dataset["sharpness"], STEP, against=step, markevery=24)
    for rate, look in zip(rates, figures.line_styles(rates.size), strict=True):
        above.axhline(2 / float(rate), color=look["color"], linestyle=figures.DASHES[0])
    gap = dataset.ddln.resolved_gap
    figures.curves(below, gap, STEP, against=step, label=None, markevery=24)
    above.set(yscale="log", ylabel="sharpness $S$", xscale="log", xlim=(1, float(step[-1])))
    below.set(yscale="log", xlabel=figures.axis_label(step))
    below.set_ylabel(r"loss gap $\mathcal{L}(\theta_k) - \mathcal{L}^*$")
    figures.legend(figure, {r"$2/\gamma$": figures.DASHES[0]})
    return figure
