"""Charts and tables of one network and its run.

The charts are SVG text, which a page can redraw whenever a slider moves; `ddln.figures` makes the
figures for papers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from ddln import theory
from ddln._internal.text import number
from ddln.networks.entropy import coordinatewise
from ddln.networks.layers import effective_parameter
from ddln.plotting import displays, figures
from ddln.plotting.html import Markup, element, join
from ddln.plotting.svg import DASH_DOTTED, DASHED, DOTTED, Axis, Curve, chart, subscript
from ddln.problems.base import Problem
from ddln.sweeps import build
from ddln.verification.certificates import summary

_POINTS = 401
_GRID = "display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr))"


@dataclasses.dataclass(frozen=True)
class View:
    """A network with its run."""

    data: xr.Dataset
    """The run: one network of a data set from `ddln.run`."""
    problem: Problem
    layers: Float[Array, "depth width"]
    """The initial layers."""

    @classmethod
    def of(cls, network: xr.Dataset, problem: Problem, layers: Float[Array, "depth width"]) -> View:
        """The view, with flow time as the coordinate `time` of the run."""
        return cls(figures.single_networks(network, None)[0], problem, layers)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.layers.shape[0]

    @property
    def width(self) -> int:
        """The number of coordinates."""
        return self.layers.shape[1]

    @property
    def is_stepwise(self) -> bool:
        """Whether the run is a descent."""
        return "step" in self.data

    @property
    def decays(self) -> bool:
        """Whether the run is a flow with weight decay, which has no predicted limit or rate."""
        return "dose" in self.data

    @property
    def theta(self) -> np.ndarray | None:
        """θ at each point of the run, shape (points, width); None if the data set lacks it."""
        return self.data["theta"].values if "theta" in self.data else None


def view(network: xr.Dataset) -> View:
    """The view of one network of a data set, with its problem and layers rebuilt from the config.

    Raises:
        ValueError: the data set has more than one network.
    """
    return View.of(network.load(), *build.reconstruct(network))


@jax.jit
def _limit(problem: Problem, layers: Float[Array, "depth width"]) -> Float[Array, " width"]:
    return theory.limit_point(problem, layers, throw=False)


@jax.jit
def _rate(
    problem: Problem, theta: Float[Array, " width"], layers: Float[Array, "depth width"]
) -> Float[Array, ""]:
    return theory.asymptotic_rate(problem, theta, layers)


def limit(view: View) -> np.ndarray | None:
    """The predicted limit point, shape (width,); None without a prediction."""
    if view.problem.minimisers() is None or view.decays:
        return None
    theta = np.asarray(_limit(view.problem, view.layers))
    return theta if np.isfinite(theta).all() else None


def rate(view: View) -> float:
    """The asymptotic rate r, or NaN; of a descent, that of the flow from its last layers."""
    if "asymptotic_rate" in view.data:
        return view.data["asymptotic_rate"].item()
    if view.theta is None or not np.isfinite(view.theta[-1]).all():
        return np.nan
    last = jnp.asarray(view.data["layers"].values[-1])
    return float(_rate(view.problem, jnp.asarray(view.theta[-1]), last))


def facts(view: View) -> dict[str, str]:
    """Numbers that summarise the run, as text by name."""
    data = view.data
    statuses = data["status"].attrs["flag_meanings"].split()
    numbers = {
        "ended": statuses[data["status"].item()],
        "steps": f"{data['steps'].item():,}",
        "flow time": number(float(data["time"].where(data["gap"].notnull()).max())),
        "gap at the end": number(float(data["gap"][-1])),
        "asymptotic rate r": number(rate(view)),
    }
    if "rate_bound" in data:
        numbers["guaranteed rate μc"] = number(data["rate_bound"].item())
    else:
        start = float(theory.largest_stable_step(view.problem, view.layers))
        numbers["largest stable step at the start"] = number(start)
    predicted = limit(view)
    if predicted is not None and view.theta is not None:
        distance = float(np.linalg.norm(view.theta[-1] - predicted))
        numbers["‖θ − predicted limit‖ at the end"] = number(distance)
    return numbers


def certificates(view: View) -> Markup:
    """The certificates of the run as a table."""
    return displays.claims_table(summary(view.data))


def grid(panels: Mapping[str, Markup | str]) -> Markup:
    """The panels in as many columns as fit; the name of each is its `id`."""
    cells = [
        element("div", content, {"id": name, "style": "min-width: 0"})
        for name, content in panels.items()
    ]
    return element("div", join(*cells), {"style": _GRID})


def overview(view: View, k: int = 0, others: Mapping[str, View] | None = None) -> Markup:
    """All charts, numbers and certificates of a network.

    Args:
        view: the network.
        k: the coordinate whose nodes and entropy are drawn; the last one if k is too large.
        others: other networks by name, to compare the gaps.
    """
    k = min(k, view.width - 1)
    entropy, mirror_map = entropy_charts(view, k)
    pairs = [
        element("tr", join(element("td", n), element("td", x))) for n, x in facts(view).items()
    ]
    panels = {
        "gap": gap_chart(view, others),
        "plane": plane_chart(view, 0, k or 1),
        "nodes": nodes_chart(view, k),
        "entropy": entropy,
        "mirror": mirror_map,
        "facts": element("table", join(*pairs)),
    }
    theorems = element("div", certificates(view), {"id": "certificates"})
    style = element(
        "style",
        Markup("#facts td, #certificates td, #certificates th { padding: .1rem 1rem .1rem 0 }"),
    )
    return join(style, grid(panels), theorems)


def _along(view: View, in_time: bool = False) -> tuple[np.ndarray, Axis]:
    """The abscissae and their axis: steps of a descent, unless `in_time`, or else flow times."""
    if view.is_stepwise and not in_time:
        steps = view.data["step"].values.astype(float)
        return steps, Axis("step k", 0.0, float(steps.max()))
    times = view.data["time"].values
    return times, Axis("flow time t", 0.0, float(np.nanmax(times)))


def gap_chart(view: View, others: Mapping[str, View] | None = None) -> Markup:
    """The loss gap with its bounds and its predicted final slope.

    Args:
        view: the network.
        others: other networks by name; only their gaps are drawn. The abscissa is flow time if
            there are both flows and descents.
    """
    others = others or {}
    in_time = any(other.is_stepwise != view.is_stepwise for other in others.values())
    x, axis = _along(view, in_time)
    gap = figures.resolved(view.data).values
    gaps = [Curve(x, gap, "loss gap", 0, shape=0)]
    for i, (name, other) in enumerate(others.items()):
        other_gap = figures.resolved(other.data).values
        gaps.append(Curve(_along(other, in_time)[0], other_gap, name, 2 + i, shape=1 + i))
    heights = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in gaps])
    heights = heights[heights > 0]
    low, high = (heights.min() / 2, heights.max() * 2) if heights.size else (0.1, 1.0)
    curves = [gaps[0], *_bound_curves(view, x), *_slope_curve(view, x, gap), *gaps[1:]]
    return chart(curves, axis, Axis("loss gap ℒ(θ) − ℒ*", low, high, log=True))


def _bound_curves(view: View, x: np.ndarray) -> list[Curve]:
    """The bounds on the gap that the run has."""
    bounds = (
        ("bound", "bound of Theorem 2", DASHED),
        ("divergence_bound", "D_Q(θ*, θ(0)) / t", DASH_DOTTED),
    )
    return [
        Curve(x, view.data[variable].values, name, 1, dashes)
        for variable, name, dashes in bounds
        if variable in view.data and np.isfinite(view.data[variable]).any()
    ]


def _slope_curve(view: View, x: np.ndarray, gap: np.ndarray) -> list[Curve]:
    """exp(−2rt) through the last gap above rounding, if there is a rate r."""
    known, r = np.flatnonzero(np.isfinite(gap)), rate(view)
    if known.size <= 2 or not np.isfinite(r):
        return []
    last, times = known[-1], view.data["time"].values
    slope = gap[last] * np.exp(-2 * r * (times - times[last]).clip(max=0.0))
    slope = np.where(np.arange(slope.size) <= last, slope, np.nan)
    return [Curve(x, slope, "slope exp(−2rt)", None, DOTTED)]


def nodes_chart(view: View, k: int) -> Markup | str:
    """The nodes u^j_k of every layer j; dashed lines mark the levels that nodes do not cross."""
    if "layers" not in view.data:
        return "This run did not save its layers."
    x, axis = _along(view)
    nodes = view.data["layers"].isel(coordinate=k).dropna("layer", how="all")
    curves = []
    for j, level in enumerate(figures.floor(nodes).values):
        name = f"u{_superscript(j + 1)}" + (" (smallest)" if np.isnan(level) else "")
        curves.append(Curve(x, nodes.isel(layer=j).values, name, j, shape=j))
        if not view.is_stepwise:  # steps can cross the level
            curves.append(Curve(x[[0, -1]], [level, level], "", j, DASHED, 1.0))
    return chart(curves, axis, Axis(f"nodes uʲ of coordinate {k + 1}"))


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def plane_chart(view: View, first: int = 0, second: int = 1) -> Markup | str:
    """The path of θ in the plane of two coordinates, with θ(0) and the predicted limit.

    A network of two coordinates also shows the minimisers of the loss and level sets of
    D_Q(·, θ(0)) = Q: the limit is the point where a level set touches the minimisers.
    """
    if view.theta is None:
        return "This run did not save θ."
    if view.width < 2:
        return "A network of one coordinate has no plane."
    pair = [first, second]
    path, predicted = view.theta[:, pair], limit(view)
    last = view.theta[np.isfinite(view.theta).all(axis=1)][-1]
    end = last if predicted is None else predicted
    points = np.vstack([path, end[None, pair]])
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    margin = 0.3 * max(*(high - low), 1e-3 * np.abs(points[np.isfinite(points)]).max(), 1e-12)
    curves = []
    if view.width == 2:
        extent = (high - low).max() + margin
        curves += [*_minimiser_curves(view.problem, extent), *_level_sets(view, end, 3 * extent)]
    name = "θ at each step" if view.is_stepwise else "θ(t)"
    curves.append(_curve_through(path, name, 0, width=2.4))
    curves.append(_curve_through(path[:1], "θ(0)", None, shape=1))
    if predicted is not None:
        curves.append(_curve_through(predicted[None, pair], "predicted limit", 5, shape=3))
    x, y = (
        Axis(f"θ{subscript(k + 1)}", a - margin, b + margin)
        for k, a, b in zip(pair, low, high, strict=True)
    )
    return chart(curves, x, y, square=True, size=(430, 360))


def _minimiser_curves(problem: Problem, extent: float) -> list[Curve]:
    """The minimisers of a loss on the plane: a line, a point, or nothing that can be drawn."""
    affine, best = problem.minimisers(), np.asarray(problem.minimiser)
    if affine is None or not np.isfinite(best).all():
        return []
    _, singular, right = np.linalg.svd(np.asarray(affine[0]))
    rank = int((singular > 1e-12 * singular[0]).sum())
    if rank == 2:
        return [_curve_through(best[None], "minimiser of ℒ", 1, shape=0)]
    if rank == 0:
        return []
    line = best + right[-1] * np.array([[-4.0], [4.0]]) * extent
    return [_curve_through(line, "minimisers of ℒ", 1, dashes=DASHED)]


def _curve_through(points: np.ndarray, name: str, colour: int | None, **style: Any) -> Curve:
    """The curve through points of the plane, shape (points, 2)."""
    return Curve(points[:, 0], points[:, 1], name, colour, **style)


def _level_sets(view: View, end: np.ndarray, extent: float) -> list[Curve]:
    """Level sets of Q(θ) = q₁(θ₁) + q₂(θ₂), among them the one through θ = `end`.

    On the level set c, q₁ = c cos²φ and q₂ = c sin²φ. Each θ_k is a function of φ, because ±√q_k
    increases with θ_k.
    """
    start = np.asarray(effective_parameter(view.layers))
    axes = start[:, None] + extent * np.linspace(-1.0, 1.0, _POINTS)
    entropies = np.asarray(coordinatewise(view.layers, jnp.asarray(axes))[0])
    roots = np.sqrt(entropies.clip(min=0.0)) * np.sign(axes - start[:, None])
    known = np.isfinite(roots)
    if (known.sum(axis=1) < 2).any():
        return []
    root_at_end = [
        np.interp(b, x[ok], r[ok]) for b, x, r, ok in zip(end, axes, roots, known, strict=True)
    ]
    radius, angle = np.hypot(*root_at_end), np.linspace(0.0, 2 * np.pi, 241)
    curves = []
    for factor in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0):
        circle = factor * radius * np.stack([np.cos(angle), np.sin(angle)])
        x, y = (
            np.interp(root, r[ok], x[ok], left=np.nan, right=np.nan)
            for root, r, x, ok in zip(circle, roots, axes, known, strict=True)
        )
        name = "level sets of D_Q(·, θ(0))" if factor == 1.0 else ""
        curves.append(Curve(x, y, name, 2, width=1.6 if factor == 1.0 else 0.8))
    return curves


def entropy_charts(view: View, k: int) -> list[Markup]:
    """q_k and q_k' of Q(θ) = Σ_k q_k(θ_k), with the start and the end of the run marked."""
    layers, start = view.layers[:, k : k + 1], float(effective_parameter(view.layers)[k])
    path = np.array([start]) if view.theta is None else view.theta[:, k]
    end = path[-1] if np.isfinite(path[-1]) else start
    extent = 1.5 * max(np.nanmax(np.abs(path)), 1e-6 * abs(start), 1e-12)
    axis = np.linspace(-extent, extent, _POINTS)
    theta = np.concatenate([axis, [start, end]])
    value, slope, _ = (np.asarray(x)[0] for x in coordinatewise(layers, jnp.asarray(theta)[None]))
    theta_axis, charts = Axis(f"θ{subscript(k + 1)}", -extent, extent), []
    for heights, name in ((value, "Q"), (slope, "∇Q")):
        curves = [
            Curve(axis, heights[:-2], "", 0),
            Curve(theta[-2:-1], heights[-2:-1], "θ(0)", None, shape=1),
            Curve(theta[-1:], heights[-1:], "at the end", 5, shape=3),
        ]
        label = f"{name} of coordinate {k + 1}"
        charts.append(chart(curves, theta_axis, Axis(label), size=(430, 260)))
    return charts
