"""Sparse networks on digits: weight decay on products of layers beside its alternatives.

A perceptron with 32 hidden units learns scikit-learn's 1,797 digits. Every method chooses the
weights that stay, in the first two thirds of the steps of Adam on random batches:

- depth 2, 3, 4: the weights are products (`ddln.factorise`), with weight decay on their layers;
- depth 1: weight decay on the plain weights;
- proximal ℓ1: soft thresholding of the plain weights after every step;
- pruning: no penalty; the smallest weights go at the end, or gradually (Zhu and Gupta 2017).

Then the largest weights are kept, as many as asked for, and trained for the last third without a
penalty. Each method has its learning rate and its strength chosen on validation digits, for each
share of the weights.

`python -m benchmarks.sparse_networks` prints the table alone and draws the figure of
docs/factorise.md.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

import ddln

HIDDEN, STEPS, BATCH, SEEDS = 32, 3000, 128, 3
CHOOSING = 2 * STEPS // 3
"""Steps until the weights that stay are chosen."""
RATES = np.array([1e-3, 3e-3, 1e-2])
STRENGTHS = np.geomspace(1e-5, 1e-1, 7)
"""Of the decay and of ℓ1."""
SHARES = np.array([0.1, 0.05, 0.02])
"""Shares of the weights that are kept."""
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "sparse_networks.png"

Parameters = dict[str, Any]
WEIGHTS = ("w1", "w2")


class Digits(NamedTuple):
    """Pixels and labels of some digits."""

    pixels: Float[Array, "digits 64"]
    labels: Array


def digits() -> tuple[Digits, Digits, Digits]:
    """Digits for training (958), for the choice of rate and strength (240), and for the test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    train, chosen, test = (
        Digits(jnp.asarray(pixels[part] / 16, jnp.float32), jnp.asarray(labels[part]))
        for part in np.split(order, [958, 1198])
    )
    return train, chosen, test


def scores(parameters: Parameters, pixels: Float[Array, "batch 64"]) -> Float[Array, "batch 10"]:
    """The perceptron."""
    plain = ddln.collapse(parameters)
    hidden = jax.nn.relu(pixels @ plain["w1"] + plain["b1"])
    return hidden @ plain["w2"] + plain["b2"]


def fresh(key: Array, depth: int) -> Parameters:
    """A perceptron, its weights as products from depth 2 on."""
    first, second = jax.random.split(key)
    model = {
        "w1": jax.random.normal(first, (64, HIDDEN), jnp.float32) / 8,
        "b1": jnp.zeros(HIDDEN, jnp.float32),
        "w2": jax.random.normal(second, (HIDDEN, 10), jnp.float32) / jnp.float32(HIDDEN**0.5),
        "b2": jnp.zeros(10, jnp.float32),
    }
    if depth == 1:
        return model
    return ddln.factorise(
        model, lambda m: [m[name] for name in WEIGHTS], depth=depth, imbalance=0.1
    )


def train(
    model: Parameters,
    key: Array,
    rate: Array,
    steps: int,
    penalty: Callable[[Parameters], Array] = lambda model: jnp.zeros((), jnp.float32),
    after: Callable[[Parameters, Array], Parameters] = lambda model, step: model,
) -> Parameters:
    """Adam with a penalty in the loss, and a map after every step."""
    data, _, _ = digits()
    rule = optax.adam(rate)

    def objective(model: Parameters, rows: Array) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            scores(model, data.pixels[rows]), data.labels[rows]
        )
        return losses.mean() + penalty(model)

    def move(carry, step):
        model, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(data.labels))
        updates, state = rule.update(jax.grad(objective)(model, rows), state)
        moved: Any = optax.apply_updates(model, updates)
        return (after(moved, step), state), None

    state: Any = rule.init(model)
    (model, _), _ = jax.lax.scan(move, (model, state), jnp.arange(steps))
    return model


def squares(model: Parameters) -> Array:
    """½ Σ of all squared weights, or of the layers of all products, divided by the depth."""
    leaves = [model[name] for name in WEIGHTS]
    layers = [leaf.layers if isinstance(leaf, ddln.Factorised) else leaf[None] for leaf in leaves]
    return sum((jnp.sum(leaf**2) / (2 * len(leaf)) for leaf in layers), jnp.float32(0.0))


def only(model: Parameters, masks: PyTree[Bool[Array, "..."]]) -> Parameters:
    """The model with all weights outside the masks set to 0."""
    return model | {name: jnp.where(masks[name], model[name], 0) for name in WEIGHTS}


def largest(model: Parameters, share: Array) -> dict[str, Array]:
    """Masks of the largest weights, over both matrices together, exactly the share."""
    sizes = jnp.abs(jnp.concatenate([model[name].ravel() for name in WEIGHTS]))
    ranks = jnp.argsort(jnp.argsort(-sizes))  # many weights can be 0: a level would not do
    kept = ranks < jnp.round(sizes.size * share).astype(int)
    first, second = jnp.split(kept, [model["w1"].size])
    return {"w1": first.reshape(64, HIDDEN), "w2": second.reshape(HIDDEN, 10)}


