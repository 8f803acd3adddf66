"""The entropy against mpmath at 30 digits, closed forms, and its own algebra."""

import itertools
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddln
from ddln.networks import _coordinate_maps
from ddln.networks import entropy as entropies

TOLERANCE = 1e-12  # relative; the inverse at depth is as ill-conditioned as its range is short
SINGLE = 2e-5  # relative, in float32
DEPTHS = [2, 3, 4, 6, 12]
DIM = 14  # of most networks, which share their compiled programs


@cache
def gauss_legendre(count):
    """Nodes and weights at the working precision."""
    nodes = [
        mpmath.findroot(lambda x: mpmath.legendre(count, x), mpmath.mpf(float(start)))
        for start in np.polynomial.legendre.leggauss(count)[0]
    ]
    slopes = [count * mpmath.legendre(count - 1, x) / (1 - x * x) for x in nodes]
    return [(x, 2 / ((1 - x * x) * slope**2)) for x, slope in zip(nodes, slopes, strict=True)]


def reference(layers, theta):
    """ξ, Q and w of one coordinate from the definition ξ = ∫ ds / Π √(s² + λ_j), at 30 digits."""
    with mpmath.workdps(30):
        layers = sorted((mpmath.mpf(float(u)) for u in layers), key=abs)
        sign = mpmath.fprod(mpmath.sign(u) for u in layers[1:])
        theta, start = mpmath.mpf(float(theta)), sign * layers[0]
        imbalances = [u**2 - layers[0] ** 2 for u in layers[1:]]
        unit = mpmath.sqrt(imbalances[0])

        def product(w):
            return mpmath.fprod(mpmath.sqrt(w**2 + imbalance) for imbalance in imbalances)

        # log θ against log w rises with a slope between 1 and the depth.
        low, high = mpmath.mpf(-2000), mpmath.mpf(2000)
        while high - low > mpmath.mpf(10) ** -28 * (1 + abs(high)):
            middle = (low + high) / 2
            below = mpmath.exp(middle) * product(mpmath.exp(middle)) < abs(theta)
            low, high = (middle, high) if below else (low, middle)
        w = mpmath.sign(theta) * mpmath.exp(high)
        if unit:
            smallest, ends = (lambda v: unit * mpmath.sinh(v)), (start / unit, w / unit)
            ends, slope = map(mpmath.asinh, ends), lambda v: unit * mpmath.cosh(v)
        else:
            smallest, slope = (lambda v: mpmath.sign(start) * mpmath.exp(v)), mpmath.exp
            ends = map(mpmath.log, (abs(start), abs(w)))
        low, high = sorted(ends)
        count = int(mpmath.ceil((high - low) * max(1, len(imbalances)) ** 0.5))
        half = (high - low) / (2 * count)
        points = (
            (weight, low + (2 * i + 1 + x) * half)
            for i in range(count)
            for x, weight in gauss_legendre(24)
        )
        dual = half * mpmath.fsum(weight * slope(v) / product(smallest(v)) for weight, v in points)
        dual = dual if w > start else -dual
        return float(dual), float(theta * dual - (w**2 - start**2) / 2), float(w)


def networks(depth):
    rng = np.random.default_rng(depth)
    layers = rng.normal(size=(depth, DIM))
    layers[0, :3] = 0.0
    # Nearly tied: λ from 1e-12 to 1e-4.
    layers[1, 3:8] = np.sqrt(layers[0, 3:8] ** 2 + 10.0 ** np.arange(-12, -2, 2))
    theta = rng.choice([-1, 1], DIM) * 10.0 ** rng.permutation(np.linspace(-8, 8, DIM))
    return layers, theta


def repeated(values):
    """These coordinates again and again, up to `DIM`."""
    values = np.asarray(values)
    return values[..., np.arange(DIM) % values.shape[-1]]


