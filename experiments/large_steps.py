"""Large steps of gradient descent end away from the sparse truth (Even et al. 2023).

Twenty noiseless samples of a θ* of which three entries in thirty are not zero; two layers, trained
by gradient descent with steps up to where it diverges.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures
from ddln.config.datasets import arrays_of

STEP = "dynamics.optimiser.learning_rate"
RECOMPUTED = {
    0.01: (0.0463753, 0.0066700),
    0.280722: (0.0570298, 0.0079211),
    0.356225: (0.2082543, 0.0249945),
    0.573615: (2.2201981, 0.2523654),
}
"""γ: ‖θ − θ*‖ and ‖X_test (θ − θ*)‖ / 2n after 100,000 steps, by a loop in NumPy."""


def data() -> dict[str, np.ndarray]:
    """As in a public reproduction of the paper."""
    rng = np.random.default_rng(1234)
    truth = np.append(rng.normal(0, 1, 3), np.zeros(27))
    features, unseen = (rng.multivariate_normal(np.zeros(30), np.eye(30), 20) for _ in range(2))
    return {
        "features": features,
        "targets": features @ truth,
        "truth": truth,
        "test_features": unseen,
    }


def errors(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """‖θ − θ*‖ and ‖X_test (θ − θ*)‖ / 2n along each run."""
    arrays = arrays_of(dataset)
    truth = xr.DataArray(arrays["truth"], dims="coordinate")
    unseen = xr.DataArray(arrays["test_features"], dims=("sample", "coordinate"))
    away = dataset["theta"] - truth
    missed = xr.dot(unseen, away, dim="coordinate")
    return (away**2).sum("coordinate") ** 0.5, (missed**2).sum("sample") ** 0.5 / (
        2 * unseen.sizes["sample"]
    )


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Where four of the step sizes end."""
    ends = [error.isel(time=-1) for error in errors(dataset)]
    steps = dataset[STEP].values
    is_as_long = int(dataset["step"][-1]) == 100_000
    nearest = {step: int(np.argmin(abs(steps - step))) for step in RECOMPUTED}
    return [
        ddln.Claim(
            name=f"{name} at γ = {step:.2g}",
            source="setting of Even et al. 2023",
            statement=f"the {name} after the last step",
            measured=float(end[nearest[step]]),
            predicted=value,
            tolerance=1e-7,
            reason="the digits of a loop in NumPy",
            applies=bool(abs(steps[nearest[step]] - step) < 1e-6) and is_as_long,
        )
        for step, values in RECOMPUTED.items()
        for name, value, end in zip(("distance", "test error"), values, ends, strict=True)
    ]


def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """Where each step size ends, and the way there."""
    return {"large_steps_end": draw_ends(dataset), "large_steps_gap": draw_gaps(dataset)}


@figures.style()
def draw_ends(dataset: xr.Dataset) -> Figure:
    """The distance to the truth at the end against the step size."""
    figure, axes = figures.canvas()
    distance = errors(dataset)[0].isel(time=-1)
    (look,) = figures.looks(1)
    axes.plot(dataset[STEP], distance, **look)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset[STEP]))
    axes.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    return figure


@figures.style()
def draw_gaps(dataset: xr.Dataset) -> Figure:
    """The gap's way down, step by step."""
    figure, axes = figures.canvas()
    figures.gap_against_time(dataset, axes, over=STEP, against="step")
    axes.set(xscale="log")
    axes.set_xlim(1, float(dataset["step"][-1]))
    figures.legend(figure, {})
    return figure
