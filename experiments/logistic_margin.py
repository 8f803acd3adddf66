"""On separable data, scale and time decide which margin is maximised (Moroshko et al. 2020).

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

SOURCE = "Moroshko et al. 2020"
SCALE = "network.scale"
NEARER = "a limit without a rate: only which of the two is nearer is claimed"


def shares(dataset: xr.Dataset) -> tuple[dict[int, xr.DataArray], dict[int, float]]:
    """Margins, the least y_i x_iᵀθ over ‖θ‖, as shares of the largest there is, by norm, ℓ1 and ℓ2.

    First along each run; then of the direction with the largest margin in the other norm.
    """
    features, targets = dataset.ddln.first.samples
    signed = xr.DataArray(targets[:, None] * features, dims=("sample", "feature"))
    plain, theta = dataset.ddln.first.problem.unsigned, dataset["predictor"]
    best = {n: xr.DataArray(theory.max_margin(plain, norm=n), dims="feature") for n in (1, 2)}

    def margin(theta: xr.DataArray, norm: int) -> xr.DataArray:
        size = (abs(theta) ** norm).sum("feature") ** (1 / norm)
        return xr.dot(signed, theta, dim="feature").min("sample") / size

    later = theta.isel(time=slice(1, None))
    along = {n: margin(later, n) / margin(best[n], n) for n in best}
    return along, {n: float(margin(best[3 - n], n) / margin(best[n], n)) for n in best}


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """No direction exceeds the largest margin; large scales approach that of ℓ2, small ones ℓ1."""
    (along, others), scale = shares(dataset), dataset[SCALE].values
    ends = {norm: share.isel(time=-1) for norm, share in along.items()}
    halfway = along[1].isel(time=along[1].sizes["time"] // 2)
    largest, rich = int(np.argmax(scale)), int(np.argmin(abs(np.log(scale / 0.1))))
    return [
        *(
            ddln.claim.at_most(
                f"largest ℓ{norm} margin",
                share.max(),
                1.0,
                tol=1e-9,
                statement="no direction has a larger one: the largest share of it",
                source="by its definition; SciPy's",
                why="the tolerance of the program that finds it",
            )
            for norm, share in along.items()
        ),
        ddln.claim.at_most(
            "rich, α = 0.1",
            others[1] / ends[1].isel({SCALE: rich}),
            1.0,
            statement="the share of the largest ℓ1 margin that the direction of the largest ℓ2 "
            "margin has, over the one at the end",
            why=NEARER,
            applies=np.isclose(scale, 0.1).any(),
        ),
        ddln.claim.at_most(
            f"lazy, α = {scale[largest]:g}",
            others[2] / ends[2].isel({SCALE: largest}),
            1.0,
            statement="the share of the largest ℓ2 margin that the direction of the largest ℓ1 "
            "margin has, over the one at the end",
            why=NEARER,
            applies=scale.max() >= 100,
        ),
        ddln.claim.at_most(
            "turning to ℓ1",
            (halfway / ends[1]).max(),
            1.0,
            statement="the ℓ1 margin of every scale still grows over the last half of the saved "
            "times: the largest share of the end that was there before",
            source="Lyu & Li 2020",
            why="only the direction is claimed",
            applies=dataset.sizes["time"] > 100,
        ),
    ]


@figures.style()
def draw(dataset: xr.Dataset) -> Figure:
    """Both margins, as shares of the largest, against ln(1/ℒ)."""
    figure, panels = figures.canvas(7.0, 3.3, ncols=2, sharey=True)
    fitted = -np.log(dataset["loss"].isel(time=slice(1, None)))
    style = {"against": fitted, "label": r"$\alpha$ = {:g}".format, "markevery": (0.05, 0.2)}
    for axes, (norm, share) in zip(panels, shares(dataset)[0].items(), strict=True):
        figures.curves(axes, share, SCALE, **style)
        axes.axhline(1, color="0.5", linestyle=figures.DOTS, zorder=0)
        axes.set(ylim=(0, 1.05), xlim=(0, float(fitted.max())))
        axes.set(xlabel=r"$\ln(1/\mathcal{L})$", title=rf"$\ell_{norm}$ margin")
    panels[0].set_ylabel("share of the largest margin")
    figures.legend(figure, {})
    return figure
