"""Studies and configs: where they are found and how `new` creates them."""

from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import ddln
from ddln.config.data_files import read_table
from ddln.config.experiment import load
from ddln.sweeps import studies
from ddln.sweeps.studies import StudyError

STUDY = '''"""{about}."""
from matplotlib.figure import Figure


def claims(dataset):
    return []


def draw(dataset):
    return Figure()
'''


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.chdir(own)
    return own


def write(folder, name, text):
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    (folder / "experiments" / f"{name}.py").write_text(text, encoding="utf-8")


def test_study_of_the_user_precedes_the_shipped_one(own_folder, tmp_path, monkeypatch):
    package = tmp_path / "package"
    monkeypatch.setattr(studies, "shipped", lambda: package)
    for about, folder in (("shipped", package), ("own", own_folder)):
        write(folder, "mine", STUDY.format(about=about))
        assert studies.find("mine").__doc__ == f"{about}."


def test_study_beside_a_config_is_reported_and_not_run(own_folder, tmp_path):
    beside = tmp_path / "beside"
    write(beside, "mine", "raise SystemExit('run')")
    message = rf"mine\.py is code, which runs only from its own folder: cd {beside}$"
    for function in (studies.locate, studies.find):
        with pytest.raises(StudyError, match=message):
            function("mine", beside / "configs")


def test_every_shipped_config_has_a_study_with_a_title():
    listed = dict(studies.configs())
    assert {path.stem for path in listed} >= {"figure3", "figure4", "diabetes", "architecture"}
    for path, about in listed.items():
        assert about.endswith(".")
        assert studies.locate(load(path).study).is_file()


def test_config_is_found_by_path_or_name_that_of_the_user_first(own_folder):
    assert studies.find_config("figure4") == studies.shipped() / "configs" / "figure4.toml"
    (own_folder / "configs").mkdir()
    own = own_folder / "configs" / "figure4.toml"
    own.write_text("")
    assert studies.find_config("figure4") == own
    assert str(studies.find_config("configs/figure4.toml")) == "configs/figure4.toml"
    with pytest.raises(
        StudyError, match=r'configs/figur4\.toml: no such file, did you mean "figure4"'
    ):
        studies.find_config("configs/figur4.toml")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "os.path", "Figure4", "a\n"])
def test_study_name_that_leaves_the_folder_is_refused(name):
    with pytest.raises(StudyError, match="study: must match"):
        studies.find(name)
    with pytest.raises(StudyError, match="a name must match"):
        studies.create(name, studies.Path())


def test_missing_study_is_an_error_that_lists_the_studies():
    with pytest.raises(StudyError, match=r'no experiments/figur4.py, did you mean "figure4"\?'):
        studies.find("figur4")
    with pytest.raises(StudyError, match=r"known: .*figure3.*`ddln new zzz` makes one"):
        studies.find("zzz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def claims(:", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError: No module named"),
        ("def claims(dataset): return []", r"must define draw\(dataset\)"),
        ("claims = 3", r"must define claims\(dataset\)"),
    ],
)
def test_unusable_study_gives_one_message(own_folder, text, message):
    write(own_folder, "broken", text)
    with pytest.raises(StudyError, match=rf"broken\.py(:1)?: {message}"):
        studies.find("broken")


def test_broken_study_is_still_listed(own_folder):
    (own_folder / "configs").mkdir()
    (own_folder / "configs" / "broken.toml").write_text("")
    write(own_folder, "broken", "def claims(:")
    assert ("broken", "") in [(path.stem, about) for path, about in studies.configs()]


def test_figures_are_named(own_folder):
    write(own_folder, "one", STUDY.format(about="one"))
    assert list(studies.figures(studies.find("one"), None)) == ["one"]
    several, drawn = ModuleType("several"), {"a": Figure(), "b": Figure()}
    vars(several)["draw"] = lambda _: drawn
    assert studies.figures(several, None) == drawn


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (lambda: Figure().subplots(), "got Axes; the figure of axes is `axes.figure`"),
        (lambda: None, "got NoneType"),
        (lambda: {"a": Figure(), "b": [1]}, "got list"),
    ],
)
def test_object_that_is_not_a_figure_is_refused(drawn, message):
    study = ModuleType("several")
    vars(study)["draw"] = lambda _: drawn()
    with pytest.raises(StudyError, match=rf"draw\(dataset\) must give a Figure, .*{message}$"):
        studies.figures(study, None)


def test_error_of_a_study_names_its_file_and_line(own_folder):
    write(own_folder, "mine", STUDY.format(about="mine") + "def helper(x):\n    return x[1]\n")
    text = (own_folder / "experiments" / "mine.py").read_text()
    text = text.replace("    return []", "    return (\n        helper({}))")
    write(own_folder, "mine", text)
    line = text.splitlines().index("    return x[1]") + 1
    with pytest.raises(
        StudyError, match=rf"mine\.py:{line}: experiments.mine cannot .*KeyError: 1"
    ):
        studies.claims(studies.find("mine"), {})
    write(own_folder, "mine", "import sys\n\ndef claims(:\n")
    with pytest.raises(StudyError, match=r"mine\.py:3: SyntaxError: invalid syntax$"):
        studies.find("mine")


