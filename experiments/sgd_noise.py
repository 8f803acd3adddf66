"""The noise of SGD finds a sparser solution than the flow does (Pesme et al. 2021).

Forty samples of a θ* in R¹⁰⁰ with five nonzero entries, two layers. Beside the runs of SGD are
gradient descent with the same step, the gradient flow, and the stochastic flow, whose noise has the
covariance of that of SGD.
"""

from functools import cache

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Pesme et al. 2021"
SEED = "dynamics.sampling.seed"
DASHED = ("stochastic flow", "flow")


@cache
def others(run, seeds: int) -> dict[str, np.ndarray]:
    """θ of the other three, shape (runs, times, dim), at the saved steps of a run of SGD."""
    training = run.experiment.dynamics
    rate = training.optimiser.learning_rate
    sampling = ddln.Sampling(**training.sampling.model_dump(exclude={"seed"}))
    rule, times = ddln.optimiser("sgd", learning_rate=rate), {"record_at": training.records[1:]}
    plain = ddln.descend(run.problem, run.layers, rule, steps=training.steps, **times)

    def noisy(key):
        noise = {"learning_rate": rate, "oracle": sampling, "key": key}
        return ddln.stochastic_flow(run.problem, run.layers, plain.times, **noise).theta

    flow = ddln.gradient_flow(run.problem, run.layers, plain.times)
    return {
        "stochastic flow": np.asarray(jax.vmap(noisy)(jax.random.split(jax.random.key(0), seeds))),
        "gradient descent": np.asarray(plain.theta)[None],
        "flow": np.asarray(flow.theta)[None],
    }


def distances(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """‖θ − θ*‖ of each kind, (run, time)."""
    first = dataset.ddln.first
    runs = {"SGD": dataset["theta"].values} | others(first, dataset.sizes[SEED])
    truth, time = first.data["truth"].values, {"time": dataset["time"]}
    return {
        name: xr.DataArray(np.linalg.norm(theta - truth, axis=-1), time, ("run", "time"))
        for name, theta in runs.items()
    }


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """How the four end beside each other, and the flow beside its limit."""
    first = dataset.ddln.first
    ends = {name: float(values[:, -1].mean()) for name, values in distances(dataset).items()}
    limit = ddln.limit_point(first.problem, first.layers)
    left = others(first, dataset.sizes[SEED])["flow"][0, -1] - limit
    finished = dataset.ddln.end["gap"].max() < 1e-9
    return [
        ddln.claim.at_most(
            "noise helps",
            ends["SGD"] / ends["gradient descent"],
            1.0,
            statement="mean ‖θ − θ*‖ of SGD over that of gradient descent",
            why="only the order is claimed",
            applies=finished,
        ),
        ddln.claim.equal(
            "stochastic flow",
            ends["stochastic flow"] / ends["SGD"],
            1.0,
            tol=0.05,
            statement="mean ‖θ − θ*‖ of the stochastic flow over that of SGD",
            why="the equation is of first order in the step; the means are over few runs",
            applies=finished,
        ),
        ddln.claim.equal(
            "flow",
            ends["gradient descent"] / ends["flow"],
            1.0,
            tol=0.02,
            statement="‖θ − θ*‖ of gradient descent over that of the flow",
            why="first order in the step",
            applies=finished,
        ),
        ddln.claim.at_most(
            "limit",
            np.linalg.norm(left) / np.linalg.norm(limit),
            0.0,
            tol=1e-4,
            statement="‖θ − θ_∞‖ of the flow over ‖θ_∞‖, θ_∞ = argmin D_Q among minimisers",
            why="what is left at the last saved time",
            applies=finished,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the truth against flow time: means, and the range of the noisy runs."""
    figure, axes = figures.canvas()
    found, time = distances(dataset), dataset["time"][1:]
    for (name, values), look in zip(found.items(), figures.line_styles(len(found)), strict=True):
        dashes, later = figures.DASHES[0] if name in DASHED else "-", values[:, 1:]
        low, high = later.min("run"), later.max("run")
        axes.fill_between(time, low, high, color=look["color"], alpha=0.2)
        look |= {"linestyle": dashes, "label": name, "markevery": (4 * len(axes.lines), 16)}
        axes.plot(time, later.mean("run"), **look)
    axes.set(xscale="log", xlabel=figures.axis_label(dataset["time"]))
    axes.set_xlim(float(time[0]), float(time[-1]))
    axes.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    figures.legend(figure, {})
    return figure
