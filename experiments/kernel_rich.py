"""From rich to lazy as the initialisation grows, and by its shape (Woodworth et al. 2020).

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
from ddln.sweeps import build

SCALE, SHAPE = "network.scale", "network.init.smallest"
RECOMPUTED = {1e-4: (0.0374862742, 3.0163632853), 1e-2: (0.7736112072, 7.3798800810)}
"""α: ‖w − w*‖² and ‖w‖₁ of the limit from u = v = √α."""
ENDS = {"ℓ1": (0.0111233700, 2.6466022760), "ℓ2": (0.8933581565, 7.9608096922)}
"""The same of the solutions of least norm."""


def data() -> dict[str, np.ndarray]:
    """The arrays of configs/data/kernel_rich.npz, by numpy's legacy generator."""
    draw = np.random.RandomState(1993)
    features = draw.multivariate_normal(np.zeros(1000), np.eye(1000), 100)
    draw.multivariate_normal(np.zeros(1000), np.eye(1000), 2000)  # to test on
    truth = np.zeros(1000)
    truth[draw.choice(np.arange(1000), 5, replace=False)] = 1 / np.sqrt(5)
    targets = features @ truth + 0.1 * draw.randn(100)
    return {"features": features, "targets": targets, "truth": truth}


def numbers(dataset: xr.Dataset, weights: xr.DataArray | np.ndarray) -> tuple:
    """‖w − w*‖² and ‖w‖₁."""
    w = xr.zeros_like(dataset["truth"]) + weights
    return ((w - dataset["truth"]) ** 2).sum("feature"), abs(w).sum("feature")


def one_scale(dataset: xr.Dataset) -> xr.DataArray:
    """(u² + v²)/2 at the start."""
    squares = dataset[SHAPE] ** 2 + dataset["network.init.imbalance"] / 2
    return dataset[SCALE] ** 2 * squares


def limit_of(problem: ddln.Problem, layers: np.ndarray) -> np.ndarray:
    """w of the limit point, found without integrating anything."""
    return np.asarray(problem.predictor(ddln.limit_point(problem, layers)))


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The limit points have their numbers, and the runs end at them."""
    alone = dataset.isel({SCALE: 0, SHAPE: 0})
    plain, numbered, away = build.rebuild(alone)[0].unsigned, {}, []
    published = plain.dim == 1000
    for scale in dataset[SCALE].values:
        for i in range(dataset.sizes[SHAPE]):
            lane = dataset.sel({SCALE: scale}).isel({SHAPE: i})
            problem, layers = build.rebuild(lane)
            size = float(one_scale(lane)) ** 0.5
            twin = limit_of(problem, ddln.init.constant(2, problem.dim, size))
            end, limit = lane["predictor"].isel(time=-1), limit_of(problem, layers)
            away.append([float(abs(w - limit).max() / abs(limit).max()) for w in (end, twin)])
            alpha = next((a for a in RECOMPUTED if np.isclose(scale**2, a)), None)
            if alpha is not None and layers[0, 0] == layers[1, 0]:
                numbered[f"limit, α={alpha:.0e}"] = limit, RECOMPUTED[alpha], 5e-10
                numbered[f"run, α={alpha:.0e}"] = end, RECOMPUTED[alpha], 1e-6
    if published:
        numbered["of least ℓ1 norm"] = theory.min_l1(plain), ENDS["ℓ1"], 1e-9
        numbered["of least ℓ2 norm"] = theory.min_l2(plain), ENDS["ℓ2"], 1e-9
    made = [
        ddln.Claim(
            name=name,
            source="derived in docs" if name == "limit" else "Azulay et al. 2021",
            statement=f"{statement}: largest difference over the largest |w|",
            measured=max(differences),
            predicted=0.0,
            tolerance=tolerance,
            relation="<=",
            reason="what a finite time leaves" if name == "limit" else "both to rounding",
            applies=published or name != "limit",
        )
        for name, statement, differences, tolerance in zip(
            ("limit", "one scale"),
            ("every run ends at its limit point", "a start of equal layers √((u² + v²)/2) has it"),
            zip(*away, strict=True),
            (1e-5, 1e-8),
            strict=True,
        )
    ]
    for name, (w, wanted, tolerance) in numbered.items():
        pairs = zip(("‖w−w*‖²", "‖w‖₁"), numbers(alone, w), wanted, strict=True)
        made += [
            ddln.Claim(
                name=f"{norm} {name}",
                source="Azulay et al. 2021",
                statement="of the run's end" if "run" in name else "no run: of the solution itself",
                measured=float(value),
                predicted=number,
                tolerance=tolerance,
                reason="what a finite time leaves" if "run" in name else "the digits given",
                applies=published,
            )
            for norm, value, number in pairs
        ]
    return made


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """‖w − w*‖² against α, a curve for each shape; and against the one scale both come to."""
    figure, panels = figures.canvas(7.0, 3.2, ncols=2, sharey=True)
    error = numbers(dataset, dataset["predictor"].isel(time=-1))[0]
    shapes = (1 - dataset[SHAPE] ** 2) / (1 + dataset[SHAPE] ** 2)
    scales = {r"$\alpha = |uv|$": dataset[SCALE] ** 2, r"$(u^2 + v^2)/2$": one_scale(dataset)}
    alone = dataset.isel({SCALE: 0, SHAPE: 0})
    plain = build.rebuild(alone)[0].unsigned
    for axes, (name, scale) in zip(panels, scales.items(), strict=True):
        for i, look in enumerate(figures.looks(dataset.sizes[SHAPE])):
            along = scale.isel({SHAPE: i}) if SHAPE in scale.dims else scale
            label = f"shape $s$ = {float(shapes[i]):.2g}"
            axes.plot(along, error.isel({SHAPE: i}), label=label, **look)
        for solve, dots in ((theory.min_l1, figures.DOTS), (theory.min_l2, figures.DASHES[0])):
            level = float(numbers(alone, solve(plain))[0])
            axes.axhline(level, color="0.5", linestyle=dots, zorder=0)
        axes.set(xscale="log", yscale="log", xlabel=name)
    panels[0].set_ylabel(r"$\|w - w^*\|^2$")
    levels = r"least $\ell_1$ norm", r"least $\ell_2$ norm"
    figures.legend(figure, dict(zip(levels, (figures.DOTS, figures.DASHES[0]), strict=True)))
    return figure
