"""Only the smallest node of a coordinate can cross zero (arXiv 2412.16765, Figure 3).

The nodes u^1_1(t), …, u^4_1(t) of a four-layer network on a random least-squares problem. The other
three keep their signs, and a distance √λ_j from zero that the start fixes (Proposition 1).
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """What Proposition 1 says the flow keeps."""
    layers = dataset["layers"]
    floor, squares = figures.floor(layers), layers**2
    imbalance = squares - squares.isel(layer=0)
    largest = float(squares.isel(time=0).max())
    return [
        ddln.Claim(
            name="floor",
            source="Proposition 1",
            statement="no node but the smallest comes nearer to zero than √λ_j: largest λ_j − u²",
            measured=float((floor**2 - squares).max()),
            predicted=0.0,
            tolerance=1e-8 * largest,
            relation="<=",
            reason="the solver's relative tolerance, tenfold",
        ),
        ddln.Claim(
            name="sign",
            source="Proposition 1",
            statement="no node but the smallest changes its sign: how many saved values have",
            measured=float((layers * floor < 0).sum()),
            predicted=0.0,
            tolerance=0.0,
            reason="a count",
        ),
        ddln.Claim(
            name="imbalance",
            source="Proposition 1",
            statement="u^i_k(t)² − u^j_k(t)² stays what it was: largest change",
            measured=float(abs(imbalance - imbalance.isel(time=0)).max()),
            predicted=0.0,
            tolerance=1e-8 * largest,
            relation="<=",
            reason="the solver's relative tolerance, tenfold; exact in reduced coordinates",
        ),
    ]


def draw(dataset: xr.Dataset) -> Figure:
    """The first coordinate's nodes, and the levels they cannot cross."""
    return figures.nodes_against_time(dataset, coordinate=0)
