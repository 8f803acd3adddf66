"""The profile of a network's entropy: Q, its gradient and its curvature."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddln._internal.validation import ArrayLike, as_floats, as_layers
from ddln.networks.entropy import Entropy, coordinatewise
from ddln.plotting import figures

_POINTS = 401
_MOST_CURVES = 8


@figures.style()
def entropy_profile(layers: ArrayLike, theta: ArrayLike | None = None) -> Figure:
    """Q, ∇Q and ∇²Q of a network, one curve for each of its first eight moving coordinates.

    A marker is at the initial θ_k, where Q and ∇Q are 0. Thin lines mark finite ends of the range
    of ∇Q. Frozen coordinates have no curve.

    Args:
        layers: initial layers, shape (depth, dim).
        theta: where to evaluate, increasing, shape (points,); by default symmetric about 0 and wide
            enough to show the curvature of the fastest coordinates.

    Returns:
        The figure.

    Raises:
        ValueError: every coordinate is frozen, or `theta` has fewer than two values.

    >>> figures.describe(ddln.entropy_profile([[0.0, 0.0], [0.5, 1.0]]))
    "Q(θ_k) against θ_k. Q'(θ_k) against θ_k. Q''(θ_k) against θ_k. Lines: k = 1, k = 2."
    """
    layers = as_layers(layers)
    reduction = Entropy(layers).reduction
    shown = np.flatnonzero(~np.asarray(reduction.is_frozen))[:_MOST_CURVES]
    if shown.size == 0:
        raise ValueError("`layers` must have a coordinate that is not frozen, all are.")
    if theta is None:
        extent = max(float(jnp.max(jnp.abs(reduction.theta(reduction.start + s)))) for s in (-1, 1))
        theta = jnp.linspace(-extent, extent, _POINTS)
    theta = as_floats("theta", theta, 1)
    if theta.size < 2:
        raise ValueError(f"`theta` must hold at least two values, got {theta.size}.")
    figure, panels = figures.canvas(7.4, 2.7, ncols=3)
    for k, line in zip(shown, figures.line_styles(shown.size), strict=True):
        _draw_coordinate(list(panels), layers[:, k : k + 1], theta, f"$k$ = {k + 1}", **line)
    names = (r"$Q(\theta_k)$", r"$Q'(\theta_k)$", r"$Q''(\theta_k)$")
    for panel, name in zip(panels, names, strict=True):
        panel.set(xlabel=r"$\theta_k$", ylabel=name)
        panel.margins(x=0.0)
    panels[2].set_yscale("log")
    figures.legend(figure, {})
    return figure


def _draw_coordinate(
    panels: Sequence[Axes],
    layers: Float[Array, "depth 1"],
    theta: Float[Array, " points"],
    label: str,
    *,
    color: str,
    marker: str,
) -> None:
    """Draw one coordinate's q, q' and q'' on three panels."""
    entropy = Entropy(layers)
    side = float(entropy.reduction.half_line_sign[0])
    # ∇Q is infinite at the end of a half-line.
    inside = theta if side == 0 else theta[theta * side > 0.01 * jnp.max(jnp.abs(theta))]
    start = float(entropy.reduction.theta(entropy.reduction.start)[0])
    curves = [curve[0] for curve in coordinatewise(layers, inside[None])]
    at_start = (0.0, 0.0, float(entropy.hessian([start])[0]))
    for panel, curve, value in zip(panels, curves, at_start, strict=True):
        panel.plot(inside, curve, color=color, label=label if panel is panels[0] else None)
        panel.plot([start], [value], color=color, marker=marker)
    for end in np.concatenate(entropy.range()):
        if np.isfinite(end):
            panels[1].axhline(end, color=color, linewidth=0.6, zorder=0)
