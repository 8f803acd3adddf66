"""Closed-form limits for a single datum, at any depth and scale (Woodworth et al. 2020).

x = (1, 0.4), y = 1, and u^D − v^D with all layers equal to α. On the line of minimisers the flow
ends at 2α² sinh(k x) for D = 2 and at α^D h(k x), h(z) = (1 − z)^p − (1 + z)^p, p = −D/(D − 2), for
larger D, with the k that makes x·w = 1. That is near the least ℓ1 norm, (1, 0), for small α and
near the least ℓ2 norm, (25, 10)/29, for large ones. As α → 0 the distance to (1, 0) falls with the
power 2(1 − |x₂|) of α for D = 2, and D for larger D.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.optimize import root_scalar

import ddln
from ddln import figures, theory

SOURCE = "Woodworth et al. 2020"
DEPTH, SCALE = "network.depth", "network.scale"
X = np.array([1.0, 0.4])
WEIGHTS = {
    (2, 1.0): (0.86496013, 0.33759968),
    (2, 0.1): (0.97564852, 0.06087869),
    (3, 0.1): (0.99863326, 0.00341685),
}
"""(D, α): w to eight digits, computed with mpmath."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/single_datum.npz."""
    return {"features": X[None], "targets": np.array([1.0])}


def closed_form(run) -> np.ndarray:
    """Where the flow ends; the equation for k is solved by SciPy."""
    depth, scale = int(run.point[DEPTH]), run.point[SCALE]

    def weights(k: float) -> np.ndarray:
        if depth == 2:
            return 2 * scale**2 * np.sinh(k * X)
        # k = 1 − e^{−κ} keeps 1 − k exact where the first weight's term is huge.
        away, p = np.exp(-k) * X + (1 - X), -depth / (depth - 2)
        return scale**depth * (away**p - (2 - away) ** p)

    options = {"bracket": (1e-9, 60.0), "xtol": 1e-15, "rtol": 1e-15}
    return weights(root_scalar(lambda k: np.log(X @ weights(k)), **options).root)


def from_sparse(w: xr.DataArray) -> xr.DataArray:
    """The largest distance of an entry of w to the solution of least ℓ1 norm."""
    return abs(w - [1.0, 0.0]).max("feature")


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The flow ends at the closed form, and its distance to (1, 0) has its powers."""
    end, scale = dataset.ddln.end["predictor"], dataset[SCALE]
    error = abs(end - dataset.ddln.map(closed_form, "feature")).max()
    solver = "error of the solver"
    made = [ddln.claim.at_most("distance to the closed form", error, 0.0, tol=1e-8, why=solver)]
    digits = {"tol": 1e-8, "source": f"{SOURCE}, by mpmath", "why": "the digits given"}
    for (depth, alpha), weights in WEIGHTS.items():
        found = end.sel({DEPTH: depth, SCALE: alpha}, method="nearest")
        known = found[DEPTH] == depth and np.isclose(found[SCALE], alpha)
        for i, expected in enumerate(weights):
            name = f"w{i + 1} at D = {depth}, α = {alpha:g}"
            made.append(ddln.claim.equal(name, found[i], expected, applies=known, **digits))
    limit = {"source": "derived in docs", "why": "a limit: the next order is α² smaller"}
    for power in dataset.ddln.powers(from_sparse(end), SCALE).isel({SCALE: 0}):
        depth, is_small = int(power[DEPTH]), scale[1] < 0.01
        expected, name = 2 * (1 - X[1]) if depth == 2 else depth, f"power of α at D = {depth}"
        made.append(ddln.claim.equal(name, power, expected, tol=0.01, applies=is_small, **limit))
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the least ℓ1 norm against the scale: dots the flow, lines the closed form."""
    figure, axes = figures.canvas()
    end, expected = dataset.ddln.end["predictor"], dataset.ddln.map(closed_form, "feature")
    figures.curves(axes, from_sparse(end), DEPTH, label="$D$ = {:d}".format, linestyle="")
    figures.curves(axes, from_sparse(expected), DEPTH, label=None, marker="")
    least = theory.min_l2(dataset.ddln.first.problem.unsigned)
    figures.levels(axes, {r"least $\ell_2$ norm": np.abs(least - [1.0, 0.0]).max()})
    axes.set(xscale="log", yscale="log", xlabel=r"initialisation scale $\alpha$")
    axes.set_ylabel(r"distance of $w$ to the least $\ell_1$ norm")
    figures.legend(figure, {"closed form": "-"})
    return figure
