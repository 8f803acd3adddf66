"""Charts and tables of a run folder: across its sweep, of one network, and compared with others.

The page with the controls is `run_app`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from ddln.plotting import figures
from ddln.plotting.explorer import network_view
from ddln.plotting.html import Markup, element, join, table
from ddln.plotting.svg import COLOURS, Axis, Curve, chart
from ddln.sweeps.run_folder import RunFolder, StoreError

CURVES = len(COLOURS)
"""Most values of an axis that are drawn as curves, evenly spaced from the first to the last."""
_CERTIFICATE_VARIABLES = ("measured", "predicted", "tolerance", "applies", "holds")
_LOGARITHMIC_FROM = 20.0
"""A positive axis is logarithmic if the ratio of its ends is at least this."""


def _at_end(name: str) -> Callable[[xr.Dataset], xr.DataArray]:
    return lambda dataset: dataset[name].isel(time=-1)


QUANTITIES: dict[str, tuple[tuple[str, ...], Callable[[xr.Dataset], xr.DataArray]]] = {
    "loss gap at the end": (("gap",), _at_end("gap")),
    "loss at the end": (("loss",), _at_end("loss")),
    "asymptotic rate r": (("asymptotic_rate",), lambda dataset: dataset["asymptotic_rate"]),
    "guaranteed rate μc": (("rate_bound",), lambda dataset: dataset["rate_bound"]),
    "‖θ‖₁ at the end": (("theta",), lambda d: abs(_at_end("theta")(d)).sum("coordinate")),
    "sharpness at the end": (("sharpness",), _at_end("sharpness")),
    "steps": (("steps",), lambda dataset: dataset["steps"]),
    "certificates that fail": (
        ("certificate_holds",),
        lambda dataset: (~dataset["certificate_holds"].astype(bool)).sum("certificate"),
    ),
}
"""Quantities of each network: the variables that each needs, and how to compute it."""


def runs(root: str | Path) -> list[str]:
    """The names of the run folders below `root` that have a data set."""
    return [path.parent.name for path in sorted(Path(root).glob("*/dataset.nc"))]


def read(folder: RunFolder) -> xr.Dataset:
    """The data set of a run.

    Raises:
        StoreError: it is missing, damaged, or was not written by `ddln run`.
    """
    dataset = folder.read_dataset()
    certificates = (f"certificate_{name}" for name in _CERTIFICATE_VARIABLES)
    needed = {"status", "gap", "loss", "steps", *certificates}
    missing = sorted(needed - {*dataset.data_vars})
    missing += sorted({"config", "certificate_statements"} - {*map(str, dataset.attrs)})
    if missing:
        raise StoreError(f"{folder.path}: not a ddln run: the variable `{missing[0]}` is missing")
    return dataset


def axes(dataset: xr.Dataset) -> list[str]:
    """The swept axes of a data set.

    >>> axes(xr.Dataset({"status": ("network.scale", [0, 0])}))
    ['network.scale']
    """
    return [str(name) for name in dataset["status"].dims]


def values(dataset: xr.Dataset, axis: str) -> list[str]:
    """The values of an axis as text, with the values of axes that are zipped with it."""
    zipped = [str(name) for name in dataset.coords if dataset[name].dims == (axis,)]
    short = {str(name): str(name).rpartition(".")[2] for name in dataset.coords}
    counts = Counter(short.values())
    labels = {name: short[name] if counts[short[name]] == 1 else name for name in zipped}
    return [
        ", ".join(f"{label} = {dataset[name][i].item():.4g}" for name, label in labels.items())
        for i in range(dataset.sizes[axis])
    ]


def quantities(dataset: xr.Dataset) -> list[str]:
    """The names of the `QUANTITIES` that the data set has variables for."""
    return [name for name, (needs, _) in QUANTITIES.items() if set(needs) <= {*dataset.data_vars}]


def pick(dataset: xr.Dataset, indices: Mapping[str, int]) -> xr.Dataset:
    """The network at an index on every axis."""
    return dataset.isel({axis: indices[axis] for axis in axes(dataset)})


def name_of(dataset: xr.Dataset, indices: Mapping[str, int]) -> str:
    """The values of the axes at which a network was run, or "the run" without a sweep."""
    return ", ".join(values(dataset, axis)[indices[axis]] for axis in axes(dataset)) or "the run"


def across(
    dataset: xr.Dataset, quantity: str, along: str, over: str | None, indices: Mapping[str, int]
) -> Markup:
    """A quantity of each network against an axis.

    Args:
        dataset: of the run.
        quantity: one of `quantities(dataset)`.
        along: the axis of abscissae.
        over: the axis in which the curves differ; None for one curve.
        indices: the index on each other axis.
    """
    others = {axis: indices[axis] for axis in axes(dataset) if axis not in (along, over)}
    found = QUANTITIES[quantity][1](dataset).isel(others).load()
    x = np.asarray(found[along].values, float)
    curves = [
        Curve(x, found.isel(index).values, name, i, shape=i)
        for i, (name, index) in enumerate(_selection(dataset, over))
    ]
    heights = np.concatenate([curve.y for curve in curves])
    x_axis, y_axis = (
        Axis(along, log=_is_logarithmic(x)),
        Axis(quantity, log=_is_logarithmic(heights)),
    )
    return chart(curves, x_axis, y_axis)


def side_by_side(dataset: xr.Dataset, over: str, indices: Mapping[str, int]) -> Markup:
    """The loss gaps of networks that differ along one axis."""
    others = {axis: indices[axis] for axis in axes(dataset) if axis != over}
    gap = figures.resolved(dataset).isel(others).load()
    times = dataset["flow_time"].isel(others) if "flow_time" in dataset else gap["time"]
    curves = []
    for i, (name, index) in enumerate(_selection(dataset, over)):
        time = times.isel(index) if over in times.dims else times
        curves.append(Curve(time.values, gap.isel(index).values, name, i, shape=i))
    return chart(curves, Axis("flow time t", 0.0), Axis("loss gap ℒ(θ) − ℒ*", log=True))


def compare(kept: Mapping[str, network_view.View]) -> Markup:
    """A table of the facts of networks of any runs, one column for each."""
    columns = {name: network_view.facts(view) for name, view in kept.items()}
    names = dict.fromkeys(name for facts in columns.values() for name in facts)
    rows = [[name, *(facts.get(name, "–") for facts in columns.values())] for name in names]
    return join(element("h3", "Kept"), table(["", *columns], rows))


def _selection(dataset: xr.Dataset, over: str | None) -> list[tuple[str, dict[str, int]]]:
    """The name of each curve and its index along `over`."""
    if over is None:
        return [("", {})]
    names, count = values(dataset, over), dataset.sizes[over]
    chosen = np.unique(np.linspace(0, count - 1, min(count, CURVES)).round().astype(int))
    return [(names[i], {over: int(i)}) for i in chosen]


def _is_logarithmic(numbers: np.ndarray) -> bool:
    finite = numbers[np.isfinite(numbers)]
    if not finite.size or finite.min() <= 0:
        return False
    return bool(finite.max() >= _LOGARITHMIC_FROM * finite.min())
