"""Quadrature over saved times and its error estimate against integrals in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddln.theory import _hermite

LATE = 1e-3


def power(times):
    """(1 + LATE − t)⁻², which is large at the end of [0, 1], its slope and its integral from 0."""
    left = 1 + LATE - times
    return left**-2, 2 * left**-3, 1 / left - 1 / (1 + LATE)


def wave(times):
    return np.sin(5 * times), 5 * np.cos(5 * times), (1 - np.cos(5 * times)) / 5


def step(times):
    """A smooth function that is close to a jump at ½."""
    slope = 1e6
    value = (1 + np.tanh(slope * (times - 0.5))) / 2
    return value, slope / 2 / np.cosh(np.clip(slope * (times - 0.5), -300, 300)) ** 2, times - 0.5


EVEN = np.linspace(0.0, 1.0, 21)
GAP = np.concatenate([np.linspace(0.0, 0.45, 10), np.linspace(0.9999, 1.0, 10)])


@pytest.mark.parametrize("function", [power, wave, step])
@pytest.mark.parametrize("times", [EVEN, GAP], ids=["even", "with a gap"])
def test_quadrature_error_is_bounded_by_its_estimate(function, times):
    value, slope, exact = function(times)
    given = (jnp.asarray(times), jnp.asarray(value)[:, None], jnp.asarray(slope)[:, None])
    exact = np.maximum(exact, 0.0) if function is step else exact
    error = np.abs(np.diff(_hermite.integrate(*given)[:, 0] - exact))
    largest = np.maximum(np.abs(value[1:]), np.abs(value[:-1]))
    estimate = np.diff(times) * largest * _hermite.relative_error(*given)[:, 0]
    assert (error <= estimate + 1e-15).all()


def test_estimate_is_small_on_resolved_intervals():
    value, slope, _ = wave(EVEN)
    estimate = _hermite.relative_error(
        jnp.asarray(EVEN), jnp.asarray(value)[:, None], jnp.asarray(slope)[:, None]
    )
    middle = np.abs(value[1:]) > 0.5
    assert (estimate[middle] < 5e-3).all()


def test_kink_inside_an_interval_costs_no_more_than_its_estimate():
    rng = np.random.default_rng(0)
    for fraction in rng.uniform(0.0, 1.0, 50):
        kinks, jumps = (rng.permutation(20)[:4] + fraction) / 20, rng.normal(size=4)
        ahead = np.maximum(EVEN[:, None] - kinks, 0.0)
        value = np.exp(EVEN) + ahead @ jumps
        slope, exact = np.exp(EVEN) + (ahead > 0) @ jumps, np.exp(EVEN) + ahead**2 @ jumps / 2
        given = jnp.asarray(EVEN), jnp.asarray(value)[:, None], jnp.asarray(slope)[:, None]
        error = np.abs(np.diff(_hermite.integrate(*given)[:, 0] - exact))
        largest = np.maximum(np.abs(value[1:]), np.abs(value[:-1]))
        smooth = largest * _hermite.relative_error(*given)[:, 0]
        estimate = np.diff(EVEN) * (smooth + _hermite.kink_error(given[0], given[2])[:, 0])
        assert (error <= 2 * estimate + 1e-15).all()  # two kinks side by side hide half of a jump
