"""Cost of a sweep over scales beside the alternatives, at equal accuracy.

The network of Figure 4 (depth 6, X 10 × 8, first layer zero) at many scales in [0.7, 1.8], losses
at 101 times. Each way gets the loosest tolerance at which its losses are within 1e-7 of those of
SciPy's LSODA at 1e-12.
"""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import ddln
from ddln.sweeps import build

ACCURACY, REPEATS = 1e-7, 7
LONG = 0.5
"""Seconds that a row of a table is measured for, at least."""
TOLERANCES = (1e-7, 5e-8, 2e-8, 1e-8, 5e-9, 2e-9, 1e-9, 5e-10, 1e-10, 1e-11)
RTOL, ATOL = 2e-8, 2e-10
TOGETHER = 32
"""Networks of similar scale that diffrax integrates in one batch."""


class Sweep:
    """Losses of every network by several methods, for a given rtol and atol = rtol / 100."""

    def __init__(self, count: int, until: float):
        experiment = ddln.load("configs/figure4.toml", ["sweep={}"])
        problem = build.build_problem(experiment)
        assert isinstance(problem, ddln.LeastSquares)
        self.problem = problem
        self.layers = np.asarray(build.build_layers(experiment))
        self.scales, self.times = np.linspace(0.7, 1.8, count), np.linspace(0.0, until, 101)
        self.networks = self.scales[:, None, None] * self.layers

    def ddln(self, rtol):
        controls = {"rtol": rtol, "atol": rtol / 100}
        flows = ddln.gradient_flows(self.problem, self.networks, self.times, **controls)
        return np.asarray(flows.loss)

    def diffrax(self, rtol):
        """Tsit5 under vmap on the layers, the first version a JAX user writes."""
        return np.asarray(_by_layers(self.problem, self.networks, self.times, rtol))

    def diffrax_reduced(self, rtol):
        """Tsit5 under vmap in reduced coordinates, in batches of similar scale on two threads."""
        order = np.argsort(self.scales)
        batches = np.split(order, range(TOGETHER, order.size, TOGETHER))

        def solve(batch):
            networks = jnp.asarray(self.networks[batch])
            return np.asarray(_by_reduced(self.problem, networks, self.times, rtol))

        with ThreadPoolExecutor(2) as pool:
            losses = np.concatenate(list(pool.map(solve, batches)))
        return losses[np.argsort(order)]

    def torchdiffeq(self, rtol):
        """Dormand–Prince on the layers of all networks as one state, with the worst one's error."""
        import torch
        from torchdiffeq import odeint

        features, targets = (
            torch.tensor(np.asarray(x)) for x in (self.problem.features, self.problem.targets)
        )

        def rate(_, u):
            theta = u.prod(1, keepdim=True)
            gradient = 2 * (theta @ features.T - targets) @ features
            one = torch.ones_like(u[:, :1])
            before = torch.cat([one, u[:, :-1]], 1).cumprod(1)
            after = torch.cat([one, u[:, 1:].flip(1)], 1).cumprod(1).flip(1)
            return -gradient * before * after

        norm = {"norm": lambda error: error.square().mean(dim=(1, 2)).sqrt().max()}
        tolerances = {"rtol": rtol, "atol": rtol / 100}
        with torch.no_grad():
            start, times = torch.tensor(self.networks), torch.tensor(self.times)
            path = odeint(rate, start, times, method="dopri5", options=norm, **tolerances)
            losses = (path.prod(2) @ features.T - targets).square().sum(-1)
        return losses.T.numpy()

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
        return _losses(lambda u: -jax.grad(loss)(u), loss, layers, times, rtol)

    return jax.vmap(lane)(jnp.asarray(networks))


@jax.jit
def _by_reduced(problem, networks, times, rtol):
    def lane(layers):
        reduction = ddln.Reduction(layers)

        def rate(v):
            return -reduction.remaining_product(v) * problem.gradient(reduction.theta(v))

        def loss(v):
            return problem.loss(reduction.theta(v))

        return _losses(rate, loss, reduction.start, times, rtol)

    return jax.vmap(lane)(networks)


