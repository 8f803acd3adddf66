"""How long a small initialisation stays near zero, by depth (saddle escape, 2412.16765).

The loss ½(θ − 1)² of one coordinate, from L layers (s, …, s, 0). The range of ∇Q ends at
s^{2−L} (√π/2) Γ((L−2)/2) / Γ((L−1)/2). On the plateau θ ≈ 0 the gradient is −1, so that the flow
reaches this end after a time of the same length, and then jumps.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.special import gamma

import ddln
from ddln import figures

SOURCE = "derived in docs"
DEPTH = "network.depth"
ENDS = {3: 157.080, 4: 10000.0, 5: 785398.16}
"""The end of the range of ∇Q by depth, for s = 0.01, in closed form."""
HALVES = {3: 156.22935, 4: 9999.73354, 5: 785398.11623}
"""When θ = ½: ∫dw / (P(w)(1 − θ)) up to there, θ = wP(w), P = (w² + s²)^{(L−1)/2}, by mpmath."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/escape_times.npz."""
    return {"features": np.array([[1.0]]), "targets": np.array([1.0])}


def escape(run) -> float:
    """When the network leaves the plateau, from its layers."""
    return float(ddln.escape_times(run.problem, run.layers)[0])


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The range of ∇Q and the flow's own time agree with their closed forms."""
    made, chord = [], "the chord between saved times: spacing² |θ''/θ'| / 8 where that is less"
    for run in dataset.ddln.runs():
        depth, s, end = int(run.point[DEPTH]), float(run.layers.max()), escape(run)
        spacing = float(run.data.ddln.flow_time.diff("time").max())
        half = run.data.ddln.first_crossing(run.data["theta"].isel(coordinate=0), 0.5)
        gammas = np.sqrt(np.pi) / 2 * gamma((depth - 2) / 2) / gamma((depth - 1) / 2)
        exact, name = s ** (2 - depth) * gammas, f"depth {depth}"
        known = {"applies": depth in ENDS and np.isclose(s, 0.01)}
        digits = {"tol": max(5e-4, 6e-7 * end), "why": "the digits given", **known}
        linear = {"tol": min(spacing, spacing**2), "why": chord, **known}
        made += [
            ddln.claim.equal(f"{name}: range of ∇Q", end, exact, tol=1e-9 * end, why="rounding"),
            ddln.claim.equal(f"{name}: range, digits", end, ENDS.get(depth, np.nan), **digits),
            ddln.claim.equal(f"{name}: when θ = ½", half, HALVES.get(depth, np.nan), **linear),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """θ against time: a plateau and a jump for each depth, and the predicted time of the jump."""
    figure, axes = figures.canvas()
    later = dataset.isel(time=slice(1, None))
    theta, time = later["theta"].isel(coordinate=0), later.ddln.flow_time
    figures.curves(axes, theta, DEPTH, against=time, markevery=(0.03, 0.2))
    looks = figures.line_styles(dataset.sizes[DEPTH])
    for run, look in zip(dataset.ddln.runs(), looks, strict=True):
        axes.axvline(escape(run), color=look["color"], linestyle=figures.DOTS, zorder=0)
    axes.set(xscale="log", xlim=(10, float(time.max())))
    axes.set(xlabel="flow time $t$", ylabel=r"effective parameter $\theta$")
    figures.legend(figure, {"end of the range of $\\nabla Q$": figures.DOTS})
    return figure
