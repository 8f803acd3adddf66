"""1-SAM finds a sparser solution than gradient descent (Andriushchenko & Flammarion 2022).

Twenty noiseless samples of a sparse θ* in R³⁰; layers α and 0. Gradients taken uphill, where each
sample has climbed its own loss (1-SAM), do what a smaller α does; where all climb together (n-SAM)
they do little.
"""

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


def test_loss(dataset: xr.Dataset) -> xr.DataArray:
    """‖X_test (θ − θ*)‖² / 2n along each run."""
    unseen = xr.DataArray(dataset.ddln.arrays["test_features"], dims=("sample", "coordinate"))
    missed = xr.dot(unseen, dataset["theta"] - dataset["truth"], dim="coordinate")
    return (missed**2).mean("sample") / 2


def name_of(run: xr.DataArray) -> str:
    """Method and parameter of a run; 1-SAM by the paper's ρ, to which its loss has a factor 2."""
    rho, scale = float(run[RHO]), float(run["network.scale"])
    if rho == 0:
        return f"GD, α = {scale:g}"
    return f"n-SAM, ρ = {rho:g}" if run[GROUP] > 1 else f"1-SAM, ρ = {rho / 2:g}"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The losses that were computed independently, and which of two runs has the smaller one."""
    ends = {name_of(run): float(run) for run in test_loss(dataset.ddln.end)}
    is_as_long = bool(dataset["step"][-1] == 10_001)

    def compared(one: str, other: str) -> dict:
        return {
            "measured": ends.get(one, np.nan) / ends.get(other, np.nan),
            "statement": f"test loss at the end, {one} over {other}",
            "applies": {one, other} <= ends.keys(),
        }

    order = {"bound": 1.0, "why": "only the order is claimed"}
    none = {"tol": 0.1, "why": "the paper finds no benefit: a tenth counts as none"}
    return [
        *(
            ddln.claim.equal(
                name,
                ends.get(name, np.nan) / value,
                1.0,
                tol=1e-7,
                statement="the test loss after the last step, over that of a loop in NumPy",
                source="setting of Andriushchenko and Flammarion 2022",
                why="the rounding of the loop, and the digits given",
                applies=is_as_long and name in ends,
            )
            for name, value in RECOMPUTED.items()
        ),
        ddln.claim.at_most("small α", **compared("GD, α = 0.02", "GD, α = 0.1"), **order),
        ddln.claim.equal(
            "n-SAM", **compared("n-SAM, ρ = 0.1", "GD, α = 0.1"), expected=1.0, **none
        ),
        ddln.claim.at_most("1-SAM", **compared("1-SAM, ρ = 0.1", "GD, α = 0.1"), **order),
        ddln.claim.at_most("more climb", **compared("1-SAM, ρ = 0.2", "1-SAM, ρ = 0.1"), **order),
        ddln.claim.at_most("most climb", **compared("1-SAM, ρ = 0.3", "1-SAM, ρ = 0.2"), **order),
    ]


def label_of(run: xr.DataArray) -> str:
    """The name in mathematical type."""
    return name_of(run).replace("α", r"$\alpha$").replace("ρ", r"$\rho$")


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Test loss and training gap step by step."""
    figure, panels = figures.canvas(7.2, 3.4, ncols=2)
    step = dataset["step"]
    values = {
        r"test loss $\|X_{\mathrm{test}}(\theta - \theta^*)\|^2 / 2n$": test_loss(dataset),
        r"loss gap $\mathcal{L}(\theta_k) - \mathcal{L}^*$": dataset.ddln.resolved_gap,
    }
    for axes, (name, curves) in zip(panels, values.items(), strict=True):
        figures.curves(axes, curves, RHO, against=step, label=label_of, markevery=40)
        axes.set(yscale="log", xlabel=figures.axis_label(step), xlim=(0, float(step[-1])))
        axes.set_ylabel(name)
    figures.legend(figure, {})
    return figure
