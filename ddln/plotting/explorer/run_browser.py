"""A run folder, to be looked at: its axes, one of its lanes, its lanes and other runs side by side.

The page with the controls is `run_app`; nothing here knows of it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from ddln._internal.html import Markup, element, join, table
from ddln.plotting import figures
from ddln.plotting.explorer import network_view
from ddln.plotting.svg import COLOURS, Axis, Curve, chart
from ddln.sweeps.run_folder import RunFolder, StoreError

CURVES = len(COLOURS)
"""So many values of an axis are drawn as curves; of more, these, from the first to the last."""
_CLAIMED = ("measured", "predicted", "tolerance", "applies", "holds")
_WIDE = 20.0
"""A positive axis whose ends are in this ratio, or a larger one, is logarithmic."""


def _last(name: str) -> Callable[[xr.Dataset], xr.DataArray]:
    return lambda dataset: dataset[name].isel(time=-1)


QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[[xr.Dataset], xr.DataArray]]] = {
    "loss gap at the end": (("gap",), _last("gap")),
    "loss at the end": (("loss",), _last("loss")),
    "asymptotic rate r": (("asymptotic_rate",), lambda dataset: dataset["asymptotic_rate"]),
    "guaranteed rate μc": (("rate_bound",), lambda dataset: dataset["rate_bound"]),
    "‖θ‖₁ at the end": (("theta",), lambda d: abs(_last("theta")(d)).sum("coordinate")),
    "sharpness at the end": (("sharpness",), _last("sharpness")),
    "steps": (("steps",), lambda dataset: dataset["steps"]),
    "certificates that fail": (
        ("certificate_holds",),
        lambda dataset: (~dataset["certificate_holds"].astype(bool)).sum("certificate"),
    ),
}
"""A number of each lane: the variables that it takes, and how."""


def runs(root: str | Path) -> list[str]:
    """The names of the finished runs in a folder of run folders."""
    return [path.parent.name for path in sorted(Path(root).glob("*/dataset.nc"))]


def read(folder: RunFolder) -> xr.Dataset:
    """The data set of a run.

    Raises:
        StoreError: it is missing or damaged, or not as `ddln run` writes it.
    """
    dataset = folder.read_dataset()
    needed = {"status", "gap", "loss", "steps", *(f"certificate_{name}" for name in _CLAIMED)}
    lacking = sorted(needed - {*dataset.data_vars})
    lacking += sorted({"config", "certificate_statements"} - {*map(str, dataset.attrs)})
    if lacking:
        raise StoreError(f"{folder.path}: no run that `ddln run` leaves: without {lacking[0]}")
    return dataset


def axes(dataset: xr.Dataset) -> list[str]:
    """The axes of a sweep.

    >>> axes(xr.Dataset({"status": ("network.scale", [0, 0])}))
    ['network.scale']
    """
    return [str(name) for name in dataset["status"].dims]


def values(dataset: xr.Dataset, axis: str) -> list[str]:
    """The values of an axis, in words, with those of the axes that go in step with it."""
    along = [str(name) for name in dataset.coords if dataset[name].dims == (axis,)]
    lasts = [str(name).rpartition(".")[2] for name in dataset.coords]
    short = {name: name.rpartition(".")[2] for name in along}
    called = {name: last if lasts.count(last) == 1 else name for name, last in short.items()}
    return [
        ", ".join(f"{called[name]} = {dataset[name][i].item():.4g}" for name in along)
        for i in range(dataset.sizes[axis])
    ]


def quantities(dataset: xr.Dataset) -> list[str]:
    """Those that the data set has the variables of."""
    return [name for name, (needs, _) in QUANTITIES.items() if set(needs) <= {*dataset.data_vars}]


def pick(dataset: xr.Dataset, places: Mapping[str, int]) -> xr.Dataset:
    """The lane at a place of every axis."""
    return dataset.isel({axis: places[axis] for axis in axes(dataset)})


def name_of(dataset: xr.Dataset, places: Mapping[str, int]) -> str:
    """What tells a lane from the others of its run."""
    return ", ".join(values(dataset, axis)[places[axis]] for axis in axes(dataset)) or "the run"


def across(
    dataset: xr.Dataset, quantity: str, along: str, over: str | None, places: Mapping[str, int]
) -> Markup:
    """A number of each lane against an axis.

    Args:
        dataset: of the run.
        quantity: of `quantities`.
        along: the axis it is drawn against.
        over: an axis whose values are curves; None for one curve.
        places: where the other axes are.
    """
    others = {axis: places[axis] for axis in axes(dataset) if axis not in (along, over)}
    found = QUANTITIES[quantity][1](dataset).isel(others).load()
    x = np.asarray(found[along].values, float)
    curves = [
        Curve(x, found.isel(at).values, name, i, shape=i)
        for i, (name, at) in enumerate(_some(dataset, over))
    ]
    heights = np.concatenate([curve.y for curve in curves])
    return chart(curves, Axis(along, log=_is_wide(x)), Axis(quantity, log=_is_wide(heights)))


def side_by_side(dataset: xr.Dataset, over: str, places: Mapping[str, int]) -> Markup:
    """The loss gaps of lanes that differ along one axis."""
    others = {axis: places[axis] for axis in axes(dataset) if axis != over}
    gap = figures.resolved(dataset).isel(others).load()
    times = dataset["flow_time"].isel(others) if "flow_time" in dataset else gap["time"]
    curves = []
    for i, (name, at) in enumerate(_some(dataset, over)):
        time = times.isel(at) if over in times.dims else times
        curves.append(Curve(time.values, gap.isel(at).values, name, i, shape=i))
    return chart(curves, Axis("flow time t", 0.0), Axis("loss gap ℒ(θ) − ℒ*", log=True))


def compare(kept: Mapping[str, network_view.View]) -> Markup:
    """The facts of lanes of any runs, a column each."""
    told = {name: network_view.facts(view) for name, view in kept.items()}
    rows = dict.fromkeys(fact for facts in told.values() for fact in facts)
    lines = [[row, *(facts.get(row, "–") for facts in told.values())] for row in rows]
    return join(element("h3", "Kept"), table(["", *told], lines))


def _some(dataset: xr.Dataset, over: str | None) -> list[tuple[str, dict[str, int]]]:
    """Name and place of each curve."""
    if over is None:
        return [("", {})]
    named, count = values(dataset, over), dataset.sizes[over]
    shown = np.unique(np.linspace(0, count - 1, min(count, CURVES)).round().astype(int))
    return [(named[i], {over: int(i)}) for i in shown]


def _is_wide(numbers: np.ndarray) -> bool:
    seen = numbers[np.isfinite(numbers)]
    return bool(seen.size and seen.min() > 0 and seen.max() >= _WIDE * seen.min())
