"""How long a small initialisation stays near zero, by depth (saddle escape, 2412.16765).

One coordinate, ½(θ − 1)², from layers (s, …, s, 0): the range of ∇Q ends at
s^{2−L} (√π/2) Γ((L−2)/2) / Γ((L−1)/2), and under the gradient −1 that it meets on the plateau the
flow is there after as much time. It then jumps.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.special import gamma

import ddln
from ddln import figures
from ddln.sweeps import build

DEPTH = "network.depth"
CLOSED = {3: 157.080, 4: 10000.0, 5: 785398.16}
HALVES = {3: 156.22935, 4: 9999.73354, 5: 785398.11623}
"""When θ = ½: ∫dw / (P(w)(1 − θ)) up to there, θ = wP(w), P = (w² + s²)^{(L−1)/2}, by mpmath."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/escape_times.npz."""
    return {"features": np.array([[1.0]]), "targets": np.array([1.0])}


def predicted(depth: int, layers: np.ndarray) -> float:
    """The closed form for layers (s, …, s, 0)."""
    s = float(np.abs(layers).max())
    return s ** (2 - depth) * np.sqrt(np.pi) / 2 * gamma((depth - 2) / 2) / gamma((depth - 1) / 2)


def half_time(lane: xr.Dataset) -> float:
    """When θ passes ½, on the chord between the saved times around it."""
    theta, times = lane["theta"].isel(coordinate=0).values, lane["time"].values
    i = int(np.argmax(theta > 0.5))
    return float(np.interp(0.5, theta[i - 1 : i + 1], times[i - 1 : i + 1]))


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The range of ∇Q, the closed form, and the flow's own time."""
    made = []
    for lane in figures.lanes(dataset, DEPTH):
        depth = lane[DEPTH].item()
        problem, layers = build.rebuild(lane)
        end = float(ddln.escape_times(problem, layers)[0])
        spacing = float(np.diff(lane["time"]).max())
        is_known = depth in CLOSED and bool(np.isclose(np.max(layers), 0.01))
        made += [
            ddln.Claim(
                name=f"range of ∇Q, depth {depth}",
                source="derived in docs",
                statement="ddln.escape_times of the layers against Γ functions",
                measured=end,
                predicted=predicted(depth, layers),
                tolerance=1e-9 * end,
                reason="both to rounding",
            ),
            ddln.Claim(
                name=f"closed form, depth {depth}",
                source="derived in docs",
                statement="the same to the digits given, s = 0.01",
                measured=end,
                predicted=CLOSED.get(depth, np.nan),
                tolerance=6e-7 * end if depth > 3 else 5e-4,
                reason="the digits given",
                applies=is_known,
            ),
            ddln.Claim(
                name=f"the flow, depth {depth}",
                source="derived in docs",
                statement="when θ passes ½ in the run, against an integral by mpmath",
                measured=half_time(lane),
                predicted=HALVES.get(depth, np.nan),
                tolerance=min(spacing, spacing**2),
                reason="the chord between saved times: spacing² |θ''/θ'| / 8 where that is less",
                applies=is_known,
            ),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """θ against time: a plateau and a jump for each depth, and where it is predicted."""
    figure, axes = figures.canvas()
    curves = figures.lanes(dataset, DEPTH)
    for lane, look in zip(curves, figures.looks(len(curves)), strict=True):
        problem, layers = build.rebuild(lane)
        curve = {"label": figures.value_label(lane[DEPTH]), "markevery": (0.03, 0.2), **look}
        axes.plot(lane["time"][1:], lane["theta"].isel(coordinate=0)[1:], **curve)
        escape = float(ddln.escape_times(problem, layers)[0])
        axes.axvline(escape, color=look["color"], linestyle=figures.DOTS, zorder=0)
    axes.set(xscale="log", xlim=(10, max(float(lane["time"][-1]) for lane in curves)))
    axes.set(xlabel="flow time $t$", ylabel=r"effective parameter $\theta$")
    figures.legend(figure, {"end of the range of $\\nabla Q$": figures.DOTS})
    return figure
