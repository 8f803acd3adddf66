"""Configurations: the valid ones, and one error that lists every problem of an invalid one."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from ddln.config.data_schema import FileDataConfig
from ddln.config.dynamics_schema import FlowConfig
from ddln.config.experiment import (
    ConfigError,
    Experiment,
    changes_shape,
    load,
    numeric_leaves,
    substitute,
)
from ddln.config.schema import UniformLawConfig, ZeroFirstLayerInitConfig
from ddln.config.sweep_axes import axis_values

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))
FIGURE4 = ROOT / "configs" / "figure4.toml"

BAD = """
study = "Figure4"
foo = 3
[problem]
data = { kind = "gausian", samples = 10, features = 8 }
[network]
dept = 6
init = { kind = "uniform", low = 1.5, high = 1.2, seed = -1 }
scale = "big"
[dynamics]
spacing = "linar"
until = nan
points = 2.5
[sweep]
"network.scal" = [1.0, 1.4]
"network.scale" = [1, -1]
"network.init.seed" = "a"
"dynamics.rtol" = { logspace = [1, 2] }
"dynamics.until" = [1, 1]
"dynamics.atol" = []
"""
FORMS = "a list, {values = …}, {linspace = …}, {logspace = …}, {range = …} or {expr = …}"
PROBLEMS = f"""
study: must match ^[a-z][a-z0-9_]*$, got "Figure4"
problem.data.kind: unknown kind "gausian", did you mean "gaussian"?
network.depth: is missing
network.init.seed: must be ≥ 0, got -1
network.scale: must be a number, got "big"
network.dept: unknown key, did you mean "depth"?
dynamics.spacing: must be one of 'linear' or 'log', got "linar", did you mean "linear"?
dynamics.until: must be finite, got NaN
dynamics.points: must be a whole number, got 2.5
sweep.network.init.seed: must be {FORMS}
sweep.dynamics.rtol.logspace[2]: is missing
foo: unknown key
sweep.network.scal: not a numeric key, did you mean "network.scale"?
sweep.network.scale[1]: must be > 0, got -1.0
sweep.dynamics.until: values must differ from each other
sweep.dynamics.atol: needs at least one value
"""


def problems_of(*overrides: str) -> str:
    with pytest.raises(ConfigError, match=r"figure4\.toml") as caught:
        load(FIGURE4, overrides)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_survive_a_round_trip_through_toml(path, tmp_path):
    experiment = load(path)
    copy = tmp_path / "copy.toml"
    copy.write_text(experiment.to_toml(), encoding="utf-8")
    assert load(copy) == experiment
    assert load(copy).digest() == experiment.digest()


def test_one_error_lists_every_problem_by_dotted_path(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(BAD, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml:\n") as caught:
        load(path)
    assert sorted(caught.value.problems) == sorted(PROBLEMS.strip().splitlines())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("network.depth=0", "network.depth: must be ≥ 1, got 0"),
        ("network.depth=true", "network.depth: must be a whole number, got true"),
        ("network.scale=2", "network.scale: is swept; set `sweep.network.scale`, or `sweep={}`"),
        ("network.scale.x=2", "network.scale.x: `scale` is not a table"),
        ("network=2", "network: must be a table, got 2"),
        ("sweep=2", "sweep: must be a table, got 2"),
        ("problem.data=2", "problem.data: must be a table, got 2"),
        ("network.init={}", 'network.init.kind: is missing, one of "constant", "balanced"'),
        ("sweep.network.scale={a=[1]}", "network.scale: must be a list, {values = …}"),
        ("sweep.network.depth=[2.5]", "sweep.network.depth[0]: must be a whole number, got 2.5"),
        ("sweep.network.depth=[1, 0]", "sweep.network.depth[1]: must be ≥ 1, got 0"),
        ("sweep.network.scale={range=[3, 3]}", "needs first < end"),
        ("sweep.network.scale={logspace=[1, 400, 2]}", "network.scale[1]: must be finite"),
        ("sweep.network.init.seed={zip='network.scale'}", "seed: must be a list, {values = …}"),
        (
            "sweep.network.init.seed={range=[0, 4], zip='network.scale'}",
            "sweep.network.init.seed: must be as long as network.scale, got 4 values for 3",
        ),
        (
            "sweep.network.init.seed={range=[0, 3], zip='network.scal'}",
            'zip: must name an axis with a dimension, got "network.scal", did you mean "network.sc',
        ),
        ("sweep.network.init.kind=[1]", "sweep.network.init.kind: not a numeric key"),
        ("study=../evil", "study: must match"),
        ("network.init.seed=1979-05-27", "network.init.seed: must be a whole number"),
        ("nonsense", "nonsense: an override is NAME=VALUE"),
        ("network..depth=3", "network..depth=3: an override is NAME=VALUE"),
        ("network.depth=[3", "network.depth: not a TOML value: [3"),
        ("network.depth=3\nstudy='x'", "network.depth: one value at a time"),
        ('problem.data={kind="file", path="no.csv"}', "no.csv: no such file"),
        (
            "dynamics.kind=mirorflow",
            'dynamics.kind: unknown kind "mirorflow", did you mean "mirror',
        ),
    ],
)
def test_invalid_override_is_reported(override, expected):
    assert expected in problems_of(override)


def test_unreadable_file_gives_one_message(tmp_path):
    for content, expected in [(b"a = [", "not|Invalid|Unclosed"), (b"\xff\xfe", "utf-8")]:
        path = tmp_path / "broken.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=expected):
            load(path)
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)


def test_override_values_are_toml_or_bare_words():
    experiment = load(
        FIGURE4,
        [
            "network.depth=8",
            "sweep.network.scale=[1,2]",
            "dynamics.solver=dopri8",
            "sweep.dynamics.rtol={logspace=[-9,-8,2]}",
        ],
    )
    assert experiment.network.depth == 8
    assert isinstance(experiment.dynamics, FlowConfig)
    assert experiment.dynamics.solver == "dopri8"
    assert list(experiment.sweep) == ["network.scale", "dynamics.rtol"]
    assert load(FIGURE4, ["sweep={}", "network.scale=2"]).network.scale == 2.0


def test_axis_names_need_no_quotes(tmp_path):
    text = FIGURE4.read_text(encoding="utf-8").replace('"network.scale" =', "network.scale =")
    path = tmp_path / "unquoted.toml"
    path.write_text(text, encoding="utf-8")
    assert load(path) == load(FIGURE4)


def test_axis_forms_expand_to_their_values():
    experiment = load(
        FIGURE4,
        [
            "sweep.network.scale={linspace=[1, 2, 3]}",
            "sweep.dynamics.rtol={logspace=[-9, -7, 3]}",
            "sweep.network.init.seed={range=[0, 3]}",
            "sweep.network.depth={linspace=[2, 6, 3]}",
        ],
    )
    leaves = numeric_leaves(experiment)
    values = [axis_values(axis, leaves[name]) for name, axis in experiment.sweep.items()]
    assert values[0] == [1.0, 1.5, 2.0]
    np.testing.assert_allclose(values[1], [1e-9, 1e-8, 1e-7])
    assert values[2:] == [[0, 1, 2], [2, 4, 6]]
    assert {type(value) for axis in values[2:] for value in axis} == {int}


def test_every_numeric_leaf_can_be_set_and_swept():
    experiment = load(FIGURE4, ["sweep={}"])
    leaves = numeric_leaves(experiment)
    document = tomllib.loads(experiment.to_toml())
    for name in leaves:
        value = document
        for part in name.split("."):
            value = value[part]
        assert type(value) in (int, float)
        assert experiment.with_({f"sweep.{name}": [value]}).sweep
    shapes = {name for name, leaf in leaves.items() if changes_shape(leaf)}
    assert shapes == {
        "network.depth",
        "problem.data.samples",
        "problem.data.features",
        "dynamics.points",
        "dynamics.max_steps",
    }


def test_with_validates_accepts_arrays_and_copies():
    experiment = load(FIGURE4)
    changed = experiment.with_({"sweep.network.scale": np.array([1.0, 3.0]), "network.depth": 3})
    assert changed.sweep == {"network.scale": (1.0, 3.0)}
    assert experiment.network.depth == 6
    with pytest.raises(ConfigError, match=r"network\.depth: must be ≥ 1, got 0"):
        experiment.with_({"network.depth": 0})


def test_substitute_does_not_validate():
    marker = object()
    changed = substitute(load(FIGURE4), {"network.init.law.low": marker, "network.scale": marker})
    assert isinstance(changed.network.init, ZeroFirstLayerInitConfig)
    assert isinstance(changed.network.init.law, UniformLawConfig)
    assert changed.network.init.law.low is marker
    assert changed.network.scale is marker


def test_explicit_layers_must_fit_depth_and_features():
    layers = "network.init={kind='explicit', layers=[[1,2,3,4,5,6,7,8], [1,2]]}"
    assert "network.init.layers: 2 rows for depth 6" in problems_of(layers)
    assert "network.init.layers[1]: 2 weights for 8 features" in problems_of(
        layers, "network.depth=2"
    )
    rows = json.dumps([[0.0] * 8, [1.0] * 8])
    fits = [f"network.init={{kind='explicit', layers={rows}}}", "network.depth=2"]
    assert load(FIGURE4, fits).network.depth == 2
    expected = problems_of(*fits, "sweep.network.depth=[2, 3]")
    assert "2 rows for depth 3 (swept to network.scale = 1.0, network.depth = 3)" in expected


def test_rules_between_keys_hold_on_the_whole_grid():
    sparse = "problem.data={kind='sparse', samples=3, features=4, nonzeros=2}"
    expected = problems_of(sparse, "sweep.problem.data.nonzeros={range=[1, 6]}")
    assert "nonzeros must be ≤ features, got 5 and 4" in expected
    expected = problems_of("sweep.network.init.law.low=[0.1, 2.0]")
    assert "low must be < high, got 2.0 and 1.2" in expected


def test_rules_between_zipped_keys_hold_at_every_point_and_only_there():
    low = "sweep.network.init.law.low=[0.1, 2.0, 0.5]"
    high = "sweep.network.init.law.high={values=[1.0, 3.0, %s], zip='network.init.law.low'}"
    assert load(FIGURE4, [low, high % 0.7]).sweep
    assert "low must be < high, got 0.5 and 0.4" in problems_of(low, high % 0.4)


def test_zipped_values_may_repeat_but_points_may_not():
    scales = "sweep.network.scale=[1.0, 1.0, 2.0]"
    seeds = "sweep.network.init.seed={values=[%s, 7, 7], zip='network.scale'}"
    assert load(FIGURE4, [scales, seeds % 6]).sweep
    assert "network.scale: values must differ from each other" in problems_of(scales, seeds % 7)


def test_digest_depends_on_experiment_and_data(tmp_path):
    assert load(FIGURE4, ["network.depth=6"]).digest() == load(FIGURE4).digest()
    assert load(FIGURE4, ["network.depth=7"]).digest() != load(FIGURE4).digest()
    table = tmp_path / "table.csv"
    override = f"problem.data={{kind='file', path='{table}'}}"
    table.write_text("a,target\n1,2\n3,5\n", encoding="utf-8")
    before = load(FIGURE4, [override]).digest()
    table.write_text("a,target\n1,2\n3,54\n", encoding="utf-8")
    assert load(FIGURE4, [override]).digest() != before


def test_data_path_is_relative_to_the_config(tmp_path, monkeypatch):
    (tmp_path / "table.csv").write_text("a,target\n1,2\n", encoding="utf-8")
    text = FIGURE4.read_text(encoding="utf-8").splitlines()
    text = [
        'data = { kind = "file", path = "table.csv" }' if line.startswith("data") else line
        for line in text
    ]
    (tmp_path / "own.toml").write_text("\n".join(text), encoding="utf-8")
    here = load(tmp_path / "own.toml").problem.data
    monkeypatch.chdir(tmp_path)
    for data in (here, load("own.toml").problem.data):
        assert isinstance(data, FileDataConfig)
        assert data.path == str(tmp_path / "table.csv")


def test_problems_of_a_data_file_are_reported_once_with_the_others(tmp_path):
    data = f"problem.data={{kind='file', path='{tmp_path}/a.csv'}}"
    others = ["network.depth=0", "problem.loss={kind='logistic', normalisation='x'}"]
    missing = problems_of(data, *others).splitlines()
    assert missing[0] == f"problem.data: {tmp_path}/a.csv: no such file"
    assert [line.partition(":")[0] for line in missing[1:]] == [
        "problem.loss.normalisation",
        "network.depth",
    ]
    (tmp_path / "a.csv").write_text("x,target\n1,1\n2,0\n3,5\n", encoding="utf-8")
    targets = problems_of(data, "problem.loss.kind=logistic", "network.depth=0").splitlines()
    assert targets == [
        'problem.data: a.csv: row 3, column "target": must be -1 or 1, got 0',
        'problem.data: a.csv: row 4, column "target": must be -1 or 1, got 5',
        "network.depth: must be ≥ 1, got 0",
    ]


def test_every_inconsistency_between_tables_is_reported():
    found = problems_of(
        "network.init={kind='explicit', layers=[[1]]}",
        "dynamics={kind='descent', steps=9, optimiser={kind='sgd', learning_rate=1},"
        "sampling={batch=11}, measure=['gain']}",
        "devices.features=3",
        "sweep={}",
    )
    assert [line.partition(":")[0] for line in found.splitlines()] == [
        "network.init.layers",
        "network.init.layers[0]",
        "dynamics.sampling.batch",
        "dynamics.measure",
        "devices.features",
    ]


def test_nested_axes_replace_dotted_ones_in_order():
    nested = "sweep.network={scale=[2], init={seed=[3]}}"
    for overrides in (["sweep.network.scale=[1]", nested], [nested]):
        assert list(load(FIGURE4, overrides).sweep.items()) == [
            ("network.scale", (2,)),
            ("network.init.seed", (3,)),
        ]
    assert load(FIGURE4, [nested, "sweep.network.scale=[5]"]).sweep["network.scale"] == (5,)
    changed = load(FIGURE4).with_({"sweep": {"network": {"depth": [2, 3]}}})
    assert changed.sweep == {"network.depth": (2, 3)}


def test_every_key_of_the_schema_is_described():
    schema = Experiment.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    for table in tables:
        assert table.get("description"), table.get("title")
        for name, key in table.get("properties", {}).items():
            known = "description" in key or "$ref" in key or "oneOf" in key
            assert known or name in ("kind", "values", "linspace", "logspace", "range"), (
                table["title"],
                name,
            )


def test_reading_and_planning_a_config_imports_no_heavy_library():
    code = (
        "import sys, ddln.cli.main, ddln.config.datasets;"
        "import ddln.sweeps.run_folder, ddln.sweeps.studies;"
        "from ddln.config.experiment import load; from ddln.sweeps.plan import make_plan;"
        "make_plan(load(sys.argv[1]));"
        "print(sorted({'jax', 'xarray', 'matplotlib', 'scipy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(FIGURE4)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_solver_unsuited_to_the_flow_is_refused():
    with pytest.raises(ConfigError, match="rodas5p is for the gradient flow in reduced coord"):
        load(FIGURE4, ["dynamics.solver=rodas5p", "dynamics.coordinates=layers"])


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ('"network.depth" = [2, 9223372036854775808]', r"network.depth\[1\]: must be < "),
        (f'"network.depth" = [{10**400}]', r"network.depth\[0\]: must be < "),
        (f'"network.scale" = [{10**400}]', "network.scale.*finite"),
    ],
)
def test_integers_beyond_64_bits_are_refused(tmp_path, axis, expected):
    text = FIGURE4.read_text().partition("[sweep]")[0]
    (tmp_path / "a.toml").write_text(f"{text}[sweep]\n{axis}\n")
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path / "a.toml")
