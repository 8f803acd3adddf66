"""The time average from a small initialisation follows the lasso path (Berthier 2025, Thm 2.1).

Two layers u ⊙ v start from (√ε, 0) on scikit-learn's diabetes data. With s = 2t / ln(1/ε), the
average θ̄ of θ up to time t tends to the lasso's solution at the penalty 1/s as ε → 0, as long as
s · lasso(1/s) moves away from 0 in every coordinate. Afterwards θ̄ follows the average of the
saddles that the flow visits. A jump to the height Δ comes late and moves θ̄ by Δ ln(4Δ) / ln(1/ε).
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE, PESME = "Berthier 2025, Thm 2.1", "Pesme & Flammarion 2023"


def curves(run) -> xr.Dataset:
    """θ̄ over s, the lasso at 1/s, the average of the saddles, and where the theorem applies."""
    times, log = run.data.ddln.flow_time.values, -2 * np.log(run.point["network.scale"])
    wanted = 0.5 * log * np.geomspace(1.0, 1000.0, 49)
    at = np.unique(np.searchsorted(times, wanted).clip(1, times.size - 1))
    average = run.data.ddln.time_average(run.data["theta"], run.data["velocity"])[at - 1]
    s, saddles = 2 * times[at] / log, theory.saddle_path(run.problem, run.layers)
    lasso = np.array([theory.lasso(run.problem, 1 / x) for x in s])
    moves_away = np.diff(np.abs(s[:, None] * lasso), axis=0).min(axis=1) >= -1e-6
    applies = np.logical_and.accumulate(np.append(moves_away, True))
    found = {"average": average.values, "lasso": lasso, "saddles": saddles.time_average(s)}
    lines = {name: (("s", "coordinate"), values) for name, values in found.items()}
    return xr.Dataset(lines, {"s": s, "applies": ("s", applies)}, {"log": log})


def distance(run: xr.Dataset, other: str) -> xr.DataArray:
    """The largest difference between a coordinate of θ̄ and of another curve, at each s."""
    return abs(run["average"] - run[other]).max("coordinate")


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """θ̄ meets the lasso at the rate 1 / ln(1/ε); afterwards it meets the saddles' average."""
    found, first = [curves(run) for run in dataset.ddln.runs()], dataset.ddln.first
    logs = [run.attrs["log"] for run in found]
    to_lasso = [distance(run, "lasso").where(run["applies"]).max() for run in found]
    power = np.log(to_lasso[-1] / to_lasso[0]) / np.log(logs[-1] / logs[0])
    jump = np.abs(theory.saddle_path(first.problem, first.layers).theta[1]).max()
    delay, is_fine = jump * np.log(4 * jump), dataset.sizes["time"] > 2000
    why = "Δ ln(4Δ) / ln(1/ε) for the delay of the first jump, and as much again for the others"
    rate = {"source": "derived in docs", "why": "a limit, approached slowly", "applies": is_fine}
    made = [ddln.claim.equal("power of ln(1/ε) in the distance", power, -1.0, tol=0.2, **rate)]
    for run, log, nearest in zip(found, logs, to_lasso, strict=True):
        late = {"tol": 2 * delay / log, "why": why, "applies": is_fine}
        saddles, at = distance(run, "saddles").max(), f"√ε = {np.exp(-log / 2):.0e}"
        made += [
            ddln.claim.at_most(f"{at}: distance to the lasso", nearest, 0.0, **late),
            ddln.claim.at_most(f"{at}: distance to saddles", saddles, 0.0, source=PESME, **late),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The lasso's path and the averages at the smallest ε; below, how far they are apart."""
    figure, (above, below) = figures.canvas(5.2, 5.4, nrows=2, sharex=True)
    found = [curves(run) for run in dataset.ddln.runs()]
    last = max(found, key=lambda run: run.attrs["log"])
    above.plot(last["s"], last["lasso"], color="0.45", linewidth=1.1)
    above.plot(last["s"], last["average"], ".", color=figures.COLOURS[0], markersize=4)
    for run, look in zip(found, figures.line_styles(len(found)), strict=True):
        label = rf"$\varepsilon = 10^{{{-run.attrs['log'] / np.log(10):.0f}}}$"
        below.plot(run["s"], distance(run, "lasso"), label=label, markevery=4, **look)
    for axes, name in ((above, "coefficient"), (below, r"distance of $\bar\theta$ to the lasso")):
        axes.axvline(last["s"][last["applies"]][-1], color="0.5", linestyle=figures.DOTS)
        axes.set_ylabel(name)
    below.set(xscale="log", yscale="log", xlabel=r"$s = 2t / \ln(1/\varepsilon)$", ylim=(1e-4, 1))
    figures.legend(figure, {"lasso at 1/s": "-", "monotone up to here": figures.DOTS})
    return figure