def _losses(rate, loss, start, times, rtol):
    """The losses along a flow, by diffrax."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, _: rate(y)),
        diffrax.Tsit5(),
        times[0],
        times[-1],
        1e-5,  # of its own choice it overflows, and rejects steps for ever
        start,
        saveat=diffrax.SaveAt(ts=times, fn=lambda t, y, _: loss(y)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 100),
        max_steps=20_000,
        throw=False,
    )
    return solution.ys


def loosest(way: Callable[[float], np.ndarray], reference: np.ndarray) -> tuple[float, float]:
    """The loosest tolerance that is accurate enough, and the error there."""
    error = np.inf
    for rtol in TOLERANCES:
        error = float(np.max(np.abs(way(rtol) - reference)))
        if error <= ACCURACY:
            return rtol, error
    return TOLERANCES[-1], error


def compare(title: str, sweep: Sweep, ways: dict[str, tuple[Callable, int]]) -> list[str]:
    """A table; the methods take turns, so that other load on the machine affects all of them."""
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


def reference_sweep() -> list[str]:
    """The reference sweep, by all methods."""
    sweep, cores = Sweep(256, 1.0), os.cpu_count() or 1
    ways: dict[str, tuple[Callable, int]] = {"ddln": (sweep.ddln, REPEATS)}
    if importlib.util.find_spec("numba"):
        ways[f"Numba loop, {cores} threads"] = sweep.numba(cores), REPEATS
        ways["Numba loop, 1 thread"] = sweep.numba(1), REPEATS
    ways["diffrax, vmap, reduced coordinates, sorted batches, 2 threads"] = (
        sweep.diffrax_reduced,
        REPEATS,
    )
    ways["diffrax, vmap over layers"] = sweep.diffrax, 3
    if importlib.util.find_spec("torchdiffeq"):
        ways["torchdiffeq, batched"] = sweep.torchdiffeq, 2
    ways["SciPy LSODA, one by one"] = sweep.scipy, 2
    lines = compare("Sweep over 256 scales, t ≤ 1", sweep, ways)
    for name in ("numba", "torchdiffeq"):
        if not importlib.util.find_spec(name):
            lines += ["", f"{name} is not installed here: no row."]
    return lines


def stiff_sweep() -> list[str]:
    """The stiff sweep, beside SciPy's method for stiff equations."""
    sweep = Sweep(64, 50.0)
    bdf = {"SciPy BDF, one by one": (lambda rtol: sweep.scipy(rtol, "BDF"), 1)}
    return compare("Stiff: 64 scales, t ≤ 50", sweep, {"ddln": (sweep.ddln, REPEATS)} | bdf)


def row(label: str, problem, networks, times) -> str:
    """Cost and steps per network."""
    taken = []
    while sum(taken[1:]) < LONG:  # without the first, which compiles
        start = time.perf_counter()
        flows = ddln.gradient_flows(problem, networks, times, rtol=RTOL, atol=ATOL)
        jax.block_until_ready(flows.smallest)
        taken.append(time.perf_counter() - start)
    lanes, _, dim = networks.shape
    each = 1e6 * float(np.median(taken[1:])) / lanes
    steps = float(np.mean(flows.stats["num_steps"]))
    return (
        f"| {label} | {each:,.0f} | {steps:.0f} | {1e3 * each / steps / dim:,.1f} | "
        f"{flows.efficiency:.2f} | {int(jnp.sum(flows.status > 0))} |"
    )


HEAD = (
    "| μs per network | steps of a network | ns per step and coordinate "
    "| batch efficiency | failed |"
)


def by_lanes() -> list[str]:
    """Cost by number of networks, from 1 to 10⁵."""
    lines = ["", "| networks, t ≤ 1 " + HEAD, "|---|---|---|---|---|---|"]
    for count in (1, 10, 100, 1000, 10_000, 100_000):
        many = Sweep(count, 1.0)
        lines.append(row(f"{count:,}", many.problem, many.networks, many.times))
    return lines


