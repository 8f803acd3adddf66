"""Heavy ball ends where λ = γ/(1 − β)² says, whatever γ and β (Papazov et al. 2024).

Twenty noiseless samples of a sparse θ* in R³⁰, two layers. The larger λ, the nearer to each other
are the layers in the end, and the farther is θ from θ*; momenta β of one λ end together.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config.datasets import arrays_of

STEP, MOMENTUM = "dynamics.optimiser.intrinsic_step", "dynamics.optimiser.momentum"
RECOMPUTED = 0.05
ENDS = {0.0: 0.0573329, 0.5: 0.0576647, 0.8: 0.0578650, 0.9: 0.0579655}
"""β: ‖θ − θ*‖² at λ = 0.05 after 200,000 steps, by a loop in NumPy."""
BALANCES = {0.0: 0.0099243, 0.9: 0.0098569}
"""β: mean |u² − v²| / 2, likewise."""


def ends(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """‖θ − θ*‖² and the mean of |u² − v²| / 2 after the last step."""
    last = dataset.isel(time=-1)
    away = last["theta"] - xr.DataArray(arrays_of(dataset)["truth"], dims="coordinate")
    return {
        "distance": (away**2).sum("coordinate"),
        "balancedness": (last["effective_initialisation"] ** 2).mean("coordinate"),
    }


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The ends that were computed apart, and how near to each other those of one λ are."""
    found, is_as_long = ends(dataset), int(dataset["step"][-1]) == 200_000
    nearest = dataset[STEP].sel({STEP: RECOMPUTED}, method="nearest")
    distance = found["distance"]
    spread = distance.max(MOMENTUM) / distance.min(MOMENTUM) - 1
    return [
        *(
            ddln.Claim(
                name=f"{name} at β = {beta:g}",
                source="Papazov et al. 2024",
                statement=f"{what} after the last step, λ = {RECOMPUTED:g}",
                measured=float(found[name].sel({STEP: nearest, MOMENTUM: beta}, method="nearest")),
                predicted=value,
                tolerance=5e-8,
                reason="the digits of a loop in NumPy",
                applies=bool(
                    is_as_long
                    and np.isclose(nearest, RECOMPUTED)
                    and np.isclose(dataset[MOMENTUM], beta).any()
                ),
            )
            for name, what, values in (
                ("distance", "‖θ − θ*‖²", ENDS),
                ("balancedness", "mean |u² − v²| / 2", BALANCES),
            )
            for beta, value in values.items()
        ),
        ddln.Claim(
            name="one λ, one end",
            source="Papazov et al. 2024",
            statement="largest relative spread of ‖θ − θ*‖² over β, where λ ≤ 0.05",
            measured=float(spread.where(dataset[STEP] <= RECOMPUTED).max()),
            predicted=0.0,
            tolerance=0.015,
            relation="<=",
            reason="about 1 % between β = 0 and 0.9 at λ = 0.05 in the recomputed ends",
            applies=is_as_long,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Both ends against λ, a curve for each momentum."""
    figure, panels = figures.canvas(7.2, 3.2, ncols=2)
    words = {
        "distance": r"distance to the truth $\|\theta - \theta^*\|^2$",
        "balancedness": r"mean of $|u^2 - v^2|\, / \,2$",
    }
    betas = dataset[MOMENTUM]
    for axes, (name, values) in zip(panels, ends(dataset).items(), strict=True):
        for beta, look in zip(betas, figures.looks(betas.size), strict=True):
            here = values.sel({MOMENTUM: beta})
            axes.plot(dataset[STEP], here, label=figures.value_label(beta), **look)
        axes.set(xscale="log", ylabel=words[name])
        axes.set_xlabel(r"intrinsic step $\lambda = \gamma / (1 - \beta)^2$")
        axes.set_xticks(dataset[STEP].values, [f"{step:g}" for step in dataset[STEP].values])
        axes.set_xticks([], minor=True)
    figures.legend(figure, {})
    return figure
