import jax.numpy as jnp
import numpy as np
import pytest

import ddln


def test_profile_shows_the_entropy_its_gradient_and_its_curvature():
    # Depth 2 with imbalance λ: Q' = ½ asinh(2θ/λ), Q'' = 1/√(4θ² + λ²).
    figure = ddln.entropy_profile([[0.0], [2.0]], jnp.linspace(-3.0, 3.0, 7))
    value, slope, curvature = (np.asarray(axes.lines[0].get_xydata()) for axes in figure.axes)
    np.testing.assert_allclose(slope[:, 1], np.arcsinh(2 * slope[:, 0] / 4) / 2, atol=1e-12)
    np.testing.assert_allclose(curvature[:, 1], 1 / np.sqrt(4 * curvature[:, 0] ** 2 + 16))
    np.testing.assert_allclose(np.diff(value[:, 1]) > 0, [False] * 3 + [True] * 3)


def test_profile_of_a_half_line_stays_on_it_and_shows_bounds():
    figure = ddln.entropy_profile([[0.5, 0.0, 0.0], [-0.5, 1.0, 0.0], [0.5, 0.8, 1.0]])
    drawn = figure.axes[1].lines
    assert np.max(drawn[0].get_xdata()) < 0
    assert len(figure.axes[0].get_legend_handles_labels()[1]) == 2  # none for the frozen coordinate
    ends = [line for line in drawn if np.size(line.get_ydata()) == 2]
    assert len(ends) == 3  # two for the open coordinate, one for the half-line


def test_profile_of_a_frozen_network_is_an_error():
    with pytest.raises(ValueError, match="a coordinate that is not frozen"):
        ddln.entropy_profile([[0.0], [0.0]])
    with pytest.raises(ValueError, match="at least two values, got 1"):
        ddln.entropy_profile([[0.0], [1.0]], [0.5])
