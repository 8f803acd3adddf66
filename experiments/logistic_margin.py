"""On separable data, scale and time decide which margin is maximised (Moroshko et al. 2020).

Logistic loss of u⊙u − v⊙v with all layers equal to α at the start. θ grows without bound and only
its direction settles. At small α it goes to the largest ℓ1 margin, min_i y_i x_iᵀθ / ‖θ‖₁. At large
α it goes to the largest ℓ2 margin first, and turns to ℓ1 once ln(1/ℒ) outgrows α².
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Moroshko et al. 2020"
SCALE = "network.scale"


def margins(dataset: xr.Dataset, norm: int) -> xr.DataArray:
    """The margin over the largest there is, along each run from the second saved time on."""
    later = dataset.isel(time=slice(1, None))
    return later.ddln.relative_margin(later["predictor"], norm=norm)


def margin_of_other(dataset: xr.Dataset, norm: int) -> float:
    """The same of the direction with the largest margin in the other of the norms 1 and 2."""
    other = theory.max_margin(dataset.ddln.first.problem.unsigned, norm=3 - norm)
    return float(dataset.ddln.relative_margin(xr.DataArray(other, dims="feature"), norm=norm))


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """No direction exceeds the largest margin; large scales approach that of ℓ2, small ones ℓ1."""
    l1, l2, scale = margins(dataset, 1), margins(dataset, 2), dataset[SCALE].values
    end, halfway = l1.isel(time=-1), l1.isel(time=l1.sizes["time"] // 2)
    largest, rich = int(np.argmax(scale)), int(np.argmin(abs(np.log(scale / 0.1))))
    nearer = "a limit without a rate: only which of the two is nearer is claimed"
    program: Any = {"source": "by its definition; SciPy's", "why": "the tolerance of the program"}
    return [
        ddln.claim.at_most("ℓ1 margin over the largest", l1.max(), 1.0, tol=1e-9, **program),
        ddln.claim.at_most("ℓ2 margin over the largest", l2.max(), 1.0, tol=1e-9, **program),
        ddln.claim.at_most(
            "rich, α = 0.1: ℓ1 margin of the ℓ2 direction over its own",
            margin_of_other(dataset, 1) / end[{SCALE: rich}],
            1.0,
            why=nearer,
            applies=np.isclose(scale, 0.1).any(),
        ),
        ddln.claim.at_most(
            f"lazy, α = {scale[largest]:g}: ℓ2 margin of the ℓ1 direction over its own",
            margin_of_other(dataset, 2) / l2[{SCALE: largest, "time": -1}],
            1.0,
            why=nearer,
            applies=scale.max() >= 100,
        ),
        ddln.claim.at_most(
            "ℓ1 margin in the middle of the saved times over that at the end",
            (halfway / end).max(),
            1.0,
            source="Lyu & Li 2020",
            applies=dataset.sizes["time"] > 100,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Both margins, as shares of the largest, against ln(1/ℒ)."""
    fitted = -np.log(dataset["loss"].isel(time=slice(1, None)))
    axis = {"ylim": (0, 1.05), "xlim": (0, float(fitted.max())), "xlabel": r"$\ln(1/\mathcal{L})$"}
    figure, panels = figures.canvas(7.0, 3.3, ncols=2, sharey=True, subplot_kw=axis)
    style = {"against": fitted, "label": r"$\alpha$ = {:g}".format, "markevery": (0.05, 0.2)}
    for norm, axes in enumerate(panels, start=1):
        figures.curves(axes, margins(dataset, norm), SCALE, **style)
        axes.axhline(1, color="0.5", linestyle=figures.DOTS, zorder=0)
        axes.set(title=rf"$\ell_{norm}$ margin")
    panels[0].set_ylabel("share of the largest margin")
    figures.legend(figure)
    return figure
