"""Pictures and tables of one network that was run, from its lane of a data set.

They are SVG charts, drawn at once when a slider moves; figures for a paper are those of
`ddln.figures`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from ddln import theory
from ddln._internal.html import Markup, element, join, number
from ddln.networks.entropy import coordinatewise
from ddln.networks.layers import effective_parameter
from ddln.plotting import displays, figures
from ddln.plotting.svg import DASH_DOTTED, DASHED, DOTTED, Axis, Curve, chart, subscript
from ddln.problems.base import Problem
from ddln.sweeps import build
from ddln.verification import claims

_POINTS = 401
_GRID = "display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr))"


@dataclasses.dataclass(frozen=True)
class View:
    """A network that was run, and what it takes to draw it."""

    lane: xr.Dataset
    """One lane of a data set of `ddln.run`."""
    problem: Problem
    layers: Array
    """The initial ones, shape (depth, width)."""

    @classmethod
    def of(cls, lane: xr.Dataset, problem: Problem, layers: Array) -> View:
        """With flow time as the lane's coordinate `time`, also where that is another."""
        return cls(figures.lanes(lane, None)[0], problem, layers)

    @property
    def depth(self) -> int:
        """How many layers."""
        return self.layers.shape[0]

    @property
    def width(self) -> int:
        """How many coordinates."""
        return self.layers.shape[1]

    @property
    def is_stepwise(self) -> bool:
        """Whether it was trained step by step."""
        return "step" in self.lane

    @property
    def theta(self) -> np.ndarray | None:
        """θ along the curve, shape (points, width); None where it was not kept."""
        return self.lane["theta"].values if "theta" in self.lane else None


def view(lane: xr.Dataset) -> View:
    """One lane of a data set, with its problem and initial layers made again.

    Raises:
        ValueError: more than one lane.
    """
    return View.of(lane.load(), *build.reconstruct(lane))


@jax.jit
def _limit(problem, layers):
    return theory.limit_point(problem, layers, throw=False)


@jax.jit
def _rate(problem, theta, layers):
    return theory.asymptotic_rate(problem, theta, layers)


def limit(view: View) -> np.ndarray | None:
    """The predicted limit point, shape (width,); None where there is no prediction."""
    if view.problem.minimisers() is None:
        return None
    theta = np.asarray(_limit(view.problem, view.layers))
    return theta if np.isfinite(theta).all() else None


def rate(view: View) -> float:
    """The asymptotic rate r; of a descent that of the flow from its last imbalance. NaN: none."""
    if "asymptotic_rate" in view.lane:
        return view.lane["asymptotic_rate"].item()
    if view.theta is None or not np.isfinite(view.theta[-1]).all():
        return np.nan
    last = jnp.asarray(view.lane["layers"].values[-1])
    return float(_rate(view.problem, jnp.asarray(view.theta[-1]), last))


def facts(view: View) -> dict[str, str]:
    """A few numbers in words."""
    lane = view.lane
    names = dict(enumerate(lane["status"].attrs["flag_meanings"].split()))
    found = {
        "ended": names[lane["status"].item()],
        "steps": f"{lane['steps'].item():,}",
        "flow time": number(float(lane["time"].where(lane["gap"].notnull()).max())),
        "gap at the end": number(float(lane["gap"][-1])),
        "asymptotic rate r": number(rate(view)),
    }
    if "rate_bound" in lane:
        found["guaranteed rate μc"] = number(lane["rate_bound"].item())
    else:
        start = float(theory.largest_stable_step(view.problem, view.layers))
        found["largest stable step at the start"] = number(start)
    predicted = limit(view)
    if predicted is not None and view.theta is not None:
        far = float(np.linalg.norm(view.theta[-1] - predicted))
        found["‖θ − predicted limit‖ at the end"] = number(far)
    return found


def certificates(view: View) -> Markup:
    """The theorems' table of this network."""
    return displays.claims_table(claims.summary(view.lane))


def grid(pictures: Mapping[str, Markup | str]) -> Markup:
    """Pictures side by side, as many as there is room for; each is found by its name (`id`)."""
    cells = [
        element("div", content, {"id": name, "style": "min-width: 0"})
        for name, content in pictures.items()
    ]
    return element("div", join(*cells), {"style": _GRID})


