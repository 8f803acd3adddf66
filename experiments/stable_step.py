"""Larger layers are faster in flow time, not in steps (arXiv 2412.16765, Corollary 1).

The networks of Figure 4 at larger scales a, trained by gradient descent. The rate of the flow grows
with the power 2(L − 1) of a, and so does the sharpness 2/γ_max: γ is lowered by that power, and
large networks take as many steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "derived in docs"
SCALE, STEP = "network.scale", "dynamics.optimiser.learning_rate"
TARGET = 1e-2


def times_to_target(dataset: xr.Dataset) -> xr.DataArray:
    """Flow time at which each relative gap first is at most `TARGET`."""
    relative = dataset["gap"] / dataset["gap"].isel(time=0)
    return (dataset[STEP] * dataset["step"]).where(relative <= TARGET).min("time")


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
    times, end = times_to_target(dataset), dataset.ddln.end
    stable, of_theory = 2 / end["sharpness"], -2 * (dataset.sizes["layer"] - 1)
    finished = bool((end["gap"] < 1e-6).all())
    limit = {
        "tol": 0.1,
        "why": "a limit: the layers still move by a little at the largest scale",
        "applies": finished,
    }
    return [
        ddln.claim.equal(
            "flow time",
            dataset.ddln.powers(times, SCALE)[-1],
            of_theory,
            statement=f"power of a in the flow time to a relative gap of {TARGET:g}",
            source="arXiv 2412.16765, Corollary 1",
            **limit,
        ),
        ddln.claim.equal(
            "stable step",
            dataset.ddln.powers(stable, SCALE)[-1],
            of_theory,
            statement="power of a in the largest stable step 2/S",
            **limit,
        ),
        ddln.claim.equal(
            "steps",
            dataset.ddln.powers(times / stable, SCALE)[-1],
            0.0,
            statement="power of a in the steps to it, as large as is stable: the gain is gone",
            **limit,
        ),
        ddln.claim.equal(
            "beyond it",
            growth(dataset, 1.05) if finished else np.nan,
            2 * np.log(1.1),
            tol=0.004,
            statement="growth of the log gap per step, with 1.05 of the largest stable step",
            why="2 ln |1 − γS| in the linear regime; slower directions are 1 % of the gap by then",
            applies=finished,
        ),
        ddln.claim.at_most(
            "below it",
            growth(dataset, 0.95) if finished else np.nan,
            0.0,
            statement="the same with 0.95 of it",
            why="only the sign is claimed: the slow directions decide",
            applies=finished,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The gap against flow time and against stable steps; the powers of the scale."""
    figure, (*panels, last) = figures.canvas(8.6, 3.1, ncols=3)
    stable, times = 2 / dataset.ddln.end["sharpness"], times_to_target(dataset)
    scales, clock = dataset[SCALE], dataset[STEP] * dataset["step"]
    clocks = {"flow time $t$": clock, r"steps of $2/S$": clock / stable}
    for axes, (name, x) in zip(panels, clocks.items(), strict=True):
        figures.curves(axes, dataset.ddln.resolved_gap, SCALE, against=x, markevery=40)
        axes.set(xscale="log", yscale="log", xlabel=name, ylim=(1e-9, None))
    panels[0].set_ylabel(r"loss gap $\mathcal{L} - \mathcal{L}^*$")
    figures.legend(figure, {})
    kinds = {"flow time": times, "stable step": stable, "steps": times / stable}
    for (name, values), look in zip(kinds.items(), figures.line_styles(3), strict=True):
        last.plot(scales, values / values.isel({SCALE: -1}), label=name, **look)
    last.set(xscale="log", yscale="log", xlabel=figures.axis_label(scales))
    figures.ticks_at(last, scales)
    last.set_ylabel(f"to a relative gap of {TARGET:g}, over the last")
    last.legend(loc="center left", bbox_to_anchor=(0.0, 0.3))
    return figure
