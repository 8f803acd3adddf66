"""Early-stopped descent from a small start finds a sparse signal (Vaškevičius et al. 2019).

Rademacher samples of five entries ±1 in ten thousand, with noise, and gradient descent on the model
u⊙u − v⊙v from u = v = α. The theorem asks for n of the order of k² ln d = 230 samples: there are
100, for which nothing is promised, and 500.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Vaškevičius et al. 2019"
SAMPLES, SCALE = "problem.data.samples", "network.scale"


def expected(runs: xr.Dataset) -> tuple[float, float, float]:
    """Squared errors: of least squares on the support, 2kσ² ln(2k)/n and 2kσ² ln(d)/n."""
    data, (features, targets) = runs.ddln.first.experiment.problem.data, runs.ddln.first.samples
    truth = runs["truth"].isel({SCALE: 0}).values
    support, k = truth != 0, data.nonzeros
    fitted = np.linalg.lstsq(features[:, support], targets, rcond=None)[0]
    unit = 2 * k * data.noise**2 / data.samples
    oracle = np.sum((fitted - truth[support]) ** 2)
    return float(oracle), unit * np.log(2 * k), unit * np.log(data.features)


def outside(dataset: xr.Dataset) -> xr.DataArray:
    """The largest |w_i| along each run with w*_i = 0."""
    return abs(dataset["predictor"]).where(dataset["truth"] == 0).max("feature")


def claims_of(runs: xr.Dataset) -> list[ddln.Claim]:
    """The claims about the runs with one number of samples."""
    experiment, scale = runs.ddln.first.experiment, runs[SCALE]
    data, (_, parametric, minimax) = experiment.problem.data, expected(runs)
    distance, size = runs.ddln.distance_to_truth, (runs["truth"] ** 2).sum("feature") ** 0.5
    best, at = distance.min("time") ** 2, {"time": distance.argmin("time")}
    least, most = (float(best[int(i)]) for i in (scale.argmin(SCALE), scale.argmax(SCALE)))
    halfway = runs.ddln.first_crossing(distance / size, 0.5, runs["step"]).values
    time = experiment.dynamics.optimiser.learning_rate * np.ptp(halfway)
    is_enough = data.samples >= data.nonzeros**2 * np.log(data.features)
    n, several = f"n = {data.samples}", scale.size > 1
    return [
        ddln.claim.at_most(
            f"smaller α, {n}",
            least / most,
            1.0,
            statement=f"least ‖w − w*‖² at the smallest α, {least:.2g}, over that at the largest, "
            f"{most:.2g}",
            why="only the order is claimed",
            applies=several,
        ),
        ddln.claim.at_most(
            f"minimax rate, {n}",
            least / minimax,
            1.0,
            statement=f"least ‖w − w*‖² at the smallest α over 2kσ² ln(d)/n, {minimax:.2g}",
            why="the threshold σ√(2 ln(d)/n) on k entries",
            applies=is_enough,
        ),
        ddln.claim.at_most(
            f"parametric rate, {n}",
            least / parametric,
            1.0,
            statement="least ‖w − w*‖² at the smallest α over 2kσ² ln(2k)/n",
            why="without d: the largest of k normal errors, on all k entries",
            applies=is_enough,
        ),
        ddln.claim.at_most(
            f"off the support, {n}",
            (outside(runs.isel(at)) / np.sqrt(scale)).max(),
            1.0,
            statement="largest |w_i| off the support at the best step, over √α: of all α",
            why="the bound of the theorem, its constant taken as 1",
            applies=is_enough,
        ),
        ddln.claim.equal(
            f"time, {n}",
            time / np.log(scale.max() / scale.min()),
            1.0,
            tol=2 * np.sqrt((data.nonzeros - 1) / data.samples),
            statement="γ times the extra steps to ‖w*‖/2 for the smallest α, per extra ln(1/α)",
            why="two standard deviations of what k − 1 other entries add to a gradient",
            applies=is_enough and several,
        ),
    ]


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The smaller α, the smaller the error; with enough samples, the rates are the paper's."""
    counts = dataset[SAMPLES].values
    return [claim for n in counts for claim in claims_of(dataset.sel({SAMPLES: n}))]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The squared error step by step for each n; entries of w with the most samples."""
    step = dataset["step"]
    figure, (*panels, last) = figures.canvas(8.6, 3.1, ncols=dataset.sizes[SAMPLES] + 1)
    for samples, axes in zip(dataset[SAMPLES].values, panels, strict=True):
        runs = dataset.sel({SAMPLES: samples})
        squares, (oracle, _, minimax) = runs.ddln.distance_to_truth**2, expected(runs)
        style = {"against": step, "label": figures.power_label(r"\alpha"), "markevery": 20}
        figures.curves(axes, squares, SCALE, **style)
        axes.axhline(oracle, color="0.5", linestyle=figures.DOTS, zorder=0)
        axes.axhline(minimax, color="0.5", linestyle=figures.DASHES[0], zorder=0)
        axes.set(yscale="log", title=f"$n$ = {samples}", ylim=(5e-4, 8))
    panels[0].set_ylabel(r"$\|w_t - w^*\|_2^2$")
    late = dataset.isel({SAMPLES: -1, "time": slice(1, None)})
    for run, look in zip(late.ddln.runs(), figures.line_styles(dataset.sizes[SCALE]), strict=True):
        style = {"color": look["color"], "linewidth": 0.9}
        signal = abs(run.data["predictor"]).where(run.data["truth"] != 0, drop=True)
        last.plot(step[1:], signal.transpose("time", "feature"), **style)
        last.plot(step[1:], outside(run.data), linestyle=figures.DASHES[1], **style)
    last.set(yscale="log", ylim=(1e-8, 3), title=f"$|w_i|$, $n$ = {late[SAMPLES].item()}")
    for axes in (*panels, last):
        axes.set(xlim=(0, float(step[-1])), xlabel=figures.axis_label(step))
    names = ("least squares on the support", "minimax rate", "largest off the support")
    figures.legend(figure, dict(zip(names, (figures.DOTS, *figures.DASHES), strict=True)))
    return figure
