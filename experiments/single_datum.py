"""Closed-form limits for a single datum, at any depth and scale (Woodworth et al. 2020).

x = (1, 0.4), y = 1 and the model u^D − v^D with all layers equal to α. On the line of minimisers
the flow ends at 2α² sinh(k x) for D = 2 and at α^D h(k x), h(z) = (1 − z)^p − (1 + z)^p with
p = −D/(D − 2), for larger D, with the k that makes x·w = 1: near the least ℓ1 norm, (1, 0), as α
goes to 0, near the least ℓ2 norm, (25, 10)/29, as it grows.
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
DIGITS = {
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


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The flow ends there; errors against the least ℓ1 norm have their powers."""
    found, expected = dataset.ddln.end["predictor"], dataset.ddln.map(closed_form, "feature")
    powers = dataset.ddln.powers(abs(found - [1.0, 0.0]).max("feature"), SCALE)
    made = [
        ddln.claim.at_most(
            "closed form",
            abs(found - expected).max(),
            0.0,
            tol=1e-8,
            statement="where the flow ends, at every depth and scale: largest difference",
            why="the error of the solver",
        )
    ]
    for (depth, scale), digits in DIGITS.items():
        if depth in dataset[DEPTH]:
            weights = found.sel({DEPTH: depth}).sel({SCALE: scale}, method="nearest")
            made += [
                ddln.claim.equal(
                    f"w{i + 1} at D = {depth}, α = {scale:g}",
                    weights[i],
                    digits[i],
                    tol=1e-8,
                    statement="the weight at the end of the flow",
                    source="Woodworth et al. 2020, by mpmath",
                    why="the digits given",
                    applies=np.isclose(dataset[SCALE], scale).any(),
                )
                for i in range(2)
            ]
    return made + [
        ddln.claim.equal(
            f"power at D = {depth}",
            powers.sel({DEPTH: depth})[0],
            2 * (1 - X[1]) if depth == 2 else depth,
            tol=0.01,
            statement="the distance to the least ℓ1 norm falls as α^{2(1−|x₂|)} at D = 2, as α^D "
            "from D = 3 on: the power between the two smallest scales",
            source="derived in docs",
            why="a limit: the next order is α² smaller",
            applies=dataset[SCALE][1] < 0.01,
        )
        for depth in dataset[DEPTH].values
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The distance to the least ℓ1 norm against the scale: dots the flow, lines the closed form."""
    figure, axes = figures.canvas()
    found, expected = dataset.ddln.end["predictor"], dataset.ddln.map(closed_form, "feature")
    dots = {"label": "$D$ = {:d}".format, "linestyle": ""}
    for end, style in ((found, dots), (expected, {"label": None, "marker": ""})):
        figures.curves(axes, abs(end - [1.0, 0.0]).max("feature"), DEPTH, **style)
    least = theory.min_l2(dataset.ddln.first.problem.unsigned)
    axes.axhline(np.abs(least - [1.0, 0.0]).max(), color="0.5", linestyle=figures.DOTS)
    axes.set(xscale="log", yscale="log", xlabel=r"initialisation scale $\alpha$")
    axes.set_ylabel(r"distance of $w$ to the least $\ell_1$ norm")
    figures.legend(figure, {"closed form": "-", r"least $\ell_2$ norm": figures.DOTS})
    return figure
