import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize

import ddln

VALUE = 1e-9  # SciPy's BFGS, to a gradient of 1e-12 if it gets there


class Risk(eqx.Module):
    """A weighted sum of losses of Xθ, so that all of them share one compiled program."""

    features: jax.Array
    targets: jax.Array
    weights: jax.Array
    delta: jax.Array

    def __call__(self, theta):
        prediction = self.features @ theta
        residual = prediction - self.targets
        clipped = jnp.clip(residual, -self.delta, self.delta)
        margin = jnp.sign(self.targets) * prediction
        losses = (
            residual**2 / 2,
            clipped * (residual - clipped / 2),
            residual**4,
            jnp.logaddexp(residual, -residual),
            jnp.logaddexp(0.0, -margin),
            jax.nn.relu(1 - margin) ** 2,
            jax.nn.relu(jnp.abs(residual) - 0.5) ** 2,
        )
        return sum(w * jnp.sum(x) for w, x in zip(self.weights, losses, strict=True))


LOGISTIC = 4


def in_numpy(theta, features, targets, weights, delta):
    """The loss and its gradient, implemented independently in NumPy."""
    prediction = features @ theta
    residual, sign = prediction - targets, np.sign(targets)
    size, margin = np.abs(residual), sign * prediction
    hinge, outside = np.maximum(1 - margin, 0), np.maximum(size - 0.5, 0)
    values = (
        np.sum(residual**2) / 2,
        np.sum(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))),
        np.sum(residual**4),
        np.sum(np.logaddexp(residual, -residual)),
        np.sum(np.logaddexp(0, -margin)),
        np.sum(hinge**2),
        np.sum(outside**2),
    )
    slopes = (
        residual,
        np.sign(residual) * np.minimum(size, delta),
        4 * residual**3,
        np.tanh(residual),
        -sign * np.exp(-np.logaddexp(0, margin)),
        -2 * sign * hinge,
        2 * outside * np.sign(residual),
    )
    slope = sum(w * x for w, x in zip(weights, slopes, strict=True))
    return np.dot(weights, values), features.T @ slope


def is_separable(features, targets):
    """Whether some direction increases a margin and decreases none, by HiGHS."""
    rows = np.sign(targets)[:, None] * features
    found = linprog(-rows.sum(0), A_ub=-rows, b_ub=np.zeros(len(rows)), bounds=[(-1, 1)] * 3)
    return -found.fun > 1e-9


def draw(rng):
    features = rng.normal(size=(8, 3))
    if rng.random() < 0.3:
        features[:, -1] = features[:, 0]
    targets = rng.normal(size=8) * 10 ** rng.uniform(-2, 2) + rng.choice([0.0, 0.0, 3e3])
    weights = (rng.random(7) < 0.35) * 10 ** rng.uniform(-3, 3, 7)
    weights = weights if weights.any() and rng.random() < 0.8 else np.eye(7)[LOGISTIC]
    return features, targets, weights, 10 ** rng.uniform(-1, 1)


