"""The figure style, and figures against the data they draw."""

import io
import subprocess
import sys
from itertools import pairwise
from typing import cast

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from PIL import Image

from ddln.plotting import figures

# Machado, Oliveira and Fernandes (2009): colour blindness as a matrix on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
APART = 20  # difference in CIE lightness, from 0 to 100, that is easy to see


@pytest.fixture
def sweep():
    """The data set of three exponential decays with bounds."""
    time, rates = np.linspace(0.0, 3.0, 31), np.array([1.0, 2.0, 8.0])
    gap = 5 * np.exp(-2 * rates[:, None] * time)
    along = ("network.scale", "time")
    return xr.Dataset(
        {
            "gap": (along, gap, {"long_name": "loss gap", "units": "1"}),
            "bound": (along, np.sqrt(gap * gap[:, :1])),
            "asymptotic_rate": ("network.scale", rates),
        },
        {
            "network.scale": [1.0, 1.4, 1.8],
            "time": ("time", time, {"long_name": "flow time", "units": "1"}),
        },
    )


@pytest.fixture
def network():
    """One coordinate with three layers, of which the second is smallest and crosses zero."""
    time = np.linspace(0.0, 1.0, 11)
    smallest = 0.3 - time
    start = np.array([2.0, smallest[0], -1.0])
    excess = start**2 - smallest[0] ** 2
    layers = np.sign(start) * np.sqrt(smallest[:, None] ** 2 + excess)
    layers[:, 1] = smallest
    return xr.Dataset(
        {
            "layers": (("time", "layer", "coordinate"), layers[..., None]),
            "gap": ("time", np.exp(-time)),
        },
        {"time": time},
    )


@pytest.fixture
def training():
    """The noisy gaps of a descent at two step sizes, without bounds, with different flow times."""
    steps, rates = np.arange(0, 301, 10), np.array([0.1, 0.2])
    noise = np.exp(np.random.default_rng(0).normal(size=(2, 31)))
    along = ("dynamics.optimiser.learning_rate", "time")
    return xr.Dataset(
        {
            "gap": (along, noise, {"long_name": "loss gap", "units": "1"}),
            "flow_time": (along, rates[:, None] * steps, {"long_name": "flow time", "units": "1"}),
        },
        {"step": ("time", steps, {"long_name": "training step"}), along[0]: rates},
    )


def lightness(colour):
    """CIE 1976 lightness L* of an sRGB colour."""
    luminance = linear(colour) @ [0.2126, 0.7152, 0.0722]
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def linear(colour):
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def named_lines(figure):
    return [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]


def saved(figure, kind):
    file = io.BytesIO()
    figure.savefig(file, format=kind)
    return file.getvalue()


def test_colours_differ_in_greyscale():
    grey = sorted(lightness(colour) for colour in figures.COLOURS)
    assert np.diff(grey).min() > APART


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_differ_under_colour_blindness(kind):
    perceived = [np.clip(BLINDNESS[kind] @ linear(c), 0, 1) ** (1 / 2.2) for c in figures.COLOURS]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(perceived) for b in perceived[:i]]
    assert min(distances) > 0.25


def test_large_sweep_draws_evenly_spaced_curves_with_both_ends():
    scales = np.linspace(1, 2, 1000)
    gap = np.exp(-np.outer(scales, [0.0, 1.0]))
    dataset = xr.Dataset(
        {"gap": (("network.scale", "time"), gap)}, {"network.scale": scales, "time": [0.0, 1.0]}
    )
    figure = figures.gap_against_time(dataset, over="network.scale", bounds={})
    drawn = [np.asarray(line.get_ydata())[1] for line in figure.axes[0].lines]
    assert len(drawn) == figures.CURVES
    assert (drawn[0], drawn[-1]) == (gap[0, 1], gap[-1, 1])


def test_many_colours_lighten_in_order():
    grey = [lightness(style["color"]) for style in figures.line_styles(12)]
    assert np.diff(grey).min() > 0


def test_neighbouring_curves_differ_in_their_markers():
    markers = [style["marker"] for style in figures.line_styles(20)]
    assert all(a != b for a, b in pairwise(markers))


def test_style_restores_the_settings():
    before = matplotlib.rcParams.copy()
    with figures.style():
        assert matplotlib.rcParams["font.family"] == ["STIXGeneral"]
    assert matplotlib.rcParams.copy() == before


def test_drawing_needs_no_pyplot():
    draws = "import sys; from ddln import figures as f; f.style()(f.canvas)()"
    code = f"{draws}; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_curve_shows_its_network(sweep):
    figure = figures.gap_against_time(sweep, over="network.scale")
    for line, gap in zip(named_lines(figure), sweep["gap"].values, strict=True):
        shown = gap[gap > figures.ROUNDING * gap[0]]
        np.testing.assert_array_equal(line.get_ydata(), shown)
    assert figure.axes[0].get_yscale() == "log"