def overview(view: View, k: int = 0, others: Mapping[str, View] | None = None) -> Markup:
    """All there is to see of a network: its pictures, its numbers and its certificates.

    Args:
        view: the network.
        k: the coordinate of which nodes and entropy are drawn; the last, where there is no such.
        others: whose gaps are drawn beside its own, by name.
    """
    k = min(k, view.width - 1)
    entropy, mirror_map = entropy_charts(view, k)
    pairs = [
        element("tr", join(element("td", n), element("td", x))) for n, x in facts(view).items()
    ]
    pictures = {
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
    return join(style, grid(pictures), theorems)


def _along(view: View, in_time: bool = False) -> tuple[np.ndarray, Axis]:
    """Steps of a descent, else flow times, and their axis."""
    if view.is_stepwise and not in_time:
        steps = view.lane["step"].values.astype(float)
        return steps, Axis("step k", 0.0, float(steps.max()))
    times = view.lane["time"].values
    return times, Axis("flow time t", 0.0, float(np.nanmax(times)))


def gap_chart(view: View, others: Mapping[str, View] | None = None) -> Markup:
    """The loss gap with the bounds on it and the slope it should end with.

    Args:
        view: drawn with all that is known of it.
        others: of which only the gap is drawn, by name; flows beside descents are all drawn
            against flow time.
    """
    others = others or {}
    in_time = any(other.is_stepwise != view.is_stepwise for other in others.values())
    along, axis = _along(view, in_time)
    gap = figures.resolved(view.lane).values
    curves = [Curve(along, gap, "loss gap", 0, shape=0)]
    for variable, name, dashes in (
        ("bound", "bound of Theorem 2", DASHED),
        ("divergence_bound", "D_Q(θ*, θ(0)) / t", DASH_DOTTED),
    ):
        if variable in view.lane and np.isfinite(view.lane[variable]).any():
            curves.append(Curve(along, view.lane[variable].values, name, 1, dashes))
    known, r = np.flatnonzero(np.isfinite(gap)), rate(view)
    if known.size > 2 and np.isfinite(r):
        last, times = known[-1], view.lane["time"].values
        slope = gap[last] * np.exp(-2 * r * (times - times[last]).clip(max=0.0))
        slope = np.where(np.arange(slope.size) <= last, slope, np.nan)
        curves.append(Curve(along, slope, "slope exp(−2rt)", None, DOTTED))
    for i, (name, other) in enumerate(others.items()):
        gap = figures.resolved(other.lane).values
        curves.append(Curve(_along(other, in_time)[0], gap, name, 2 + i, shape=1 + i))
    seen = np.concatenate(
        [curve.y[np.isfinite(curve.y)] for curve in curves if curve.shape is not None]
    )
    seen = seen[seen > 0]
    low, high = (seen.min() / 2, seen.max() * 2) if seen.size else (0.1, 1.0)
    return chart(curves, axis, Axis("loss gap ℒ(θ) − ℒ*", low, high, log=True))


def nodes_chart(view: View, k: int) -> Markup | str:
    """u^j_k along the curve, for every layer j; dashed the level that a node does not cross."""
    if "layers" not in view.lane:
        return "The layers of this run were not kept."
    along, axis = _along(view)
    nodes = view.lane["layers"].isel(coordinate=k).dropna("layer", how="all")
    curves = []
    for j, level in enumerate(figures.floor(nodes).values):
        name = f"u{_superscript(j + 1)}" + (" (smallest)" if np.isnan(level) else "")
        curves.append(Curve(along, nodes.isel(layer=j).values, name, j, shape=j))
        if not view.is_stepwise:  # steps may cross it
            curves.append(Curve(along[[0, -1]], [level, level], "", j, DASHED, 1.0))
    return chart(curves, axis, Axis(f"nodes uʲ of coordinate {k + 1}"))


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def plane_chart(view: View, first: int = 0, second: int = 1) -> Markup | str:
    """The curve of θ in the plane of two coordinates, from θ(0) to the limit that is predicted.

    Where there are no other coordinates, with the minimisers of the loss, and level sets of
    D_Q(·, θ(0)) = Q: the limit is where the smallest of them that reaches the minimisers does.
    """
    if view.theta is None:
        return "θ of this run was not kept."
    if view.width < 2:
        return "A network of one coordinate has no plane."
    pair = [first, second]
    path, predicted = view.theta[:, pair], limit(view)
    ended = view.theta[np.isfinite(view.theta).all(axis=1)][-1]
    best = ended if predicted is None else predicted
    points = np.vstack([path, best[None, pair]])
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    margin = 0.3 * max(*(high - low), 1e-3 * np.abs(points[np.isfinite(points)]).max(), 1e-12)
    curves = []
    if view.width == 2:
        curves += _minimisers(view.problem, (high - low).max() + margin)
        curves += _levels(view, best, 3 * ((high - low).max() + margin))
    called = "θ at each step" if view.is_stepwise else "θ(t)"
    curves.append(_through(path, called, 0, width=2.4))
    curves.append(_through(path[:1], "θ(0)", None, shape=1))
    if predicted is not None:
        curves.append(_through(predicted[None, pair], "predicted limit", 5, shape=3))
    x, y = (
        Axis(f"θ{subscript(k + 1)}", a - margin, b + margin)
        for k, a, b in zip(pair, low, high, strict=True)
    )
    return chart(curves, x, y, square=True, size=(430, 360))


def _minimisers(problem: Problem, reach: float) -> list[Curve]:
    """Of a loss on the plane: a line, a point, or nothing that could be drawn."""
    affine, best = problem.minimisers(), np.asarray(problem.minimiser)
    if affine is None or not np.isfinite(best).all():
        return []
    _, singular, right = np.linalg.svd(np.asarray(affine[0]))
    rank = int((singular > 1e-12 * singular[0]).sum())
    if rank == 2:
        return [_through(best[None], "minimiser of ℒ", 1, shape=0)]
    along = right[-1] * np.array([[-4.0], [4.0]]) * reach
    return [_through(best + along, "minimisers of ℒ", 1, dashes=DASHED)] if rank == 1 else []


def _through(points: np.ndarray, name: str, colour: int | None, **look: Any) -> Curve:
    """The curve through points of the plane, shape (points, 2)."""
    return Curve(points[:, 0], points[:, 1], name, colour, **look)


def _levels(view: View, best: np.ndarray, reach: float) -> list[Curve]:
    """Level sets of Q(θ) = q₁(θ₁) + q₂(θ₂), among them the one through the limit.

    On that of level c, q₁ = c cos²φ and q₂ = c sin²φ: each θ_k follows from an angle, since
    ±√q_k increases in θ_k.
    """
    start = np.asarray(effective_parameter(view.layers))
    axes = start[:, None] + reach * np.linspace(-1.0, 1.0, _POINTS)
    entropies = np.asarray(coordinatewise(view.layers, jnp.asarray(axes))[0])
    roots = np.sqrt(entropies.clip(min=0.0)) * np.sign(axes - start[:, None])
    known = np.isfinite(roots)
    if (known.sum(axis=1) < 2).any():
        return []
    at_best = [
        np.interp(b, x[ok], r[ok]) for b, x, r, ok in zip(best, axes, roots, known, strict=True)
    ]
    radius, angle = np.hypot(*at_best), np.linspace(0.0, 2 * np.pi, 241)
    curves = []
    for share in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0):
        aims = share * radius * np.stack([np.cos(angle), np.sin(angle)])
        x, y = (
            np.interp(aim, r[ok], x[ok], left=np.nan, right=np.nan)
            for aim, r, x, ok in zip(aims, roots, axes, known, strict=True)
        )
        name = "level sets of D_Q(·, θ(0))" if share == 1.0 else ""
        curves.append(Curve(x, y, name, 2, width=1.6 if share == 1.0 else 0.8))
    return curves


