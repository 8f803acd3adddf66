"""A deep diagonal linear network is a chain of weights per feature (arXiv 2412.16765, Figures 1–2).

The output is ⟨x, θ⟩, where θ = u^1 ⊙ … ⊙ u^L is the entrywise product of the L layers. The study
draws a network for each depth of the data set, at its width; large networks are abridged.
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Figures 1 and 2"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """θ is the product of the layers."""
    theta = dataset["theta"]
    error = abs(dataset["layers"].prod("layer") - theta).max() / abs(theta).max()
    why = "rounding in a product of a few factors"
    return [ddln.claim.at_most("θ less the product of its layers", error, 0.0, tol=1e-12, why=why)]


def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """A drawing for each depth."""
    layers = dataset["layers"].isel(time=0, coordinate=0)
    depths = {int(depth) for depth in layers.notnull().sum("layer").values.ravel()}
    return {
        f"architecture_depth_{depth}": figures.network_diagram(depth, dataset.sizes["coordinate"])
        for depth in sorted(depths)
    }
