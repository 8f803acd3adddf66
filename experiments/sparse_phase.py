"""The samples that recover a sparse signal, by flow and basis pursuit (Vaškevičius et al. 2019).

Noiseless Rademacher samples of k entries ±1 in forty, many draws of each number of samples n and
each k. From a small start two layers end near the solution of least ℓ1 norm, and so recover the
signal about where basis pursuit does, the nearer the smaller the start. The papers have 3000
features and more, this study 40.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.stats import norm

import ddln
from ddln import figures, theory

SOURCE = "Woodworth et al. 2020"
SAMPLES, NONZEROS, SEED = "problem.data.samples", "problem.data.nonzeros", "problem.data.seed"
SCALE = "network.scale"
PHASES = "Amelunxen et al. 2014"
TURNING = "basis pursuit turns at the statistical dimension δ(k), within some √d"
RECOVERED = 0.1
"""‖w − w*‖ / ‖w*‖ below which a signal counts as recovered."""


def least_l1(dataset: xr.Dataset) -> xr.DataArray:
    """The solutions of least ℓ1 norm, by a linear program; they are the same at all scales."""
    one = dataset.isel({SCALE: 0})
    return one.ddln.map(lambda run: theory.min_l1(run.problem.unsigned), "feature")


def is_recovered(dataset: xr.Dataset, solution: xr.DataArray) -> xr.DataArray:
    """Whether a solution is w*."""
    truth = dataset["truth"]
    size = (truth**2).sum("feature")
    return ((solution - truth) ** 2).sum("feature") < RECOVERED**2 * size


def entropy(w: xr.DataArray, scale: xr.DataArray) -> xr.DataArray:
    """Q(w) − Q(0) of u⊙u − v⊙v started at u = v = α, up to a factor."""
    floor = 2 * scale**2
    return (w * np.arcsinh(w / floor) - np.hypot(w, floor) + floor).sum("feature")


def dimensions(dataset: xr.Dataset) -> xr.DataArray:
    """For each k the statistical dimension δ of the ℓ1 norm's descent cone, where pursuit turns."""

    def bound(t, k):
        tail = (1 + t**2) * norm.sf(t) - t * norm.pdf(t)  # ∫ (x − t)² over the normal law beyond t
        return k * (1 + t**2) + 2 * (dataset.sizes["feature"] - k) * tail

    least = [minimize_scalar(bound, (0.0, 1.0), args=(k,)).fun for k in dataset[NONZEROS].values]
    return xr.DataArray(least, dims=NONZEROS)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The end of the flow has the least entropy; its phases are those of basis pursuit."""
    end, least = dataset.ddln.end["predictor"], least_l1(dataset)
    excess = entropy(end, dataset[SCALE]) / entropy(least, dataset[SCALE])
    found, pursuit = is_recovered(dataset, end), is_recovered(dataset, least)
    apart = (found != pursuit).mean([SAMPLES, NONZEROS, SEED]).sortby(SCALE)
    smallest, turns = found.sortby(SCALE).isel({SCALE: 0}), dimensions(dataset)
    distance = (dataset[SAMPLES] - turns) / np.sqrt(dataset.sizes["feature"])
    missed, hit = (~smallest).where(distance >= 1), smallest.where(distance <= -1)
    return [
        ddln.claim.at_most(
            "least entropy",
            excess.max(),
            1.0,
            tol=3e-5,
            statement="Q at the end over Q of basis pursuit's solution: the largest of all draws",
            why="a theorem; 30 rtol",
        ),
        ddln.claim.at_most(
            "smaller start",
            apart[0] / max(apart[-1], 1e-9),
            1.0,
            statement=f"the share of draws on which flow and basis pursuit differ, {apart[0]:.3f} "
            f"at the smallest start, over that at the largest, {apart[-1]:.3f}",
            why="a limit without a rate: only the order is claimed",
        ),
        ddln.claim.at_most(
            "many samples",
            missed.mean(),
            0.5,
            statement="from the smallest start, share of draws not recovered with n ≥ δ + √d",
            source=PHASES,
            why=TURNING,
            applies=missed.notnull().any(),
        ),
        ddln.claim.at_most(
            "few samples",
            hit.mean(),
            0.5,
            statement="from the smallest start, share of draws recovered with n ≤ δ − √d",
            source=PHASES,
            why=TURNING,
            applies=hit.notnull().any(),
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The share of draws recovered over n and k; half of those of basis pursuit is a line."""
    figure, axes = figures.canvas()
    dataset = dataset.sortby(SCALE).isel({SCALE: [0]})
    ends = dataset.ddln.end["predictor"], least_l1(dataset)
    found, pursuit = (
        is_recovered(dataset, end).mean([SEED, SCALE]).transpose(NONZEROS, SAMPLES) for end in ends
    )
    samples, nonzeros = dataset[SAMPLES], dataset[NONZEROS]
    look = {"cmap": "cividis", "vmin": 0, "vmax": 1, "shading": "nearest"}
    tints = axes.pcolormesh(samples, nonzeros, found, **look)
    if min(found.shape) > 1:
        look = {"colors": "white", "linewidths": 1.5, "linestyles": "dashed"}
        axes.contour(samples, nonzeros, pursuit, levels=[0.5], **look)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    axes.plot(dimensions(dataset), nonzeros, color="white", linestyle=figures.DOTS, linewidth=1.5)
    axes.set(xlabel="samples $n$", ylabel="entries that are not zero $k$")
    axes.set(xticks=samples, yticks=nonzeros)
    axes.set_title("half of basis pursuit's draws: seen (dashes), in theory (dots)", fontsize=9)
    figure.colorbar(tints, ax=axes, label="share of draws recovered")
    return figure
