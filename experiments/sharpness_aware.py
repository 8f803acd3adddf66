"""1-SAM finds a sparser solution than gradient descent (Andriushchenko & Flammarion 2022).

Twenty noiseless samples of a sparse θ* in R³⁰, and layers that start at α and 0. Sharpness-aware
minimisation takes each gradient after a climb by ρ. The test loss ‖X_test (θ − θ*)‖² / 2n falls if
each sample climbs its own loss (1-SAM), as from a smaller α, but not if all climb together (n-SAM).
"""

from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Andriushchenko and Flammarion 2022"
RHO, GROUP = "dynamics.sharpness_aware.rho", "dynamics.sharpness_aware.group"
RECOMPUTED = {
    "GD, α = 0.1": 0.0150560442,
    "GD, α = 0.02": 0.000633788571,
    "n-SAM, ρ = 0.1": 0.0159819523,
    "1-SAM, ρ = 0.1": 0.00152354122,
    "1-SAM, ρ = 0.2": 1.56222440e-5,
    "1-SAM, ρ = 0.3": 1.31663401e-8,
}
"""The test loss after 10,001 steps, by a loop in NumPy."""


def data() -> dict[str, np.ndarray]:
    """By NumPy's legacy generator, as in the paper's code."""
    rng = np.random.RandomState(0)
    features = rng.multivariate_normal(np.zeros(30), np.eye(30), 20)
    unseen = rng.multivariate_normal(np.zeros(30), np.eye(30), 1000)
    truth = np.where(np.arange(30) < 3, rng.randn(30), 0.0)
    truth = np.abs(truth) / np.linalg.norm(truth)
    targets = features @ truth
    return {"features": features, "targets": targets, "truth": truth, "test_features": unseen}


def test_losses(dataset: xr.Dataset) -> xr.DataArray:
    """‖X_test (θ − θ*)‖² / 2n along each run."""
    return (dataset.ddln.test_residuals**2).mean("sample") / 2


def name_of(run: xr.DataArray, rho: str = "ρ", alpha: str = "α") -> str:
    """Method and parameter of a run; 1-SAM by the paper's ρ, to which its loss has a factor 2."""
    climb, scale = float(run[RHO]), float(run["network.scale"])
    method, radius = ("n-SAM", climb) if run[GROUP] > 1 else ("1-SAM", climb / 2)
    return f"{method}, {rho} = {radius:g}" if climb > 0 else f"GD, {alpha} = {scale:g}"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The test losses equal those of a loop in NumPy, and are in the order of the paper."""
    ends = {name_of(run): float(run) for run in test_losses(dataset.ddln.end)}
    loss, is_long = dict.fromkeys(RECOMPUTED, np.nan) | ends, bool(dataset["step"][-1] == 10_001)
    loop = {"source": f"setting of {SOURCE}", "why": "rounding in the loop, and its digits"}
    equal = partial(ddln.claim.equal, expected=1.0, tol=1e-7, **loop)
    recomputed = [
        equal(f"{name} over a loop in NumPy", loss[name] / value, applies=is_long and name in ends)
        for name, value in RECOMPUTED.items()
    ]

    def over(one: str, other: str) -> dict:
        found = {"measured": loss[one] / loss[other], "applies": {one, other} <= ends.keys()}
        return {"name": f"test loss, {one} over {other}", **found}

    none = {"tol": 0.1, "why": "the paper finds no benefit: a tenth counts as none"}
    return [
        *recomputed,
        ddln.claim.at_most(**over("GD, α = 0.02", "GD, α = 0.1"), bound=1.0),
        ddln.claim.equal(**over("n-SAM, ρ = 0.1", "GD, α = 0.1"), expected=1.0, **none),
        ddln.claim.at_most(**over("1-SAM, ρ = 0.1", "GD, α = 0.1"), bound=1.0),
        ddln.claim.at_most(**over("1-SAM, ρ = 0.2", "1-SAM, ρ = 0.1"), bound=1.0),
        ddln.claim.at_most(**over("1-SAM, ρ = 0.3", "1-SAM, ρ = 0.2"), bound=1.0),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Test loss and training gap step by step."""
    step, label = dataset["step"], partial(name_of, rho=r"$\rho$", alpha=r"$\alpha$")
    axis = {"yscale": "log", "xlabel": figures.axis_label(step), "xlim": (0, float(step[-1]))}
    figure, panels = figures.canvas(7.2, 3.4, ncols=2, subplot_kw=axis)
    for axes, values in zip(panels, (test_losses(dataset), dataset.ddln.resolved_gap), strict=True):
        figures.curves(axes, values, RHO, against=step, label=label, markevery=40)
    panels[0].set_ylabel(r"test loss $\|X_{\mathrm{test}}(\theta - \theta^*)\|^2 / 2n$")
    panels[1].set_ylabel(r"loss gap $\mathcal{L}(\theta_k) - \mathcal{L}^*$")
    figures.legend(figure)
    return figure