def test_bound_is_dashed_in_the_colour_of_its_curve(sweep):
    figure = figures.gap_against_time(sweep, over="network.scale")
    dashed = [line for line in figure.axes[0].lines if line.is_dashed()]
    assert [line.get_color() for line in dashed] == list(figures.COLOURS[:3])
    for line, bound in zip(dashed, sweep["bound"].values, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), bound)


def test_slope_of_a_pure_exponential_lies_on_it(sweep):
    lane = sweep.isel({"network.scale": 0})
    figure = figures.gap_against_time(lane, bounds={}, slope=True)
    _, slope = figure.axes[0].lines
    drawn = lane["gap"].sel(time=slope.get_xdata())
    np.testing.assert_allclose(np.asarray(slope.get_ydata()), drawn, rtol=1e-12)


def test_slope_not_yet_reached_is_not_drawn(sweep):
    lane = sweep.isel({"network.scale": 0}).assign(asymptotic_rate=0.5)
    figure = figures.gap_against_time(lane, bounds={}, slope=True)
    assert len(figure.axes[0].lines) == 1


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_curve_of_few_points_is_drawn(sweep, kept):
    lane = sweep.isel({"network.scale": 0})
    short = lane.assign(gap=lane["gap"].where(lane["time"] < lane["time"][kept]))
    drawn = figures.gap_against_time(short, bounds={}, slope=True).axes[0].lines
    assert np.size(drawn[0].get_xdata()) == kept


def test_gaps_below_rounding_are_not_drawn(sweep):
    gap = sweep["gap"].where(sweep["time"] < 2, 1e-17)
    figure = figures.gap_against_time(sweep.assign(gap=gap), over="network.scale", bounds={})
    assert figure.axes[0].get_ylim()[0] > 1e-15
    assert max(np.asarray(line.get_xdata())[-1] for line in figure.axes[0].lines) < 2


def test_failed_network_leaves_the_others_drawn(sweep):
    gap = sweep["gap"].where(sweep["network.scale"] != 1.4)
    figure = figures.gap_against_time(sweep.assign(gap=gap), over="network.scale", slope=True)
    assert saved(figure, "png")


def test_nodes_of_a_failed_network_are_left_out(network):
    failed = network.assign(layers=network["layers"].where(network["time"] == 0))
    assert saved(figures.nodes_against_time(failed), "png")


def test_only_failed_networks_give_an_empty_figure(sweep):
    failed = sweep.assign(gap=sweep["gap"].where(False))
    assert saved(figures.gap_against_time(failed, over="network.scale", slope=True), "png")


def test_curves_differ_in_the_only_axis_by_default(sweep):
    named, default = (figures.gap_against_time(sweep, over=x) for x in ("network.scale", None))
    labels = [[line.get_label() for line in named_lines(figure)] for figure in (default, named)]
    assert labels[0] == labels[1]


def test_second_axis_is_an_error(sweep):
    two = sweep.expand_dims({"network.depth": [2, 3]})
    with pytest.raises(ValueError, match=r"one value of each other axis, got \['network.depth'\]"):
        figures.gap_against_time(two, over="network.scale")


def test_legend_names_a_few_of_many_curves(sweep):
    many = xr.concat([sweep.isel({"network.scale": 0})] * 40, "network.scale")
    many = many.assign_coords({"network.scale": np.linspace(1, 2, 40)})
    figure = figures.gap_against_time(many, over="network.scale")
    assert len(figure.axes[0].lines) == 80
    assert len(named_lines(figure)) <= figures.NAMED


def test_legend_fills_rows_first(sweep):
    figure = figures.gap_against_time(sweep, over="network.scale", slope=True)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[::2] == ["$a$ = 1", "$a$ = 1.4", "$a$ = 1.8"]
    assert names[1::2] == ["bound of Theorem 2", "asymptotic rate", ""]


def test_reference_levels_are_in_the_legend_by_name():
    figure, axes = figures.canvas()
    figures.levels(axes, {"least squares": 0.1, "minimax rate": 0.4})
    figures.legend(figure)
    assert [np.asarray(line.get_ydata())[0] for line in named_lines(figure)] == [0.1, 0.4]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["least squares", "minimax rate"]


