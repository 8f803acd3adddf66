"""Noise on the labels finds the sparse truth from a large start (HaoChen et al. 2021).

θ = v ⊙ v in R¹⁰⁰ from v = 1, forty noiseless samples of a θ* whose first five entries are 1.
Gradient descent stays near its start; with fresh N(0, 1) noise on one label a step it goes to θ*.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config.datasets import arrays_of
from ddln.config.experiment import parse
from ddln.sweeps import build

NOISE = "dynamics.sampling.label_noise"


def data() -> dict[str, np.ndarray]:
    """By NumPy's legacy generator, as in the paper's code."""
    rng = np.random.RandomState(123)
    rng.rand(100)
    truth = np.where(np.arange(100) < 5, 1.0, 0.0)
    features = rng.randn(40, 100)
    return {"features": features, "targets": features @ truth, "truth": truth}


def distance(dataset: xr.Dataset) -> xr.DataArray:
    """‖θ − θ*‖ along each run."""
    away = dataset["theta"] - xr.DataArray(arrays_of(dataset)["truth"], dims="coordinate")
    return (away**2).sum("coordinate") ** 0.5


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Where the two end."""
    ends, theta = distance(dataset).isel(time=-1), dataset["theta"].isel(time=-1)
    truth, is_as_long = arrays_of(dataset)["truth"], int(dataset["step"][-1]) == 300_000
    experiment = parse(dataset.attrs["config"])
    limit = ddln.limit_point(build.problem_of(experiment), build.layers_of(experiment))
    plain = theta.sel({NOISE: 0.0}, method="nearest").values
    return [
        ddln.Claim(
            name="truth found",
            source="HaoChen et al. 2021",
            statement="entries of θ that are not those of θ* when rounded to whole numbers",
            measured=float((np.round(theta.isel({NOISE: -1})) != truth).sum()),
            predicted=0.0,
            tolerance=0.0,
            reason="a count",
            applies=is_as_long,
        ),
        ddln.Claim(
            name="noise helps",
            source="HaoChen et al. 2021",
            statement="‖θ − θ*‖ with noise over that of gradient descent",
            measured=float(ends.isel({NOISE: -1}) / ends.isel({NOISE: 0})),
            predicted=0.0,
            tolerance=0.01,
            relation="<=",
            reason="what is left is the noise of the last, smallest step size",
            applies=is_as_long,
        ),
        ddln.Claim(
            name="without noise",
            source="arXiv 2412.16765",
            statement="‖θ − θ_∞‖ of gradient descent over ‖θ_∞‖, θ_∞ = argmin D_Q on minimisers",
            measured=float(np.linalg.norm(plain - limit) / np.linalg.norm(limit)),
            predicted=0.0,
            tolerance=0.01,
            relation="<=",
            reason="first order in the step size, 0.01",
            applies=bool(np.isclose(dataset[NOISE][0], 0.0)),
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the truth step by step, and θ at the end, entry by entry."""
    figure, (left, right) = figures.canvas(7.2, 3.2, ncols=2)
    step, entries = dataset["step"], dataset["coordinate"]
    for noise, look in zip(dataset[NOISE], figures.looks(dataset.sizes[NOISE]), strict=True):
        lane = dataset.sel({NOISE: noise})
        name = "label noise, " + figures.value_label(noise) if noise > 0 else "gradient descent"
        left.plot(step, distance(lane), label=name, markevery=50, **look)
        ends = lane["theta"].isel(time=-1)
        right.plot(entries, ends, linestyle="", alpha=0.7, **look)
    drops = parse(dataset.attrs["config"]).dynamics.optimiser.drops
    for at, _ in drops:
        left.axvline(at, color="0.6", linewidth=0.8, linestyle=figures.DOTS, zorder=0)
    truth = arrays_of(dataset)["truth"]
    right.step(entries, truth, where="mid", color="0.3", linestyle=figures.DASHES[0], linewidth=1)
    left.set(yscale="log", xlabel=figures.axis_label(step), xlim=(0, float(step[-1])))
    left.set_xticks([0, *(at for at, _ in drops), int(step[-1])])
    left.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    right.set(xlabel="coordinate $j$", ylabel=r"$\theta_j$ at the end")
    figures.legend(figure, {"learning rate drops": figures.DOTS, r"$\theta^*$": figures.DASHES[0]})
    return figure
