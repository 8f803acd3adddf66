"""From a vanishing start the flow jumps from saddle to saddle (Pesme & Flammarion 2023).

X = [[1, .5, .7, 0], [.5, 1, .1, .7]], y = (1, 0), ½‖Xθ − y‖² and two layers u ⊙ v from (√2 α, 0).
With time in units of ln(1/α) the path tends to a staircase as α → 0. Its saddles and the times of
its jumps are found by an algorithm, without integrating anything.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory
from ddln.sweeps import build
from ddln.theory.saddle_to_saddle import SaddlePath

SCALE = "network.scale"
JUMPS = (1.0, 4.0, 5.63265)
AT_1E60 = (1.0017010, 4.0357658, 5.5116408)
"""By SciPy's Radau on the mirror flow (tests/test_saddles.py); the first by a closed form, too."""
VISITS = ((0.8, 0, 0, 0), (0, 0, 1.4, 0), (0, 0, 10 / 7, -10 / 49))
ENTERING = (0, 2, 3)
"""Which coordinate becomes active at each jump."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/saddle_to_saddle.npz."""
    features = np.array([[1.0, 0.5, 0.7, 0.0], [0.5, 1.0, 0.1, 0.7]])
    return {"features": features, "targets": np.array([1.0, 0.0])}


def stairs(dataset: xr.Dataset) -> SaddlePath:
    """The algorithm's saddles and times."""
    return theory.saddle_path(*build.rebuild(dataset.isel({SCALE: 0})))


def unit(lane: xr.Dataset) -> float:
    """ln(1/α) of a lane."""
    return float(-np.log(lane[SCALE]))


def jump_times(lane: xr.Dataset) -> list[float]:
    """When the entering coordinates pass about half their heights at the saddles, per ln(1/α)."""
    times, found = lane["flow_time"].values / unit(lane), []
    for k, half in zip(ENTERING, (0.4, 0.7, -0.1), strict=True):
        height = lane["theta"].values[:, k] / half
        i = int(np.argmax(height > 1))
        found.append(float(np.interp(1.0, height[i - 1 : i + 1], times[i - 1 : i + 1])))
    return found


def farthest(lane: xr.Dataset) -> float:
    """How far the flow is from the saddle midway between jumps, and at the end, at most."""
    times = lane["flow_time"].values / unit(lane)
    middles = [(1.0 + 4.0) / 2, (4.0 + 5.63265) / 2, 7.0]
    places = [int(np.argmin(abs(times - middle))) for middle in middles]
    return float(abs(lane["theta"].isel(time=places).values - VISITS).max())


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The algorithm's path is the published one; the flow comes to it as α → 0."""
    path, scales = stairs(dataset), dataset[SCALE].values
    near = int(np.argmin(abs(np.log(scales) - np.log(1e-60))))
    lane = dataset.isel({SCALE: near})
    spacing = float(lane["flow_time"].diff("time").max()) / unit(lane)
    return [
        ddln.Claim(
            name="visits",
            source="Pesme & Flammarion 2023",
            statement="the algorithm's saddles: largest difference from (.8, 0, 0, 0), "
            "(0, 0, 1.4, 0), (0, 0, 10/7, −10/49)",
            measured=float(np.abs(path.theta[1:] - VISITS).max()),
            predicted=0.0,
            tolerance=1e-9,
            reason="exact but for rounding",
        ),
        *(
            ddln.Claim(
                name=f"jump {i + 1}, α → 0",
                source="Pesme & Flammarion 2023",
                statement="the algorithm's time, per ln(1/α)",
                measured=float(path.times[i + 1]),
                predicted=time,
                tolerance=5e-6,
                reason="the digits given",
            )
            for i, time in enumerate(JUMPS)
        ),
        *(
            ddln.Claim(
                name=f"jump {i + 1}, α = 1e-60",
                source="derived in docs",
                statement="when θ passes 0.4, 0.7 and −0.1 in its turn, per ln(1/α)",
                measured=time,
                predicted=AT_1E60[i],
                tolerance=spacing**2 * unit(lane) / 4,
                reason="chords between saved times: h²|θ''/θ'|/8, where |θ''/θ'| ≤ 2 ‖Xᵀy‖∞",
                applies=bool(np.isclose(scales[near], 1e-60, rtol=1e-6)),
            )
            for i, time in enumerate(jump_times(lane))
        ),
        ddln.Claim(
            name="on the saddles",
            source="Pesme & Flammarion 2023",
            statement="at the smallest α, midway between jumps: largest distance to the saddle",
            measured=farthest(dataset.isel({SCALE: int(np.argmin(scales))})),
            predicted=0.0,
            tolerance=1e-6,
            relation="<=",
            reason="what is still to decay; the solver's",
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """θ against t / ln(1/α): a panel for each coordinate that moves, the staircase beneath."""
    figure, panels = figures.canvas(5.2, 5.0, nrows=3, sharex=True)
    path, scales = stairs(dataset), dataset[SCALE]
    for axes, k in zip(panels, ENTERING, strict=True):
        steps = np.append(path.theta[:, k], path.theta[-1, k])
        look = {"color": "0.8", "linewidth": 4, "label": r"algorithm, $\alpha \to 0$"}
        axes.step([*path.times, 7.0], steps, where="post", zorder=0, **look)
        for scale, look in zip(scales, figures.looks(scales.size), strict=True):
            lane, label = dataset.sel({SCALE: scale}), rf"$\alpha = 10^{{{np.log10(scale):.0f}}}$"
            curve = {"label": label, "markevery": (0.05, 0.21), **look}
            axes.plot(lane["flow_time"] / unit(lane), lane["theta"][:, k], **curve)
        axes.set(ylabel=rf"$\theta_{{{k + 1}}}$", xlim=(0, 7))
    panels[-1].set(xlabel=r"flow time per $\ln(1/\alpha)$")
    figures.legend(figure, {})
    return figure
