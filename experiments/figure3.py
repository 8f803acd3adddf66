"""Only the smallest node of a coordinate can cross zero (arXiv 2412.16765, Figure 3).

The nodes u^1_1(t), …, u^4_1(t) of a four-layer network on a random least-squares problem. The other
three keep their signs, and a distance √λ_j from zero that the start fixes (Proposition 1).
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Proposition 1"


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """What the flow conserves by Proposition 1."""
    layers = dataset["layers"]
    floor, squares = figures.floor(layers), layers**2
    imbalance = squares - squares.isel(layer=0)
    largest = squares.isel(time=0).max()
    return [
        ddln.claim.at_most(
            "floor",
            (floor**2 - squares).max(),
            0.0,
            tol=1e-8 * largest,
            statement="no node but the smallest comes nearer to zero than √λ_j: largest λ_j − u²",
            why="ten times the relative tolerance of the solver",
        ),
        ddln.claim.equal(
            "sign",
            (layers * floor < 0).sum(),
            0,
            tol=0,
            statement="no node but the smallest changes sign: number of saved values that have",
            why="a count",
        ),
        ddln.claim.at_most(
            "imbalance",
            abs(imbalance - imbalance.isel(time=0)).max(),
            0.0,
            tol=1e-8 * largest,
            statement="u^i_k(t)² − u^j_k(t)² is conserved: largest change",
            why="ten times the relative tolerance of the solver; exact in reduced coordinates",
        ),
    ]


def draw(dataset: xr.Dataset) -> Figure:
    """The first coordinate's nodes, and the levels they cannot cross."""
    return figures.nodes_against_time(dataset, coordinate=0)