def column(rng, depth, kind, scale):
    """One coordinate of a random network, of this kind, and a θ in Q's domain."""
    layers = scale * rng.normal(size=depth) * np.exp(rng.normal(size=depth))
    first, second = np.argsort(np.abs(layers))[:2]
    reach = np.abs(np.prod(layers))
    if kind == "zero first":
        layers[first] = 0.0
    if kind == "near-tie":
        layers[second] = layers[first] * np.sqrt(1 + 10 ** rng.uniform(-14, -2))
    if kind == "half-line":
        layers[second] = -layers[first]
    sign = np.prod(np.sign(layers)) if kind == "half-line" else rng.choice([-1, 1])
    return layers, sign * reach * 10 ** rng.uniform(-3, 3)


KINDS = ["open", "zero first", "near-tie", "half-line"]


@pytest.mark.parametrize("kind", KINDS)
def test_mirror_map_and_inverse_agree_with_mpmath_at_any_depth(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for depth in (2, 3, 4, 6, 23, 100):
        layers, theta = column(rng, depth, kind, 1.0)
        entropy = ddln.Entropy(layers[:, None])
        dual, _, _ = reference(layers, theta)
        found = entropy.mirror_map([theta])
        np.testing.assert_allclose(found, [dual], rtol=TOLERANCE, err_msg=f"depth {depth}")
        condition = float(jnp.abs(found / entropy.hessian([theta]) / theta)[0])
        np.testing.assert_allclose(
            entropy.inverse([dual]), [theta], rtol=TOLERANCE * max(1, condition)
        )


@pytest.mark.parametrize(
    ("depth", "scale"), [(2, 1e-120), (2, 1e120), (3, 1e-90), (4, 1e-70), (6, 1e40)]
)
def test_scales_within_float64_keep_full_precision(depth, scale):
    rng = np.random.default_rng(depth)
    for kind in KINDS:
        layers, theta = column(rng, depth, kind, scale)
        dual, _, _ = reference(layers, theta)
        entropy = ddln.Entropy(layers[:, None])
        np.testing.assert_allclose(entropy.mirror_map([theta]), [dual], rtol=TOLERANCE)
        np.testing.assert_allclose(entropy.inverse([dual]), [theta], rtol=1e-10)


@pytest.mark.parametrize(
    "depth", [2, 12, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (3, 4, 6, 40))]
)
def test_single_precision_has_its_stated_accuracy(depth):
    rng = np.random.default_rng(depth)
    layers = rng.normal(size=(depth, DIM)).astype(np.float32)
    theta = (layers.prod(axis=0) * rng.uniform(-3, 3, DIM)).astype(np.float32)
    single, double = ddln.Entropy(layers), ddln.Entropy(layers.astype(float))
    found, expected = single.mirror_map(theta), np.asarray(double.mirror_map(theta.astype(float)))
    assert found.dtype == jnp.float32
    bend = np.abs(theta.astype(float) * double.hessian(theta.astype(float)) / expected)
    assert (np.abs(np.asarray(found) / expected - 1) <= SINGLE * np.maximum(1, bend)).all()
    back = double.inverse(found.astype(float))  # what the rounded ξ stands for
    condition = np.abs(expected / double.hessian(theta.astype(float)) / theta.astype(float))
    error = np.abs(np.asarray(single.inverse(found)) / np.asarray(back) - 1)
    assert (error <= SINGLE * np.maximum(1, condition)).all()


def test_range_of_the_mirror_map_has_closed_forms():
    # THEORY: layers (s, …, s, 0) reach ± s^{2−L} (√π/2) Γ((L−2)/2) / Γ((L−1)/2); balanced ones
    # reach w₀^{2−L}/(L−2) outwards and are unbounded towards 0.
    for depth in (3, 4, 9, 60):
        s = 0.5
        low, high = ddln.Entropy([[0.0], *[[s]] * (depth - 1)]).range()
        half, whole = (
            mpmath.gamma(mpmath.mpf(depth - 2) / 2),
            mpmath.gamma(mpmath.mpf(depth - 1) / 2),
        )
        expected = float(s ** (2 - depth) * mpmath.sqrt(mpmath.pi) / 2 * half / whole)
        np.testing.assert_allclose([low[0], high[0]], [-expected, expected], rtol=TOLERANCE)
        low, high = ddln.Entropy(np.full((depth, 1), s)).range()
        np.testing.assert_allclose(high[0], s ** (2 - depth) / (depth - 2), rtol=TOLERANCE)
        assert low[0] == -jnp.inf
    low, high = ddln.Entropy([[0.0, 0.3, 0.0], [0.5, 0.3, 0.0]]).range()
    assert low.tolist() == [-jnp.inf, -jnp.inf, 0.0]
    assert high.tolist() == [jnp.inf, jnp.inf, 0.0]


