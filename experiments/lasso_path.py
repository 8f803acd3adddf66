"""The time average from a small initialisation follows the lasso path (Berthier 2025, Thm 2.1).

scikit-learn's diabetes, two layers u ⊙ v from (√ε, 0). With s = 2t / ln(1/ε), the average of θ up
to time t tends to the lasso's solution at the penalty 1/s as ε → 0, as long as s · lasso(1/s) moves
away from 0 in every coordinate. Afterwards it follows the average of the saddles that the flow
visits, and no longer the lasso.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Berthier 2025, Thm 2.1"
SCALE = "network.scale"
FIRST, LAST, SHOWN = 1.0, 1000.0, 49
LATE = (
    "a jump to height Δ is late by ln(4Δ) of 2|g|t, which moves the average by Δ ln(4Δ) / ln(1/ε); "
    "as much again for those after the first"
)


class Paths(NamedTuple):
    """Curves of one ε over s, shape (points,) or (points, dim)."""

    log: float  # ln(1/ε)
    s: np.ndarray
    average: np.ndarray
    lasso: np.ndarray
    grows: np.ndarray  # s · lasso(1/s) has moved away from 0 so far: the theorem applies
    to_lasso: np.ndarray  # largest difference of a coordinate from the average
    to_saddles: np.ndarray


def paths(run) -> Paths:
    """The average of θ up to each s, beside the lasso and the average of the saddles visited."""
    log, times = -2 * np.log(run.point[SCALE]), run.data.ddln.flow_time.values
    theta, slope, step = run.data["theta"], run.data["velocity"].values, np.diff(times)[:, None]
    # The integral of the cubics through θ and dθ/dt at the saved times.
    pieces = step / 2 * (theta.values[1:] + theta.values[:-1])
    pieces += step**2 / 12 * (slope[:-1] - slope[1:])
    wanted = 0.5 * log * np.geomspace(FIRST, LAST, SHOWN)
    at = np.unique(np.searchsorted(times, wanted).clip(1, times.size - 1))
    s, average = 2 * times[at] / log, np.cumsum(pieces, axis=0)[at - 1] / times[at, None]
    lasso = np.array([theory.lasso(run.problem, 1 / x) for x in s])
    shrinks = np.diff(np.abs(s[:, None] * lasso), axis=0).min(axis=1) < -1e-6
    grows = np.arange(s.size) < (np.argmax(shrinks) if shrinks.any() else s.size)
    visits = theory.saddle_path(run.problem, run.layers)
    spent = np.diff(np.minimum(np.append(visits.times, np.inf), s[:, None]), axis=1)
    saddles = spent @ visits.theta / s[:, None]
    away = (np.abs(average - other).max(axis=1) for other in (lasso, saddles))
    return Paths(log, s, average, lasso, grows, *away)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The lasso's path is met, at the rate 1 / ln(1/ε); afterwards the saddles' average is."""
    found, first = [paths(run) for run in dataset.ddln.runs()], dataset.ddln.first
    jump = np.abs(theory.saddle_path(first.problem, first.layers).theta[1]).max()
    delay, is_fine = jump * np.log(4 * jump), dataset.sizes["time"] > 2000
    to_lasso = [path.to_lasso[path.grows].max() for path in found]
    power = np.log(to_lasso[-1] / to_lasso[0]) / np.log(found[-1].log / found[0].log)
    made = [
        ddln.claim.equal(
            "power of ln(1/ε)",
            power,
            -1.0,
            tol=0.2,
            statement="the distance to the lasso falls as 1 / ln(1/ε): the power, from the first "
            "to the last ε",
            source="derived in docs",
            why="a limit; its constant depends on where the largest distance is",
            applies=is_fine,
        )
    ]
    for scale, path, distance in zip(dataset[SCALE].values, found, to_lasso, strict=True):
        options = {"tol": 2 * delay / path.log, "why": LATE, "applies": is_fine}
        made += [
            ddln.claim.at_most(
                f"lasso at √ε = {scale:.0e}",
                distance,
                0.0,
                statement="largest distance of the average to the lasso, while s · lasso(1/s) "
                "grows",
                **options,
            ),
            ddln.claim.at_most(
                f"saddles at √ε = {scale:.0e}",
                path.to_saddles.max(),
                0.0,
                statement="largest distance of the average to that of the saddles visited, all s",
                source="Pesme & Flammarion 2023",
                **options,
            ),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The lasso's path and the averages at the smallest ε; below, how far they are apart."""
    figure, (above, below) = figures.canvas(5.2, 5.4, nrows=2, sharex=True)
    found = [paths(run) for run in dataset.ddln.runs()]
    last = max(found, key=lambda path: path.log)
    above.plot(last.s, last.lasso, color="0.45", linewidth=1.1)
    average = {"color": figures.COLOURS[0], "linestyle": "", "marker": ".", "markersize": 4}
    above.plot(last.s, last.average, **average)
    above.set(ylabel="coefficient")
    for path, look in zip(found, figures.line_styles(len(found)), strict=True):
        label = rf"$\varepsilon = 10^{{{-path.log / np.log(10):.0f}}}$"
        below.plot(path.s, path.to_lasso, label=label, markevery=4, **look)
    for axes in (above, below):
        axes.axvline(last.s[last.grows][-1], color="0.5", linestyle=figures.DOTS)
    below.set(xscale="log", yscale="log", xlabel=r"$s = 2t / \ln(1/\varepsilon)$", ylim=(1e-4, 1))
    below.set_ylabel(r"distance of $\bar\theta$ to the lasso")
    figures.legend(figure, {"lasso at 1/s": "-", "monotone up to here": figures.DOTS})
    return figure