def entropy_charts(view: View, k: int) -> list[Markup]:
    """q_k and its derivative, of which Q(θ) = Σ_k q_k(θ_k) and ∇Q are made, with start and end."""
    layers, start = view.layers[:, k : k + 1], float(effective_parameter(view.layers)[k])
    seen = np.array([start]) if view.theta is None else view.theta[:, k]
    end = seen[-1] if np.isfinite(seen[-1]) else start
    reach = 1.5 * max(np.nanmax(np.abs(seen)), 1e-6 * abs(start), 1e-12)
    axis = np.linspace(-reach, reach, _POINTS)
    values = np.concatenate([axis, [start, end]])
    value, mirror, _ = (np.asarray(x)[0] for x in coordinatewise(layers, jnp.asarray(values)[None]))
    theta, drawn = Axis(f"θ{subscript(k + 1)}", -reach, reach), []
    for heights, name in ((value, "Q"), (mirror, "∇Q")):
        curves = [
            Curve(axis, heights[:-2], "", 0),
            Curve(values[-2:-1], heights[-2:-1], "θ(0)", None, shape=1),
            Curve(values[-1:], heights[-1:], "at the end", 5, shape=3),
        ]
        drawn.append(chart(curves, theta, Axis(f"{name} of coordinate {k + 1}"), size=(430, 260)))
    return drawn
