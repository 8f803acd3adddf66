"""How many samples sparse signals need, of the flow and of basis pursuit (Vaškevičius et al. 2019).

Noiseless Rademacher samples of k entries ±1 in forty, many draws of each number of samples n and
each k. From a small start two layers end near the solution of least ℓ1 norm, and so recover the
signal about where basis pursuit does, the nearer the smaller the start. Smaller than in the papers:
40 features, not 3000 and more.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.stats import norm

import ddln
from ddln import figures, theory
from ddln.sweeps import build

SAMPLES, NONZEROS, SEED = "problem.data.samples", "problem.data.nonzeros", "problem.data.seed"
SCALE = "network.scale"
RECOVERED = 0.1
"""‖w − w*‖ / ‖w*‖ below which a signal counts as recovered."""


def pursued(dataset: xr.Dataset) -> xr.DataArray:
    """The solutions of least ℓ1 norm, by a linear program; those of all scales are the same."""
    one = dataset[["truth"]].isel({SCALE: 0})
    found = one["truth"].copy()
    for place in np.ndindex(*(one.sizes[name] for name in (SAMPLES, NONZEROS, SEED))):
        lane = dict(zip((SAMPLES, NONZEROS, SEED), place, strict=True))
        found[lane] = theory.min_l1(build.rebuild(one.isel(lane))[0].unsigned)
    return found


def is_recovered(dataset: xr.Dataset, solution: xr.DataArray) -> xr.DataArray:
    """Whether a solution is w*."""
    truth = dataset["truth"]
    size = (truth**2).sum("feature")
    return ((solution - truth) ** 2).sum("feature") < RECOVERED**2 * size


def entropy(w: xr.DataArray, scale: xr.DataArray) -> xr.DataArray:
    """Q(w) − Q(0) of u⊙u − v⊙v started at u = v = α, but for a factor."""
    floor = 2 * scale**2
    return (w * np.arcsinh(w / floor) - np.hypot(w, floor) + floor).sum("feature")


def dimensions(dataset: xr.Dataset) -> xr.DataArray:
    """For each k the statistical dimension of the ℓ1 norm's descent cone, where pursuit turns."""

    def bound(t, k):
        tail = (1 + t**2) * norm.sf(t) - t * norm.pdf(t)  # ∫ (x − t)² over the normal law beyond t
        return k * (1 + t**2) + 2 * (dataset.sizes["feature"] - k) * tail

    least = [minimize_scalar(bound, (0.0, 1.0), args=(k,)).fun for k in dataset[NONZEROS].values]
    return xr.DataArray(least, dims=NONZEROS)


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The flow's end has the least entropy; its phases are basis pursuit's."""
    end, least = dataset["predictor"].isel(time=-1), pursued(dataset)
    found, pursuit = is_recovered(dataset, end), is_recovered(dataset, least)
    apart = (found != pursuit).mean([SAMPLES, NONZEROS, SEED]).sortby(SCALE).values
    excess = entropy(end, dataset[SCALE]) / entropy(least, dataset[SCALE])
    smallest, turns = found.sortby(SCALE).isel({SCALE: 0}), dimensions(dataset)
    width = dataset.sizes["feature"] ** 0.5
    sides = {
        "many samples": (~smallest).where(dataset[SAMPLES] >= turns + width),
        "few samples": smallest.where(dataset[SAMPLES] <= turns - width),
    }
    words = {"many samples": "n ≥ δ + √d, that not recovered", "few samples": "n ≤ δ − √d, that is"}
    return [
        ddln.Claim(
            name="least entropy",
            source="Woodworth et al. 2020",
            statement="Q at the end over Q of basis pursuit's solution: the largest of all draws",
            measured=float(excess.max()),
            predicted=1.0,
            tolerance=3e-5,
            relation="<=",
            reason="a theorem; 30 rtol",
        ),
        ddln.Claim(
            name="smaller start",
            source="Woodworth et al. 2020",
            statement=f"the share of draws on which flow and basis pursuit differ, {apart[0]:.3f} "
            f"at the smallest start, over that at the largest, {apart[-1]:.3f}",
            measured=float(apart[0] / max(apart[-1], 1e-9)),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="a limit without a rate: only the order is claimed",
        ),
        *(
            ddln.Claim(
                name=name,
                source="Amelunxen et al. 2014",
                statement=f"from the smallest start, the share of draws with {words[name]}",
                measured=float(share.mean()),
                predicted=0.5,
                tolerance=0.0,
                relation="<=",
                reason="basis pursuit turns at the statistical dimension δ(k), within some √d",
                applies=bool(share.notnull().any()),
            )
            for name, share in sides.items()
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The share of draws recovered over n and k; half of those of basis pursuit is a line."""
    figure, axes = figures.canvas()
    dataset = dataset.sortby(SCALE).isel({SCALE: [0]})
    ends = dataset["predictor"].isel(time=-1), pursued(dataset)
    found, pursuit = (is_recovered(dataset, end).mean([SEED, SCALE]) for end in ends)
    samples, nonzeros = dataset[SAMPLES], dataset[NONZEROS]
    order = (NONZEROS, SAMPLES)
    look = {"cmap": "cividis", "vmin": 0, "vmax": 1, "shading": "nearest"}
    tints = axes.pcolormesh(samples, nonzeros, found.transpose(*order), **look)
    if min(found.sizes[name] for name in order) > 1:
        look = {"colors": "white", "linewidths": 1.5, "linestyles": "dashed"}
        axes.contour(samples, nonzeros, pursuit.transpose(*order), levels=[0.5], **look)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    axes.plot(dimensions(dataset), nonzeros, color="white", linestyle=figures.DOTS, linewidth=1.5)
    axes.set(xlabel="samples $n$", ylabel="entries that are not zero $k$")
    axes.set(xticks=samples, yticks=nonzeros)
    axes.set_title("half of basis pursuit's draws: seen (dashes), in theory (dots)", fontsize=9)
    figure.colorbar(tints, ax=axes, label="share of draws recovered")
    return figure
