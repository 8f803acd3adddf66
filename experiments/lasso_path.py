"""Averaged over time, small initialisations walk along the lasso's path (Berthier 2025, Thm 2.1).

scikit-learn's diabetes, two layers u ⊙ v from (√ε, 0). With s = 2t / ln(1/ε), the average of θ up
to time t tends to the lasso's solution at the penalty 1/s as ε → 0, as long as s · lasso(1/s) moves
away from 0 in every coordinate. Afterwards it follows the average of the saddles that the flow
visits, and no longer the lasso.
"""

import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory
from ddln.sweeps import build
from ddln.theory import _hermite

SCALE = "network.scale"
FIRST, LAST, SHOWN = 1.0, 1000.0, 49


def logarithm(lane: xr.Dataset) -> float:
    """ln(1/ε) of a lane."""
    return float(-2 * np.log(lane[SCALE]))


def averages(lane: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """s, shape (times,), and the average of θ up to there, shape (times, dim)."""
    curve = [jnp.asarray(lane[name].values) for name in ("flow_time", "theta", "velocity")]
    integral, times = np.asarray(_hermite.integrate(*curve)), lane["flow_time"].values
    wanted = 0.5 * logarithm(lane) * np.geomspace(FIRST, LAST, SHOWN)
    places = np.unique(np.searchsorted(times, wanted).clip(1, times.size - 1))
    return 2 * times[places] / logarithm(lane), integral[places] / times[places, None]


def of_saddles(problem: ddln.Problem, layers: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The average, up to each s, of the saddles visited in the limit, shape (times, dim)."""
    path = theory.saddle_path(problem, layers)
    spent = np.diff(np.minimum(np.append(path.times, np.inf), s[:, None]), axis=1)
    return spent @ path.theta / s[:, None]


def compared(dataset: xr.Dataset) -> dict[str, list[np.ndarray]]:
    """For each ε: s, the averages, the lasso, the saddles' averages, where the theorem holds."""
    found: dict[str, list[np.ndarray]] = {}
    for scale in dataset[SCALE]:
        problem, layers = build.rebuild(dataset.sel({SCALE: scale}))
        s, average = averages(dataset.sel({SCALE: scale}))
        lasso = np.array([theory.lasso(problem, 1 / x) for x in s])
        shrinks = np.diff(np.abs(s[:, None] * lasso), axis=0).min(axis=1) < -1e-6
        holds = np.arange(s.size) < (np.argmax(shrinks) if shrinks.any() else s.size)
        saddles = of_saddles(problem, np.asarray(layers), s)
        row = {"s": s, "average": average, "lasso": lasso, "saddles": saddles, "holds": holds}
        for name, values in row.items():
            found.setdefault(name, []).append(values)
    return found


def late(dataset: xr.Dataset) -> float:
    """Δ ln(4Δ), Δ the height of the first jump: of ½ ∫(Δ − θ)dt in units of t / ln(1/ε)."""
    problem, layers = build.rebuild(dataset.isel({SCALE: 0}))
    height = float(np.abs(theory.saddle_path(problem, layers).theta[1]).max())
    return height * float(np.log(4 * height))


def distances(found: dict[str, list[np.ndarray]], to: str) -> list[np.ndarray]:
    """The largest difference of a coordinate from the average, for each ε and s."""
    pairs = zip(found["average"], found[to], strict=True)
    return [np.abs(average - other).max(axis=1) for average, other in pairs]


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The lasso's path is met, at the rate 1 / ln(1/ε); afterwards the saddles' average is."""
    found, logs = compared(dataset), [logarithm(dataset.sel({SCALE: a})) for a in dataset[SCALE]]
    lasso, saddles = distances(found, "lasso"), distances(found, "saddles")
    to_lasso = [float(away[holds].max()) for away, holds in zip(lasso, found["holds"], strict=True)]
    power = np.log(to_lasso[-1] / to_lasso[0]) / np.log(logs[-1] / logs[0])
    texts = {
        "lasso": "largest distance of the average to the lasso, while s · lasso(1/s) grows",
        "saddles": "largest distance of the average to that of the saddles visited, for all s",
        "power of ln(1/ε)": "the distance to the lasso falls as 1 / ln(1/ε): the power, first to "
        "last ε",
    }
    rows = [("power of ln(1/ε)", "derived in docs", "=", power, -1.0, 0.2)]
    for i, log in enumerate(logs):
        at = f" at √ε = {float(dataset[SCALE][i]):.0e}"
        allowed = 0.0, 2 * late(dataset) / log
        rows.append((f"lasso{at}", "Berthier 2025, Thm 2.1", "<=", to_lasso[i], *allowed))
        rows.append(
            (f"saddles{at}", "Pesme & Flammarion 2023", "<=", float(saddles[i].max()), *allowed)
        )
    return [
        ddln.Claim(
            name=name,
            source=source,
            statement=texts[name.partition(" at")[0]],
            measured=measured,
            predicted=predicted,
            tolerance=tolerance,
            relation=relation,
            reason="a jump to height Δ is late by ln(4Δ) of 2|g|t, which moves the average by "
            "Δ ln(4Δ) / ln(1/ε); as much again for those after the first"
            if relation == "<="
            else "a limit; its constant depends on where the largest distance is",
            applies=dataset.sizes["time"] > 2000,
        )
        for name, source, relation, measured, predicted, tolerance in rows
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The lasso's path and the averages at the smallest ε; below, how far they are apart."""
    figure, (above, below) = figures.canvas(5.2, 5.4, nrows=2, sharex=True)
    found = compared(dataset)
    last = int(np.argmin(dataset[SCALE].values))
    s, lasso, average = (found[name][last] for name in ("s", "lasso", "average"))
    above.plot(s, lasso, color="0.45", linewidth=1.1)
    above.plot(s, average, color=figures.COLOURS[0], linestyle="", marker=".", markersize=4)
    above.set(ylabel="coefficient")
    for i, look in enumerate(figures.looks(dataset.sizes[SCALE])):
        label = rf"$\varepsilon = 10^{{{2 * np.log10(dataset[SCALE].values[i]):.0f}}}$"
        below.plot(found["s"][i], distances(found, "lasso")[i], label=label, markevery=4, **look)
    for axes in (above, below):
        axes.axvline(s[found["holds"][last]][-1], color="0.5", linestyle=figures.DOTS)
    below.set(xscale="log", yscale="log", xlabel=r"$s = 2t / \ln(1/\varepsilon)$")
    below.set_ylim(1e-4, 1)
    below.set_ylabel(r"distance of $\bar\theta$ to the lasso")
    figures.legend(figure, {"lasso at 1/s": "-", "monotone up to here": figures.DOTS})
    return figure
