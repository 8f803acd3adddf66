"""Sweep axes that are computed from other axes."""

import ast
import math
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddln.config import _expressions
from ddln.config._expressions import LONGEST, ExpressionError, parse
from ddln.config.experiment import ConfigError, load
from ddln.config.experiment import parse as parse_config
from ddln.sweeps.plan import make_plan

FIGURE4 = "configs/figure4.toml"
UNTIL = "sweep.dynamics.until={expr='%s'}"
SEEDS = "sweep.network.init.seed=[1, 2, 3]"
ROUNDING = 1e-15  # both are correctly rounded, or within a unit of it

LEAVES = st.one_of(
    st.floats(0.01, 100.0).map(repr), st.integers(1, 9).map(str), st.just("scale"), st.just("x")
)


def combined(inner):
    pairs = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner)
    return st.one_of(
        pairs.map(lambda parts: f"({' '.join(parts)})"),
        inner.map("-{}".format),
        st.tuples(st.sampled_from(["sqrt", "exp", "log"]), inner).map(lambda f: f"{f[0]}({f[1]})"),
    )


def columns(*overrides):
    """The values of every axis, and the dimension it lies along."""
    axes = make_plan(load(FIGURE4, overrides)).axes
    return {axis.name: axis.values.tolist() for axis in axes}, {axis.dimension for axis in axes}


def names_in(text):
    """The axes that an expression depends on, in a sweep over the scale."""
    return [_expressions.resolve(name, ["network.scale"]) for name in parse(text).names]


def refusal(*overrides):
    with pytest.raises(ConfigError, match=r"sweep\.") as caught:
        load(FIGURE4, overrides)
    return str(caught.value)


@settings(deadline=None)
@given(st.recursive(LEAVES, combined, max_leaves=8), st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_values_match_python(text, scale, x):
    if len(text) > LONGEST:
        return
    functions = {"sqrt": math.sqrt, "exp": math.exp, "log": math.log}
    try:
        expected = eval(text, {"__builtins__": {}}, {"scale": scale, "x": x, **functions})
    except (ArithmeticError, ValueError):
        expected = math.nan
    values = {"scale": scale, "x": x}
    if isinstance(expected, complex) or not abs(expected) < 1e300:
        with pytest.raises(ExpressionError, match=r"finite|not a real number|division by zero"):
            parse(text)(values)
    else:
        assert parse(text)(values) == pytest.approx(expected, rel=ROUNDING, abs=0.0)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.text(string.printable, max_size=60)))
def test_any_text_is_evaluated_or_refused(text):
    try:
        expression = parse(text)
        value = expression(dict.fromkeys(expression.names, 1.5))
    except ExpressionError:
        return
    assert math.isfinite(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "scale.__class__.__mro__[1]",
        "().__class__",
        "(lambda: 1)()",
        "[scale for scale in [1]]",
        "scale if scale else 1",
        "scale := 2",
        "f'{scale}'",
        "b'scale'",
        "scale // 2",
        "scale % 2",
        "scale << 9",
        "~scale",
        "not scale",
        "scale < 2",
        "scale, 2",
        "log(scale, 2)",
        "log(x=scale)",
        "log(*scale)",
        "pow(scale, 2)",
        "True + scale",
        "None",
        "...",
        "1j * scale",
        "1" * 150 + "e300",
        "1if scale else 2",
        "scale = 2",
        "scale; scale",
        "eval",
        "",
        " ",
        "\x00",
        "scale +",
        "scale\n+ 1",
        "(" * 199,
        "[" * 90 + "]" * 90,
        "-" * 300 + "scale",
        "9" * 201,
    ],
)
def test_text_other_than_arithmetic_is_refused(text):
    with pytest.raises(ExpressionError, match=r"\w+") as caught:
        names_in(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["9**9**9**9**scale", "1e300 * 1e300 * scale", "exp(exp(exp(9)))"])
def test_huge_values_are_refused_at_once(text):
    with pytest.raises(ExpressionError, match=r"must be finite, got (inf|-inf)"):
        parse(text)({"scale": 9.0})


def test_integer_beyond_every_float_is_refused():
    with pytest.raises(ExpressionError, match="must be finite, got inf at depth = 10000000…"):
        parse("1 / depth")({"depth": 10**400})


