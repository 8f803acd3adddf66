"""One network by itself, as `ddln explore` leaves it (arXiv 2412.16765, Theorems 1 and 2).

The page of `ddln explore` writes configs of this study; so it claims and draws what there is to say
of any network, swept or not.
"""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Every certificate that applies holds."""
    failing = dataset["certificate_applies"] & ~dataset["certificate_holds"]
    return [
        ddln.Claim(
            name="certificates",
            source="Theorems 1 and 2",
            statement="certificates that apply and do not hold, over all networks",
            measured=float(failing.sum()),
            predicted=0.0,
            tolerance=0.0,
            reason="a count",
        )
    ]


def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """The gap with what is known of it, and the nodes of the first coordinate."""
    first = dataset.isel(dict.fromkeys(dataset["status"].dims[1:], 0))
    over = str(first["status"].dims[0]) if first["status"].dims else None
    drawn = {"explore": figures.gap_against_time(first, over=over, slope="bound" in first)}
    if "layers" in first:
        lane = first if over is None else first.isel({over: 0})
        drawn["explore_nodes"] = figures.nodes_against_time(lane)
    return drawn