def decayed(key: Array, rate: Array, strength: Array, share: Array, *, depth: int) -> Parameters:
    """Weight decay on the layers of products, or on the plain weights at depth 1."""
    first, second = jax.random.split(key)
    return train(
        fresh(first, depth), second, rate, CHOOSING, penalty=lambda m: strength * squares(m)
    )


def proximal(key: Array, rate: Array, strength: Array, share: Array) -> Parameters:
    """Soft thresholding after every step."""
    first, second = jax.random.split(key)
    level = 100 * rate * strength  # Adam makes every gradient about 1

    def after(model: Parameters, step: Array) -> Parameters:
        return model | {
            k: jnp.sign(model[k]) * jnp.maximum(jnp.abs(model[k]) - level, 0) for k in WEIGHTS
        }

    return train(fresh(first, 1), second, rate, CHOOSING, after=after)


def gradual(key: Array, rate: Array, strength: Array, share: Array) -> Parameters:
    """Without the smallest weights, more of which go the later it is."""
    first, second = jax.random.split(key)

    def after(model: Parameters, step: Array) -> Parameters:
        kept = share + (1 - share) * (1 - (step + 1).astype(jnp.float32) / CHOOSING) ** 3
        return only(model, largest(model, kept))

    return train(fresh(first, 1), second, rate, CHOOSING, after=after)


METHODS: dict[str, tuple[Callable[..., Parameters], np.ndarray]] = {
    "pruning at once": (partial(decayed, depth=1), np.zeros(1)),
    "gradual pruning": (gradual, np.zeros(1)),
    "proximal ℓ1": (proximal, STRENGTHS),
    "decay, depth 1": (partial(decayed, depth=1), STRENGTHS),
    "decay, depth 2": (partial(decayed, depth=2), STRENGTHS),
    "decay, depth 3": (partial(decayed, depth=3), STRENGTHS),
    "decay, depth 4": (partial(decayed, depth=4), STRENGTHS),
}
"""How weights are chosen, and the strengths to try."""


def accuracies(
    method: Callable[..., Parameters], key: Array, rate: Array, strength: Array
) -> Float[Array, "2 shares"]:
    """Accuracies on validation and test digits at each share of the weights."""
    first, second = jax.random.split(key)
    _, *held_out = digits()

    def at(share: Array) -> Float[Array, "2"]:
        plain = ddln.collapse(method(first, rate, strength, share))
        masks = largest(plain, share)
        model = train(
            only(plain, masks), second, rate, STEPS - CHOOSING, after=lambda m, _: only(m, masks)
        )
        found = [jnp.mean(jnp.argmax(scores(model, d.pixels), 1) == d.labels) for d in held_out]
        return jnp.stack(found)

    return jax.vmap(at, out_axes=1)(jnp.asarray(SHARES, jnp.float32))


def measure(method: Callable[..., Parameters], strengths: np.ndarray) -> np.ndarray:
    """Test accuracies of shape (shares, seeds) at the best rates and strengths."""
    keys = jax.random.split(jax.random.key(0), SEEDS)
    over = partial(accuracies, method)
    for axes in ((0, None, None), (None, None, 0)):
        over = jax.vmap(over, axes)
    call = jax.jit(over)
    values = [jnp.asarray(array, jnp.float32) for array in (RATES, strengths)]
    found = np.stack([np.asarray(call(keys, rate, values[1])) for rate in values[0]])
    found = found.reshape(-1, SEEDS, 2, len(SHARES))  # rates and strengths, seeds, digits, shares
    best = found[:, :, 0].mean(axis=1).argmax(axis=0)
    return np.stack([found[k, :, 1, share] for share, k in enumerate(best)])


def measured() -> dict[str, np.ndarray]:
    """The accuracies of every method."""
    return {name: measure(*method) for name, method in METHODS.items()}


def table(found: dict[str, np.ndarray] | None = None) -> str:
    """A table in Markdown."""
    lines = [
        f"## Sparse perceptron on digits, {STEPS:,} steps of Adam, {SEEDS} seeds",
        "",
        "Accuracy in per cent on the 599 test digits, mean ± standard deviation over the seeds.",
        "",
        "| weights kept | " + " | ".join(f"{100 * share:g} %" for share in SHARES) + " |",
        "|---" * (len(SHARES) + 1) + "|",
    ]
    for name, accuracy in (found or measured()).items():
        cells = [f"{100 * each.mean():.1f} ± {100 * each.std():.1f}" for each in accuracy]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, np.ndarray], path: Path) -> None:
    """Accuracy against the share of the weights."""
    from ddln import figures

    with figures.style():
        figure, axes = figures.canvas()
        for (name, accuracy), line in zip(
            found.items(), figures.line_styles(len(found)), strict=True
        ):
            mean, spread = 100 * accuracy.mean(axis=1), 100 * accuracy.std(axis=1)
            axes.errorbar(100 * SHARES, mean, spread, label=name, capsize=2, **line)
        axes.set_xscale("log")
        axes.set_xticks(100 * SHARES, [f"{100 * share:g}" for share in SHARES], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("weights kept, %")
        axes.set_ylabel("accuracy on test digits, %")
        axes.legend()
        figure.savefig(path, dpi=160)


if __name__ == "__main__":
    accuracy_of = measured()
    print(table(accuracy_of))
    draw(accuracy_of, FIGURE)