def test_inverse_works_up_to_the_ends_of_its_range_and_in_range_flags_the_rest():
    entropy = ddln.Entropy(np.random.default_rng(3).normal(size=(6, DIM)))
    low, high = map(np.asarray, entropy.range())
    at_third = np.arange(DIM) == 2
    inside = np.where(np.arange(DIM) % 2 == 0, low, high) * (1 - 1e-6)
    outside = np.where(at_third, high * (1 + 1e-6), inside)
    assert entropy.in_range(inside).all()
    assert np.isfinite(entropy.inverse(inside)).all()
    np.testing.assert_array_equal(entropy.in_range(outside), ~at_third)
    batched = jax.vmap(entropy.inverse)(np.stack([inside, outside]))
    np.testing.assert_array_equal(np.isnan(batched), [np.zeros(DIM, bool), at_third])


def test_blockwise_evaluation_changes_nothing():
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(6, 1000))
    theta = layers.prod(axis=0) * rng.uniform(-3, 3, 1000)
    some = slice(700, 700 + DIM)
    entropy, few = ddln.Entropy(layers), ddln.Entropy(layers[:, some])
    dual = np.asarray(entropy.mirror_map(theta))
    back = np.asarray(entropy.inverse(dual))
    np.testing.assert_allclose(dual[some], few.mirror_map(theta[some]), rtol=1e-14)
    np.testing.assert_allclose(back[some], few.inverse(dual[some]), rtol=TOLERANCE)


@pytest.mark.parametrize(
    "depth",
    [pytest.param(depth, marks=[pytest.mark.slow] * (depth in (4, 6))) for depth in DEPTHS],
)
def test_entropy_agrees_with_mpmath(depth):
    layers, theta = networks(depth)
    duals, values, ws = zip(*map(reference, layers.T, theta), strict=True)
    entropy = ddln.Entropy(layers)
    np.testing.assert_allclose(entropy.mirror_map(theta), duals, rtol=TOLERANCE)
    one_moved = np.where(np.eye(DIM, dtype=bool), theta, layers.prod(axis=0))
    one_by_one = [float(entropy.value(one)) for one in one_moved[::5]]
    np.testing.assert_allclose(one_by_one, values[::5], rtol=TOLERANCE)
    np.testing.assert_allclose(entropy.value(theta), sum(values), rtol=TOLERANCE)
    smallest = eqx.filter_jit(entropy.reduction.smallest)
    half_squares = np.array(ws) ** 2 - smallest(entropy.reduction.start) ** 2
    position = _coordinate_maps.coordinate_of_theta(jax.device_put(theta), entropy.reduction)
    np.testing.assert_allclose(smallest(position), ws, rtol=TOLERANCE)
    np.testing.assert_allclose(
        entropy.conjugate(entropy.mirror_map(theta)), half_squares.sum() / 2, rtol=1e-6
    )


@pytest.mark.parametrize("depth", DEPTHS)
def test_inverse_undoes_mirror_map(depth):
    layers = np.random.default_rng(depth).normal(size=(depth, DIM))
    theta = layers.prod(axis=0) * np.random.default_rng(1).uniform(-3, 3, DIM)
    entropy = ddln.Entropy(layers)
    dual = np.asarray(entropy.mirror_map(theta))
    # A rounding of ξ moves θ by M times as much.
    condition = np.abs(dual / entropy.hessian(theta) / theta)
    error = np.abs(entropy.inverse(dual) / theta - 1)
    assert (error <= TOLERANCE * np.maximum(1, condition)).all()
    assert (error[condition < 10] <= TOLERANCE).all()


def test_depth_two_is_the_hyperbolic_entropy():
    layers = repeated([[0.0, 0.3, 0.0], [2.0, 1.0, 0.5]])
    theta = repeated([3.0, -0.4, 1e-7])
    imbalance = layers[1] ** 2 - layers[0] ** 2
    start = layers[0] * layers[1]
    expected = (np.arcsinh(2 * theta / imbalance) - np.arcsinh(2 * start / imbalance)) / 2
    np.testing.assert_allclose(ddln.Entropy(layers).mirror_map(theta), expected, rtol=1e-14)


