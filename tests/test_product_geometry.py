"""Mirror descent with the geometry of a product, beside gradient descent on its layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddln


def descents(step):
    """θ of gradient descent on layers, and of mirror descent on θ, after flow time 0.4."""
    x = jax.random.normal(jax.random.key(0), (6, 4))
    targets = x @ jnp.array([1.0, -1.0, 0.5, 0.0])

    def loss(weights):
        return jnp.mean((x @ weights.ravel() - targets) ** 2)

    start = jnp.array([[0.3, -0.2], [0.1, 0.0]])
    factors = ddln.factorise(start, lambda w: w, depth=3, imbalance=0.5)

    def run(rule, parameters, loss):
        def update(carry, _):
            parameters, state = carry
            updates, state = rule.update(jax.grad(loss)(parameters), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        first = parameters, rule.init(parameters)
        return jax.lax.scan(update, first, length=round(0.4 / step))[0][0]

    geometry = ddln.factored(depth=3, imbalance=0.5)
    mirrored = run(ddln.mirror_descent(geometry, step), start, loss)
    trained: Any = run(optax.sgd(step), factors, lambda m: loss(m.value))
    return trained.value, mirrored


def test_mirror_descent_differs_from_descent_on_layers_by_a_multiple_of_the_step():
    differences = []
    for step in (0.002, 0.001):
        layers, mirrored = descents(step)
        differences.append(float(jnp.max(jnp.abs(layers - mirrored))))
    assert np.log2(differences[0] / differences[1]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 1}, "`depth` must be ≥ 2, got 1"),
        ({"imbalance": 0.0}, "`imbalance` must be > 0, got 0.0"),
    ],
)
def test_geometries_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ddln.factored(**changes)
