"""Notebook displays are small, well formed, escaped and correct."""

import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddln
from ddln._internal.text import number
from ddln.plotting import figures, svg
from ddln.solvers.trajectory import Trajectory
from tests.reading import find

HOSTILE = "<script>alert('x')</script>\" onload=\"x"
LARGEST = 60_000  # bytes, so that a hundred displays fit in a notebook
COLOUR = re.compile(r"#[0-9a-f]{6}")
CONTRAST = 1.9  # of a curve on white and on black; markers and dashes distinguish it as well


class Reader(HTMLParser):
    """A strict parser, which requires that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def values():
    """One value of each displayed type, of a small network."""
    problem = ddln.least_squares([[1.0, 0.5]], [1.0])
    layers = jnp.array([[0.0, 0.0], [1.0, 0.8]])
    times = jnp.linspace(0.0, 2.0, 21)
    theta = (1 - jnp.exp(-times))[:, None] * jnp.array([[0.8, 0.4]])
    gap = jax.vmap(problem.gap)(theta)
    path = jnp.broadcast_to(layers, (21, 2, 2))
    end = jnp.asarray(0), {"num_steps": jnp.asarray(7)}
    tolerances = jnp.asarray(1e-9), jnp.asarray(1e-12)
    run = Trajectory(times, path, theta, gap, gap, *end, theta, *tolerances, "reduced")
    claim = ddln.Claim(HOSTILE, HOSTILE, HOSTILE, 1.0, 0.0, 0.0, reason=HOSTILE)
    return {
        "problem": problem,
        "run": run,
        "entropy": ddln.Entropy(layers),
        "frozen": ddln.Entropy(jnp.zeros((2, 1))),
        "certificates": ddln.Certificates((claim,)),
    }


def test_every_display_is_small_well_formed_and_self_contained(values):
    for name, value in values.items():
        shown = value._repr_html_()
        assert len(shown) < LARGEST, name
        tags = Reader(shown).tags
        assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "style"})
        assert not any(key in {"src", "href"} for _, attributes in tags for key in attributes)
        assert "url(" not in shown


def test_displays_use_the_text_colour_of_the_page(values):
    shown = "".join(value._repr_html_() for value in values.values())
    assert "currentColor" in shown
    for colour in {*COLOUR.findall(shown)} - {"currentColor"}:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert min(1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05) > CONTRAST, colour


def test_text_of_a_claim_is_escaped(values):
    shown = values["certificates"]._repr_html_()
    assert Reader(shown).text.count(HOSTILE) == 2
    assert "<script" not in shown
    assert "onload" not in {key for _, attributes in Reader(shown).tags for key in attributes}


def test_display_of_a_run_shows_its_status_and_gaps(values):
    text = Reader(values["run"]._repr_html_()).text
    run = values["run"]
    for fact in ("ended ok", "depth 2", "dim 2", "points 21"):
        assert fact in text
    assert f"{number(float(run.gap[0]))} → {number(float(run.gap[-1]))}" in text


def test_display_of_an_entropy_shows_the_kinds_of_coordinates(values):
    assert "open 2" in Reader(values["entropy"]._repr_html_()).text
    frozen = Reader(values["frozen"]._repr_html_())
    assert "frozen 1" in frozen.text
    assert "svg" not in {tag for tag, _ in frozen.tags}


def test_display_of_a_problem_shows_its_constants(values):
    text = Reader(values["problem"]._repr_html_()).text
    assert "μ 2.5" in text  # 2 ‖x‖²
    unknown = ddln.from_function(lambda theta: jnp.sum(theta**4), dim=1, minimum=0.0)
    assert "μ not known" in Reader(unknown._repr_html_()).text


def test_batches_and_traced_values_are_shown_as_a_line(values):
    runs = jax.tree.map(lambda saved: jnp.stack([saved, saved]), values["run"])
    assert "<svg" not in runs._repr_html_()
    shown = []

    def traced(layers):
        shown.append(ddln.Entropy(layers)._repr_html_())
        return layers

    jax.eval_shape(traced, values["run"].layers[0])
    assert "Entropy" in shown[0]


def test_figure_has_a_notebook_display():
    figure, axes = figures.canvas(1.0, 1.0)
    axes.plot([0, 1])
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("y", "ends"),
    [([1.0, jnp.nan, 3.0], (0.9, 3.1)), ([2.0, 2.0, 2.0], (1.8, 2.2)), ([jnp.nan] * 3, (0.1, 1.0))],
)
def test_chart_of_degenerate_values_has_axes(y, ends):
    drawn = svg.chart([svg.Curve([0.0, 1.0, 2.0], y, HOSTILE)], svg.Axis("t"), svg.Axis())
    low, high = map(float, find(r'data-y="(\S+) (\S+)"', drawn).groups())
    np.testing.assert_allclose([low, high], ends, atol=0.06)
    Reader(drawn)
    assert "<script" not in drawn
    assert "nan" not in re.findall(r' d="(.*?)"', drawn)[0]


def test_long_name_is_shortened_in_the_legend_only():
    name = "scale = 1.4, " * 20
    drawn = svg.chart([svg.Curve([0.0, 1.0], [1.0, 2.0], name)], svg.Axis(), svg.Axis())
    assert f"<title>{name}</title>" in drawn
    (shown,) = re.findall(r">(scale = [^<]*…)</text>", drawn)
    assert len(shown) < 100
    assert name.startswith(shown[:-1])


def test_ticks_are_round_numbers_within_the_axis():
    for low, high in ((0.0, 1.0), (-3.7, 9.2), (1e-7, 3e-7), (12_000.0, 90_000.0)):
        marks, unit = svg._ticks(low, high, log=False)
        places = [place for place, _ in marks]
        assert 3 <= len(places) <= 8
        assert low <= places[0]
        assert places[-1] <= high * (1 + 1e-12)
        assert bool(unit) == (high < 1e-2 or high >= 1e5)
    assert [words for _, words in svg._ticks(1e-12, 1.0, log=True)[0]][:2] == ["10⁻¹²", "10⁻⁹"]
