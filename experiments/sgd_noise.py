"""The noise of SGD finds a sparser solution than the flow does (Pesme et al. 2021).

Forty samples of a θ* in R¹⁰⁰ with five nonzero entries, and two layers. From the same layers start
SGD with eight seeds, gradient descent with the same step γ, the gradient flow, which ends at the
minimiser θ_∞ nearest to θ(0) in D_Q, and the stochastic flow, whose noise has SGD's covariance.
"""

from functools import cache, partial

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Pesme et al. 2021"


@cache
def others(run, seeds: int) -> dict[str, np.ndarray]:
    """θ of the other three methods, shape (runs, times, dim), at the saved steps of SGD."""
    training = run.experiment.dynamics
    rate = training.optimiser.learning_rate
    rule, records = ddln.optimiser("sgd", learning_rate=rate), training.records[1:]
    descent = ddln.descend(run.problem, run.layers, rule, steps=training.steps, record_at=records)
    flow = ddln.gradient_flow(run.problem, run.layers, descent.times)
    sampling = ddln.Sampling(**training.sampling.model_dump(exclude={"seed"}))

    def stochastic(key):
        noise = {"learning_rate": rate, "oracle": sampling, "key": key}
        return ddln.stochastic_flow(run.problem, run.layers, descent.times, **noise).theta

    keys = jax.random.split(jax.random.key(0), seeds)
    return {
        "stochastic flow": np.asarray(jax.vmap(stochastic)(keys)),
        "gradient descent": np.asarray(descent.theta)[None],
        "flow": np.asarray(flow.theta)[None],
    }


def distances(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """‖θ − θ*‖ by each method, shape (runs, times)."""
    sgd, truth = dataset["theta"].values, dataset.ddln.first.data["truth"].values
    methods = {"SGD": sgd, **others(dataset.ddln.first, len(sgd))}
    return {name: np.linalg.norm(theta - truth, axis=-1) for name, theta in methods.items()}


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The noise helps, the stochastic flow follows SGD, and the flow follows gradient descent."""
    first, finished = dataset.ddln.first, dataset.ddln.end["gap"].max() < 1e-9
    ends = {name: values[:, -1].mean() for name, values in distances(dataset).items()}
    sgd, noisy = ends["SGD"], ends["stochastic flow"]
    descent, flow = ends["gradient descent"], ends["flow"]
    limit = ddln.limit_point(first.problem, first.layers)
    left = np.linalg.norm(others(first, len(dataset["theta"]))["flow"][0, -1] - limit)
    at_most = partial(ddln.claim.at_most, applies=finished)
    equal = partial(ddln.claim.equal, expected=1.0, applies=finished)
    few = "first order in γ; the means are over few runs"
    late, size = "what is left at the last saved time", np.linalg.norm(limit)
    return [
        at_most("‖θ − θ*‖, SGD over descent", sgd / descent, 1.0),
        equal("‖θ − θ*‖, stochastic flow over SGD", noisy / sgd, tol=0.05, why=few),
        equal("‖θ − θ*‖, descent over flow", descent / flow, tol=0.02, why="first order in γ"),
        at_most("‖θ − θ_∞‖ of the flow over ‖θ_∞‖", left / size, 0.0, tol=1e-4, why=late),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the truth against flow time: means, and the range of the noisy runs."""
    figure, axes = figures.canvas()
    found, time = distances(dataset), dataset["time"][1:]
    for (name, values), look in zip(found.items(), figures.line_styles(len(found)), strict=True):
        later, dashes = values[:, 1:], figures.DASHES[0] if "flow" in name else "-"
        axes.fill_between(time, later.min(0), later.max(0), color=look["color"], alpha=0.2)
        style = {"label": name, "linestyle": dashes, "markevery": (4 * len(axes.lines), 16), **look}
        axes.plot(time, later.mean(0), **style)
    axes.set(xscale="log", xlim=(float(time[0]), float(time[-1])), xlabel=figures.axis_label(time))
    axes.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    figures.legend(figure)
    return figure
