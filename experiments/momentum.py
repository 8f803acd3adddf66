"""The limit of heavy ball depends mainly on λ = γ/(1 − β)² (Papazov et al. 2024).

Twenty noiseless samples of a sparse θ* in R³⁰, two layers. The larger λ, the closer the layers are
to each other in the end, and the farther θ is from θ*; momenta β of one λ end together.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Papazov et al. 2024"
STEP, MOMENTUM = "dynamics.optimiser.intrinsic_step", "dynamics.optimiser.momentum"
RECOMPUTED = 0.05
ENDS = {0.0: 0.0573329, 0.5: 0.0576647, 0.8: 0.0578650, 0.9: 0.0579655}
"""β: ‖θ − θ*‖² at λ = 0.05 after 200,000 steps, by a loop in NumPy."""
BALANCES = {0.0: 0.0099243, 0.9: 0.0098569}
"""β: mean |u² − v²| / 2, likewise."""


def ends(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """‖θ − θ*‖² and the mean of |u² − v²| / 2 after the last step."""
    end = dataset.ddln.end
    balance = (end["effective_initialisation"] ** 2).mean("coordinate")
    return end.ddln.distance_to_truth**2, balance


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The ends that were computed independently, and how close those of one λ are."""
    distance, balance = ends(dataset)
    step = dataset[STEP].sel({STEP: RECOMPUTED}, method="nearest")
    is_as_long = bool(dataset["step"][-1] == 200_000)
    is_known = is_as_long and np.isclose(step, RECOMPUTED)
    spread = distance.max(MOMENTUM) / distance.min(MOMENTUM) - 1
    kinds = (
        ("distance", "‖θ − θ*‖²", distance, ENDS),
        ("balancedness", "mean |u² − v²| / 2", balance, BALANCES),
    )
    return [
        *(
            ddln.claim.equal(
                f"{name} at β = {beta:g}",
                values.sel({STEP: step, MOMENTUM: beta}, method="nearest"),
                expected,
                tol=5e-8,
                statement=f"{quantity} after the last step, λ = {RECOMPUTED:g}",
                why="the digits of a loop in NumPy",
                applies=is_known and np.isclose(dataset[MOMENTUM], beta).any(),
            )
            for name, quantity, values, recomputed in kinds
            for beta, expected in recomputed.items()
        ),
        ddln.claim.at_most(
            "one λ, one end",
            spread.where(dataset[STEP] <= RECOMPUTED).max(),
            0.0,
            tol=0.015,
            statement="largest relative spread of ‖θ − θ*‖² over β, where λ ≤ 0.05",
            why="about 1 % between β = 0 and 0.9 at λ = 0.05 in the recomputed ends",
            applies=is_as_long,
        ),
    ]


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
    figures.legend(figure, {})
    return figure
