"""Uphill sample by sample, training is sparser (1-SAM; Andriushchenko & Flammarion 2022).

Twenty noiseless samples of a sparse θ* in R³⁰; layers α and 0. Gradients taken uphill, where each
sample has climbed its own loss (1-SAM), do what a smaller α does; where all climb together (n-SAM)
they do little.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config.datasets import arrays_of

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
    return {
        "features": features,
        "targets": features @ truth,
        "truth": truth,
        "test_features": unseen,
    }


def test_loss(dataset: xr.Dataset) -> xr.DataArray:
    """‖X_test (θ − θ*)‖² / 2n along each run."""
    arrays = arrays_of(dataset)
    away = dataset["theta"] - xr.DataArray(arrays["truth"], dims="coordinate")
    unseen = xr.DataArray(arrays["test_features"], dims=("sample", "coordinate"))
    return (xr.dot(unseen, away, dim="coordinate") ** 2).mean("sample") / 2


def lanes(dataset: xr.Dataset) -> dict[str, xr.Dataset]:
    """Each run by its name; 1-SAM by the paper's ρ, to which its loss has a factor 2."""
    found = {}
    for i in range(dataset.sizes[RHO]):
        lane = dataset.isel({RHO: i})
        rho, scale = float(lane[RHO]), float(lane["network.scale"])
        if rho == 0:
            name = rf"GD, $\alpha$ = {scale:g}"
        elif int(lane[GROUP]) > 1:
            name = rf"n-SAM, $\rho$ = {rho:g}"
        else:
            name = rf"1-SAM, $\rho$ = {rho / 2:g}"
        found[name] = lane
    return found


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Who ends with the smaller test loss, and with which."""
    ends = {
        name.replace(r"$\alpha$", "α").replace(r"$\rho$", "ρ"): float(test_loss(lane)[-1])
        for name, lane in lanes(dataset).items()
    }
    order, none = "only the order is claimed", "the paper finds no benefit: a tenth is none"
    pairs = {
        "small α": ("GD, α = 0.02", "GD, α = 0.1", "<=", 0.0, order),
        "n-SAM": ("n-SAM, ρ = 0.1", "GD, α = 0.1", "=", 0.1, none),
        "1-SAM": ("1-SAM, ρ = 0.1", "GD, α = 0.1", "<=", 0.0, order),
        "more climb": ("1-SAM, ρ = 0.2", "1-SAM, ρ = 0.1", "<=", 0.0, order),
        "most climb": ("1-SAM, ρ = 0.3", "1-SAM, ρ = 0.2", "<=", 0.0, order),
    }
    is_as_long = int(dataset["step"][-1]) == 10_001
    return [
        *(
            ddln.Claim(
                name=name,
                source="setting of Andriushchenko and Flammarion 2022",
                statement="the test loss after the last step, over that of a loop in NumPy",
                measured=ends.get(name, np.nan) / value,
                predicted=1.0,
                tolerance=1e-7,
                reason="the loop's rounding, and how far it is told",
                applies=is_as_long and name in ends,
            )
            for name, value in RECOMPUTED.items()
        ),
        *(
            ddln.Claim(
                name=name,
                source="Andriushchenko and Flammarion 2022",
                statement=f"test loss at the end, {one} over {other}",
                measured=ends.get(one, np.nan) / ends.get(other, np.nan),
                predicted=1.0,
                tolerance=tolerance,
                relation=relation,
                reason=reason,
                applies={one, other} <= ends.keys(),
            )
            for name, (one, other, relation, tolerance, reason) in pairs.items()
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Test loss and training gap step by step."""
    figure, (left, right) = figures.canvas(7.2, 3.4, ncols=2)
    runs = lanes(dataset)
    for (name, lane), look in zip(runs.items(), figures.looks(len(runs)), strict=True):
        look |= {"markevery": (len(left.lines) * 6, 40)}
        left.plot(lane["step"], test_loss(lane), label=name, **look)
        right.plot(lane["step"], figures.resolved(lane), **look)
    for axes in (left, right):
        axes.set(yscale="log", xlabel=figures.axis_label(dataset["step"]))
        axes.set_xlim(0, float(dataset["step"][-1]))
    left.set_ylabel(r"test loss $\|X_{\mathrm{test}}(\theta - \theta^*)\|^2 / 2n$")
    right.set_ylabel(r"loss gap $\mathcal{L}(\theta_k) - \mathcal{L}^*$")
    figures.legend(figure, {})
    return figure
