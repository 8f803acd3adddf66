"""Label noise finds the sparse truth from a large initialisation (HaoChen et al. 2021).

θ = v ⊙ v in R¹⁰⁰ starts at v = 1; forty noiseless samples of a θ* whose first five entries are 1.
Gradient descent ends near θ_∞ = argmin D_Q(·, θ(0)) among the minimisers, far from θ*. With fresh
N(0, 1) noise on the label of each step it ends at θ*, but for the noise of the last step size.
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
    """With noise the run ends at θ*, without noise near θ_∞."""
    end, first, is_long = dataset.ddln.end, dataset.ddln.first, dataset["step"][-1] == 300_000
    theta, distance = end["theta"], end.ddln.distance_to_truth
    wrong = (np.round(theta) != dataset["truth"]).isel({NOISE: -1}).sum()
    ratio = distance.isel({NOISE: -1}) / distance.isel({NOISE: 0})
    limit = ddln.limit_point(first.problem, first.layers)
    away = np.linalg.norm(theta.sel({NOISE: 0.0}, method="nearest").values - limit)
    last = {"why": "what is left is the noise of the last, smallest step size", "applies": is_long}
    first_order = {"source": "arXiv 2412.16765", "why": "first order in the step size, 0.01"}
    plain, size = np.isclose(dataset[NOISE][0], 0.0), np.linalg.norm(limit)
    return [
        ddln.claim.equal(
            "entries of θ that round to another than θ*", wrong, 0, why="a count", applies=is_long
        ),
        ddln.claim.at_most("‖θ − θ*‖ with noise over without", ratio, 0.0, tol=0.01, **last),
        ddln.claim.at_most(
            "‖θ − θ_∞‖ / ‖θ_∞‖ without noise",
            away / size,
            0.0,
            tol=0.01,
            applies=plain,
            **first_order,
        ),
    ]


def noise_label(noise: xr.DataArray) -> str:
    """Names a run by its label noise."""
    return "label noise, " + figures.value_label(noise) if noise > 0 else "gradient descent"


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the truth step by step, and θ at the end, entry by entry."""
    figure, (left, right) = figures.canvas(7.2, 3.2, ncols=2)
    step, end, distance = dataset["step"], dataset.ddln.end, dataset.ddln.distance_to_truth
    figures.curves(left, distance, NOISE, against=step, label=noise_label, markevery=50)
    figures.curves(right, end["theta"], NOISE, label=None, linestyle="", alpha=0.7)
    truth = {"where": "mid", "color": "0.3", "linestyle": figures.DASHES[0], "linewidth": 1}
    right.step(dataset["coordinate"], end["truth"].isel({NOISE: 0}), **truth)
    drops = [at for at, _ in dataset.ddln.experiment.dynamics.optimiser.drops]
    for at in drops:
        left.axvline(at, color="0.6", linewidth=0.8, linestyle=figures.DOTS, zorder=0)
    left.set(yscale="log", xlabel=figures.axis_label(step), xlim=(0, float(step[-1])))
    left.set_xticks([0, *drops, int(step[-1])])
    left.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    right.set(xlabel="coordinate $j$", ylabel=r"$\theta_j$ at the end")
    figures.legend(figure, {"learning rate drops": figures.DOTS, r"$\theta^*$": figures.DASHES[0]})
    return figure
