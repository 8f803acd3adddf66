"""Steps too large for the minimiser of the flow train at the edge of stability (Even et al. 2023).

Two layers, fifty samples in R¹⁰⁰, and a θ* with the entries 100 and −100. The sharpness S at the
minimiser of the flow is about 220. It is below 2/γ for the small step, which converges to this
minimiser, and above 2/γ for the large one, whose loss rises and falls until S is just below 2/γ.
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
    """The small step ends at a stable minimiser; the large one passes the edge and ends at it."""
    share, loss = dataset["sharpness"] * dataset[STEP] / 2, dataset["loss"]
    small, large = share.isel({STEP: 0}), share.isel({STEP: -1})
    falls = (loss / loss.shift(time=-1)).isel({STEP: -1})
    rest = "it comes to rest where it is stable at last: just below 1"
    is_long, is_small = dataset["step"][-1] >= 10_000, dataset[STEP][0] < 0.009
    return [
        ddln.claim.at_most(
            "small step: S over 2/γ at the end",
            small[-1],
            1.0,
            source="Even et al. 2023",
            why="the definition of stable",
            applies=is_small,
        ),
        ddln.claim.at_most("large step: 2/γ over the largest S of the run", 1 / large.max(), 1.0),
        ddln.claim.equal(
            "large step: S over 2/γ at the end", large[-1], 1.0, tol=0.01, why=rest, applies=is_long
        ),
        ddln.claim.at_most(
            "large step: smallest ratio of a saved loss to the next",
            falls.min(),
            1.0,
            source="Cohen et al. 2021",
            why="only that the loss has risen is claimed",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Sharpness and loss gap step by step, each step size with its line 2/γ."""
    figure, (above, below) = figures.canvas(5.2, 4.8, nrows=2, sharex=True)
    step, rates, gap = dataset["step"], dataset[STEP], dataset.ddln.resolved_gap
    figures.curves(above, dataset["sharpness"], STEP, against=step, markevery=24)
    figures.curves(below, gap, STEP, against=step, label=None, markevery=24)
    for rate, look in zip(rates, figures.line_styles(rates.size), strict=True):
        above.axhline(2 / float(rate), color=look["color"], linestyle=figures.DASHES[0])
    above.set(yscale="log", ylabel="sharpness $S$", xscale="log", xlim=(1, float(step[-1])))
    below.set(yscale="log", xlabel=figures.axis_label(step))
    below.set_ylabel(r"loss gap $\mathcal{L}(\theta_k) - \mathcal{L}^*$")
    figures.legend(figure, {r"$2/\gamma$": figures.DASHES[0]})
    return figure
