import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddln
from ddln.networks.layers import layer_gradient

ROUNDING = 1e-13  # a few dozen products of numbers near one


def random_layers(seed, depth, dim, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(depth, dim))


@pytest.mark.parametrize("depth", [2, 3, 6, 12])
def test_mobility_is_the_squared_jacobian_of_theta(depth):
    layers = random_layers(depth, depth, 5)
    jacobian = np.asarray(jax.jit(jax.jacrev(ddln.effective_parameter))(layers))
    expected = np.einsum("kji,kji->k", jacobian, jacobian)
    np.testing.assert_allclose(ddln.mobility(layers), expected, rtol=ROUNDING)


def test_mobility_is_exact_where_layers_vanish():
    assert ddln.mobility([[0.0, 0.0], [0.0, 2.0], [3.0, 5.0]]).tolist() == [0.0, 100.0]


@pytest.mark.parametrize("depth", [2, 3, 7])
def test_layer_gradient_is_the_gradient_times_the_other_layers(depth):
    layers, gradient = random_layers(depth, depth, 5), random_layers(0, 1, 5)[0]
    layers[0, 0] = layers[1, 1] = layers[0, 1] = 0.0
    expected = [gradient * np.prod(np.delete(layers, j, axis=0), axis=0) for j in range(depth)]
    found = jax.jit(layer_gradient)(layers, gradient)
    np.testing.assert_allclose(found, expected, rtol=ROUNDING)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-6, 1e3))
def test_reduction_returns_the_initial_layers(seed, scale):
    layers = random_layers(seed, 4, 7, scale)
    reduction = ddln.Reduction(layers)
    back, *_ = _at_coordinate(reduction, reduction.start)
    np.testing.assert_allclose(back, layers, rtol=1e-9, atol=1e-13 * scale)


@eqx.filter_jit
def _at_coordinate(reduction, v):
    """The layers, θ, M and dθ/dv, by its formula and by autodiff."""
    slope = jnp.diagonal(jax.jacfwd(reduction.theta)(v))
    found = reduction.layers(v), reduction.theta(v), reduction.mobility(v), reduction.dtheta_dv(v)
    return *found, slope


@pytest.mark.parametrize("depth", [2, 3, 7])
def test_reduction_agrees_with_the_network_at_any_coordinate(depth):
    layers = random_layers(1, depth, 6)
    layers[:, 0] = -0.7  # half-line
    layers[0, 1] = layers[1, 1] * (1 + 1e-12)  # nearly tied
    reduction = ddln.Reduction(layers)
    v = reduction.start + np.linspace(-1, 1, 6)
    there, theta, mobility, dtheta_dv, slope = _at_coordinate(reduction, v)
    np.testing.assert_allclose(theta, ddln.effective_parameter(there), rtol=ROUNDING)
    np.testing.assert_allclose(mobility, ddln.mobility(there), rtol=ROUNDING)
    np.testing.assert_allclose(dtheta_dv, slope, rtol=ROUNDING)
    squares = np.asarray(there) ** 2
    drift = (squares - squares[:1]) - (layers**2 - layers[:1] ** 2)
    np.testing.assert_allclose(drift, 0, atol=1e-13 * float(squares.max()))


@pytest.mark.parametrize("depth", [2, 3, 5, 6])
def test_point_is_the_same_from_v_and_from_the_smallest_layer(depth):
    """Derivatives in w and in v against autodiff, for open, half-line and frozen coordinates."""
    layers = random_layers(depth, depth, 6)
    layers[:2, 0], layers[:2, 1] = 0.7, 0.0
    reduction = ddln.Reduction(layers)
    v = np.asarray(reduction.start) + np.linspace(-1, 1, 6)
    names = ("second", "remaining_product", "theta", "layers", "mobility", "dR_dv")

    @jax.jit
    def points(v):
        from_v = reduction.at(v)
        from_w = reduction.at_smallest(from_v.smallest)
        seen, expected = ({name: getattr(at, name) for name in names} for at in (from_w, from_v))
        return from_v.smallest, reduction.coordinate(from_v.smallest), seen, expected

    w, coordinate, seen, expected = points(v)
    mobile = np.arange(6) != 1
    np.testing.assert_allclose(np.asarray(coordinate)[mobile], v[mobile], rtol=1e-12)
    for name in names:
        np.testing.assert_allclose(seen[name], expected[name], rtol=1e-12, err_msg=name)
    at_smallest = ddln.Reduction(layers[:, mobile]).at_smallest

    @jax.jit
    def slopes(w):
        point = at_smallest(w)
        by_autodiff = jax.jacfwd(lambda w: (at_smallest(w).theta, at_smallest(w).other_product))(w)
        return (point.dtheta_dw, point.dP_dw), tuple(map(jnp.diagonal, by_autodiff))

    for found, slope in zip(*slopes(np.asarray(w)[mobile]), strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-12)
    assert (np.asarray(seen["layers"])[:2, 1] == 0).all()


def test_coordinates_are_of_three_kinds():
    layers = np.array([[0.0, 1.0, 0.0, 1e-9], [2.0, -1.0, 0.0, 0.0], [3.0, 4.0, 5.0, 1.0]])
    assert ddln.coordinate_kinds(layers).tolist() == [0, 1, 2, 0]
    text = ddln.describe(layers)
    assert "2 of 4 coordinates open" in text
    assert "frozen" in text
    assert "(k = 2)" in text
    reduction = ddln.Reduction(layers)
    assert reduction.is_open.tolist() == [True, False, False, True]
    assert reduction.is_frozen.tolist() == [False, False, True, False]
    assert "(k = 0, 1, 2, 3, 4)" in ddln.describe(np.ones((2, 5)))
    assert "(k = 0, 1, 2, 3, 4, …)" in ddln.describe(np.ones((2, 6)))


def test_frozen_coordinates_stay_zero_and_do_not_affect_the_others():
    reduction = ddln.Reduction([[0.0, 0.0], [0.0, 1.0], [2.0, 1.5]])
    there, theta, mobility, *_ = map(np.asarray, _at_coordinate(reduction, reduction.start + 0.5))
    assert theta[0] == 0
    assert np.isfinite(there).all()
    assert mobility[0] == 0


def test_tiny_and_huge_layers_do_not_overflow():
    layers = np.array([[0.0, 1e-120], [1e-120, 2e-120]])
    reduction = ddln.Reduction(layers)
    _, theta, *_ = _at_coordinate(reduction, reduction.start + 270.0)
    assert np.isfinite(theta).all()
    there, *_ = _at_coordinate(reduction, reduction.start)
    np.testing.assert_allclose(there, layers, rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([1.0, 2.0], r"must have shape \(depth, dim\) .* got \(2,\)"),
        (np.ones((0, 2)), r"depth ≥ 1 .* got \(0, 2\)"),
        ([[], []], r"dim ≥ 1, got \(2, 0\)"),
        ([[1.0], [np.nan]], r"must be finite, got nan at index \(1, 0\)"),
        ([[1j], [1.0]], "must be real, got complex"),
    ],
)
def test_invalid_layers_raise(layers, message):
    with pytest.raises(ValueError, match=message):
        ddln.effective_parameter(layers)


def test_transformations_agree_with_eager():
    layers = random_layers(2, 3, 4)
    batch = np.stack([layers, 2 * layers])
    np.testing.assert_allclose(
        jax.vmap(ddln.mobility)(batch)[1], jax.jit(ddln.mobility)(2 * layers), rtol=ROUNDING
    )
