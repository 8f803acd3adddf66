"""Drawings of a network's entropy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ddln._internal.validation import ArrayLike, as_floats, as_layers
from ddln.networks.entropy import Entropy, coordinatewise
from ddln.plotting import figures

_POINTS = 401
_MOST = 8


@figures.style()
def entropy_profile(layers: ArrayLike, theta: ArrayLike | None = None) -> Figure:
    """Q, ∇Q and ∇²Q of a network, a curve for each of its coordinates, up to eight.

    A mark is the initial θ_k, where Q and ∇Q are 0; thin lines bound the range of ∇Q where it has
    ends. A frozen coordinate has no curve.

    Args:
        layers: initial layers, shape (depth, dim).
        theta: the θ to draw at, increasing, shape (points,); by default as far as the fastest
            coordinates bend.

    Returns:
        The figure.

    Raises:
        ValueError: every coordinate is frozen, or fewer than two θ.

    >>> figures.describe(ddln.entropy_profile([[0.0, 0.0], [0.5, 1.0]]))
    "Q(θ_k) against θ_k. Q'(θ_k) against θ_k. Q''(θ_k) against θ_k. Lines: k = 1, k = 2."
    """
    layers = as_layers(layers)
    reduction = Entropy(layers).reduction
    shown = np.flatnonzero(~np.asarray(reduction.is_frozen))[:_MOST]
    if shown.size == 0:
        raise ValueError("`layers` must have a coordinate that is not frozen, all are.")
    if theta is None:
        reach = max(float(jnp.max(jnp.abs(reduction.theta(reduction.start + s)))) for s in (-1, 1))
        theta = jnp.linspace(-reach, reach, _POINTS)
    theta = as_floats("theta", theta, 1)
    if theta.size < 2:
        raise ValueError(f"`theta` must hold at least two values, got {theta.size}.")
    figure, panels = figures.canvas(7.4, 2.7, ncols=3)
    for k, look in zip(shown, figures.looks(shown.size), strict=True):
        entropy = Entropy(layers[:, k : k + 1])
        side = float(entropy.reduction.half_line_sign[0])
        # Towards the end of a half-line ∇Q is infinite.
        here = theta if side == 0 else theta[theta * side > 0.01 * jnp.max(jnp.abs(theta))]
        start = float(entropy.reduction.theta(entropy.reduction.start)[0])
        curves = [curve[0] for curve in coordinatewise(layers[:, k : k + 1], here[None])]
        at_start = (0.0, 0.0, float(entropy.hessian([start])[0]))
        for panel, curve, value in zip(panels, curves, at_start, strict=True):
            label = f"$k$ = {k + 1}" if panel is panels[0] else None
            panel.plot(here, curve, color=look["color"], label=label)
            panel.plot([start], [value], color=look["color"], marker=look["marker"])
        for end in np.concatenate(entropy.range()):
            if np.isfinite(end):
                panels[1].axhline(end, color=look["color"], linewidth=0.6, zorder=0)
    names = (r"$Q(\theta_k)$", r"$Q'(\theta_k)$", r"$Q''(\theta_k)$")
    for panel, name in zip(panels, names, strict=True):
        panel.set(xlabel=r"$\theta_k$", ylabel=name)
        panel.margins(x=0.0)
    panels[2].set_yscale("log")
    figures.legend(figure, {})
    return figure
