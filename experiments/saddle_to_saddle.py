"""From a vanishing initialisation the flow jumps from saddle to saddle (Pesme & Flammarion 2023).

X = [[1, .5, .7, 0], [.5, 1, .1, .7]], y = (1, 0), the loss ½‖Xθ − y‖², and two layers u ⊙ v from
(√2 α, 0). With time in units of ln(1/α) the path tends to a staircase as α → 0, whose saddles and
jumps an algorithm finds without integrating anything. A jump happens when the entering coordinate
passes about half its height at the saddle.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Pesme & Flammarion 2023"
SCALE = "network.scale"
JUMPS, AT_1E60 = (1.0, 4.0, 5.63265), (1.0017010, 4.0357658, 5.5116408)
"""Times per ln(1/α) of the jumps as α → 0, and at α = 1e-60 by Radau on the mirror flow."""
SADDLES = np.array([(0.8, 0, 0, 0), (0, 0, 1.4, 0), (0, 0, 10 / 7, -10 / 49)])
ENTERING, HALVES = (0, 2, 3), (0.4, 0.7, -0.1)
"""Which coordinate becomes active at each jump, and about half its height at the saddle."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/saddle_to_saddle.npz."""
    features = np.array([[1.0, 0.5, 0.7, 0.0], [0.5, 1.0, 0.1, 0.7]])
    return {"features": features, "targets": np.array([1.0, 0.0])}


def staircase(dataset: xr.Dataset):
    """The saddles and the times of the jumps in the limit α → 0, by the algorithm."""
    return theory.saddle_path(dataset.ddln.first.problem, dataset.ddln.first.layers)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The path of the algorithm is the published one; the flow approaches it as α → 0."""
    path, scale = staircase(dataset), dataset[SCALE]
    smallest = dataset.isel({SCALE: int(scale.argmin(SCALE))})
    clock, middles = smallest.ddln.flow_time / -np.log(smallest[SCALE]), (2.5, 4.816325, 7.0)
    there = smallest["theta"][[int(abs(clock - middle).argmin("time")) for middle in middles]]
    run = dataset.isel({SCALE: int(abs(np.log(scale) - np.log(1e-60)).argmin(SCALE))})
    unit, is_1e60 = -np.log(run[SCALE]), np.isclose(run[SCALE], 1e-60, rtol=1e-6)
    chord = run.ddln.flow_time.diff("time").max() ** 2 / unit / 4
    linear = "chords between saved times: h²|θ''/θ'|/8, where |θ''/θ'| ≤ 2 ‖Xᵀy‖∞"
    own = {"source": "derived in docs", "why": linear, "applies": is_1e60}
    off, found = abs(there - SADDLES).max(), np.abs(path.theta[1:] - SADDLES).max()
    excess = theory.excess_norm(dataset.ddln.first.problem, path).max()
    program = {"source": "Zhao et al. 2026", "why": "of the linear program", "applies": True}
    digits, decay = "the digits given", "what is still to decay, and the error of the solver"
    made = [
        ddln.claim.equal("saddles of the algorithm", found, 0.0, tol=1e-9, why="rounding"),
        ddln.claim.equal("excess of their weighted ℓ1 norm", excess, 0.0, tol=1e-9, **program),
        ddln.claim.at_most("flow off the saddles between jumps", off, 0.0, tol=1e-6, why=decay),
    ]
    for i, (k, half) in enumerate(zip(ENTERING, HALVES, strict=True)):
        limit, time = path.times[i + 1], run.ddln.first_crossing(run["theta"][:, k], half) / unit
        made += [
            ddln.claim.equal(f"jump {i + 1}, α → 0", limit, JUMPS[i], tol=5e-6, why=digits),
            ddln.claim.equal(f"jump {i + 1}, α = 1e-60", time, AT_1E60[i], tol=chord, **own),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """θ against t / ln(1/α): a panel for each coordinate that moves, the staircase beneath."""
    figure, panels = figures.canvas(5.2, 5.0, nrows=3, sharex=True)
    path, time = staircase(dataset), dataset.ddln.flow_time / -np.log(dataset[SCALE])
    grey = {"color": "0.8", "linewidth": 4, "label": r"algorithm, $\alpha \to 0$", "zorder": 0}
    power = figures.power_label(r"\alpha")
    for axes, k in zip(panels, ENTERING, strict=True):
        steps = np.append(path.theta[:, k], path.theta[-1, k])
        axes.step([*path.times, 7.0], steps, where="post", **grey)
        theta, every = dataset["theta"].isel(coordinate=k), (0.05, 0.21)
        figures.curves(axes, theta, SCALE, against=time, label=power, markevery=every)
        axes.set(ylabel=rf"$\theta_{{{k + 1}}}$", xlim=(0, 7))
    panels[-1].set(xlabel=r"flow time per $\ln(1/\alpha)$")
    figures.legend(figure)
    return figure
