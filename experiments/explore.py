"""A single network, as `ddln explore` saves it (arXiv 2412.16765, Theorems 1 and 2).

The page of `ddln explore` writes configs of this study. Its claim and its figures are therefore
those that every network has, in a sweep or alone.
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Theorems 1 and 2"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Every certificate that applies holds."""
    failing = (dataset["certificate_applies"] & ~dataset["certificate_holds"]).sum()
    return [ddln.claim.equal("certificates that apply and fail", failing, 0, why="a count")]


def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """The gap beside its bounds, and the nodes of the first coordinate."""
    first = dataset.isel(dict.fromkeys(dataset["status"].dims[1:], 0))
    over = str(first["status"].dims[0]) if first["status"].dims else None
    drawn = {"explore": figures.gap_against_time(first, over=over, slope="bound" in first)}
    if "layers" in first:
        drawn["explore_nodes"] = figures.nodes_against_time(dataset.ddln.first.data)
    return drawn
