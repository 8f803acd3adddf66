import jax
import jax.numpy as jnp
import pytest

import ddln

KEY = jax.random.key(0)


def test_zero_first_layer_starts_at_zero_with_open_coordinates():
    layers = ddln.init.zero_first_layer(KEY, depth=6, dim=8)
    assert (layers[0] == 0).all()
    assert (ddln.coordinate_kinds(layers) == 0).all()


def test_balanced_layers_have_no_imbalance():
    layers = ddln.init.balanced(KEY, 4, 5, law=jax.random.normal)
    assert (ddln.imbalance(layers) == 0).all()
    assert (ddln.coordinate_kinds(layers) == 1).all()
    assert jnp.unique(layers).size == 5


def test_imbalanced_layers_have_the_given_imbalance():
    expected = jnp.array([[0.5, 1.0], [2.0, 0.25]])
    layers = ddln.init.imbalanced(jnp.array([0.0, -0.3]), expected)
    assert jnp.allclose(ddln.imbalance(layers)[1:], expected, rtol=1e-14)
    assert layers[0].tolist() == [0.0, -0.3]


def test_uniform_and_normal_follow_their_laws():
    uniform = ddln.init.uniform(KEY, 2, 20_000, low=0.5, high=1.2)
    normal = ddln.init.normal(KEY, 2, 20_000, mean=1.0, std=0.1)
    # Means of 40 000 draws: within five standard errors.
    assert abs(uniform.mean() - 0.85) < 5 * 0.7 / 12**0.5 / 200
    assert abs(normal.mean() - 1.0) < 5 * 0.1 / 200
    assert abs(normal.std() - 0.1) < 5 * 0.1 / 200


def test_initialisers_can_be_vmapped_over_seeds():
    seeds = jnp.arange(3)
    drawn = jax.vmap(lambda seed: ddln.init.normal(jax.random.key(seed), 2, 4))(seeds)
    assert jnp.array_equal(drawn[2], ddln.init.normal(jax.random.key(2), 2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ddln.init.constant(0, 3, 1.0), "`depth` must be ≥ 1 .* got depth=0"),
        (lambda: ddln.init.normal(KEY, 2, 0), "`dim` ≥ 1, got depth=2 and dim=0"),
        (lambda: ddln.init.imbalanced([0.0], [[-1.0]]), "`imbalance` must be ≥ 0, got -1.0"),
        (lambda: ddln.init.imbalanced([0.0, 1.0], [[1.0]]), r"must have shape \(depth − 1, 2\)"),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_signed_layers_must_have_the_same_shape():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) of `positive`, got \(3, 3\)"):
        ddln.init.signed(jnp.ones((2, 3)), jnp.ones((3, 3)))
