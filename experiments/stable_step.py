"""Larger layers are faster in flow time, not in steps (arXiv 2412.16765, Corollary 1).

The networks of Figure 4 at scales a up to 3.2, trained by gradient descent. The rate of the flow
grows as a^{2(L−1)}, and so does the sharpness S at the minimiser, so that the largest stable step
2/S falls by the same power and the number of steps does not change. With γ S / 2 above 1 the gap
grows by 2 ln|1 − γS| per step; below 1 it falls.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "derived in docs"
SCALE, STEP = "network.scale", "dynamics.optimiser.learning_rate"
COROLLARY = "arXiv 2412.16765, Corollary 1"
TARGET = 1e-2


def clocks(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """By name: the flow time to a relative gap of `TARGET`, 2/S, and the ratio of the two."""
    clock, stable = dataset[STEP] * dataset["step"], 2 / dataset.ddln.end["sharpness"]
    times = clock.where(dataset.ddln.relative_gap <= TARGET).min("time")
    return {"flow time": times, "stable step": stable, "steps": times / stable}


def growth(dataset: xr.Dataset, share: float) -> float:
    """d log gap / dk near the end of the largest network, with this share of its largest step."""
    end = dataset.ddln.end.isel({SCALE: -1})
    layers = jnp.asarray(end["layers"].values)
    nudged = layers * (1 + 1e-7 * jax.random.normal(jax.random.key(0), layers.shape))
    rule = ddln.optimiser("sgd", learning_rate=share * float(2 / end["sharpness"]))
    gap = ddln.descend(dataset.ddln.first.problem, nudged, rule, steps=100, record_at=[80]).gap
    return float(jnp.log(gap[2] / gap[1]) / 20)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The powers of the scale at its large end, and that steps beyond 2/S are unstable."""
    finished = bool((dataset.ddln.end["gap"] < 1e-6).all())
    power = {name: dataset.ddln.powers(x, SCALE)[-1] for name, x in clocks(dataset).items()}
    above, below = (growth(dataset, share) if finished else np.nan for share in (1.05, 0.95))
    predicted, slower = -2 * (dataset.sizes["layer"] - 1), "slower directions are 1 % of the gap"
    limit = "a limit: the layers still move by a little at the largest scale"
    equal = partial(ddln.claim.equal, tol=0.1, why=limit, applies=finished)
    return [
        equal("power of a in the flow time", power["flow time"], predicted, source=COROLLARY),
        equal("power of a in the largest stable step 2/S", power["stable step"], predicted),
        equal("power of a in the number of such steps", power["steps"], 0.0),
        equal("growth of ln(gap) in a step 2.1/S", above, 2 * np.log(1.1), tol=0.004, why=slower),
        ddln.claim.at_most("growth of ln(gap) in a step 1.9/S", below, 0.0, applies=finished),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The gap against flow time and against stable steps; the powers of the scale."""
    figure, (*panels, last) = figures.canvas(8.6, 3.1, ncols=3)
    found, scales, clock = clocks(dataset), dataset[SCALE], dataset[STEP] * dataset["step"]
    against = {"flow time $t$": clock, r"steps of $2/S$": clock / found["stable step"]}
    for axes, (name, x) in zip(panels, against.items(), strict=True):
        figures.curves(axes, dataset.ddln.resolved_gap, SCALE, against=x, markevery=40)
        axes.set(xscale="log", yscale="log", xlabel=name, ylim=(1e-9, None))
    panels[0].set_ylabel(r"loss gap $\mathcal{L} - \mathcal{L}^*$")
    figures.legend(figure)
    for (name, values), look in zip(found.items(), figures.line_styles(3), strict=True):
        last.plot(scales, values / values.isel({SCALE: -1}), label=name, **look)
    last.set(xscale="log", yscale="log", xlabel=figures.axis_label(scales))
    figures.ticks_at(last, scales)
    last.set_ylabel(f"to a relative gap of {TARGET:g}, over the last")
    last.legend(loc="center left", bbox_to_anchor=(0.0, 0.3))
    return figure