def test_heatmap_has_each_value_at_its_place():
    depths, scales = xr.DataArray([2, 3, 5], dims="depth"), xr.DataArray([1.0, 2.0], dims="scale")
    values = (10 * depths + scales).assign_coords(depth=depths, scale=scales)
    figure, axes = figures.canvas()
    figures.heatmap(axes, values, label="rate", vmax=60)
    (mesh,) = axes.collections
    cells = mesh.get_coordinates()
    for j, depth in enumerate(depths.values):
        for i, scale in enumerate(scales.values):
            low, high = cells[j, i], cells[j + 1, i + 1]
            assert (low < [scale, depth]).all()
            assert (high > [scale, depth]).all()
            assert mesh.get_array()[j, i] == 10 * depth + scale
    assert mesh.get_clim()[1] == 60
    assert list(axes.get_yticks()) == [2, 3, 5]
    assert figure.axes[1].get_ylabel() == "rate"


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (4, 6), (9, 3), (2, 40)])
def test_network_diagram_has_a_node_for_each_weight_that_is_not_left_out(depth, width):
    axes = figures.network_diagram(depth, width).axes[0]
    layers, features = (count if count <= 6 else 5 for count in (depth, width))
    assert len(axes.patches) == features * (1 + layers) + 1
    texts = {text.get_text() for text in axes.texts}
    assert {f"$x_{{{width}}}$", f"$u^{{{depth}}}_{{{width}}}$", r"$\Sigma$"} <= texts
    assert (r"$\cdots$" in texts, r"$\vdots$" in texts) == (depth > 6, width > 6)


def test_network_diagram_rejects_networks_without_layers():
    with pytest.raises(ValueError, match="`depth` and `width` must be at least 1, got 0 and 3"):
        figures.network_diagram(0, 3)


def test_labels_have_the_words_and_units_of_the_dataset(sweep):
    time = sweep["time"].assign_attrs(units="s")
    assert figures.axis_label(time) == "flow time $t$ (s)"
    assert figures.axis_label(sweep["gap"]).startswith("loss gap $")


def test_nodes_and_their_levels_are_drawn(network):
    figure = figures.nodes_against_time(network)
    nodes = named_lines(figure)
    np.testing.assert_array_equal([n.get_ydata() for n in nodes], network["layers"][..., 0].T)
    levels = [np.asarray(x.get_ydata())[0] for x in figure.axes[0].lines if x.is_dashed()]
    expected = [np.sqrt(4 - 0.09), np.nan, -np.sqrt(1 - 0.09)]
    np.testing.assert_allclose(levels, expected, rtol=1e-12)
    assert "smallest" in str(nodes[1].get_label())


def test_missing_layers_of_a_shallower_network_are_left_out(network):
    padded = network.pad(layer=(0, 2))
    assert len(named_lines(figures.nodes_against_time(padded))) == 3


def test_pdf_embeds_truetype_fonts(sweep):
    pdf = saved(figures.gap_against_time(sweep, over="network.scale"), "pdf")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_same_figure_gives_the_same_file(sweep, kind):
    def file():
        figure = figures.gap_against_time(sweep, over="network.scale")
        buffer = io.BytesIO()
        metadata = {"CreationDate": None} if kind == "pdf" else {}
        figure.savefig(buffer, format=kind, metadata=metadata)
        return buffer.getvalue()

    assert file() == file()


def test_png_contains_its_description(sweep):
    figure = figures.gap_against_time(sweep, over="network.scale")
    with Image.open(io.BytesIO(saved(figure, "png"))) as image:
        assert image.info["Description"] == figures.describe(figure)
    assert figures.describe(figure) == (
        "loss gap ℒ(θ(t)) - ℒ* against flow time t. "
        "Lines: a = 1, a = 1.4, a = 1.8, bound of Theorem 2."
    )


@pytest.mark.parametrize(
    ("against", "label", "ends"),
    [("time", "flow time $t$", [30.0, 60.0]), ("step", "training step $k$", [300, 300])],
)
def test_descent_is_drawn_without_bounds_against_flow_time_or_steps(training, against, label, ends):
    over = "dynamics.optimiser.learning_rate"
    figure = figures.gap_against_time(training, over=over, against=against)
    assert figure.axes[0].get_xlabel() == label
    assert [np.asarray(line.get_xdata())[-1] for line in figure.axes[0].lines] == ends
    assert [line.get_label() for line in named_lines(figure)] == [
        "$\\gamma$ = 0.1",
        "$\\gamma$ = 0.2",
    ]


def test_noisy_curve_has_no_more_markers_than_a_smooth_one(training, sweep):
    spacings = []
    for data, over in [(training, "dynamics.optimiser.learning_rate"), (sweep, "network.scale")]:
        axes = figures.gap_against_time(data, over=over, bounds={}).axes[0]
        _, spacing = cast(tuple[int, int], axes.lines[0].get_markevery())
        spacings.append(spacing)
    assert spacings[0] > 3 * spacings[1]