def test_balanced_layers_have_a_power_or_a_logarithm():
    theta = repeated([0.1, 5.0, 1e4])
    start = 0.6
    logarithm = ddln.Entropy(np.full((2, DIM), start)).mirror_map(theta)
    np.testing.assert_allclose(logarithm, np.log(theta**0.5 / start), rtol=1e-13)
    for depth in (3, 6, 12):
        w = theta ** (1 / depth)
        expected = (start ** (2 - depth) - w ** (2 - depth)) / (depth - 2)
        dual = np.asarray(ddln.Entropy(np.full((depth, DIM), start)).mirror_map(theta))
        np.testing.assert_allclose(dual, expected, rtol=1e-12)
        negative = ddln.Entropy(np.full((depth, DIM), -start))
        signed = (-1) ** depth * theta
        np.testing.assert_allclose(negative.mirror_map(signed), (-1) ** depth * dual, rtol=1e-12)
        np.testing.assert_allclose(negative.inverse(negative.mirror_map(signed)), signed, rtol=1e-9)


def test_three_layers_with_equal_imbalance_have_an_arctangent():
    w = 2.0
    dual = ddln.Entropy([[0.0], [0.5], [0.5]]).mirror_map([w * (w**2 + 0.25)])
    np.testing.assert_allclose(dual, np.arctan(w / 0.5) / 0.5, rtol=1e-14)


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_derivatives_are_those_of_the_legendre_pair(depth):
    layers = np.random.default_rng(7).normal(size=(depth, DIM))
    layers[0, 0] = 0.0
    theta = np.random.default_rng(8).normal(size=DIM)
    entropy = ddln.Entropy(layers)
    dual = entropy.mirror_map(theta)
    np.testing.assert_allclose(jax.jit(jax.grad(entropy.value))(theta), dual, atol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.grad(entropy.conjugate))(dual), theta, atol=1e-12)
    hessian = np.asarray(entropy.hessian(theta))
    curvature = np.diagonal(jax.jit(jax.hessian(entropy.value))(theta))
    np.testing.assert_allclose(curvature, hessian, rtol=1e-12)
    mobility = np.diagonal(jax.jit(jax.jacrev(entropy.inverse))(dual))
    np.testing.assert_allclose(mobility, 1 / hessian, rtol=1e-11)
    step = 1e-5
    above, below = (np.asarray(entropy.mirror_map(theta + change)) for change in (step, -step))
    np.testing.assert_allclose(hessian, (above - below) / (2 * step), rtol=1e-5)
    fenchel = float(entropy.value(theta)) + float(entropy.conjugate(dual))
    np.testing.assert_allclose(fenchel, theta @ np.asarray(dual), rtol=1e-12)


def test_entropy_is_anchored_at_the_initialisation():
    layers = repeated([[0.3, -0.2], [1.0, -2.0], [0.5, 0.7]])
    entropy, start = ddln.Entropy(layers), ddln.effective_parameter(layers)
    np.testing.assert_allclose(entropy.mirror_map(start), 0, atol=1e-15)
    np.testing.assert_allclose(entropy.value(start), 0, atol=1e-15)
    theta = repeated([1.0, 2.0])
    np.testing.assert_allclose(entropy.divergence(theta, start), entropy.value(theta), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    theta=st.lists(st.floats(-100, 100), min_size=4, max_size=4),
    other=st.lists(st.floats(-100, 100), min_size=4, max_size=4),
)
def test_entropy_is_convex(seed, theta, other):
    entropy = ddln.Entropy(np.random.default_rng(seed).normal(size=(3, DIM)))
    theta, other = repeated(theta), repeated(other)
    divergence = float(entropy.divergence(theta, other))
    assert divergence >= -1e-12 * (1 + float(entropy.value(theta)) + float(entropy.value(other)))
    duals = np.asarray(entropy.mirror_map(theta)), np.asarray(entropy.mirror_map(other))
    # Neighbours may have one dual, to rounding.
    rounding = 1e-15 * (1 + np.abs(duals[0]) + np.abs(duals[1]))
    rise = (duals[0] - duals[1]) * np.sign(theta - other)
    assert (rise >= -rounding).all()


