"""From a vanishing initialisation the flow jumps from saddle to saddle (Pesme & Flammarion 2023).

X = [[1, .5, .7, 0], [.5, 1, .1, .7]], y = (1, 0), ½‖Xθ − y‖² and two layers u ⊙ v from (√2 α, 0).
With time in units of ln(1/α) the path tends to a staircase as α → 0. An algorithm finds its saddles
and the times of its jumps without integrating anything.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Pesme & Flammarion 2023"
SCALE = "network.scale"
JUMPS = np.array([1.0, 4.0, 5.63265])
AT_1E60 = (1.0017010, 4.0357658, 5.5116408)
"""By Radau on the mirror flow (tests/test_saddle_to_saddle.py); the first in closed form, too."""
VISITS = np.array([(0.8, 0, 0, 0), (0, 0, 1.4, 0), (0, 0, 10 / 7, -10 / 49)])
ENTERING, HALVES = (0, 2, 3), (0.4, 0.7, -0.1)
"""Which coordinate becomes active at each jump, and about half its height at the saddle."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/saddle_to_saddle.npz."""
    features = np.array([[1.0, 0.5, 0.7, 0.0], [0.5, 1.0, 0.1, 0.7]])
    return {"features": features, "targets": np.array([1.0, 0.0])}


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The path of the algorithm is the published one; the flow approaches it as α → 0."""
    first, scale = dataset.ddln.first, dataset[SCALE]
    path = theory.saddle_path(first.problem, first.layers)
    run = dataset.isel({SCALE: int(abs(np.log(scale) - np.log(1e-60)).argmin(SCALE))})
    unit, time = -np.log(run[SCALE]), run.ddln.flow_time
    chord = time.diff("time").max() ** 2 / unit / 4
    smallest = dataset.isel({SCALE: int(scale.argmin(SCALE))})
    clock = smallest.ddln.flow_time / -np.log(smallest[SCALE])
    middles = [*(JUMPS[:-1] + JUMPS[1:]) / 2, 7.0]
    there = smallest["theta"][[int(abs(clock - middle).argmin("time")) for middle in middles]]
    return [
        ddln.claim.equal(
            "visits",
            np.abs(path.theta[1:] - VISITS).max(),
            0.0,
            tol=1e-9,
            statement="the saddles of the algorithm: largest difference from (.8, 0, 0, 0), "
            "(0, 0, 1.4, 0), (0, 0, 10/7, −10/49)",
            why="exact up to rounding",
        ),
        *(
            ddln.claim.equal(
                f"jump {i + 1}, α → 0",
                path.times[i + 1],
                JUMPS[i],
                tol=5e-6,
                statement="the time of the algorithm, per ln(1/α)",
                why="the digits given",
            )
            for i in range(3)
        ),
        *(
            ddln.claim.equal(
                f"jump {i + 1}, α = 1e-60",
                run.ddln.first_crossing(run["theta"][:, ENTERING[i]], HALVES[i]) / unit,
                AT_1E60[i],
                tol=chord,
                statement="when θ passes 0.4, 0.7 and −0.1 in its turn, per ln(1/α)",
                source="derived in docs",
                why="chords between saved times: h²|θ''/θ'|/8, where |θ''/θ'| ≤ 2 ‖Xᵀy‖∞",
                applies=np.isclose(run[SCALE], 1e-60, rtol=1e-6),
            )
            for i in range(3)
        ),
        ddln.claim.at_most(
            "on the saddles",
            abs(there - VISITS).max(),
            0.0,
            tol=1e-6,
            statement="at the smallest α, midway between jumps: largest distance to the saddle",
            why="what is still to decay, and the error of the solver",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """θ against t / ln(1/α): a panel for each coordinate that moves, the staircase beneath."""
    figure, panels = figures.canvas(5.2, 5.0, nrows=3, sharex=True)
    first, theta = dataset.ddln.first, dataset["theta"]
    path = theory.saddle_path(first.problem, first.layers)
    time = dataset.ddln.flow_time / -np.log(dataset[SCALE])
    for axes, k in zip(panels, ENTERING, strict=True):
        steps = np.append(path.theta[:, k], path.theta[-1, k])
        look = {"color": "0.8", "linewidth": 4, "label": r"algorithm, $\alpha \to 0$"}
        axes.step([*path.times, 7.0], steps, where="post", zorder=0, **look)
        style = {
            "against": time,
            "label": figures.power_label(r"\alpha"),
            "markevery": (0.05, 0.21),
        }
        figures.curves(axes, theta.isel(coordinate=k), SCALE, **style)
        axes.set(ylabel=rf"$\theta_{{{k + 1}}}$", xlim=(0, 7))
    panels[-1].set(xlabel=r"flow time per $\ln(1/\alpha)$")
    figures.legend(figure, {})
    return figure
