"""Larger layers are faster in flow time, not in steps (arXiv 2412.16765, Corollary 1).

The networks of Figure 4 at larger scales a, trained by gradient descent. The flow's rate grows with
the power 2(L − 1) of a, and so does the sharpness 2/γ_max: γ is lowered by that power, and large
networks take the same steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config.experiment import parse
from ddln.sweeps import build

SCALE, STEP = "network.scale", "dynamics.optimiser.learning_rate"
TARGET = 1e-2
OURS = "derived in docs"


def times_to_target(dataset: xr.Dataset) -> xr.DataArray:
    """Flow time at which each lane's relative gap first is at most `TARGET`."""
    relative = dataset["gap"] / dataset["gap"].isel(time=0)
    return (dataset[STEP] * dataset["step"]).where(relative <= TARGET).min("time")


def largest_stable_steps(dataset: xr.Dataset) -> xr.DataArray:
    """2/S at the end of each run."""
    return 2 / dataset["sharpness"].isel(time=-1)


def growth(dataset: xr.Dataset, share: float) -> float:
    """d log gap / dk near the largest network's end, with that share of its largest stable step."""
    experiment, last = parse(dataset.attrs["config"]), dataset.isel({SCALE: -1})
    layers = jnp.asarray(last["layers"].isel(time=-1).values)
    nudged = layers * (1 + 1e-7 * jax.random.normal(jax.random.key(0), layers.shape))
    rate = share * float(largest_stable_steps(last))
    rule, schedule = ddln.optimiser("sgd", learning_rate=rate), {"steps": 100, "record_at": [80]}
    gap = ddln.descend(build.problem_of(experiment), nudged, rule, **schedule).gap
    return float(jnp.log(gap[2] / gap[1]) / 20)


def slope(values: xr.DataArray) -> float:
    """d log / d log a between the two largest scales."""
    ends = values.isel({SCALE: [-2, -1]})
    return float(np.diff(np.log(ends.values))[0] / np.diff(np.log(ends[SCALE].values))[0])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The powers of the scale at its large end, and that 2/S is where steps cease to be stable."""
    times, stable = times_to_target(dataset), largest_stable_steps(dataset)
    power = 2 * (dataset.sizes["layer"] - 1)
    finished = bool((dataset["gap"].isel(time=-1) < 1e-6).all())
    limit = "a limit: the layers still move by a little at the largest scale"

    def claim(name, statement, measured, predicted, tolerance, reason, relation="=", source=OURS):
        return ddln.Claim(
            *(name, source, statement, measured, predicted, tolerance, relation, reason, finished),
        )

    return [
        claim(
            *("flow time", f"power of a in the flow time to a relative gap of {TARGET:g}"),
            *(slope(times), -power, 0.1, limit, "=", "arXiv 2412.16765, Corollary 1"),
        ),
        claim(
            *("stable step", "power of a in the largest stable step 2/S"),
            *(slope(stable), -power, 0.1, limit),
        ),
        claim(
            *("steps", "power of a in the steps to it, as large as is stable: the gain is gone"),
            *(slope(times / stable), 0.0, 0.1, limit),
        ),
        claim(
            *("beyond it", "growth of the log gap per step, with 1.05 of the largest stable step"),
            *(growth(dataset, 1.05) if finished else np.nan, 2 * np.log(1.1), 0.004),
            "2 ln |1 − γS| in the linear regime; slower directions are 1 % of the gap by then",
        ),
        claim(
            *("below it", "the same with 0.95 of it"),
            *(growth(dataset, 0.95) if finished else np.nan, 0.0, 0.0),
            *("only the sign is claimed: the slow directions decide", "<="),
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The gap against flow time and against stable steps; the powers of the scale."""
    figure, panels = figures.canvas(8.6, 3.1, ncols=3)
    stable, times = largest_stable_steps(dataset), times_to_target(dataset)
    scales = dataset[SCALE]
    for scale, look in zip(scales, figures.looks(scales.size), strict=True):
        lane = figures.resolved(dataset.sel({SCALE: scale}))
        clock = dataset[STEP].sel({SCALE: scale}) * dataset["step"]
        for axes, x in zip(panels, (clock, clock / stable.sel({SCALE: scale})), strict=False):
            axes.plot(x, lane, label=figures.value_label(scale), markevery=40, **look)
    for axes, words in zip(panels, ("flow time $t$", r"steps of $2/S$"), strict=False):
        axes.set(xscale="log", yscale="log", xlabel=words, ylim=(1e-9, None))
    panels[0].set_ylabel(r"loss gap $\mathcal{L} - \mathcal{L}^*$")
    figures.legend(figure, {})
    kinds, axes = {"flow time": times, "stable step": stable, "steps": times / stable}, panels[2]
    for (name, values), look in zip(kinds.items(), figures.looks(3), strict=True):
        axes.plot(scales, values / values.isel({SCALE: -1}), label=name, **look)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(scales))
    axes.set_xticks(scales.values, [f"{scale:.2g}" for scale in scales.values])
    axes.set_xticks([], minor=True)
    axes.set_ylabel(f"to a relative gap of {TARGET:g}, over the last")
    axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.3))
    return figure
