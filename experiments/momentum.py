"""The limit of heavy ball depends mainly on λ = γ/(1 − β)² (Papazov et al. 2024).

Twenty noiseless samples of a sparse θ* in R³⁰, and two layers. Each λ runs with several momenta β,
which determine the step size γ. The larger λ, the smaller is the imbalance |u² − v²| of the layers
at the end, and the larger is ‖θ − θ*‖². Runs with the same λ end close together.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Papazov et al. 2024"
STEP, MOMENTUM = "dynamics.optimiser.intrinsic_step", "dynamics.optimiser.momentum"
RECOMPUTED = 0.05
DISTANCES = {0.0: 0.0573329, 0.5: 0.0576647, 0.8: 0.0578650, 0.9: 0.0579655}
"""β: ‖θ − θ*‖² at λ = 0.05 after 200,000 steps, by a loop in NumPy."""
IMBALANCES = {0.0: 0.0099243, 0.9: 0.0098569}
"""β: mean |u² − v²| / 2, likewise."""


def ends(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """‖θ − θ*‖² and the mean of |u² − v²| / 2 after the last step."""
    end = dataset.ddln.end
    imbalance = (end["effective_initialisation"] ** 2).mean("coordinate")
    return end.ddln.distance_to_truth**2, imbalance


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The ends that were computed independently, and how close those of one λ are."""
    (distance, imbalance), is_long = ends(dataset), bool(dataset["step"][-1] == 200_000)
    spread = distance.max(MOMENTUM) / distance.min(MOMENTUM) - 1
    largest = spread.where(dataset[STEP] <= RECOMPUTED).max()
    rows = {
        "‖θ − θ*‖² at β = {:g}": (distance, DISTANCES),
        "mean |u² − v²| / 2 at β = {:g}": (imbalance, IMBALANCES),
    }
    made = []
    for name, (values, recomputed) in rows.items():
        at_step = values.sel({STEP: RECOMPUTED}, method="nearest")
        for beta, expected in recomputed.items():
            found = at_step.sel({MOMENTUM: beta}, method="nearest")
            there = np.isclose(found[STEP], RECOMPUTED) and np.isclose(found[MOMENTUM], beta)
            loop = {"why": "the digits of a loop in NumPy", "applies": is_long and there}
            made.append(ddln.claim.equal(name.format(beta), found, expected, tol=5e-8, **loop))
    order = {"tol": 0.015, "why": "about 1 % in the recomputed ends", "applies": is_long}
    return [*made, ddln.claim.at_most("spread of ‖θ − θ*‖² over β", largest, 0.0, **order)]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Both ends against λ, a curve for each momentum."""
    figure, panels = figures.canvas(7.2, 3.2, ncols=2)
    names = r"distance to the truth $\|\theta - \theta^*\|^2$", r"mean of $|u^2 - v^2|\, / \,2$"
    for axes, name, values in zip(panels, names, ends(dataset), strict=True):
        figures.curves(axes, values, MOMENTUM)
        axes.set(xscale="log", ylabel=name)
        axes.set_xlabel(r"intrinsic step $\lambda = \gamma / (1 - \beta)^2$")
        figures.ticks_at(axes, dataset[STEP])
    figures.legend(figure)
    return figure