def test_transformations_agree_with_eager():
    entropy = ddln.Entropy(repeated(np.random.default_rng(3).normal(size=(4, 3))))
    batch = repeated([[0.1, -2.0, 3.0], [5.0, 0.0, -1e-3]])
    eager = np.stack([entropy.mirror_map(theta) for theta in batch])
    np.testing.assert_allclose(jax.vmap(entropy.mirror_map)(batch), eager, rtol=1e-14)
    jitted = jax.jit(lambda theta: entropy.mirror_map(theta))(batch[0])
    np.testing.assert_allclose(jitted, eager[0], rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(entropy.inverse)(eager), batch, rtol=1e-11, atol=1e-16)


def test_single_precision_is_kept_and_accurate():
    layers = np.random.default_rng(5).normal(size=(4, DIM))
    theta = np.random.default_rng(6).normal(size=DIM)
    single = ddln.Entropy(layers.astype(np.float32)).mirror_map(theta.astype(np.float32))
    assert single.dtype == jnp.float32
    double = ddln.Entropy(layers).mirror_map(theta)
    np.testing.assert_allclose(single, double, rtol=2e-5)


def test_out_of_range_is_an_error_eagerly_and_nan_in_a_batch():
    entropy = ddln.Entropy([[0.0], [1.0], [1.0]])  # the range of ∇Q is (−π/2, π/2)
    with pytest.raises(ValueError, match="`xi` must lie in the range of ∇Q"):
        entropy.inverse([1.6])
    traced = np.asarray(jax.vmap(entropy.inverse)(np.array([[1.6], [1.5]])))
    assert np.isnan(traced[0, 0])
    np.testing.assert_allclose(traced[1, 0], np.tan(1.5) * (1 + np.tan(1.5) ** 2), rtol=1e-10)


@pytest.mark.parametrize(
    ("layers", "theta", "message"),
    [
        ([[1.0], [1.0]], [-1.0], "`theta` must keep the sign of the initial θ_k"),
        ([[0.0], [0.0]], [1.0], "be 0 where it is tied and zero"),
        ([[0.0], [1.0]], [1.0, 2.0], r"`theta` must have shape \(1,\), got \(2,\)"),
        ([[0.0], [1.0]], [np.nan], "`theta` must be finite"),
    ],
)
def test_invalid_arguments_raise(layers, theta, message):
    with pytest.raises(ValueError, match=message):
        ddln.Entropy(layers).mirror_map(theta)


def test_derivatives_with_respect_to_the_layers_raise():
    with pytest.raises(ValueError, match="not to its initial layers"):
        jax.grad(lambda u: ddln.Entropy(u).value([1.0]))(jnp.array([[0.1], [1.0], [2.0]]))


def test_inverse_reaches_the_smallest_numbers_on_a_half_line():
    balanced = ddln.Entropy([[1.0], [1.0]])
    np.testing.assert_allclose(balanced.inverse([-300.0]), np.exp(-600.0), rtol=1e-12)
    assert balanced.inverse([-800.0]) == 0.0  # below the smallest number
    # With a third layer that is not tied, ξ ~ log(w)/√λ far down: no end of pieces to add.
    mixed = ddln.Entropy([[1.0], [1.0], [1.5]])
    theta = 1e-250
    dual = mixed.mirror_map([theta])
    np.testing.assert_allclose(mixed.inverse(dual), theta, rtol=1e-9)
    assert mixed.inverse([-1e9]) == 0.0


