"""Numbers read back from the charts of `ddln.plotting.svg`, and reference solutions by SciPy."""

import re

import numpy as np
from scipy.integrate import solve_ivp

PIXEL = 0.02
"""Reading error in pixels: charts are written to a hundredth of a pixel."""


def find(pattern, text):
    """The first match of a pattern, across lines."""
    found = re.search(pattern, text, re.DOTALL)
    assert found is not None, pattern
    return found


def ends_of(svg, axis):
    """The ends of an axis."""
    return [float(x) for x in find(rf'data-{axis}="(\S+) (\S+)"', svg).groups()]


def _frame(svg):
    """Inner width and height, the lower end of y and a pixel along y; in decades on a log axis."""
    inner = find(r"<svg [^>]*?x=\"58\.0\"[^>]*>", svg)[0]
    width, height = (float(find(rf' {name}="([\d.]+)"', inner)[1]) for name in ("width", "height"))
    low, high = ends_of(svg, "y")
    if find(r'data-log="\d (\d)"', svg)[1] == "1":
        low, high = np.log10([low, high])
    return width, height, low, (high - low) / height


def _positions(svg, pixels):
    width, height, low, pixel = _frame(svg)
    left, right = ends_of(svg, "x")
    return left + pixels[:, 0] / width * (right - left), low + (height - pixels[:, 1]) * pixel


def curve_of(svg, name=""):
    """The points x and y of a curve, and a pixel along y; y is in decades on a log axis.

    An empty name selects the first curve without a name.
    """
    group = find(rf'<g data-name="{re.escape(name)}">.*?</g>', svg)[0]
    path = find(r'<path d="(.*?)"', group)[1]
    pixels = np.array(re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path), float)
    return *_positions(svg, pixels), _frame(svg)[-1]


def mark_of(svg, name):
    """The position of the diamond of a single point, and a pixel along y."""
    group = find(rf'<g data-name="{re.escape(name)}">.*?</g>', svg)[0]
    corners = find(r'points="(.*?)"', group)[1].split()
    middle = np.array([corner.split(",") for corner in corners], float).mean(axis=0)
    return np.concatenate(_positions(svg, middle[None])), _frame(svg)[-1]


def flow(features, targets, layers, times):
    """θ and ‖Xθ − y‖² at some times, from SciPy on the layers."""
    X, y, start = (np.asarray(x, float) for x in (features, targets, layers))

    def slope(_, flat):
        layers = flat.reshape(start.shape)
        gradient = 2 * X.T @ (X @ layers.prod(axis=0) - y)
        others = [np.delete(layers, j, axis=0).prod(axis=0) for j in range(len(layers))]
        return -(gradient * np.array(others)).ravel()

    span = (0.0, times[-1])
    found = solve_ivp(slope, span, start.ravel(), "DOP853", times, rtol=1e-11, atol=1e-13)
    theta = found.y.T.reshape(len(times), *start.shape).prod(axis=1)
    return theta, ((theta @ X.T - y) ** 2).sum(axis=1)
