"""Notebook displays of problems, entropies, runs and certificates.

Each display is a card: a title, a line of facts, and small charts or a table. `html` dispatches on
the type of the value; the classes reach it through `ddln._internal.display`, so that none of them
imports this module.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddln._internal.text import number
from ddln._internal.validation import is_concrete
from ddln.networks.entropy import Entropy, coordinatewise
from ddln.plotting.html import Markup, card, element, table
from ddln.plotting.svg import Axis, Curve, beside, chart, subscript
from ddln.problems.base import Problem
from ddln.solvers.result import Run
from ddln.sweeps.accessor import ROUNDING
from ddln.verification import tables
from ddln.verification.certificates import Certificates

_CHART_SIZE = (340, 220)
_MOST_ENTROPIES = 4
"""At most this many coordinates' entropies are drawn."""
_MOST_PARAMETERS = 6
"""At most this many components of θ are drawn."""
# Legible on white and on black.
_VERDICTS = {"holds": ("✓", "#1a8f4d"), "fails": ("✗", "#d9443c"), "open": ("–", "inherit")}


@singledispatch
def html(value: object) -> str:
    """The HTML of a value for a notebook.

    A traced value, or a batch of values, is shown as a single line.

    Args:
        value: a problem, an entropy, a run or certificates.

    >>> "Entropy" in html(ddln.Entropy([[0.0], [1.0]]))
    True
    """
    return card(repr(value), {})


@html.register
def _(problem: Problem) -> str:
    name = type(problem).__name__
    if not is_concrete(problem.minimum) or problem.minimum.ndim:
        return card(name, {})
    constants = {"ℒ*": problem.minimum, "μ": problem.pl_constant, "β": problem.smoothness}
    facts = {"dim": str(problem.dim), "samples": str(problem.samples or "–")}
    for symbol, value in constants.items():
        facts[symbol] = "not known" if value is None else number(float(value))
    return card(name, {**facts, "convex": "yes" if problem.convex else "not known"})


@html.register
def _(entropy: Entropy) -> str:
    reduction = entropy.reduction
    if not is_concrete(reduction.start) or reduction.start.ndim != 1:
        return card("Entropy", {})
    layers = reduction.layers(reduction.start)
    facts = {
        "depth": str(layers.shape[0]),
        "open": str(int(jnp.sum(reduction.is_open))),
        "on a half-line": str(int(jnp.sum(reduction.half_line_sign != 0))),
        "frozen": str(int(jnp.sum(reduction.is_frozen))),
    }
    moving = np.flatnonzero(~np.asarray(reduction.is_frozen))[:_MOST_ENTROPIES]
    if not moving.size:
        return card("Entropy", facts)
    extent = max(float(jnp.max(jnp.abs(reduction.theta(reduction.start + s)))) for s in (-1, 1))
    theta = jnp.broadcast_to(jnp.linspace(-extent, extent, 201), (_MOST_ENTROPIES, 201))
    # Padding to a fixed size lets any number of coordinates share one compiled program.
    padded = layers[:, np.resize(moving, _MOST_ENTROPIES)]
    charts = []
    for label, values in zip(("Q", "∇Q"), coordinatewise(padded, theta), strict=False):
        curves = [
            Curve(theta[i], values[i], f"k = {k + 1}", i, shape=i) for i, k in enumerate(moving)
        ]
        charts.append(chart(curves, Axis("θₖ", -extent, extent), Axis(label), size=_CHART_SIZE))
    return card("Entropy", facts, beside(*charts))


@html.register
def _(run: Run) -> str:
    if not is_concrete(run.status) or run.status.ndim:
        return card(repr(run), {})
    depth, dim = run.layers.shape[1:]
    facts = {
        "ended": run.status_names[int(run.status)],
        "points": f"{run.times.size:,}",
        "steps": f"{int(run.stats['num_steps']):,}",
        "depth": str(depth),
        "dim": str(dim),
        "gap": f"{number(float(run.gap[0]))} → {number(float(run.gap[-1]))}",
    }
    times, gap = np.asarray(run.times), np.asarray(run.gap)
    time_axis = Axis("time t", float(times[0]), float(times[-1]))
    resolved = np.where(gap > ROUNDING * gap[0], gap, np.nan)
    theta = [
        Curve(times, run.theta[:, k], f"θ{subscript(k + 1)}", k, shape=k)
        for k in range(min(dim, _MOST_PARAMETERS))
    ]
    charts = (
        chart([Curve(times, resolved)], time_axis, Axis("gap", log=True), size=_CHART_SIZE),
        chart(theta, time_axis, Axis("θ"), size=_CHART_SIZE),
    )
    return card(type(run).__name__, facts, beside(*charts))


@html.register
def _(certificates: Certificates) -> str:
    if not is_concrete(certificates.ok) or certificates.ok.ndim:
        return card(repr(certificates), {})
    rows = [claim.row() for claim in certificates.claims]
    verdicts = Counter(tables.verdict(row) for row in rows)
    counts = {
        "hold": verdicts["holds"],
        "fail": verdicts["fails"],
        "do not apply": verdicts["open"],
    }
    facts = {name: str(count) for name, count in counts.items() if count}
    return card("Certificates", facts, claims_table(rows))


def claims_table(rows: Iterable[Mapping[str, Any]]) -> Markup:
    """A table of claims; each claim's statement appears under the pointer.

    Args:
        rows: as `Claim.row` or `ddln.verification.certificates.summary` gives them.

    >>> claim = ddln.Claim("half", "arithmetic", "1 < 2", 0.5, 0.5, 0.0)
    >>> "1 &lt; 2" in claims_table([claim.row()])
    True
    """
    lines = []
    for row in rows:
        measured, expected, outcome = tables.cells(row)
        sign, colour = _VERDICTS[tables.verdict(row)]
        name = element("span", row["name"], {"title": row["statement"]})
        verdict = element("b", f"{sign} {outcome}", {"style": f"color: {colour}"})
        lines.append([name, row["source"], measured, expected, verdict])
    return table(("claim", "source", "measured", "expected", ""), lines)