def test_coordinatewise_curves_are_the_entropy_and_its_derivatives():
    layers = np.array([[0.0, 0.5, 0.4], [2.0, -0.5, 0.9], [1.5, 1.1, -0.6]])
    theta = np.array([[-1.0, 0.3, 2.0], [-1.2, -0.2, 0.0], [-0.7, 0.0, 0.7]])
    value, slope, curvature = map(np.asarray, entropies.coordinatewise(layers, theta))
    for k, i in itertools.product(range(3), range(3)):
        alone = ddln.Entropy(layers[:, k : k + 1])
        np.testing.assert_allclose(value[k, i], alone.value(theta[k, i : i + 1]), rtol=TOLERANCE)
        if (k, i) == (1, 2):  # the end of a half-line
            assert np.isnan(slope[k, i])
            assert np.isinf(curvature[k, i])
            continue
        dual, expected, _ = reference(layers[:, k], theta[k, i] or 1e-300)
        np.testing.assert_allclose([value[k, i], slope[k, i]], [expected, dual], rtol=TOLERANCE)
        mobility = 1 / alone.hessian(theta[k, i : i + 1])
        np.testing.assert_allclose(curvature[k, i], 1 / mobility, rtol=TOLERANCE)
    theta[1] = -0.5, 0.5, 0.6
    outside = (np.asarray(part)[1] for part in entropies.coordinatewise(layers, theta))
    assert [np.isnan(part).tolist() for part in outside] == [[False, True, True]] * 3


def test_hessian_is_infinite_where_the_mobility_is_zero():
    layers, theta = repeated([[1.0, 0.0], [1.0, 0.0]]), np.zeros(DIM)
    assert np.isinf(ddln.Entropy(layers).hessian(theta)).all()


def test_entropy_is_finite_at_the_end_of_a_half_line_and_its_gradient_is_not():
    # Depth 2, w₀ = a: Q(θ) = θ ln(θ/a²)/2 − (θ − a²)/2, so Q(0) = a²/2. Any depth: Q(0) = w₀²/2.
    for depth in (2, 3, 5):
        entropy = ddln.Entropy(np.full((depth, 1), 0.5))
        assert float(entropy.value([0.0])) == 0.125
        near = entropy.value([1e-14])
        np.testing.assert_allclose(near, 0.125, atol=1e-5)
        assert np.isinf(entropy.hessian([0.0])).all()
        with pytest.raises(ValueError, match="must keep the sign"):
            entropy.mirror_map([0.0])
        traced = jax.jit(lambda theta, entropy=entropy: entropy.mirror_map(theta))
        assert np.isnan(traced(np.zeros(1))).all()


@pytest.mark.parametrize("layers", [(0.0, 2.0), (2.0, 2.0), (0.0, 2.0, 3.0), (2.0, 2.0, 3.0)])
def test_nan_stays_nan_when_traced(layers):
    entropy = ddln.Entropy(np.array(layers)[:, None])
    unknown = np.array([np.nan])
    for function in (lambda xi: entropy.inverse(xi), lambda theta: entropy.mirror_map(theta)):
        assert np.isnan(jax.jit(function)(unknown)).all()


STARTS = [0.0, 1e-250, -1e-100, 1e-17, -7.6e-10, 3e-8, -1e-3, 0.6]


def columns_at(starts, depth):
    """Coordinates with these smallest layers: open, nearly tied, half-line; near 0 all are open."""
    rng = np.random.default_rng(depth)
    columns = rng.uniform(0.7, 1.5, (depth, 3, len(starts))) * rng.choice(
        [-1, 1], (depth, 3, len(starts))
    )
    columns[0] = starts
    moderate = np.abs(starts) > 1e-20
    columns[1, 1:] = np.where(moderate, np.multiply.outer([np.sqrt(1 + 1e-7), -1], starts), 1.1)
    return columns.reshape(depth, -1)


def near_reference(layers, theta, other=None):
    """D_Q(θ, θ') and ξ − ξ' by a quadrature of (θ − s)/M and 1/M at 80 digits; θ' close to θ."""
    with mpmath.workdps(80):
        layers = sorted((mpmath.mpf(float(u)) for u in layers), key=abs)
        imbalances = [u**2 - layers[0] ** 2 for u in layers[1:]]
        start = mpmath.fprod(mpmath.sign(u) for u in layers[1:]) * layers[0]

        def product(w):
            return mpmath.fprod(mpmath.sqrt(w**2 + imbalance) for imbalance in imbalances)

        def smallest(theta):
            theta = mpmath.mpf(float(theta))
            if theta == 0:
                return theta
            target, low, high = mpmath.log(abs(theta)), -700.0, 700.0

            def excess(x):
                return x + mpmath.log(product(mpmath.exp(x))) - target

            while high - low > 1e-10:
                middle = (low + high) / 2
                low, high = (middle, high) if excess(middle) < 0 else (low, middle)
            return mpmath.sign(theta) * mpmath.exp(mpmath.findroot(excess, high))

        w, base = smallest(theta), start if other is None else smallest(other)
        half = (w - base) / 2
        points = [(weight, base + half * (1 + x)) for x, weight in gauss_legendre(16)]
        theta = w * product(w)
        divergence = half * mpmath.fsum(a * (theta / product(s) - s) for a, s in points)
        return float(divergence), float(half * mpmath.fsum(a / product(s) for a, s in points))


