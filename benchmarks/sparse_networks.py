"""Sparse networks on digits: weight decay on products of layers beside its alternatives.

A perceptron with 32 hidden units learns scikit-learn's 1,797 digits. Every method takes the same
number of steps of Adam on random batches:

- depth 2, 3, 4: the weights are products (`ddln.factorise`), with weight decay on their layers;
- depth 1: weight decay on the plain weights, the smallest of which are then set to 0;
- proximal ℓ1: soft thresholding of the plain weights after every step;
- pruning: two thirds of the steps on the plain weights, then all but the largest are set to 0 and
  the others are trained for the last third.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import ddln

HIDDEN, STEPS, BATCH, RATE, SEEDS = 32, 3000, 128, 3e-3, 3
STRENGTHS = np.geomspace(1e-5, 1e-1, 13)
"""Of the decay and of ℓ1."""
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02)
"""Shares of the weights that are left: accuracies are interpolated between strengths."""
THRESHOLD = 1e-3
"""Smaller products become exact zeros."""

Parameters = dict[str, Any]
WEIGHTS = ("w1", "w2")


def digits() -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Training digits and held-out ones, a third."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.split(order, [2 * len(order) // 3])
    train, test = ((jnp.asarray(pixels[part] / 16), jnp.asarray(labels[part])) for part in parts)
    return train, test


def scores(parameters: Parameters, pixels: Float[Array, "batch 64"]) -> Float[Array, "batch 10"]:
    """The perceptron."""
    plain = ddln.collapse(parameters)
    hidden = jax.nn.relu(pixels @ plain["w1"] + plain["b1"])
    return hidden @ plain["w2"] + plain["b2"]


def fresh(key: Array, depth: int) -> Parameters:
    """A perceptron, its weights as products from depth 2 on."""
    first, second = jax.random.split(key)
    model = {
        "w1": jax.random.normal(first, (64, HIDDEN)) / 8,
        "b1": jnp.zeros(HIDDEN),
        "w2": jax.random.normal(second, (HIDDEN, 10)) / np.sqrt(HIDDEN),
        "b2": jnp.zeros(10),
    }
    if depth == 1:
        return model
    return ddln.factorise(
        model, lambda m: [m[name] for name in WEIGHTS], depth=depth, imbalance=0.1
    )


def train(
    model: Parameters,
    key: Array,
    steps: int,
    penalty: Callable[[Parameters], Array],
    after: Callable[[Parameters], Parameters],
) -> Parameters:
    """Adam with a penalty in the loss, and a map after every step."""
    (pixels, labels), _ = digits()
    rule = optax.adam(RATE)

    def objective(model: Parameters, rows: Array) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            scores(model, pixels[rows]), labels[rows]
        )
        return losses.mean() + penalty(model)

    def step(carry, key):
        model, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(labels))
        updates, state = rule.update(jax.grad(objective)(model, rows), state)
        moved: Any = optax.apply_updates(model, updates)
        return (after(moved), state), None

    state: Any = rule.init(model)
    (model, _), _ = jax.lax.scan(step, (model, state), jax.random.split(key, steps))
    return model


def squares(model: Parameters) -> Array:
    """½ Σ of all squared weights, or of the layers of all products, divided by the depth."""
    leaves = [model[name] for name in WEIGHTS]
    layers = [leaf.layers if isinstance(leaf, ddln.Factorised) else leaf[None] for leaf in leaves]
    return jnp.sum(jnp.array([jnp.sum(leaf**2) / (2 * len(leaf)) for leaf in layers]))


def soft_threshold(model: Parameters, level: Array) -> Parameters:
    """Every weight nearer to 0 by `level`."""
    shrunk = {k: jnp.sign(model[k]) * jnp.maximum(jnp.abs(model[k]) - level, 0) for k in WEIGHTS}
    return model | shrunk


def largest(model: Parameters, share: Array) -> dict[str, Array]:
    """Masks of the largest weights, over both matrices together."""
    sizes = jnp.sort(jnp.abs(jnp.concatenate([model[name].ravel() for name in WEIGHTS])))
    level = sizes[jnp.floor(sizes.size * (1 - share)).astype(int)]
    return {name: jnp.abs(model[name]) >= level for name in WEIGHTS}


def measure(model: Parameters) -> tuple[Array, Array]:
    """The share of weights left, and the accuracy on the held-out digits."""
    _, (pixels, labels) = digits()
    plain = ddln.collapse(model, threshold=THRESHOLD)
    left = jnp.concatenate([plain[name].ravel() != 0 for name in WEIGHTS])
    accuracy = jnp.mean(jnp.argmax(scores(plain, pixels), axis=1) == labels)
    return jnp.mean(left), accuracy


def decayed(strength: Array, key: Array, depth: int) -> tuple[Array, Array]:
    """Weight decay on the layers of products, or on the plain weights at depth 1."""
    first, second = jax.random.split(key)
    model = train(fresh(first, depth), second, STEPS, lambda m: strength * squares(m), _same)
    return measure(model)


def proximal(strength: Array, key: Array) -> tuple[Array, Array]:
    """Soft thresholding after every step."""
    first, second = jax.random.split(key)

    def after(model: Parameters) -> Parameters:
        return soft_threshold(model, RATE * strength)

    return measure(train(fresh(first, 1), second, STEPS, _no_penalty, after))


def pruning(share: Array, key: Array) -> tuple[Array, Array]:
    """The largest weights after two thirds of the steps, trained on for the last third."""
    first, second, third = jax.random.split(key, 3)
    dense = train(fresh(first, 1), second, 2 * STEPS // 3, _no_penalty, _same)
    masks = largest(dense, share)

    def after(model: Parameters) -> Parameters:
        return model | {name: model[name] * masks[name] for name in WEIGHTS}

    return measure(train(after(dense), third, STEPS // 3, _no_penalty, after))


def _no_penalty(model: Parameters) -> Array:
    return jnp.zeros(())


def _same(model: Parameters) -> Parameters:
    return model


def methods() -> Iterator[tuple[str, Callable[[Array, Array], tuple[Array, Array]], np.ndarray]]:
    """Name, training function and the strengths it is given."""
    yield "pruning", pruning, np.geomspace(0.01, 1.0, 13)
    yield "proximal ℓ1", proximal, 100 * STRENGTHS  # Adam makes every gradient about 1
    for depth in (1, 2, 3, 4):
        yield f"decay, depth {depth}", partial(decayed, depth=depth), STRENGTHS


def accuracy_at(shares: np.ndarray, left: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Accuracies of one seed at shares of the weights, linear in log share; NaN beyond the ends."""
    order = np.argsort(left)
    x, y = np.log(np.maximum(left[order], 1e-9)), accuracy[order]
    return np.interp(np.log(shares), x, y, left=np.nan, right=np.nan)


def table() -> str:
    """A table in Markdown."""
    lines = [
        f"## Sparse perceptron on digits, {STEPS:,} steps of Adam, {SEEDS} seeds",
        "",
        "Accuracy on the held-out third at shares of the weights left; – if no strength leaves it.",
        "",
        "| method | " + " | ".join(f"{100 * share:g} %" for share in SHARES) + " | seconds |",
        "|---" * (len(SHARES) + 2) + "|",
    ]
    keys = jax.random.split(jax.random.key(0), SEEDS)
    for name, method, strengths in methods():
        start = time.perf_counter()
        over_strengths = jax.vmap(method, in_axes=(0, None))
        left, accuracy = jax.jit(jax.vmap(over_strengths, (None, 0)))(jnp.asarray(strengths), keys)
        seeds = zip(np.asarray(left), np.asarray(accuracy), strict=True)
        mean = np.mean([accuracy_at(np.array(SHARES), *seed) for seed in seeds], axis=0)
        seconds = time.perf_counter() - start
        cells = [f"{100 * value:.1f} %" if np.isfinite(value) else "–" for value in mean]
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)
