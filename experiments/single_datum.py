"""One datum has its limits in closed form, at any depth and scale (Woodworth et al. 2020).

x = (1, 0.4), y = 1 and the model u^D − v^D with all layers equal to α. On the line of minimisers
the flow ends at 2α² sinh(k x) for D = 2 and at α^D h(k x), h(z) = (1 − z)^p − (1 + z)^p with
p = −D/(D − 2), from there on, with the k that makes x·w = 1: near the least ℓ1 norm, (1, 0), as α
goes to 0, near the least ℓ2 norm, (25, 10)/29, as it grows.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.optimize import brentq

import ddln
from ddln import figures, theory
from ddln.sweeps import build

DEPTH, SCALE = "network.depth", "network.scale"
X = np.array([1.0, 0.4])
SHOWN = {
    (2, 1.0): (0.86496013, 0.33759968),
    (2, 0.1): (0.97564852, 0.06087869),
    (3, 0.1): (0.99863326, 0.00341685),
}
"""(D, α): w to eight digits, computed with mpmath."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/single_datum.npz."""
    return {"features": X[None], "targets": np.array([1.0])}


def closed_form(depth: int, scale: float) -> np.ndarray:
    """Where the flow ends; the equation for k is solved by SciPy."""

    def weights(k: float) -> np.ndarray:
        if depth == 2:
            return 2 * scale**2 * np.sinh(k * X)
        # k = 1 − e^{−κ} keeps 1 − k exact where the first weight's term is huge.
        away, p = np.exp(-k) * X + (1 - X), -depth / (depth - 2)
        return scale**depth * (away**p - (2 - away) ** p)

    k = brentq(lambda k: float(np.log(X @ weights(k))), 1e-9, 60.0, xtol=1e-15, rtol=1e-15)
    return weights(k)


def ends(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Where each run ends, and where the closed form says."""
    found = dataset["predictor"].isel(time=-1)
    expected = found.copy()
    for depth in dataset[DEPTH].values:
        for scale in dataset[SCALE].values:
            expected.loc[{DEPTH: depth, SCALE: scale}] = closed_form(int(depth), float(scale))
    return found, expected


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The flow ends there; errors against the least ℓ1 norm have their powers."""
    found, expected = ends(dataset)
    away = abs(found - [1.0, 0.0]).max("feature")
    small = dataset[SCALE].values[:2]
    slopes = np.log(away).isel({SCALE: slice(2)}).diff(SCALE).isel({SCALE: 0})
    slopes = slopes / np.log(small[1] / small[0])
    return [
        ddln.Claim(
            name="closed form",
            source="Woodworth et al. 2020",
            statement="where the flow ends, at every depth and scale: largest difference",
            measured=float(abs(found - expected).max()),
            predicted=0.0,
            tolerance=1e-8,
            relation="<=",
            reason="the solver's",
        ),
        *(
            ddln.Claim(
                name=f"w{i + 1} at D = {depth}, α = {scale:g}",
                source="Woodworth et al. 2020, by mpmath",
                statement="the weight at the end of the flow",
                measured=float(found.sel({DEPTH: depth}).sel({SCALE: scale}, method="nearest")[i]),
                predicted=value,
                tolerance=1e-8,
                reason="the digits given",
                applies=bool(np.isclose(dataset[SCALE], scale).any()),
            )
            for (depth, scale), values in SHOWN.items()
            if depth in dataset[DEPTH]
            for i, value in enumerate(values)
        ),
        *(
            ddln.Claim(
                name=f"power at D = {depth.item()}",
                source="derived in docs",
                statement="the distance to the least ℓ1 norm falls as α^{2(1−|x₂|)} at D = 2, "
                "as α^D from D = 3 on: the power between the two smallest scales",
                measured=float(slopes.sel({DEPTH: depth})),
                predicted=2 * (1 - X[1]) if depth == 2 else float(depth),
                tolerance=0.01,
                reason="a limit: the next order is α² smaller",
                applies=small[1] < 0.01,
            )
            for depth in dataset[DEPTH]
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the least ℓ1 norm against the scale: dots the flow, lines the closed form."""
    figure, axes = figures.canvas()
    found, expected = ends(dataset)
    problem, _ = build.rebuild(dataset.isel({DEPTH: 0, SCALE: 0}))
    least = theory.min_l2(problem.unsigned)
    for depth, look in zip(dataset[DEPTH], figures.looks(dataset.sizes[DEPTH]), strict=True):
        for ending, kind in ((found, {"linestyle": ""}), (expected, {"marker": "", "label": None})):
            away = abs(ending.sel({DEPTH: depth}) - [1.0, 0.0]).max("feature")
            axes.plot(dataset[SCALE], away, **{"label": f"$D$ = {depth.item()}", **look, **kind})
    axes.axhline(np.abs(least - [1.0, 0.0]).max(), color="0.5", linestyle=figures.DOTS)
    axes.set(xscale="log", yscale="log", xlabel=r"initialisation scale $\alpha$")
    axes.set_ylabel(r"distance of $w$ to the least $\ell_1$ norm")
    figures.legend(figure, {"closed form": "-", r"least $\ell_2$ norm": figures.DOTS})
    return figure
