"""What does a sweep over scales cost? Beside what one would write otherwise, at equal accuracy.

The network of Figure 4 (depth 6, X 10 × 8, first layer zero) at many scales in [0.7, 1.8], losses
at 101 times. Each way gets the loosest tolerance at which its losses are within 1e-7 of those of
SciPy's LSODA at 1e-12.
"""

import importlib.util
import os
import time
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import ddln
from ddln import lanes

ACCURACY, REPEATS = 1e-7, 7
TOLERANCES = (1e-7, 3e-8, 1e-8, 3e-9, 1e-9, 3e-10, 1e-10, 1e-11)


class Sweep:
    """Losses of every lane, by several ways; each takes rtol, and atol is a hundredth of it."""

    def __init__(self, count: int, until: float):
        experiment = ddln.load("configs/figure4.toml", ["sweep={}"])
        problem, layers, *_ = lanes._build(experiment)
        self.problem, self.layers = problem, np.asarray(layers)
        self.scales, self.times = np.linspace(0.7, 1.8, count), np.linspace(0.0, until, 101)
        self.networks = self.scales[:, None, None] * self.layers

    def ddln(self, rtol):
        controls = {"rtol": rtol, "atol": rtol / 100}
        flows = ddln.gradient_flows(self.problem, self.networks, self.times, **controls)
        return np.asarray(flows.loss)

    def diffrax(self, rtol):
        """Tsit5 under vmap, on the layers: what one writes first."""
        return np.asarray(_by_layers(self.problem, self.networks, self.times, rtol))

    def scipy(self, rtol, method="LSODA"):
        """One trajectory after the other, on the layers."""
        features, targets = np.asarray(self.problem.features), np.asarray(self.problem.targets)
        depth, dim = self.layers.shape

        def rate(_, flat):
            u = flat.reshape(depth, dim)
            gradient = 2 * features.T @ (features @ u.prod(0) - targets)
            before = np.cumprod(np.vstack([np.ones(dim), u[:-1]]), axis=0)
            after = np.cumprod(np.vstack([np.ones(dim), u[:0:-1]]), axis=0)[::-1]
            return -(gradient * before * after).ravel()

        losses = []
        for network in self.networks:
            controls = {"rtol": rtol, "atol": rtol / 100, "t_eval": self.times}
            run = solve_ivp(rate, self.times[[0, -1]], network.ravel(), method, **controls)
            theta = run.y.reshape(depth, dim, -1).prod(0)
            losses.append(((features @ theta - targets[:, None]) ** 2).sum(0))
        return np.array(losses)

    def numba(self, threads):
        import numba

        from benchmarks import loop

        sweep = loop.make(*self.layers.shape)
        features = np.asarray(self.problem.features)
        gram, minimiser = 2 * features.T @ features, np.asarray(self.problem.minimiser)

        def run(rtol):
            numba.set_num_threads(threads)
            out = np.zeros((self.scales.size, self.times.size))
            fixed = self.layers, gram, minimiser, float(self.problem.minimum), self.times
            sweep(self.scales, *fixed, rtol, rtol / 100, out)
            return out

        return run


@jax.jit
def _by_layers(problem, networks, times, rtol):
    def loss(layers):
        return problem.loss(ddln.effective_parameter(layers))

    def lane(layers):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, u, _: -jax.grad(loss)(u)),
            diffrax.Tsit5(),
            times[0],
            times[-1],
            None,
            layers,
            saveat=diffrax.SaveAt(ts=times, fn=lambda t, u, _: loss(u)),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 100),
            max_steps=1_000_000,
            throw=False,
        )
        return solution.ys

    return jax.vmap(lane)(jnp.asarray(networks))


def loosest(way: Callable[[float], np.ndarray], reference: np.ndarray) -> tuple[float, float]:
    """The loosest tolerance that is accurate enough, and the error there."""
    error = np.inf
    for rtol in TOLERANCES:
        error = float(np.max(np.abs(way(rtol) - reference)))
        if error <= ACCURACY:
            return rtol, error
    return TOLERANCES[-1], error


def compare(title: str, sweep: Sweep, ways: dict[str, tuple[Callable, int]]) -> list[str]:
    """A table: the ways in turn, so that what else the machine does is shared by all."""
    reference = sweep.scipy(1e-12)
    chosen = {name: loosest(way, reference) for name, (way, _) in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS):
        for name, (way, repeats) in ways.items():
            if repeat < repeats:
                start = time.perf_counter()
                way(chosen[name][0])
                taken[name].append(time.perf_counter() - start)
    ours = np.median(taken["ddln"])
    lines = [
        f"## {title}",
        "",
        "| | ms, median (least–most) | times ddln's | rtol | largest error |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in taken.items():
        ms = 1e3 * np.array(seconds)
        spread = f"{np.median(ms):,.1f} ({ms.min():,.1f}–{ms.max():,.1f})"
        rtol, error = chosen[name]
        ratio = np.median(ms) / (1e3 * ours)
        lines.append(f"| {name} | {spread} | {ratio:.3g} | {rtol:.0e} | {error:.1e} |")
    return lines


def table() -> str:
    """Tables in Markdown."""
    sweep, cores = Sweep(256, 1.0), os.cpu_count() or 1
    ways: dict[str, tuple[Callable, int]] = {"ddln": (sweep.ddln, REPEATS)}
    if importlib.util.find_spec("numba"):
        ways[f"Numba loop, {cores} threads"] = sweep.numba(cores), REPEATS
        ways["Numba loop, 1 thread"] = sweep.numba(1), REPEATS
    ways["diffrax, vmap over layers"] = sweep.diffrax, 3
    ways["SciPy LSODA, one by one"] = sweep.scipy, 2
    lines = compare("Sweep over 256 scales, t ≤ 1", sweep, ways)
    flows = ddln.gradient_flows(sweep.problem, sweep.networks, sweep.times, rtol=1e-8, atol=1e-10)
    lines += ["", f"Lane efficiency {flows.efficiency:.2f}."]
    if "Numba loop, 1 thread" not in ways:
        lines += ["Numba is not installed (dependency group `bench`)."]
    stiff = Sweep(64, 50.0)
    bdf = {"SciPy BDF, one by one": (lambda rtol: stiff.scipy(rtol, "BDF"), 1)}
    lines += ["", *compare("Stiff: 64 scales, t ≤ 50", stiff, {"ddln": (stiff.ddln, 7)} | bdf)]
    lines += ["", "| lanes, t ≤ 1 | µs per lane | lane efficiency |", "|---|---|---|"]
    for count in (1, 10, 100, 1000, 10_000, 100_000):
        many = Sweep(count, 1.0)
        many.ddln(1e-8)
        start = time.perf_counter()
        controls = {"rtol": 1e-8, "atol": 1e-10}
        flows = ddln.gradient_flows(many.problem, many.networks, many.times, **controls)
        taken = time.perf_counter() - start
        lines.append(f"| {count:,} | {1e6 * taken / count:,.0f} | {flows.efficiency:.2f} |")
    return "\n".join(lines)