@pytest.mark.parametrize(
    "depth", [2, 5, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (3, 12))]
)
def test_entropy_and_mirror_map_are_relatively_accurate_near_the_start(depth):
    layers = columns_at(STARTS, depth)
    start = layers.prod(axis=0)
    steps = np.array([1e-15, -1e-8, 1e-4, -0.1])
    theta = np.where(start[:, None] == 0, steps**10, start[:, None] * (1 + steps))
    value, slope, curvature = map(np.asarray, entropies.coordinatewise(layers, theta))
    assert (value >= 0).all()
    for k, i in itertools.product(range(start.size), range(steps.size)):
        expected = near_reference(layers[:, k], theta[k, i])
        if expected[0] > 1e-300:
            np.testing.assert_allclose(value[k, i], expected[0], rtol=TOLERANCE)
        np.testing.assert_allclose(slope[k, i], expected[1], rtol=TOLERANCE)
    assert np.isfinite(curvature).all()


def test_divergence_of_neighbours_and_conjugate_near_zero_are_relatively_accurate():
    layers = np.array([[0.7, 0.0], [1.1, 0.9], [1.2, -1.0], [1.3, 0.8], [1.4, 1.2]])
    entropy = ddln.Entropy(layers)
    other = np.array([2.5, -0.3])
    for step in (1e-14, -1e-9, 1e-5, 0.5):
        theta = other * (1 + step)
        expected = sum(near_reference(layers[:, k], theta[k], other[k])[0] for k in range(2))
        np.testing.assert_allclose(entropy.divergence(theta, other), expected, rtol=TOLERANCE)
    # Q*(ξ) = θ(0)·ξ + M ξ²/2 + …, and M ξ²/2 alone where θ(0) = 0.
    alone = ddln.Entropy(layers[:, 1:])
    mobility = np.prod(layers[1:, 1] ** 2)
    for xi in (1e-100, -1e-9):
        np.testing.assert_allclose(alone.conjugate([xi]), mobility * xi**2 / 2, rtol=TOLERANCE)
    first = ddln.Entropy(layers[:, :1])
    with mpmath.workdps(40):
        start = float(mpmath.fprod(map(mpmath.mpf, layers[:, 0])))
    np.testing.assert_allclose(first.conjugate([1e-15]), start * 1e-15, rtol=TOLERANCE)


def test_rounding_does_not_make_the_entropy_negative():
    layers = np.array([[0.7], [1.1], [1.2], [1.3], [1.4]])
    value = ddln.Entropy(layers).value(np.prod(layers, axis=0) * (1 + 1e-8))
    np.testing.assert_allclose(value, 1.0721e-17, rtol=1e-4)


def test_derivatives_near_the_start_are_exact():
    layers, few = repeated(columns_at([0.0, 1e-9, 0.6], 4)[:, :4]), slice(4)
    entropy, start = ddln.Entropy(layers), np.asarray(ddln.effective_parameter(layers))
    theta = start + 1e-10 * np.where(start == 0, 1.0, start)
    other = start + 1e-7
    value = jax.jit(jax.grad(entropy.value))(theta)
    np.testing.assert_allclose(value, entropy.mirror_map(theta), rtol=1e-13)
    curvature = np.diagonal(jax.jit(jax.hessian(entropy.value))(theta))
    np.testing.assert_allclose(curvature, entropy.hessian(theta), rtol=TOLERANCE)
    by_theta, by_other = jax.jit(jax.grad(entropy.divergence, (0, 1)))(theta, other)
    duals = [
        np.array([near_reference(u, x)[1] for u, x in zip(layers.T[few], xs[few], strict=True)])
        for xs in (theta, other)
    ]
    np.testing.assert_allclose(by_theta[few], duals[0] - duals[1], rtol=1e-11)
    change = (other - theta) * np.asarray(entropy.hessian(other))
    np.testing.assert_allclose(by_other, change, rtol=TOLERANCE)
    batched = jax.vmap(entropy.value)(np.stack([theta, other]))
    np.testing.assert_allclose(batched[0], entropy.value(theta), rtol=1e-13)


