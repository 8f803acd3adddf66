"""Weight decay adds its rate to the penalty of the lasso path (Berthier 2025).

Two layers u ⊙ v start from (√ε, 0) on scikit-learn's diabetes data and decay at the rate ω. The
flow ends at the lasso's solution at the penalty ω. With s = 2t / ln(1/ε), the average θ̄ of θ up to
time t tends to the solution at ω + 1/s as ε → 0, as long as s · lasso(ω + 1/s) moves away from 0 in
every coordinate: θ rests where the dual −∫∇ℒ is at an end ±(½ ln(1/ε) + ωt) of its range.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Berthier 2025"
RATE = "dynamics.weight_decay.rate"


def curves(run) -> xr.Dataset:
    """θ̄ over the penalty ω + 1/s, the lasso there, and whether the limit applies."""
    times, log = run.data.ddln.flow_time.values, -2 * np.log(run.layers.max())
    wanted = 0.5 * log * np.geomspace(1.0, 2 * times[-1] / log, 40)
    at = np.unique(np.searchsorted(times, wanted).clip(1, times.size - 1))
    average = run.data.ddln.time_average(run.data["theta"], run.data["velocity"])[at - 1]
    s, rate = 2 * times[at] / log, float(run.point[RATE])
    lasso = np.array([theory.lasso(run.problem, rate + 1 / x) for x in s])
    moves_away = np.diff(np.abs(s[:, None] * lasso), axis=0).min(axis=1) >= -1e-6
    applies = np.logical_and.accumulate(np.append(moves_away, True))
    lines = {"average": average.values, "lasso": lasso}
    found = {name: (("s", "coordinate"), values) for name, values in lines.items()}
    penalty, attributes = ("s", rate + 1 / s), {"rate": rate, "log": log}
    return xr.Dataset(found, {"s": s, "penalty": penalty, "applies": ("s", applies)}, attributes)


def distance(run: xr.Dataset) -> xr.DataArray:
    """The largest difference between a coordinate of θ̄ and of the lasso, at each s."""
    return abs(run["average"] - run["lasso"]).max("coordinate")


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """θ ends at the lasso's solution at ω; until then θ̄ follows that at ω + 1/s."""
    made, is_fine = [], dataset.sizes["time"] > 2000
    for run in dataset.ddln.runs():
        found, end = curves(run), run.data["theta"].isel(time=-1).values
        rate, log = found.attrs["rate"], found.attrs["log"]
        off = np.abs(end - theory.lasso(run.problem, rate)).max()
        nearest = distance(found).where(found["applies"]).max()
        height = np.abs(found["lasso"]).max()
        late = 2 * height * np.log(max(4 * height, np.e)) / log
        why = "2Δ ln(4Δ) / ln(1/ε) for the delay of jumps to the height Δ, as in lasso_path"
        exact = "the solver's accuracy, and the lasso's"
        made += [
            ddln.claim.at_most(f"ω = {rate:g}: end at the lasso", off, 0.0, tol=1e-6, why=exact),
            ddln.claim.at_most(
                f"ω = {rate:g}: average", nearest, 0.0, tol=late, why=why, applies=is_fine
            ),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The lasso's path, with averages (dots) and ends (stars) of every rate; below, distances."""
    figure, (above, below) = figures.canvas(5.2, 5.4, nrows=2)
    runs = list(dataset.ddln.runs())
    found = [curves(run) for run in runs]
    lowest = min(run.attrs["rate"] for run in found)
    penalties = np.geomspace(lowest, 1.0, 120)
    path = [theory.lasso(runs[0].problem, penalty) for penalty in penalties]
    above.plot(penalties, path, color="0.45", linewidth=1.1)
    for run, one, look in zip(found, runs, figures.line_styles(len(found)), strict=True):
        colour, rate, label = look["color"], run.attrs["rate"], rf"$\omega = {run.attrs['rate']:g}$"
        above.plot(run["penalty"], run["average"], ".", color=colour, markersize=4)
        above.axvline(rate, color=colour, linestyle=figures.DOTS)
        end = one.data["theta"].isel(time=-1)
        above.plot(np.full(end.size, rate), end, "*", color=colour, markersize=8)
        below.plot(run["s"], distance(run), label=label, markevery=4, **look)
    above.set(xscale="log", xlabel=r"penalty $\omega + 1/s$", ylabel="coefficient")
    above.invert_xaxis()
    below.set(xscale="log", yscale="log", ylim=(1e-5, 1e-1), ylabel=r"distance of $\bar\theta$")
    below.set_xlabel(r"$s = 2t / \ln(1/\varepsilon)$")
    figures.legend(figure, {"lasso": "-", r"penalty $\omega$": figures.DOTS})
    return figure
