"""Separable data: scale and patience decide which margin is maximised (Moroshko et al. 2020).

Logistic loss of the model u⊙u − v⊙v, all layers equal to α at the start. θ grows without bound and
only its direction settles: at large α at first towards the largest ℓ2 margin, as a kernel machine's
would; once ln(1/ℒ) outgrows α² it turns to the largest ℓ1 margin, at smaller α without a detour.
The margins themselves are found by SciPy.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures, theory
from ddln.sweeps import build

SCALE = "network.scale"


def shares(dataset: xr.Dataset) -> tuple[dict[int, xr.DataArray], dict[int, float]]:
    """Margins, the least y_i x_iᵀθ over ‖θ‖, as shares of the largest there is, by norm, ℓ1 and ℓ2.

    Of each run along its way; and of the direction that has the largest in the other norm.
    """
    problem, _ = build.rebuild(dataset.isel({SCALE: 0}))
    plain = problem.unsigned
    rows = np.asarray(plain.targets)[:, None] * np.asarray(plain.features)
    signed = xr.DataArray(rows, dims=("sample", "feature"))
    found = {norm: np.asarray(theory.max_margin(plain, norm=norm)) for norm in (1, 2)}
    best = {norm: xr.DataArray(theta, dims="feature") for norm, theta in found.items()}

    def margin(theta, norm):
        size = (abs(theta) ** norm).sum("feature") ** (1 / norm)
        return xr.dot(signed, theta, dim="feature").min("sample") / size

    runs = dataset["predictor"].isel(time=slice(1, None))
    along = {norm: margin(runs, norm) / margin(theta, norm) for norm, theta in best.items()}
    crossed = {n: float(margin(best[3 - n], n) / margin(best[n], n)) for n in best}
    return along, crossed


def fitted(dataset: xr.Dataset) -> xr.DataArray:
    """ln(1/ℒ) along each run."""
    return -xr.apply_ufunc(np.log, dataset["loss"].isel(time=slice(1, None)))


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """No direction has more than the largest margin; large scales have ℓ2's, small ones ℓ1's."""
    (along, others), scale = shares(dataset), dataset[SCALE].values
    ends = {norm: share.isel(time=-1) for norm, share in along.items()}
    largest = {SCALE: int(np.argmax(scale))}
    rich = {SCALE: int(np.argmin(abs(np.log(scale / 0.1))))}
    is_rich, is_lazy = bool(np.isclose(scale, 0.1).any()), scale.max() >= 100
    return [
        *(
            ddln.Claim(
                name=f"largest ℓ{norm} margin",
                source="by its definition; SciPy's",
                statement="no direction has a larger one: the largest share of it",
                measured=float(share.max()),
                predicted=1.0,
                tolerance=1e-9,
                relation="<=",
                reason="that of the program that finds it",
            )
            for norm, share in along.items()
        ),
        ddln.Claim(
            name="rich, α = 0.1",
            source="Moroshko et al. 2020",
            statement="the share of the largest ℓ1 margin that the direction of the largest ℓ2 "
            "margin has, over the one at the end",
            measured=others[1] / float(ends[1][rich]),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="a limit without a rate: only which of the two is nearer is claimed",
            applies=is_rich,
        ),
        ddln.Claim(
            name=f"lazy, α = {scale[largest[SCALE]]:g}",
            source="Moroshko et al. 2020",
            statement="the share of the largest ℓ2 margin that the direction of the largest ℓ1 "
            "margin has, over the one at the end",
            measured=others[2] / float(ends[2][largest]),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="a limit without a rate: only which of the two is nearer is claimed",
            applies=is_lazy,
        ),
        ddln.Claim(
            name="turning to ℓ1",
            source="Lyu & Li 2020",
            statement="every scale's ℓ1 margin still grows over the last half of the saved times: "
            "the largest share of the end that was there before",
            measured=float((along[1].isel(time=along[1].sizes["time"] // 2) / ends[1]).max()),
            predicted=1.0,
            tolerance=0.0,
            relation="<=",
            reason="only the direction is claimed",
            applies=dataset.sizes["time"] > 100,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Both margins, as shares of the largest, against ln(1/ℒ)."""
    figure, panels = figures.canvas(7.0, 3.3, ncols=2, sharey=True)
    (along, _), gone = shares(dataset), fitted(dataset)
    for axes, (norm, share) in zip(panels, along.items(), strict=True):
        for i, look in enumerate(figures.looks(dataset.sizes[SCALE])):
            label = rf"$\alpha$ = {dataset[SCALE].values[i]:g}"
            curve = {"label": label, "markevery": (0.05, 0.2), **look}
            axes.plot(gone.isel({SCALE: i}), share.isel({SCALE: i}), **curve)
        axes.axhline(1, color="0.5", linestyle=figures.DOTS, zorder=0)
        axes.set(ylim=(0, 1.05), xlim=(0, float(gone.max())))
        axes.set(xlabel=r"$\ln(1/\mathcal{L})$", title=rf"$\ell_{norm}$ margin")
    panels[0].set_ylabel("share of the largest margin")
    figures.legend(figure, {})
    return figure
