"""Cost of a step of gradient descent, beside loops in NumPy and PyTorch and the machine's peak.

Depth 2, ‖Xθ − y‖²/2n, float64. A network-step is one step of one of the networks that a vmap trains
side by side. `dgemm` is NumPy's for the same product; both take turns.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import ddln

LANES, REPEATS = 256, 5
SMALL, LARGE = (20, 30), (500, 2000)


def seconds(call: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each repeat, after a first call that compiles."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return taken


def data(samples: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets and layers."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(samples, dim)) / np.sqrt(dim)
    layers = np.stack([np.full(dim, 0.5), np.zeros(dim)])
    return features, features[:, :3].sum(axis=1), layers


def trainer(samples: int, dim: int, steps: int, ledger: bool, records: int = 2):
    """The gaps of a run, as a compiled function of the step size."""
    features, targets, layers = data(samples, dim)
    problem = ddln.least_squares(features, targets, normalisation="half_mean")

    def gaps(step):
        return ddln.descend(
            problem,
            layers,
            ddln.optimiser("sgd", learning_rate=step),
            steps=steps,
            record_every=-(-steps // records),
            ledger=ledger,
            throw=False,
        ).gap

    return gaps


def lanes(samples: int, dim: int, steps: int, ledger: bool = False) -> Callable[[], object]:
    """All networks side by side."""
    call = jax.jit(jax.vmap(trainer(samples, dim, steps, ledger)))
    sizes = jnp.linspace(1e-3, 1e-2, LANES)
    return lambda: call(sizes)


def numpy_loop(samples: int, dim: int, steps: int) -> Callable[[], object]:
    """The same loop in NumPy."""
    features, targets, (u0, v0) = data(samples, dim)

    def train():
        u, v = u0, v0
        for _ in range(steps):
            slope = features.T @ (features @ (u * v) - targets) / samples
            u, v = u - 1e-3 * slope * v, v - 1e-3 * slope * u
        return u

    return train


def torch_loop(samples: int, dim: int, steps: int) -> Callable[[], object] | None:
    """The same loop in PyTorch by autograd, all networks as one batch; None without PyTorch."""
    try:
        import torch
    except ImportError:
        return None
    features, targets, layers = (torch.tensor(x) for x in data(samples, dim))

    def train():
        u = layers.expand(LANES, 2, dim).clone().requires_grad_()
        rule = torch.optim.SGD([u], lr=1e-3)
        for _ in range(steps):
            rule.zero_grad()
            residual = (u[:, 0] * u[:, 1]) @ features.T - targets
            (residual.square().sum() / (2 * samples)).backward()
            rule.step()
        return u.detach().numpy()

    return train


def small_rows() -> dict[str, list[float]]:
    """Microseconds per network-step of small networks; the methods take turns."""
    few, many = 2_000, 20_000
    one = jax.jit(trainer(*SMALL, many, False))
    calls = {
        "NumPy loop, one network": (numpy_loop(*SMALL, many), many),
        "ddln, one network": (lambda: one(1e-3), many),
        f"ddln, {LANES} networks": (lanes(*SMALL, few), few * LANES),
        f"ddln, {LANES} networks, with the ledger of its certificates": (
            lanes(*SMALL, few, True),
            few * LANES,
        ),
    }
    loop = torch_loop(*SMALL, 200)
    if loop is not None:
        calls[f"PyTorch loop, {LANES} networks"] = loop, 200 * LANES
    rounds = [[seconds(call, 1)[0] for call, _ in calls.values()] for _ in range(REPEATS)]
    counts = [count for _, count in calls.values()]
    return {name: [1e6 * taken[i] / counts[i] for taken in rounds] for i, name in enumerate(calls)}


def rates() -> tuple[list[float], list[float]]:
    """10⁹ flops per second of the two products of a step, and of the same product in NumPy."""
    (samples, dim), steps = LARGE, 40
    left = np.random.default_rng(0).normal(size=(LANES, dim))
    right = data(*LARGE)[0].T.copy()
    call, flops = lanes(*LARGE, steps), 2 * LANES * samples * dim
    ours, theirs = [], []
    for _ in range(REPEATS):
        ours.append(2 * steps * flops / seconds(call, 1)[0] / 1e9)
        theirs.append(flops / min(seconds(lambda: left @ right, 10)) / 1e9)
    return ours, theirs


def bytes_kept(steps: int) -> int:
    """Temporary memory of the compiled program, for 100 records."""
    call = jax.jit(jax.vmap(trainer(*SMALL, steps, True, 100)))
    used = call.lower(jnp.ones(LANES)).compile().memory_analysis()
    assert used is not None
    return used.temp_size_in_bytes + used.output_size_in_bytes


def shown(taken: list[float], digits: int) -> str:
    """Median (least–most)."""
    return f"{np.median(taken):,.{digits}f} ({min(taken):,.{digits}f}–{max(taken):,.{digits}f})"


def table() -> str:
    """Tables in Markdown."""
    samples, dim = SMALL
    lines = [
        f"## Gradient descent, n = {samples}, d = {dim}, depth 2",
        "",
        "| | μs per network-step, median (least–most) | times the NumPy loop's speed |",
        "|---|---|---|",
    ]
    rows = small_rows()
    reference = np.asarray(rows["NumPy loop, one network"])
    for name, taken in rows.items():
        lines.append(f"| {name} | {shown(taken, 3)} | {np.median(reference / taken):.0f} |")
    if torch_loop(1, 1, 1) is None:
        lines += ["", "PyTorch is not installed here: no row."]
    ours, theirs = rates()
    share = max(ours) / max(theirs)
    samples, dim = LARGE
    lines += [
        "",
        f"{LANES} networks, n = {samples}, d = {dim}: {shown(ours, 0)} Gflop/s in the two products "
        f"of a step, all else included; NumPy's dgemm of one of them {shown(theirs, 0)}: "
        f"{share:.0%} of it, best against best.",
        "",
        "| width d, n = 20, one network | μs per step, median (least–most) | ns per coordinate |",
        "|---|---|---|",
    ]
    for width in (100, 1000, 10_000, 100_000):
        steps = max(50, 2_000_000 // width)
        call = jax.jit(trainer(20, width, steps, False))
        taken = [1e6 * s / steps for s in seconds(lambda call=call: call(1e-3))]
        each = 1e3 * float(np.median(taken)) / width
        lines.append(f"| {width:,} | {shown(taken, 1)} | {each:.1f} |")
    few, many = bytes_kept(10_000), bytes_kept(1_000_000)
    lines += [
        "",
        f"Memory of {LANES} networks with 100 records of the loss, n = 20, d = 30: "
        f"{few / 2**20:.2f} MiB for 10⁴ steps, {many / 2**20:.2f} MiB for 10⁶.",
    ]
    return "\n".join(lines)
