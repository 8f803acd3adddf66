"""Products in place of a model's weights: same value, closed forms, and sparsity by decay."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddln

WEIGHTS = np.array([[0.5, -2.0, 1e-3], [3.0, -0.1, 1e3]])


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("imbalance", [0.0, 1e-4, 1.0])
def test_products_have_the_value_of_the_array(depth, imbalance):
    model = ddln.factorise(
        {"w": jax.device_put(WEIGHTS)}, lambda m: m["w"], depth=depth, imbalance=imbalance
    )
    np.testing.assert_allclose(np.prod(model["w"].layers, axis=0), WEIGHTS, rtol=1e-13)
    np.testing.assert_allclose(ddln.collapse(model)["w"], WEIGHTS, rtol=1e-13)
    squares = np.asarray(model["w"].layers) ** 2
    np.testing.assert_allclose(squares[1:] - squares[:1], imbalance, atol=1e-12 * squares.max())


def test_zeros_of_an_array_are_open_coordinates():
    model = ddln.factorise([jnp.zeros(3)], lambda m: m[0], depth=3)
    np.testing.assert_array_equal(model[0].layers, [[0.0] * 3, [1.0] * 3, [1.0] * 3])


def test_modules_of_equinox_train_through_collapse():
    mlp = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    model = ddln.factorise(mlp, lambda m: [layer.weight for layer in m.layers], depth=3)
    x = jax.random.normal(jax.random.key(1), (5, 2))

    def loss(model):
        return jnp.mean(jax.vmap(ddln.collapse(model))(x) ** 2)

    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(loss))(model)
    assert gradient.layers[0].weight.layers.shape == (3, 4, 2)
    loss_and_gradient = eqx.filter_value_and_grad(lambda mlp: jnp.mean(jax.vmap(mlp)(x) ** 2))
    expected, plain = eqx.filter_jit(loss_and_gradient)(mlp)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    _, *others = np.asarray(model.layers[0].weight.layers)
    np.testing.assert_allclose(
        gradient.layers[0].weight.layers[0],
        plain.layers[0].weight * np.prod(others, axis=0),
        rtol=1e-4,
    )


def test_decay_at_depth_two_soft_thresholds():
    # The minimum of ½(θ − t)² + ω|θ| is soft thresholding.
    targets, decay = jnp.array([2.0, 0.3, -1.0, 0.05]), 0.5
    model = ddln.factorise(jnp.zeros(4), lambda m: m, depth=2)
    rule = optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1))

    def step(carry, _):
        model, state = carry
        gradient = jax.grad(lambda m: jnp.sum((ddln.collapse(m) - targets) ** 2) / 2)(model)
        updates, state = rule.update(gradient, state, model)
        return (optax.apply_updates(model, updates), state), None

    (model, _), _ = jax.lax.scan(step, (model, rule.init(model)), length=3000)
    expected = np.sign(targets) * np.maximum(np.abs(targets) - decay, 0)
    np.testing.assert_allclose(ddln.collapse(model, threshold=1e-6), expected, rtol=0, atol=1e-9)


def test_collapse_sets_entries_below_the_threshold_to_zero():
    model = {"w": ddln.Factorised(jnp.array([[1.0, 0.1, -0.3]] * 2)), "b": jnp.ones(1)}
    collapsed = ddln.collapse(model, threshold=0.05)
    np.testing.assert_allclose(collapsed["w"], [1.0, 0.0, 0.09])
    assert float(collapsed["w"][1]) == 0.0
    assert collapsed["b"] is model["b"]


def test_models_are_factorised_under_transformations():
    @jax.jit
    @jax.vmap
    def products(weights):
        return ddln.collapse(ddln.factorise([weights], lambda m: m[0], depth=3))[0]

    np.testing.assert_allclose(products(jnp.asarray(WEIGHTS)), WEIGHTS, rtol=1e-13)


def test_single_precision_is_kept():
    model = ddln.factorise([jnp.array([0.5, -2.0], jnp.float32)], lambda m: m[0], depth=3)
    assert model[0].layers.dtype == jnp.float32
    assert ddln.collapse(model)[0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("leaf", "changes", "message"),
    [
        (jnp.ones(2), {"depth": 1}, "`depth` must be ≥ 2, got 1"),
        (jnp.ones(2), {"imbalance": -1.0}, "`imbalance` must be ≥ 0 and finite, got -1.0"),
        (jnp.ones(2), {"imbalance": np.inf}, "`imbalance` must be ≥ 0 and finite, got inf"),
        (jnp.ones((0, 2)), {}, r"must have entries, got shape \(0, 2\)"),
        (2, {}, "arrays of real floating-point numbers, got int"),
        (jnp.arange(2), {}, "arrays of real floating-point numbers, got int64"),
        (jnp.array([1.0, jnp.nan]), {}, "must be finite, got NaN"),
        (jnp.array([1.0, 0.0]), {"imbalance": 0.0}, "no zeros at `imbalance` = 0"),
    ],
)
def test_leaves_that_cannot_be_factorised_are_refused(leaf, changes, message):
    with pytest.raises(ValueError, match=message):
        ddln.factorise({"w": leaf}, lambda m: m["w"], **changes)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (lambda m: m["w"] + 1, "`where` must return leaves of `model`, got Array"),
        (lambda m: m, "`where` must return leaves of `model`, got {'w'"),
        (lambda m: None, "`where` must return leaves of `model`, got None"),
    ],
)
def test_unknown_leaves_are_refused(where, message):
    with pytest.raises(ValueError, match=message):
        ddln.factorise({"w": jnp.ones(2)}, where)


def test_negative_thresholds_are_refused():
    with pytest.raises(ValueError, match="`threshold` must be ≥ 0, got -1"):
        ddln.collapse({}, threshold=-1.0)
