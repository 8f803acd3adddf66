"""Time the mirror map and its inverse for 10⁶ coordinates of a random network of depth 6.

The alternatives evaluate the same numbers. SciPy's `quad`, with `brentq` on it for the inverse,
takes one coordinate at a time and runs on a sample. Gauss–Legendre with 200 nodes in NumPy takes
all coordinates at once; it has no inverse and no error estimate.
"""

import time
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq

import ddln
from ddln.networks import _coordinate_maps

DEPTH, DIM, SAMPLE, REPEATS = 6, 1_000_000, 100, 5


def per_coordinate(call: Callable[[], object], count: int, repeats: int = REPEATS) -> list[float]:
    """Nanoseconds per coordinate of each repeat, after one call that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append((time.perf_counter() - start) / count * 1e9)
    return times


def gauss_legendre(layers: np.ndarray, theta: np.ndarray, start: np.ndarray, end: np.ndarray):
    """∫ ds / Π √(s² + λ_j) from w(0) to w with 200 nodes in asinh(s/√λ_min), block by block."""
    squares = np.sort(layers**2, axis=0)
    imbalances = squares[1:] - squares[:1]
    sqrt_min_imbalance = np.sqrt(imbalances[0])
    nodes, weights = np.polynomial.legendre.leggauss(200)
    low, high = (np.arcsinh(w / sqrt_min_imbalance) for w in (start, end))
    total = np.empty_like(theta)
    for block in np.array_split(np.arange(theta.size), max(1, theta.size // 2000)):
        half, middle = (high - low)[block] / 2, (high + low)[block] / 2
        w = sqrt_min_imbalance[block] * np.sinh(middle + half * nodes[:, None])
        remaining = np.sqrt(np.prod(w[:, None] ** 2 + imbalances[None, 1:, block], axis=1))
        total[block] = half * (weights @ (1 / remaining))
    return total


def rows() -> Iterator[tuple[str, list[float], float]]:
    """Name, repeats in ns per coordinate, and largest relative error of each method."""
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(DEPTH, DIM))
    theta = layers.prod(axis=0) * rng.uniform(-3, 3, DIM)
    entropy = ddln.Entropy(layers)
    mirror_map = eqx.filter_jit(lambda entropy, x: entropy.mirror_map(x))
    inverse = eqx.filter_jit(lambda entropy, x: entropy.inverse(x))
    dual = np.asarray(mirror_map(entropy, theta))
    condition = np.maximum(1, np.abs(dual / np.asarray(entropy.hessian(theta)) / theta))

    reduction = entropy.reduction
    v_end = _coordinate_maps.coordinate_of_theta(jax.numpy.asarray(theta), reduction)
    start, end = (np.asarray(reduction.smallest(v)) for v in (reduction.start, v_end))

    def by_quad(k, stop):
        squares = np.sort(layers[:, k] ** 2)
        imbalances = squares[1:] - squares[0]

        def density(s):
            return 1 / np.sqrt(np.prod(s * s + imbalances))

        return quad(density, start[k], stop, epsabs=0, epsrel=1e-12, limit=200)[0]

    def by_brentq(k):
        far = 10 * (abs(end[k]) + abs(start[k]))
        return brentq(
            lambda w: by_quad(k, w) - dual[k], -far, far, xtol=1e-300, rtol=np.float64(1e-12)
        )

    chosen = np.arange(SAMPLE)
    with np.errstate(all="ignore"):
        scipy = np.array([by_quad(k, end[k]) for k in chosen])
        numpy = gauss_legendre(layers, theta, start, end)
        error = np.max(np.abs(dual[chosen] / scipy - 1))
        found = np.asarray(inverse(entropy, dual))
        yield "mirror map, ddln", per_coordinate(lambda: mirror_map(entropy, theta), DIM), error
        yield (
            "mirror map, NumPy Gauss–Legendre",
            per_coordinate(lambda: gauss_legendre(layers, theta, start, end), DIM, 1),
            np.max(np.abs(numpy / dual - 1)),
        )
        yield (
            "mirror map, SciPy quad",
            per_coordinate(lambda: [by_quad(k, end[k]) for k in chosen], SAMPLE),
            0.0,
        )
        yield (
            "inverse, ddln",
            per_coordinate(lambda: inverse(entropy, dual), DIM),
            np.max(np.abs(found / theta - 1) / condition),
        )
        yield (
            "inverse, SciPy brentq on quad",
            per_coordinate(lambda: [by_brentq(k) for k in chosen[:20]], 20),
            np.nan,
        )


def table() -> str:
    """A table in Markdown."""
    lines = [
        f"## Mirror map and inverse, {DIM:,} coordinates, depth {DEPTH}",
        "",
        "| | ns per coordinate, median (least–most) | largest relative error |",
        "|---|---|---|",
    ]
    for name, times, error in rows():
        spread = f"{np.median(times):,.0f} ({min(times):,.0f}–{max(times):,.0f})"
        lines.append(f"| {name} | {spread} | {f'{error:.1e}' if error > 0 else '–'} |")
    lines += [
        "",
        "Errors of ddln's mirror map are against SciPy's, those of NumPy's against ddln's;",
    ]
    return "\n".join([*lines, "those of the inverse are divided by the condition number."])