def test_failure_of_a_study_on_a_data_set_gives_one_message(own_folder):
    study = ModuleType("experiments.mine")
    vars(study).update(dict.fromkeys(("claims", "draw"), lambda dataset: dataset["layers"]))
    for use in (studies.claims, studies.figures):
        with pytest.raises(StudyError, match="mine cannot use this data set: KeyError"):
            use(study, {})


def test_claims_without_a_source_have_the_source_of_the_study():
    study = ModuleType("experiments.mine")
    vars(study)["SOURCE"] = "Woodworth et al. 2020"
    vars(study)["claims"] = lambda _: [
        ddln.claim.equal("default", 1, 1, tol=0, why="exact"),
        ddln.claim.equal("own", 1, 1, tol=0, why="exact", source="Theorem 2"),
    ]
    rows = studies.claims(study, None)
    assert [row["source"] for row in rows] == ["Woodworth et al. 2020", "Theorem 2"]
    del vars(study)["SOURCE"]
    assert [row["source"] for row in studies.claims(study, None)] == ["", "Theorem 2"]


@pytest.mark.parametrize("number", [0.25, np.float32(0.25), np.array(0.25), jnp.asarray(0.25)])
def test_claim_takes_any_single_number(number):
    for make in (ddln.claim.equal, ddln.claim.at_most):
        row = make("name", number, number, tol=number, why="exact", applies=number > 0).row()
        assert (row["measured"], row["predicted"], row["tolerance"]) == (0.25, 0.25, 0.25)
        assert row["statement"] == "name"
        assert row["applies"] is True


def test_claims_of_equality_hold_within_the_tolerance_on_both_sides():
    found = [ddln.claim.equal("", x, 1.0, tol=0.5, why="").holds for x in (0.4, 0.5, 1.5, 1.6)]
    assert list(map(bool, found)) == [False, True, True, False]


def test_claims_of_a_bound_hold_up_to_the_bound_and_tolerance():
    exact = [ddln.claim.at_most("", x, 1.0, why="").holds for x in (-9.0, 1.0, 1.1, np.nan)]
    assert list(map(bool, exact)) == [True, True, False, False]
    assert ddln.claim.at_most("", 1.1, 1.0, tol=0.2, why="").holds
    assert ddln.claim.at_most("", 1.1, 1.0, why="", applies=np.False_).holds


def test_claims_without_a_tolerance_are_exact():
    assert ddln.claim.equal("", 0, 0, why="a count").row()["tolerance"] == 0
    assert not ddln.claim.equal("", 1, 0, why="a count").holds
    row = ddln.claim.at_most("", 0.2, 0.3).row()
    assert (row["tolerance"], row["reason"]) == (0, "only the inequality is claimed")


def test_claim_refuses_several_numbers():
    for make in (ddln.claim.equal, ddln.claim.at_most):
        with pytest.raises(TypeError, match=r"only .* arrays? .*scalar"):
            make("name", np.ones(2), 1.0, tol=0.0, why="exact")


def test_data_file_is_written_beside_the_configs(own_folder):
    recipe = 'def data(): import numpy as np; return {"features": np.eye(2), "targets": [1.0, 2.0]}'
    write(own_folder, "mine", STUDY.format(about="mine") + recipe.replace(": ", ":\n    ", 1))
    made = studies.write_data("mine", own_folder)
    assert made == own_folder / "configs" / "data" / "mine.npz"
    assert [path.name for path in made.parent.iterdir()] == ["mine.npz"]
    names, features, targets = read_table(made)
    assert (names, features.tolist(), targets.tolist()) == (("x1", "x2"), [[1, 0], [0, 1]], [1, 2])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("", r"experiments.mine: must define data\(\), a dictionary of arrays"),
        ("def data(): return 1 / 0", "mine cannot make its data: ZeroDivisionError"),
        ("def data(): return {'features': [[1.0]]}", r'mine\.npz: no array "targets"'),
        ("def data(): return {'features': [[1.0]], 'targets': [1.0, 2.0]}", "differ in rows"),
    ],
)
def test_failing_recipe_gives_a_message_and_no_file(own_folder, recipe, message):
    write(own_folder, "mine", STUDY.format(about="mine") + recipe)
    with pytest.raises(ValueError, match=message):
        studies.write_data("mine", own_folder)
    assert not (own_folder / "configs").exists()


def test_studys_fingerprint_changes_with_its_source(own_folder):
    write(own_folder, "one", STUDY.format(about="one"))
    before = studies.fingerprint(studies.locate("one"))
    write(own_folder, "one", STUDY.format(about="two"))
    assert studies.fingerprint(studies.locate("one")) != before


def test_new_study_is_valid_and_overwrites_nothing(own_folder):
    config, study = studies.create("mine", own_folder)
    assert load(config).study == "mine"
    compile(study.read_text(encoding="utf-8"), str(study), "exec")
    config.unlink()
    with pytest.raises(StudyError, match=r"mine\.py: exists already"):
        studies.create("mine", own_folder)
    assert not config.exists()


def test_study_can_be_created_for_an_existing_config(own_folder):
    config, study = studies.create("mine", own_folder)
    study.unlink()
    config.write_text("# mine\n", encoding="utf-8")
    assert studies.create("mine", own_folder) == [study]
    assert config.read_text(encoding="utf-8") == "# mine\n"
