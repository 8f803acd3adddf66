"""Label noise finds the sparse truth from a large initialisation (HaoChen et al. 2021).

θ = v ⊙ v in R¹⁰⁰ from v = 1, forty noiseless samples of a θ* whose first five entries are 1.
Gradient descent stays near its start; with fresh N(0, 1) noise on one label a step it goes to θ*.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "HaoChen et al. 2021"
NOISE = "dynamics.sampling.label_noise"


def data() -> dict[str, np.ndarray]:
    """By NumPy's legacy generator, as in the paper's code."""
    rng = np.random.RandomState(123)
    rng.rand(100)
    truth = np.where(np.arange(100) < 5, 1.0, 0.0)
    features = rng.randn(40, 100)
    return {"features": features, "targets": features @ truth, "truth": truth}


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Where the two runs end."""
    end, first = dataset.ddln.end, dataset.ddln.first
    theta, distance = end["theta"], end.ddln.distance_to_truth
    limit = ddln.limit_point(first.problem, first.layers)
    is_as_long = dataset["step"][-1] == 300_000
    wrong = np.round(theta) != dataset["truth"]
    plain = theta.sel({NOISE: 0.0}, method="nearest").values
    return [
        ddln.claim.equal(
            "truth found",
            wrong.isel({NOISE: -1}).sum(),
            0,
            tol=0,
            statement="entries of θ that differ from those of θ* when rounded to whole numbers",
            why="a count",
            applies=is_as_long,
        ),
        ddln.claim.at_most(
            "noise helps",
            distance.isel({NOISE: -1}) / distance.isel({NOISE: 0}),
            0.0,
            tol=0.01,
            statement="‖θ − θ*‖ with noise over that of gradient descent",
            why="what is left is the noise of the last, smallest step size",
            applies=is_as_long,
        ),
        ddln.claim.at_most(
            "without noise",
            np.linalg.norm(plain - limit) / np.linalg.norm(limit),
            0.0,
            tol=0.01,
            statement="‖θ − θ_∞‖ of gradient descent over ‖θ_∞‖, θ_∞ = argmin D_Q on minimisers",
            source="arXiv 2412.16765",
            why="first order in the step size, 0.01",
            applies=np.isclose(dataset[NOISE][0], 0.0),
        ),
    ]


def noise_label(noise: xr.DataArray) -> str:
    """Names a run by its label noise."""
    return "label noise, " + figures.value_label(noise) if noise > 0 else "gradient descent"


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the truth step by step, and θ at the end, entry by entry."""
    figure, (left, right) = figures.canvas(7.2, 3.2, ncols=2)
    step, distance, entries = dataset["step"], dataset.ddln.distance_to_truth, dataset["coordinate"]
    figures.curves(left, distance, NOISE, against=step, label=noise_label, markevery=50)
    end = dataset.ddln.end
    figures.curves(right, end["theta"], NOISE, label=None, linestyle="", alpha=0.7)
    truth = {"where": "mid", "color": "0.3", "linestyle": figures.DASHES[0], "linewidth": 1}
    right.step(entries, end["truth"].isel({NOISE: 0}), **truth)
    drops = [at for at, _ in dataset.ddln.experiment.dynamics.optimiser.drops]
    for at in drops:
        left.axvline(at, color="0.6", linewidth=0.8, linestyle=figures.DOTS, zorder=0)
    left.set(yscale="log", xlabel=figures.axis_label(step), xlim=(0, float(step[-1])))
    left.set_xticks([0, *drops, int(step[-1])])
    left.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    right.set(xlabel="coordinate $j$", ylabel=r"$\theta_j$ at the end")
    figures.legend(figure, {"learning rate drops": figures.DOTS, r"$\theta^*$": figures.DASHES[0]})
    return figure
