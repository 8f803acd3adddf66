"""The rich and the lazy regime, by scale and shape of the initialisation (Woodworth et al. 2020).

A hundred samples of five weights in a thousand, with noise, and the model u⊙v − u'⊙v' of Azulay et
al. 2021: |uv| = α is the scale, s = (|v| − |u|)/(|v| + |u|) the shape of the start, and together
they act as one scale, (u² + v²)/2 = α (1 + s²)/(1 − s²). Small ones end near the least ℓ1 norm,
large ones near the least ℓ2 norm.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory

SOURCE = "Azulay et al. 2021"
SCALE, SHAPE = "network.scale", "network.init.smallest"
LIMITS = {1e-4: (0.0374862742, 3.0163632853), 1e-2: (0.7736112072, 7.3798800810)}
"""α: ‖w − w*‖² and ‖w‖₁ of the limit from u = v = √α, computed independently."""
LEAST = {"ℓ1": (0.0111233700, 2.6466022760), "ℓ2": (0.8933581565, 7.9608096922)}
"""The same two numbers of the solutions of least norm."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/kernel_rich.npz, by NumPy's legacy generator."""
    draw = np.random.RandomState(1993)
    # What `multivariate_normal` draws with the identity as covariance, without its decomposition.
    features, _to_test_on = (draw.standard_normal((samples, 1000)) for samples in (100, 2000))
    truth = np.zeros(1000)
    truth[draw.choice(np.arange(1000), 5, replace=False)] = 1 / np.sqrt(5)
    targets = features @ truth + 0.1 * draw.randn(100)
    return {"features": features, "targets": targets, "truth": truth}


def one_scale(dataset: xr.Dataset) -> xr.DataArray:
    """(u² + v²)/2 at the start."""
    return dataset[SCALE] ** 2 * (dataset[SHAPE] ** 2 + dataset["network.init.imbalance"] / 2)


def limit_of(problem: ddln.Problem, layers) -> np.ndarray:
    """w of the limit point, found without integrating anything."""
    return np.asarray(problem.predictor(ddln.limit_point(problem, layers)))


def norms(name: str, w, expected: tuple[float, float], truth, **options) -> list[ddln.Claim]:
    """‖w − w*‖² and ‖w‖₁ are the published numbers."""
    measured = {"‖w−w*‖²": ((w - truth) ** 2).sum(), "‖w‖₁": abs(w).sum()}
    return [
        ddln.claim.equal(f"{norm} {name}", value, number, applies=truth.size == 1000, **options)
        for (norm, value), number in zip(measured.items(), expected, strict=True)
    ]


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The limit points have their numbers, and the runs end at them."""
    first = dataset.ddln.first
    plain, truth, published = first.problem.unsigned, first.data["truth"].values, []
    itself = {"statement": "of the solution itself, without a run", "why": "the digits given"}
    finite = {"statement": "of the end of the run", "why": "what a finite time leaves"}
    from_limit, between_limits = [], []
    for run in dataset.ddln.runs():
        layers, end = run.layers, run.data.ddln.end["predictor"].values
        limit, size = limit_of(run.problem, layers), float(one_scale(run.data)) ** 0.5
        twin = limit_of(run.problem, ddln.init.constant(2, run.problem.dim, size))
        from_limit.append(abs(end - limit).max() / abs(limit).max())
        between_limits.append(abs(twin - limit).max() / abs(limit).max())
        for alpha, expected in LIMITS.items():
            if np.isclose(run.point[SCALE] ** 2, alpha) and layers[0, 0] == layers[1, 0]:
                name = f"α={alpha:.0e}"
                published += norms(f"limit, {name}", limit, expected, truth, tol=5e-10, **itself)
                published += norms(f"run, {name}", end, expected, truth, tol=1e-6, **finite)
    if truth.size == 1000:
        for norm, solve in (("ℓ1", theory.min_l1), ("ℓ2", theory.min_l2)):
            name, w = f"of least {norm} norm", np.asarray(solve(plain))
            published += norms(name, w, LEAST[norm], truth, tol=1e-9, **itself)
    return [
        ddln.claim.at_most(
            "limit",
            max(from_limit),
            0.0,
            tol=1e-5,
            statement="every run ends at its limit point: largest difference over largest |w|",
            source="derived in docs",
            why="what a finite time leaves",
            applies=truth.size == 1000,
        ),
        ddln.claim.at_most(
            "one scale",
            max(between_limits),
            0.0,
            tol=1e-8,
            statement="equal layers √((u² + v²)/2) have the same limit: the same difference",
            why="both to rounding",
        ),
        *published,
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """‖w − w*‖² against α, a curve for each shape; and against the one scale that unites them."""
    figure, panels = figures.canvas(7.0, 3.2, ncols=2, sharey=True)
    error = dataset.ddln.end.ddln.distance_to_truth**2
    scales = {r"$\alpha = |uv|$": dataset[SCALE] ** 2, r"$(u^2 + v^2)/2$": one_scale(dataset)}
    first = dataset.ddln.first
    plain, truth = first.problem.unsigned, first.data["truth"].values
    levels = {theory.min_l1: figures.DOTS, theory.min_l2: figures.DASHES[0]}
    for axes, (name, scale) in zip(panels, scales.items(), strict=True):
        figures.curves(axes, error, SHAPE, against=scale, label=shape_label)
        for solve, dashes in levels.items():
            level = float(((np.asarray(solve(plain)) - truth) ** 2).sum())
            axes.axhline(level, color="0.5", linestyle=dashes, zorder=0)
        axes.set(xscale="log", yscale="log", xlabel=name)
    panels[0].set_ylabel(r"$\|w - w^*\|^2$")
    names = r"least $\ell_1$ norm", r"least $\ell_2$ norm"
    figures.legend(figure, dict(zip(names, levels.values(), strict=True)))
    return figure


def shape_label(smallest: xr.DataArray) -> str:
    """The shape s of a start, from its smallest layer."""
    return f"shape $s$ = {float((1 - smallest**2) / (1 + smallest**2)):.2g}"
