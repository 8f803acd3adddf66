"""From a small start and stopped early, descent finds a sparse signal (Vaškevičius et al. 2019).

Rademacher samples of five entries ±1 in ten thousand, with noise, and gradient descent on the model
u⊙u − v⊙v from u = v = α. The theorem asks for n of the order of k² ln d = 230 samples: there are
100, of which nothing is promised, and 500.
"""

from functools import cache

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config import datasets
from ddln.config.experiment import parse

SAMPLES, SCALE = "problem.data.samples", "network.scale"


@cache
def facts(config: str, samples: int) -> dict[str, float]:
    """Squared errors: of least squares on the support, of the two rates; k, γ, and n/(k² ln d)."""
    experiment = parse(config)
    table = experiment.problem.data.model_copy(update={"samples": samples})
    (features, targets), truth = datasets.draw(table), datasets.truth(table)
    support, k, unit = truth != 0, table.nonzeros, table.noise**2 / samples
    fitted = np.linalg.lstsq(features[:, support], targets, rcond=None)[0]
    return {
        "oracle": float(np.sum((fitted - truth[support]) ** 2)),
        "parametric": 2 * k * np.log(2 * k) * unit,
        "minimax": 2 * k * np.log(table.features) * unit,
        "nonzeros": k,
        "rate": experiment.dynamics.optimiser.learning_rate,
        "enough": samples / (k**2 * np.log(table.features)),
    }


def errors(dataset: xr.Dataset) -> xr.DataArray:
    """‖w − w*‖² along each run."""
    return ((dataset["predictor"] - dataset["truth"]) ** 2).sum("feature")


def outside(dataset: xr.Dataset) -> xr.DataArray:
    """The largest |w_i| along each run where w*_i = 0."""
    return abs(dataset["predictor"]).where(dataset["truth"] == 0).max("feature")


def halfway(dataset: xr.Dataset) -> list[float]:
    """The steps at which ‖w − w*‖ comes to ‖w*‖/2, on the chord between saved ones."""
    levels = np.sqrt(errors(dataset) / (dataset["truth"] ** 2).sum("feature"))
    step, curves = dataset["step"].values, levels.transpose(SCALE, "time").values
    pairs = [[i - 1, i] for i in np.argmax(curves < 0.5, axis=1)]
    return [np.interp(-0.5, -y[at], step[at]) for y, at in zip(curves, pairs, strict=True)]


def of_samples(run: xr.Dataset, samples: int) -> list[ddln.Claim]:
    """What is claimed of the runs on so many samples."""
    error, told = errors(run), facts(run.attrs["config"], samples)
    best, place = error.min("time").values, {"time": error.argmin("time")}
    scales, k, is_enough = run[SCALE].values, told["nonzeros"], told["enough"] >= 1
    stray = (outside(run).isel(place) / np.sqrt(run[SCALE])).max()
    last, others = int(np.argmin(scales)), 2 * np.sqrt((k - 1) / samples)
    delay = told["rate"] * np.ptp(halfway(run)) / np.log(scales.max() / scales.min())

    def claim(name, statement, measured, reason, applies, slack=0.0):
        head = f"{name}, n = {samples}", "Vaškevičius et al. 2019", statement, float(measured), 1.0
        return ddln.Claim(*head, slack, "=" if slack else "<=", reason, bool(applies))

    least, most, minimax = best[last], best[np.argmax(scales)], told["minimax"]
    small = "least ‖w − w*‖² at the smallest α"
    return [
        claim(
            *("smaller α", f"{small}, {least:.2g}, over that at the largest, {most:.2g}"),
            *(least / most, "only the order is claimed", scales.size > 1),
        ),
        claim(
            *("minimax rate", f"{small} over 2kσ² ln(d)/n, {minimax:.2g}"),
            *(least / minimax, "on k entries the threshold σ√(2 ln(d)/n)", is_enough),
        ),
        claim(
            *("parametric rate", f"{small} over 2kσ² ln(2k)/n", least / told["parametric"]),
            *("without d: the largest of k normal errors, on all k entries", is_enough),
        ),
        claim(
            *("off the support", "largest |w_i| there at the best step, over √α: of all α"),
            *(stray, "the theorem's bound, its constant taken as 1", is_enough),
        ),
        claim(
            *("time", "γ times the steps to ‖w*‖/2 more for the smallest α, per more ln(1/α)"),
            *(delay, "two deviations of what k − 1 others add to a gradient"),
            *(is_enough and scales.size > 1, others),
        ),
    ]


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The smaller α, the smaller the error; with samples enough, at the paper's rates."""
    counts = dataset[SAMPLES].values.tolist()
    return [claim for n in counts for claim in of_samples(dataset.sel({SAMPLES: n}), n)]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The squared error step by step for each n; entries of w with the most samples."""
    step, scales = dataset["step"], dataset[SCALE].values
    figure, panels = figures.canvas(8.6, 3.1, ncols=dataset.sizes[SAMPLES] + 1)
    for samples, axes in zip(dataset[SAMPLES].values, panels, strict=False):
        error = errors(dataset.sel({SAMPLES: samples}))
        told = facts(dataset.attrs["config"], int(samples))
        for scale, look in zip(scales, figures.looks(scales.size), strict=True):
            label = rf"$\alpha = 10^{{{np.log10(scale):.0f}}}$"
            axes.plot(step, error.sel({SCALE: scale}), label=label, markevery=20, **look)
        axes.axhline(told["oracle"], color="0.5", linestyle=figures.DOTS, zorder=0)
        axes.axhline(told["minimax"], color="0.5", linestyle=figures.DASHES[0], zorder=0)
        axes.set(yscale="log", title=f"$n$ = {samples}", ylim=(5e-4, 8))
    panels[0].set_ylabel(r"$\|w_t - w^*\|_2^2$")
    run = dataset.isel({SAMPLES: -1, "time": slice(1, None)})
    signal = abs(run["predictor"]).where(run["truth"] != 0)
    for i, look in enumerate(figures.looks(scales.size)):
        lane, plain = {SCALE: i}, {"color": look["color"], "linewidth": 0.9}
        inside = signal.isel(lane).dropna("feature", how="all").transpose("time", "feature")
        panels[-1].plot(step[1:], inside, **plain)
        panels[-1].plot(step[1:], outside(run.isel(lane)), linestyle=figures.DASHES[1], **plain)
    panels[-1].set(yscale="log", ylim=(1e-8, 3), title=f"$|w_i|$, $n$ = {run[SAMPLES].item()}")
    for axes in panels:
        axes.set(xlim=(0, float(step[-1])), xlabel=figures.axis_label(step))
    names = ("least squares on the support", "minimax rate", "largest off the support")
    figures.legend(figure, dict(zip(names, (figures.DOTS, *figures.DASHES), strict=True)))
    return figure