def random_network(depth: int, dim: int, count: int):
    """At most 100 samples, layers of magnitude about 1, the first one 0."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((min(-(-dim // 2), 100), dim)) / np.sqrt(dim)
    problem = ddln.least_squares(features, features @ rng.standard_normal(dim))
    layers = np.exp(rng.uniform(-0.2, 0.2, (depth, dim)))
    layers[0] = 0
    return problem, np.linspace(0.9, 1.1, count)[:, None, None] ** (1 / depth) * layers


def by_shape() -> list[str]:
    """Cost by depth at width 8 and by width at depth 3."""
    times = np.linspace(0.0, 3.0, 31)
    lines = ["", "| depth, 64 networks, width 8 " + HEAD, "|---|---|---|---|---|---|"]
    depths = (2, 4, 8, 16, 32, 64)
    lines += [row(str(depth), *random_network(depth, 8, 64), times) for depth in depths]
    lines += ["", "| width, depth 3 " + HEAD, "|---|---|---|---|---|---|"]
    for dim, count in ((2, 64), (8, 64), (32, 64), (128, 64), (512, 64), (2048, 16), (10_000, 2)):
        lines.append(row(f"{dim:,}, {count} networks", *random_network(3, dim, count), times))
    return lines


def products() -> list[str]:
    """Speed of the products with X beside the machine's."""
    samples, dim, count = 1000, 2000, 64
    rng = np.random.default_rng(0)
    features = rng.standard_normal((samples, dim)) / np.sqrt(dim)
    problem = ddln.least_squares(features, features @ rng.standard_normal(dim))
    _, networks = random_network(3, dim, count)
    right, best = rng.standard_normal((dim, count)), {"ours": 0.0, "theirs": 0.0}
    for _ in range(3):
        start = time.perf_counter()
        flows = ddln.gradient_flows(
            problem, networks, np.linspace(0.0, 3.0, 5), rtol=RTOL, atol=ATOL
        )
        rounds = float(jnp.sum(flows.stats["num_rounds"]))
        ours = 6 * 4 * samples * dim * rounds / (time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(50):
            _ = features @ right
        theirs = 50 * 2 * samples * dim * count / (time.perf_counter() - start)
        best = {"ours": max(best["ours"], ours), "theirs": max(best["theirs"], theirs)}
    return [
        "",
        f"{count} networks, n = {samples}, d = {dim}: {best['ours'] / 1e9:.0f} Gflop/s in the "
        f"products with X of an explicit step, all else included; NumPy's dgemm of one of them "
        f"{best['theirs'] / 1e9:.0f}: {best['ours'] / best['theirs']:.0%} of it, best of three.",
    ]


def peak() -> list[str]:
    """Memory of 10⁵ networks, measured in a separate process."""
    if sys.platform != "linux":
        return []
    code = (
        "import jax; jax.config.update('jax_enable_x64', True)\n"
        "from benchmarks.sweep import ATOL, RTOL, Sweep\n"
        "import ddln\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(x.split()[1]) for x in lines if x.startswith('VmHWM')) / 2**10\n"
        "s = Sweep(100_000, 1.0); before = peak()\n"
        "flows = ddln.gradient_flows(s.problem, s.networks, s.times, rtol=RTOL, atol=ATOL)\n"
        "print(before, peak(), flows.smallest.nbytes / 2**20)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, kept = map(float, out.stdout.split())
    return [
        "",
        f"10⁵ networks in one call: {after:,.0f} MiB at most, {before:,.0f} MiB of them before, "
        f"{kept:,.0f} MiB of results.",
    ]


def table() -> str:
    """Tables in Markdown."""
    lines = [*reference_sweep(), "", *stiff_sweep(), *by_lanes(), *by_shape(), *products(), *peak()]
    return "\n".join(lines)
