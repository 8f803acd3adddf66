"""The noise of SGD finds a sparser solution than the flow does (Pesme et al. 2021).

Forty samples of a θ* in R¹⁰⁰ with five entries that are not zero, two layers. Beside the runs of
SGD are gradient descent with the same step, the gradient flow, and the stochastic flow, whose noise
has the covariance of SGD's.
"""

from functools import cache

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config.datasets import arrays_of
from ddln.config.experiment import parse
from ddln.sweeps import build

SEED = "dynamics.sampling.seed"
NAMES = {"SGD": "SGD", "stochastic": "stochastic flow", "GD": "gradient descent", "flow": "flow"}


@cache
def beside(config: str, seeds: int) -> dict[str, np.ndarray]:
    """θ of gradient descent, the flow and stochastic flows, at the times of the config's runs."""
    experiment = parse(config)
    problem, layers = build.problem_of(experiment), build.layers_of(experiment)
    training, rule = experiment.dynamics, build.rule_of(experiment.dynamics)
    plain = ddln.descend(
        problem, layers, rule, steps=training.steps, record_at=training.records[1:]
    )

    def noisy(key):
        return ddln.stochastic_flow(
            *(problem, layers, plain.times),
            learning_rate=training.optimiser.learning_rate,
            oracle=build.oracle_of(training),
            key=key,
        ).theta

    return {
        "stochastic": np.asarray(jax.vmap(noisy)(jax.random.split(jax.random.key(0), seeds))),
        "GD": np.asarray(plain.theta)[None],
        "flow": np.asarray(ddln.gradient_flow(problem, layers, plain.times).theta)[None],
    }


def distances(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """‖θ − θ*‖ of each kind, (run, time)."""
    runs = {"SGD": dataset["theta"].values} | beside(dataset.attrs["config"], dataset.sizes[SEED])
    truth, time = arrays_of(dataset)["truth"], {"time": dataset["time"]}
    return {
        name: xr.DataArray(np.linalg.norm(theta - truth, axis=-1), time, ("run", "time"))
        for name, theta in runs.items()
    }


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """How the four end beside each other, and the flow beside its limit."""
    ends = {name: float(all_[:, -1].mean()) for name, all_ in distances(dataset).items()}
    experiment = parse(dataset.attrs["config"])
    limit = ddln.limit_point(build.problem_of(experiment), build.layers_of(experiment))
    reached = beside(dataset.attrs["config"], dataset.sizes[SEED])["flow"][0, -1]
    finished = float(dataset["gap"].isel(time=-1).max()) < 1e-9

    def claim(name, statement, measured, predicted, tolerance, relation, reason):
        return ddln.Claim(
            *(name, "Pesme et al. 2021", statement, measured, predicted, tolerance, relation),
            *(reason, finished),
        )

    return [
        claim(
            *("noise helps", "mean ‖θ − θ*‖ of SGD over that of gradient descent"),
            *(ends["SGD"] / ends["GD"], 1.0, 0.0, "<=", "only the order is claimed"),
        ),
        claim(
            *("stochastic flow", "mean ‖θ − θ*‖ of the stochastic flow over that of SGD"),
            *(ends["stochastic"] / ends["SGD"], 1.0, 0.05, "="),
            "the equation is to first order in the step; the means are over few runs",
        ),
        claim(
            *("flow", "‖θ − θ*‖ of gradient descent over that of the flow"),
            *(ends["GD"] / ends["flow"], 1.0, 0.02, "=", "first order in the step"),
        ),
        claim(
            *("limit", "‖θ − θ_∞‖ of the flow over ‖θ_∞‖, θ_∞ = argmin D_Q among minimisers"),
            *(float(np.linalg.norm(reached - limit) / np.linalg.norm(limit)), 0.0, 1e-4, "<="),
            "how far it has come by the last saved time",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the truth against flow time: means, and the range of the noisy runs."""
    figure, axes = figures.canvas()
    found = distances(dataset)
    for (name, values), look in zip(found.items(), figures.looks(len(found)), strict=True):
        dashes = {"linestyle": figures.DASHES[0]} if name in ("stochastic", "flow") else {}
        late = values.sel(time=slice(float(values["time"][1]), None))
        time = late["time"]
        axes.fill_between(time, late.min("run"), late.max("run"), color=look["color"], alpha=0.2)
        shown = {"label": NAMES[name], "markevery": (4 * len(axes.lines), 16)}
        axes.plot(time, late.mean("run"), **look, **dashes, **shown)
    axes.set(xscale="log", xlabel=figures.axis_label(dataset["time"]))
    axes.set_xlim(float(time[0]), float(time[-1]))
    axes.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    figures.legend(figure, {})
    return figure
