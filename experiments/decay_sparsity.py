"""Constant weight decay of L layers penalises |θ|^{2/L}: sparser with depth (derived in docs).

A network of each depth and rate ω on scikit-learn's diabetes data with products and squares, 64
features. Its layers balance as they decay, and then (ω/2) Σ_j ‖u^j‖² = (ωL/2) Σ_k |θ_k|^{2/L}: the
lasso's penalty at depth 2, and one that is not convex from depth 3 on. The flow ends where the sum
is stationary, ∂ℒ/∂θ_k = −ω sign(θ_k) |θ_k|^{2/L − 1} for all θ_k ≠ 0.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "derived in docs"
DEPTH, RATE = "network.depth", "dynamics.weight_decay.rate"
NONZERO = 1e-6
"""A smaller θ_k counts as zero, at which it arrives exponentially."""


def ends(dataset: xr.Dataset) -> xr.Dataset:
    """Number of nonzeros, loss, and how far from stationary every network is at its end."""
    theta = dataset["theta"].isel(time=-1).transpose(DEPTH, RATE, "coordinate")
    features, targets = map(np.asarray, dataset.ddln.first.samples)
    slope = theta.copy(data=(theta.values @ features.T - targets) @ features / len(targets))
    is_nonzero, rate, power = abs(theta) > NONZERO, theta[RATE], 2 / theta[DEPTH] - 1
    pull = rate * np.sign(theta) * abs(theta).where(is_nonzero, 1.0) ** power
    residual = abs(pull + slope).where(is_nonzero, 0.0).max("coordinate")
    loss = dataset["loss"].isel(time=-1)
    found = {"nonzeros": is_nonzero.sum("coordinate"), "loss": loss, "residual": residual}
    return xr.Dataset(found).transpose(DEPTH, RATE)


def share_of_nonzeros(found: xr.Dataset, depth: int) -> np.ndarray:
    """Nonzeros of a depth over those of depth 2 at the same loss, where both have some."""
    two, other = found.sel({DEPTH: 2}).sortby("loss"), found.sel({DEPTH: depth})
    both = (other["nonzeros"] > 0) & (other["loss"] <= two["loss"].max())
    other = other.isel({RATE: np.flatnonzero(both)})
    return other["nonzeros"].values / np.interp(other["loss"], two["loss"], two["nonzeros"])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Every network ends at a stationary point; deeper ones have fewer nonzeros at a loss."""
    found, problem = ends(dataset), dataset.ddln.first.problem
    made, accuracy = [], "the solver's accuracy"
    for depth in found[DEPTH].values:
        if depth == 2:
            theta = dataset["theta"].isel(time=-1).sel({DEPTH: 2}).transpose(RATE, "coordinate")
            lasso = [theory.lasso(problem, rate) for rate in theta[RATE].values]
            off, why = abs(theta.values - lasso).max(), "coordinates that reach 0 late"
            name = "depth 2: distance to the lasso"
            made.append(ddln.claim.at_most(name, off, 0.0, tol=1e-3, why=why))
            continue
        force, share = found["residual"].sel({DEPTH: depth}).max(), share_of_nonzeros(found, depth)
        name = f"depth {depth}: force at nonzeros"
        made.append(ddln.claim.at_most(name, force, 0.0, tol=1e-9, why=accuracy))
        name = f"depth {depth}: nonzeros over those of the lasso at one loss"
        made.append(ddln.claim.at_most(name, share.max(), 1.0))
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The loss at the end against the number of nonzeros, at each depth and rate."""
    figure, axes = figures.canvas(5.2, 3.6)
    found = ends(dataset)
    looks = figures.line_styles(found.sizes[DEPTH])
    for depth, look in zip(found[DEPTH], looks, strict=True):
        one = found.sel({DEPTH: depth})
        axes.plot(one["nonzeros"], one["loss"], label=figures.value_label(depth), **look)
    axes.set(xlabel=r"nonzero $\theta_k$", ylabel=r"loss $\mathcal{L}(\theta)$ at the end")
    figures.legend(figure)
    return figure
