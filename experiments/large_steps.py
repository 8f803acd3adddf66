"""Large steps of gradient descent end away from the sparse truth (Even et al. 2023).

Twenty noiseless samples of a θ* with three nonzero entries in thirty, and two layers. Gradient
descent runs with 18 step sizes γ, up to the largest of a logarithmic grid that does not diverge. Up
to γ ≈ 0.3 the end hardly moves; beyond, ‖θ − θ*‖ and the test error grow.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "setting of Even et al. 2023"
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
    targets = features @ truth
    return {"features": features, "targets": targets, "truth": truth, "test_features": unseen}


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """Four of the step sizes end where a loop in NumPy does."""
    end, is_long = dataset.ddln.end, dataset["step"][-1] == 100_000
    residuals = end.ddln.test_residuals
    test_error = np.sqrt((residuals**2).sum("sample")) / (2 * residuals.sizes["sample"])
    made = []
    for step, (distance, error) in RECOMPUTED.items():
        known = is_long and abs(dataset[STEP] - step).min() < 1e-6
        at_end = end.ddln.distance_to_truth.sel({STEP: step}, method="nearest")
        unseen = test_error.sel({STEP: step}, method="nearest")
        loop = {"tol": 1e-7, "why": "the digits of a loop in NumPy", "applies": known}
        made += [
            ddln.claim.equal(f"distance at γ = {step:.2g}", at_end, distance, **loop),
            ddln.claim.equal(f"test error at γ = {step:.2g}", unseen, error, **loop),
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> dict[str, Figure]:
    """The distance to the truth at the end against the step size; the gap step by step."""
    figure, axes = figures.canvas()
    (look,) = figures.line_styles(1)
    axes.plot(dataset[STEP], dataset.ddln.end.ddln.distance_to_truth, **look)
    axes.set(xscale="log", yscale="log", xlabel=figures.axis_label(dataset[STEP]))
    axes.set_ylabel(r"distance to the truth $\|\theta - \theta^*\|$")
    gaps, axes = figures.canvas()
    figures.gap_against_time(dataset, axes, over=STEP, against="step")
    axes.set(xscale="log", xlim=(1, float(dataset["step"][-1])))
    figures.legend(gaps)
    return {"large_steps_end": figure, "large_steps_gap": gaps}