@pytest.mark.parametrize(
    "depth", [3, 12, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (2, 4, 7))]
)
def test_inverse_undoes_mirror_map_at_and_near_any_start(depth):
    layers = columns_at(STARTS, depth)
    start = layers.prod(axis=0)
    scale = np.where(start == 0, 1.0, start)
    steps = np.array([1e-15, -1e-9, 1e-4, -0.5, 1.0, -3.0, 1e6])[:, None]
    half_line = np.abs(layers[0]) == np.abs(layers[1])
    theta = start + scale * np.where(half_line, np.maximum(steps, -0.9), steps)
    entropy = ddln.Entropy(layers)
    xi = np.asarray(jax.vmap(entropy.mirror_map)(theta))
    condition = np.abs(xi / np.asarray(jax.vmap(entropy.hessian)(theta)) / theta)
    error = np.abs(np.asarray(jax.vmap(entropy.inverse)(xi)) / theta - 1)
    assert (error <= TOLERANCE * np.maximum(1, condition)).all()
    # θ(ξ) = θ(0) + M ξ + O(ξ²), and θ(0) itself at 0.
    mobility = np.asarray(ddln.mobility(layers))
    for tiny in (0.0, 1e-200, -1e-25):
        expected = start + mobility * tiny
        allowed = TOLERANCE * np.maximum(np.abs(expected), np.abs(start))
        assert (np.abs(entropy.inverse(np.full(start.size, tiny)) - expected) <= allowed).all()


def test_inverse_of_zero_is_a_start_close_to_zero():
    layers = [[-7.634834309038386e-10], [1.1042252456449204], [0.8790228541743641]]
    np.testing.assert_allclose(ddln.Entropy(layers).inverse([0.0]), [-7.410664e-10], rtol=1e-6)


@pytest.mark.parametrize("depth", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_decayed_entropy_is_that_of_the_smaller_layers(depth):
    """Also the scaling law ∇Q_t(θ) = e^{(L−2)Ω} ∇Q(e^{LΩ} θ); open, half-line and zero starts."""
    rng, dose = np.random.default_rng(depth), 0.7
    layers = rng.uniform(0.3, 1.2, (depth, 3))
    layers[0], layers[1, 1] = [0.1, 0.2, 0.0], -0.2
    whole, fresh = ddln.Entropy(layers), ddln.Entropy(np.exp(-dose) * layers)
    decayed = whole.decayed(dose)
    start = np.exp(-depth * dose) * layers.prod(0)
    theta, other = start * 1.5 + [0.2, 0.0, 0.3], start * 0.5 - [0.1, 0.0, 0.2]
    xi = decayed.mirror_map(theta)
    np.testing.assert_allclose(xi, fresh.mirror_map(theta), rtol=1e-11)
    scaled = np.exp((depth - 2) * dose) * whole.mirror_map(np.exp(depth * dose) * theta)
    np.testing.assert_allclose(xi, scaled, rtol=1e-11)
    np.testing.assert_allclose(decayed.inverse(xi), theta, rtol=1e-11)
    np.testing.assert_allclose(decayed.hessian(theta), fresh.hessian(theta), rtol=1e-11)
    for one, two in (
        (decayed.value(theta), fresh.value(theta)),
        (decayed.conjugate(xi), fresh.conjugate(xi)),
        (decayed.divergence(theta, other), fresh.divergence(theta, other)),
        *zip(decayed.range(), fresh.range(), strict=True),
    ):
        np.testing.assert_allclose(one, two, rtol=1e-11)
    assert np.abs(decayed.mirror_map(start)).max() < 1e-13 * np.abs(xi).max()
