"""Only the smallest node of a coordinate can cross zero (arXiv 2412.16765, Figure 3).

The nodes u^1_1(t), …, u^4_1(t) of a four-layer network on a random least-squares problem. The flow
conserves u^i_k(t)² − u^j_k(t)². All nodes but the smallest therefore keep their signs, and the
distance √λ_j from zero that the start fixes (Proposition 1).
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Proposition 1"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The flow conserves what Proposition 1 says it conserves."""
    layers = dataset["layers"]
    floor, squares = figures.floor(layers), layers**2
    imbalance, tol = squares - squares.isel(layer=0), 1e-8 * squares.isel(time=0).max()
    change, below = abs(imbalance - imbalance.isel(time=0)).max(), (floor**2 - squares).max()
    crossings = (layers * floor < 0).sum()
    why = "ten times the relative tolerance of the solver"
    return [
        ddln.claim.at_most("λ_j − u² of all nodes but the smallest", below, 0.0, tol=tol, why=why),
        ddln.claim.equal("values of these nodes with another sign", crossings, 0, why="a count"),
        ddln.claim.at_most("change of u^i_k(t)² − u^j_k(t)²", change, 0.0, tol=tol, why=why),
    ]


def draw(dataset: xr.Dataset) -> Figure:
    """The first coordinate's nodes, and the levels they cannot cross."""
    return figures.nodes_against_time(dataset, coordinate=0)
