"""A small start recovers sparse signals where basis pursuit does (Vaškevičius et al. 2019).

Each draw has n noiseless Rademacher samples of a w* in R⁴⁰ with k entries ±1; the paper has
thousands of features. The flow of u⊙u − v⊙v from u = v = α ends at the interpolator of least
entropy Q. As α → 0 it tends to the one of least ℓ1 norm, which basis pursuit finds. Basis pursuit
begins to succeed at n = δ(k), the statistical dimension of a cone (Amelunxen et al. 2014).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Woodworth et al. 2020"
SAMPLES, NONZEROS, SEED = "problem.data.samples", "problem.data.nonzeros", "problem.data.seed"
SCALE = "network.scale"


def solutions(dataset: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """The ends of the flow, α ascending, and the solutions of basis pursuit in their place."""
    flow = dataset.sortby(SCALE).ddln.end
    draws = flow.isel({SCALE: 0}).ddln
    least = draws.map(lambda run: theory.min_l1(run.problem.unsigned), "feature")
    return flow, flow.assign(predictor=least)


def entropy(solution: xr.Dataset) -> xr.DataArray:
    """Q(w) − Q(0) of u⊙u − v⊙v started at u = v = α, up to a factor."""
    w, floor = solution["predictor"], 2 * solution[SCALE] ** 2
    return (w * np.arcsinh(w / floor) - np.hypot(w, floor) + floor).sum("feature")


def is_recovered(solution: xr.Dataset) -> xr.DataArray:
    """Whether ‖w − w*‖ < ‖w*‖ / 10."""
    return solution.ddln.relative_distance_to_truth < 0.1


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The end of the flow has the least entropy; its phases are those of basis pursuit."""
    flow, pursuit = solutions(dataset)
    found, dim = is_recovered(flow), dataset.sizes["feature"]
    differs = (found != is_recovered(pursuit)).mean([SAMPLES, NONZEROS, SEED]).values
    excess = entropy(flow) / entropy(pursuit)
    beyond = dataset[SAMPLES] - xr.apply_ufunc(theory.statistical_dimension, dataset[NONZEROS], dim)
    missed = (~found[{SCALE: 0}]).where(beyond >= np.sqrt(dim)).mean()
    hit = found[{SCALE: 0}].where(beyond <= -np.sqrt(dim)).mean()
    ratio, order = differs[0] / max(differs[-1], 1e-9), "a limit without a rate"
    phase: Any = {"source": "Amelunxen et al. 2014", "why": "a theorem, up to a multiple of √d"}
    return [
        ddln.claim.at_most("Q(end) / Q(basis pursuit)", excess.max(), 1.0, tol=3e-5, why="30 rtol"),
        ddln.claim.at_most("draws that differ, smallest α over largest", ratio, 1.0, why=order),
        ddln.claim.at_most(
            "draws missed with n ≥ δ + √d", missed, 0.5, applies=np.isfinite(missed), **phase
        ),
        ddln.claim.at_most(
            "draws found with n ≤ δ − √d", hit, 0.5, applies=np.isfinite(hit), **phase
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The share of draws recovered from the smallest α over n and k, and the two thresholds."""
    figure, axes = figures.canvas()
    pair = [is_recovered(solution).isel({SCALE: 0}) for solution in solutions(dataset)]
    flow, pursuit = (found.mean(SEED).transpose(NONZEROS, SAMPLES) for found in pair)
    figures.heatmap(axes, flow, label="share of draws recovered", vmin=0, vmax=1)
    n, k, white = dataset[SAMPLES], dataset[NONZEROS], {"linewidths": 1.5, "colors": "white"}
    if min(flow.shape) > 1:
        axes.contour(n, k, pursuit, levels=[0.5], linestyles="dashed", **white)
    turn = theory.statistical_dimension(k.values, dataset.sizes["feature"])
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    axes.plot(turn, k, color="white", linewidth=1.5, linestyle=figures.DOTS)
    axes.set(xlabel="samples $n$", ylabel="nonzero entries $k$")
    axes.set_title("half of basis pursuit's draws: measured (dashes), theory (dots)", fontsize=9)
    return figure