def test_deep_nesting_up_to_the_longest_text_evaluates():
    for text in ("-" * (LONGEST - 5) + "scale", "+".join(["1"] * (LONGEST // 2)), "1**" * 9 + "2"):
        assert math.isfinite(parse(text)({"scale": 1.0}))


def test_expression_axis_lies_along_the_axis_it_depends_on():
    values, dimensions = columns(UNTIL % "3 * scale**-2")
    assert values["dynamics.until"] == [3 * scale**-2 for scale in (1.0, 1.4, 1.8)]
    assert dimensions == {"network.scale"}


def test_expression_axis_follows_changes_of_its_argument():
    changed = load(FIGURE4, [UNTIL % "2 * scale"]).with_({"sweep.network.scale": [2.0, 5.0]})
    assert make_plan(changed).axes[1].values.tolist() == [4.0, 10.0]
    assert columns(UNTIL % "2 * scale", "sweep.network.scale=[7.0]")[0]["dynamics.until"] == [14.0]


def test_axis_names_may_be_full_or_quoted():
    expected = columns(UNTIL % "scale + 1")
    assert columns(UNTIL % "network.scale + 1") == expected
    assert columns("sweep.dynamics.until={expr='\"network.scale\" + 1'}") == expected


def test_several_axes_along_one_dimension_may_be_combined():
    seeds = "sweep.network.init.seed={values=[3, 4, 5], zip='network.scale'}"
    values, dimensions = columns(seeds, UNTIL % "scale * seed")
    np.testing.assert_allclose(values["dynamics.until"], [3.0, 5.6, 9.0])
    assert dimensions == {"network.scale"}


def test_whole_numbers_stay_whole():
    depth = "sweep.network.depth={expr='2 * seed'}"
    values, _ = columns("sweep={}", SEEDS, depth)
    assert values["network.depth"] == [2, 4, 6]
    assert {type(value) for value in values["network.depth"]} == {int}


def test_expression_is_kept_with_the_experiment():
    experiment = load(FIGURE4, [UNTIL % "3 * scale**-2"])
    assert parse_config(experiment.to_toml()) == experiment
    assert experiment.digest() != load(FIGURE4, [UNTIL % "3 * scale**-3"]).digest()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([UNTIL % "3 * scal"], 'until.expr: "scal" is not an axis of the sweep with values of its'),
        ([UNTIL % "3 * scal"], 'did you mean "scale"?'),
        ([UNTIL % "until"], 'until.expr: "until" is not an axis'),
        ([UNTIL % "3"], "until.expr: must name another axis of the sweep"),
        ([UNTIL % "1 / (scale - 1)"], "until.expr: division by zero at scale = 1"),
        ([UNTIL % "(scale - 2)**0.5"], "until.expr: not a real number at scale = 1"),
        ([UNTIL % "1 - scale"], "until[0]: must be > 0, got 0.0"),
        ([UNTIL % "scale * seed", SEEDS], "along one dimension, got network.scale and network.in"),
        ([UNTIL % "__import__(1)"], 'until.expr: unknown function "__import__", known: sqrt, exp'),
        ([UNTIL % "scale[0]"], "until.expr: may have numbers, names of axes, + - * / **"),
        (["sweep.network.depth={expr='scale - 1'}"], "depth[0]: must be ≥ 1, got 0"),
        (["sweep.network.depth={expr='2 * scale'}"], "depth[1]: must be a whole number, got 2.8"),
        (["sweep.dynamics.until={expr=3}"], "until.expr: must be text, got 3"),
        (
            ["sweep.dynamics.until={expr='scale', zip='network.scale'}"],
            "varies together with the axes it depends on, and takes no `zip`",
        ),
        (
            [UNTIL % "seed", SEEDS, "sweep.problem.data.seed=[1, 2]"],
            '"seed" could be network.init.seed or problem.data.seed: write more of the name',
        ),
    ],
)
def test_faults_are_reported_with_their_place(overrides, message):
    assert message in refusal(*overrides)


def test_expressions_are_evaluated_without_eval_or_compile():
    source = ast.parse(Path(_expressions.__file__).read_text(encoding="utf-8"))
    called = {
        node.func.id
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"eval", "exec", "compile", "__import__", "getattr"}
