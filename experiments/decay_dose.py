"""Weight decay acts by its dose, like a smaller start (depth 2: Jacobs & Burkholz 2024).

Noiseless samples of a sparse θ*, fewer than features; three layers, decayed at a constant rate ω
for a while. Afterwards the flow is that of the layers e^{−Ω} u(0), moved along the span of the
data, where Ω = ∫ω is the dose. So the limit is that of e^{−Ω} u(0) without decay: a larger dose
acts like a smaller initialisation.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "derived in docs; depth 2: Jacobs & Burkholz 2024"
RATE, UNTIL = "dynamics.weight_decay.rate", "dynamics.weight_decay.until"


def by_dose(dataset: xr.Dataset) -> xr.Dataset:
    """The networks along `network`, in the order of their doses, which are rounded."""
    networks = dataset.stack(network=(RATE, UNTIL), create_index=False)
    dose = (networks[RATE] * networks[UNTIL]).round(9)
    return networks.assign_coords(dose=dose).sortby("dose")


def limits(dataset: xr.Dataset, doses: np.ndarray) -> np.ndarray:
    """The limits of the layers e^{−Ω} u(0) without decay, shape (doses, dim)."""
    first = dataset.ddln.first
    smaller = np.exp(-doses)[:, None, None] * np.asarray(first.layers)
    return np.array([ddln.limit_point(first.problem, layers) for layers in smaller])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Networks of one dose end at one point, which is predicted; a larger dose is sparser."""
    networks = by_dose(dataset)
    ends, doses = networks["theta"].isel(time=-1), networks["dose"].values
    predicted = limits(dataset, doses)
    spread = ends.groupby("dose").max() - ends.groupby("dose").min()
    exactness = {"tol": 1e-8, "why": "the integrator's accuracy"}
    return [
        ddln.claim.at_most(
            "one point",
            spread.max(),
            0.0,
            statement="largest distance between the ends of schedules with one dose",
            **exactness,
        ),
        ddln.claim.at_most(
            "predicted limit",
            abs(ends.transpose("network", ...).values - predicted).max(),
            0.0,
            statement="largest distance of an end from the limit of the layers e^{−Ω} u(0)",
            **exactness,
        ),
        ddln.claim.at_most(
            "sparser",
            np.diff(abs(predicted).sum(axis=1)).max(),
            0.0,
            tol=1e-9,
            statement="largest rise of the limit's ‖θ‖₁ from one dose to the next",
            why="the accuracy of the limit",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """The paths of schedules with one dose in the plane of two coordinates; ‖θ‖₁ by dose."""
    figure, (plane, norms) = figures.canvas(7.2, 3.2, ncols=2)
    networks = by_dose(dataset)
    doses, counts = np.unique(networks["dose"], return_counts=True)
    dose = doses[counts >= min(3, counts.max())][-1]
    alike = networks.isel(network=networks["dose"].values == dose)["theta"]
    pair = np.argsort(-abs(limits(dataset, doses)[-1]))[:2]
    looks = figures.line_styles(alike.sizes["network"])
    for place, look in enumerate(looks):
        theta = alike.isel(network=place)
        label = rf"$\omega = {float(theta[RATE]):.2g}$"
        plane.plot(*theta.values[:, pair].T, label=label, markevery=40, **look)
    plane.plot(*limits(dataset, np.array([dose]))[0, pair], "k*", markersize=10, zorder=5)
    plane.set(xlabel=rf"$\theta_{{{pair[0] + 1}}}$", ylabel=rf"$\theta_{{{pair[1] + 1}}}$")
    plane.set_title(rf"schedules of dose $\Omega = {dose:.2g}$")
    plane.legend()
    predicted = abs(limits(dataset, doses)).sum(axis=1)
    norms.plot(doses, predicted, color="0.45", label=r"limit of $e^{-\Omega} u(0)$")
    ends = abs(networks["theta"].isel(time=-1)).sum("coordinate")
    norms.plot(networks["dose"], ends, "o", color=figures.COLOURS[0], markersize=4)
    least = abs(theory.min_l1(dataset.ddln.first.problem)).sum()
    norms.axhline(least, color="0.5", linestyle=figures.DOTS, label=r"least $\|\theta\|_1$")
    norms.set(xscale="log", xlabel=r"dose $\Omega$", ylabel=r"$\|\theta\|_1$ at the end")
    norms.legend()
    return figure
