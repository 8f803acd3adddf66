"""Mirror descent with the geometry of a product, beside gradient descent on its layers."""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

import ddln


@jax.jit
def descents(step, steps, decay, rise):
    """Products of descent on layers, and of mirror descent, with ω(t) = decay + rise t."""
    x = jax.random.normal(jax.random.key(0), (6, 4))
    targets = x @ jnp.array([1.0, -1.0, 0.5, 0.0])

    def loss(model):
        return jnp.mean((x @ model["w"].ravel() + model["b"] - targets) ** 2)

    start = {"w": jnp.array([[0.3, -0.2], [0.1, 0.0]]), "b": jnp.array([0.2])}
    factors = ddln.factorise(start, lambda m: [m["w"], m["b"]], depth=3, imbalance=0.5)

    def run(rule, parameters, loss):
        def update(_, carry):
            parameters, state = carry
            updates, state = rule.update(jax.grad(loss)(parameters), state, parameters)
            return optax.apply_updates(parameters, updates), state

        return jax.lax.fori_loop(0, steps, update, (parameters, rule.init(parameters)))[0]

    def schedule(k):
        return decay + rise * step * k.astype(float)

    geometry = ddln.factored(depth=3, imbalance=0.5, decay=schedule)
    mirrored = run(ddln.mirror_descent(geometry, step), start, loss)
    on_layers = optax.chain(optax.add_decayed_weights(schedule), optax.sgd(step))
    trained: Any = run(on_layers, factors, lambda m: loss(ddln.collapse(m)))
    return ddln.collapse(trained), mirrored


@pytest.mark.parametrize(("decay", "rise"), [(0.0, 0.0), (0.8, 0.0), (0.2, 3.0)])
def test_mirror_descent_differs_from_descent_on_layers_by_a_multiple_of_the_step(decay, rise):
    def difference(steps):
        layers, mirrored = descents(0.4 / steps, steps, decay, rise)
        return {name: np.max(np.abs(layers[name] - mirrored[name])) for name in layers}

    coarse, fine = difference(200), difference(400)
    for name in coarse:
        assert np.log2(coarse[name] / fine[name]) == pytest.approx(1, abs=0.02), name


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_geometry_after_decay_is_that_of_the_decayed_entropy(depth):
    theta = np.array([0.3, -0.2, 0.0])
    start = ddln.init.imbalanced(np.zeros(3), np.full((depth - 1, 3), 0.5))
    expected = ddln.Entropy(start).decayed(0.7).mirror_map(theta)
    later = ddln.factored(depth=depth, imbalance=0.5).decayed(0.7)
    np.testing.assert_allclose(later.mirror_map(jnp.asarray(theta)), expected, rtol=1e-12)


@pytest.mark.parametrize("depth", [3, 6])
@pytest.mark.parametrize("dose", [0.0, 20.0, 400.0])
def test_steps_keep_their_digits_at_any_dose(depth, dose):
    # ∫ dθ/M(θ) along the step, by quadrature, is the change of ∇Q.
    theta, change = mpmath.mpf("0.7"), mpmath.mpf("-0.05")
    imbalance = max(mpmath.exp(-2 * mpmath.mpf(dose)) / 2, mpmath.mpf(np.finfo(float).tiny))

    def smallest(theta):
        return mpmath.findroot(
            lambda w: w * (w**2 + imbalance) ** (mpmath.mpf(depth - 1) / 2) - theta,
            theta ** (1 / mpmath.mpf(depth)),
        )

    moved = ddln.factored(depth=depth, imbalance=0.5).decayed(dose)
    end = moved.moved(jnp.array([float(theta)]), jnp.array([float(change)]))[0]
    passed = mpmath.quad(
        lambda w: (w**2 + imbalance) ** (mpmath.mpf(1 - depth) / 2),
        [smallest(theta), smallest(mpmath.mpf(float(end)))],
    )
    assert float(passed / change) == pytest.approx(1.0, rel=1e-12)


def step_of(decay: Any):
    """A step of mirror descent from θ = 1."""
    rule = ddln.mirror_descent(ddln.factored(depth=2, decay=decay), 0.1)
    return rule.update(jnp.ones(1), rule.init(jnp.ones(1)), jnp.ones(1))[0]


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        (-0.1, "`decay` must be ≥ 0, got -0.1"),
        (np.nan, "`decay` must be finite, got nan"),
        (np.inf, "`decay` must be finite, got inf"),
        ([0.1], "`decay` must be a number or a schedule of the step, got \\[0.1\\]"),
        (np.ones(2), "`decay` must have 0 dimension"),
        (ddln.weight_decay.constant(0.1), "`decay` must be a number or a schedule of the step"),
        (lambda step: -0.1, "`decay` must be ≥ 0, got -0.1"),
        (lambda step: "much", "`decay` must be a number or a schedule of the step, got 'much'"),
    ],
)
def test_decay_out_of_range_is_refused(decay, message):
    with pytest.raises(ValueError, match=message):
        step_of(decay)


def test_traced_decay_out_of_range_gives_nan():
    steps = jax.jit(jax.vmap(step_of))(jnp.array([-0.1, np.inf, 0.1]))
    np.testing.assert_array_equal(np.isnan(steps[:, 0]), [True, True, False])


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
