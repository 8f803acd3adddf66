"""Scale and shape of the initialisation set the rich and the lazy regime (Woodworth et al. 2020).

A hundred noisy samples of a w* with five entries in a thousand, fitted by u⊙v − u'⊙v' (the data of
Azulay et al. 2021). The start has the scale α = |uv| and the shape s = (|v| − |u|)/(|v| + |u|). Its
limit depends on (u² + v²)/2 = α (1 + s²)/(1 − s²) alone: small values end near the solution of
least ℓ1 norm, large ones near that of least ℓ2 norm.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Azulay et al. 2021"
SCALE, SHAPE = "network.scale", "network.init.smallest"
PUBLISHED = {
    "least ℓ1 norm": (0.0111233700, 2.6466022760, 1e-9),
    "least ℓ2 norm": (0.8933581565, 7.9608096922, 1e-9),
    "limit from α = 0.0001": (0.0374862742, 3.0163632853, 5e-10),
    "limit from α = 0.01": (0.7736112072, 7.3798800810, 5e-10),
    "run from α = 0.0001": (0.0374862742, 3.0163632853, 1e-6),
    "run from α = 0.01": (0.7736112072, 7.3798800810, 1e-6),
}
"""‖w − w*‖² and ‖w‖₁, computed independently; u = v = √α. Their tolerance."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/kernel_rich.npz, by NumPy's legacy generator."""
    draw = np.random.RandomState(1993)
    # What `multivariate_normal` draws with the identity as covariance, without its decomposition.
    features, _to_test_on = (draw.standard_normal((samples, 1000)) for samples in (100, 2000))
    truth = np.zeros(1000)
    truth[draw.choice(np.arange(1000), 5, replace=False)] = 1 / np.sqrt(5)
    targets = features @ truth + 0.1 * draw.randn(100)
    return {"features": features, "targets": targets, "truth": truth}


def least_norms(dataset: xr.Dataset) -> dict[int, np.ndarray]:
    """The solutions of least ℓ1 and ℓ2 norm."""
    plain = dataset.ddln.first.problem.unsigned
    return {1: theory.min_l1(plain), 2: theory.min_l2(plain)}


def joint_scale(dataset: xr.Dataset) -> xr.DataArray:
    """(u² + v²)/2 at the start."""
    return dataset[SCALE] ** 2 * (dataset[SHAPE] ** 2 + dataset["network.init.imbalance"] / 2)


def limits(run) -> list[np.ndarray]:
    """w in the limit, from the layers of a run and from equal layers √((u² + v²)/2)."""
    equal = ddln.init.constant(2, run.problem.dim, float(joint_scale(run.data)) ** 0.5)
    return [run.problem.predictor(ddln.limit_point(run.problem, u)) for u in (run.layers, equal)]


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The limit points have their published numbers, and the runs end at them."""
    end, truth = dataset.ddln.end["predictor"], dataset.ddln.first.data["truth"].values
    limit, twin = dataset.ddln.map(limits, "start", "feature").transpose("start", ...)
    size, whole = abs(limit).max("feature"), {"applies": truth.size == 1000}
    away, apart = ((abs(w - limit).max("feature") / size).max() for w in (end, twin))
    finite = {"source": "derived in docs", "why": "what a finite time leaves", **whole}
    made = [
        ddln.claim.at_most("distance of runs to their limits", away, 0.0, tol=1e-5, **finite),
        ddln.claim.at_most("distance to equal-layer limits", apart, 0.0, tol=1e-8, why="rounding"),
    ]
    found = {f"least ℓ{p} norm": w for p, w in least_norms(dataset).items()}
    for alpha in (1e-4, 1e-2):
        at = {SCALE: alpha**0.5, SHAPE: 1.0}
        found[f"limit from α = {alpha:g}"] = limit.sel(at, method="nearest").values
        found[f"run from α = {alpha:g}"] = end.sel(at, method="nearest").values
    for name, (error, norm, tol) in PUBLISHED.items():
        square, total = ((found[name] - truth) ** 2).sum(), abs(found[name]).sum()
        digits = {"tol": tol, "why": "the digits, and of a run what a finite time leaves", **whole}
        made.append(ddln.claim.equal(f"‖w − w*‖², {name}", square, error, **digits))
        made.append(ddln.claim.equal(f"‖w‖₁, {name}", total, norm, **digits))
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """‖w − w*‖² against α, a curve for each shape; and against (u² + v²)/2, which unites them."""
    style = {"label": lambda u: f"shape $s$ = {float((1 - u**2) / (1 + u**2)):.2g}"}
    axis = {"xscale": "log", "yscale": "log"}
    figure, panels = figures.canvas(7.0, 3.2, ncols=2, sharey=True, subplot_kw=axis)
    error, truth = dataset.ddln.end.ddln.distance_to_truth**2, dataset.ddln.first.data["truth"]
    least = least_norms(dataset).items()
    levels = {rf"least $\ell_{p}$ norm": ((w - truth) ** 2).sum() for p, w in least}
    scales = {r"$\alpha = |uv|$": dataset[SCALE] ** 2, r"$(u^2 + v^2)/2$": joint_scale(dataset)}
    for axes, (name, scale) in zip(panels, scales.items(), strict=True):
        figures.curves(axes, error, SHAPE, against=scale, **style)
        figures.levels(axes, levels)
        axes.set(xlabel=name)
    panels[0].set_ylabel(r"$\|w - w^*\|^2$")
    figures.legend(figure)
    return figure
