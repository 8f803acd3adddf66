"""How long a small initialisation stays near zero, by depth (saddle escape, 2412.16765).

One coordinate, ½(θ − 1)², from layers (s, …, s, 0): the range of ∇Q ends at
s^{2−L} (√π/2) Γ((L−2)/2) / Γ((L−1)/2). On the plateau the gradient is −1, so the flow gets there
after as much time. It then jumps.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.special import gamma

import ddln
from ddln import figures

SOURCE = "derived in docs"
DEPTH = "network.depth"
CLOSED = {3: 157.080, 4: 10000.0, 5: 785398.16}
HALVES = {3: 156.22935, 4: 9999.73354, 5: 785398.11623}
"""When θ = ½: ∫dw / (P(w)(1 − θ)) up to there, θ = wP(w), P = (w² + s²)^{(L−1)/2}, by mpmath."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/escape_times.npz."""
    return {"features": np.array([[1.0]]), "targets": np.array([1.0])}


def escape(run):
    """When the network leaves the plateau, from its layers."""
    return ddln.escape_times(run.problem, run.layers)[0]


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The range of ∇Q, the closed form, and the flow's own time."""
    made = []
    for run in dataset.ddln.runs():
        depth, s = int(run.point[DEPTH]), float(run.layers.max())
        end = float(escape(run))
        spacing = float(run.data.ddln.flow_time.diff("time").max())
        half = run.data.ddln.first_crossing(run.data["theta"].isel(coordinate=0), 0.5)
        form = np.sqrt(np.pi) / 2 * gamma((depth - 2) / 2) / gamma((depth - 1) / 2)
        is_known = depth in CLOSED and np.isclose(s, 0.01)
        made += [
            ddln.claim.equal(
                f"range of ∇Q, depth {depth}",
                end,
                s ** (2 - depth) * form,
                tol=1e-9 * end,
                statement="ddln.escape_times of the layers against Γ functions",
                why="both to rounding",
            ),
            ddln.claim.equal(
                f"closed form, depth {depth}",
                end,
                CLOSED.get(depth, np.nan),
                tol=6e-7 * end if depth > 3 else 5e-4,
                statement="the same to the digits given, s = 0.01",
                why="the digits given",
                applies=is_known,
            ),
            ddln.claim.equal(
                f"the flow, depth {depth}",
                half,
                HALVES.get(depth, np.nan),
                tol=min(spacing, spacing**2),
                statement="when θ passes ½ in the run, against an integral by mpmath",
                why="the chord between saved times: spacing² |θ''/θ'| / 8 where that is less",
                applies=is_known,
            ),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """θ against time: a plateau and a jump for each depth, and the predicted time of the jump."""
    figure, axes = figures.canvas()
    later = dataset.isel(time=slice(1, None))
    theta, time = later["theta"].isel(coordinate=0), later.ddln.flow_time
    figures.curves(axes, theta, DEPTH, against=time, markevery=(0.03, 0.2))
    for run, look in zip(
        dataset.ddln.runs(), figures.line_styles(dataset.sizes[DEPTH]), strict=True
    ):
        axes.axvline(float(escape(run)), color=look["color"], linestyle=figures.DOTS, zorder=0)
    axes.set(xscale="log", xlim=(10, float(time.max())))
    axes.set(xlabel="flow time $t$", ylabel=r"effective parameter $\theta$")
    figures.legend(figure, {"end of the range of $\\nabla Q$": figures.DOTS})
    return figure