@pytest.mark.parametrize(
    "seeds", [range(25), pytest.param(range(25, 300), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_minimum_of_badly_scaled_convex_loss_matches_scipy(seeds):
    refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        features, targets, weights, delta = draw(rng)
        rest = targets, weights, delta
        columns = 10 ** rng.uniform(-8, 8, 3)
        risk = Risk(*map(jnp.asarray, (features * columns, *rest)))
        attained = weights[LOGISTIC] != weights.sum() or not is_separable(features, targets)
        try:
            found = float(ddln.from_function(risk, 3, convex=True).minimum)
        except ValueError:
            refused += attained
            continue
        assert attained, seed
        start = in_numpy(np.zeros(3), features, *rest)[0]
        expected = min(
            minimize(in_numpy, at, args=(features, *rest), jac=True, tol=1e-12).fun
            for at in (np.zeros(3), np.linalg.pinv(features) @ targets)
        )
        assert found - expected <= VALUE * (abs(expected) + (start - expected)), seed
    assert refused <= 0.02 * len(seeds)


UNATTAINED = {
    "linear": lambda t: t[0],
    "linear aside": lambda t: 1e-9 * t[0] + jnp.cosh(t[1] - 1),
    "exponential": lambda t: jnp.exp(-t[0]),
    "softplus": lambda t: jnp.logaddexp(0.0, t[0]),
    "exponential aside": lambda t: jnp.exp(-t[0] - t[1]) + jnp.cosh(t[1] - t[0] - 1),
    "hyperbola": lambda t: jnp.sqrt(1 + t[0] ** 2) - t[0],
    "hyperbola aside": lambda t: jnp.sqrt(1 + t[0] ** 2) - t[0] + jnp.cosh(t[1] - 1),
    "kink": lambda t: jnp.abs(t[0] - 1) + 0.1 * t[0],
    "kink with a slope of 0": lambda t: jax.nn.relu(t[0]) - 0.3 * jax.nn.relu(-t[0]),
}
ATTAINED = {
    "huber, far": (lambda t: jnp.sum(huber(t - 2000)), 0.0),
    "quadratic, far": (lambda t: jnp.sum((t - 1e12) ** 2), 0.0),
    "quartic": (lambda t: 3 + jnp.sum((t - 1) ** 4), 3.0),
    "tenth power and quadratic": (lambda t: 1 + (t[0] - 1) ** 10 + (t[1] - 3) ** 2, 1.0),
    "log cosh, far": (lambda t: jnp.sum(jnp.logaddexp(t - 1e4, 1e4 - t)), 2 * np.log(2)),
    "dead zone": (lambda t: 1 + jnp.sum(jax.nn.relu(jnp.abs(t - 5) - 1) ** 2), 1.0),
    "squared hinge": (lambda t: 1 + jnp.sum(jax.nn.relu(1 - t) ** 2), 1.0),
    "barrier": (lambda t: -jnp.log(t[0] + 1) - jnp.log(2 - t[0]), -2 * np.log(1.5)),
    "constant": (lambda t: 3 + 0 * t[0], 3.0),
    "below rounding": (lambda t: 1e-17 * t[0] + jnp.cosh(t[1] - 1), 1.0),
}


def huber(residual):
    clipped = jnp.clip(residual, -1, 1)
    return clipped * (residual - clipped / 2)


class Choice(eqx.Module):
    """One of many losses, so that all of them share one compiled program."""

    index: jax.Array

    def __call__(self, theta):
        losses = [*UNATTAINED.values(), *(loss for loss, _ in ATTAINED.values())]
        return jax.lax.switch(self.index, losses, theta)


@pytest.mark.parametrize("name", UNATTAINED)
def test_unattained_minimum_is_refused(name):
    loss = Choice(jnp.asarray(list(UNATTAINED).index(name)))
    with pytest.raises(ValueError, match=r"`minimum` be given: after \d+ steps ℒ = .* ‖∇ℒ‖ = "):
        ddln.from_function(loss, 2, convex=True)


@pytest.mark.parametrize("name", ATTAINED)
def test_flat_or_distant_minimum_is_found(name):
    loss = Choice(jnp.asarray(len(UNATTAINED) + list(ATTAINED).index(name)))
    found = ddln.from_function(loss, 2, convex=True)
    np.testing.assert_allclose(found.minimum, ATTAINED[name][1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "start", [[3.0, 3.0], pytest.param([-1e5, 1e5], marks=pytest.mark.slow)], ids=["there", "far"]
)
def test_search_starts_at_or_far_from_the_minimum(start):
    loss = Choice(jnp.asarray(len(UNATTAINED) + list(ATTAINED).index("squared hinge")))
    assert ddln.from_function(loss, 2, convex=True, start=start).minimum == 1


@pytest.mark.slow
@pytest.mark.parametrize("delta", [0.003, 0.01, 0.1])
def test_huber_with_small_threshold_converges_to_its_minimum(delta):
    rng = np.random.default_rng(0)
    features = np.column_stack([np.ones(120), 0.05 * rng.normal(size=(120, 4))])
    targets = 150 + 60 * rng.standard_t(2, size=120)
    theta = np.linalg.lstsq(features, targets)[0]
    for _ in range(20_000):  # reweighted least squares
        weight = delta / np.maximum(np.abs(features @ theta - targets), delta)
        theta = np.linalg.solve(
            features.T @ (weight[:, None] * features), features.T @ (weight * targets)
        )
    size = np.abs(features @ theta - targets)
    expected = np.sum(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)))
    risk = Risk(*map(jnp.asarray, (features, targets, np.eye(7)[1], delta)))
    found = ddln.from_function(risk, 5, convex=True)
    np.testing.assert_allclose(found.minimum, expected, rtol=1e-9)
    np.testing.assert_allclose(
        found.minimum, ddln.huber(features, targets, delta=delta).minimum, rtol=1e-12
    )


@pytest.mark.slow
def test_traced_unattained_minimum_is_nan():
    make = eqx.filter_jit(lambda loss: ddln.from_function(loss, 2, convex=True).minimum)
    names = [*UNATTAINED, *ATTAINED]
    assert make(Choice(jnp.asarray(names.index("quartic")))) == 3
    assert jnp.isnan(make(Choice(jnp.asarray(names.index("softplus")))))
