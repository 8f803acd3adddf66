"""The pages: their commands run, their links resolve, the references are complete."""

import contextlib
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from typer.main import get_group
from typer.testing import CliRunner

import ddln
from ddln.cli import main as cli
from ddln.config.experiment import Experiment
from ddln.solvers.status import Status
from ddln.sweeps import dataset_schema
from docs import python_api
from docs.__main__ import config, results
from docs.variables import variables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TINY = ["network.depth=2", "dynamics.points=101", "dynamics.until=1.0", "dynamics.rtol=1e-6"]
QUICK = {"check", "list", "new", "schema", "--help", "--version", "--show-completion"}
VERBS = get_group(cli.app).commands
LEFT_ALONE = {"--install-completion", "explore"}
"""The one changes the machine, the other does not end."""


class Block(NamedTuple):
    """A fenced block of a page: its language, the title of its file, its text."""

    language: str
    title: str
    text: str


def blocks(page):
    found = re.findall(
        r"^```(\w+)(?: title=\"(.*?)\")?\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    return [Block(*block) for block in found]


def commands(block):
    lines = block.text.splitlines() if block.language == "console" else []
    typed = [line for line in lines if line.startswith("ddln ") and "$" not in line]
    return [shlex.split(line, comments=True)[1:] for line in typed]


def plain(path):
    """A page without its blocks."""
    return re.sub(
        r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )


def test_ratios_on_the_pages_are_those_measured():
    measured = {}
    for line in (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            way, _, ratio, *_ = [cell.strip() for cell in line.split("|")[1:]]
            measured[way] = ratio
    quoted = {
        ("README.md", r"([\d.]+) times as fast as `vmap` of diffrax"): "diffrax, vmap over layers",
        ("README.md", r"([\d.]+) times as fast as a hand-written"): "Numba loop, 2 threads",
        ("docs/comparison.md", r"in Numba, .*?\| ([\d.]+) times"): "Numba loop, 2 threads",
        ("docs/comparison.md", r"diffrax, `vmap` .*?\| (\d+) times"): "diffrax, vmap over layers",
        ("docs/comparison.md", r"SciPy, one .*?\| (\d+) times"): "SciPy LSODA, one by one",
        ("docs/comparison.md", r"torchdiffeq, .*?\| (\d+) times"): "torchdiffeq, batched",
        ("docs/comparison.md", r"BDF, .*? takes (\d+) times"): "SciPy BDF, one by one",
        ("docs/comparison.md", r"descent is (\d+) times as slow"): "ddln, one network",
        ("docs/comparison.md", r"and (\d+) times against 256"): "ddln, 256 networks",
    }
    for (page, pattern), way in quoted.items():
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        found = re.search(pattern, text)
        assert found, (page, pattern)
        assert found[1] == measured[way], (page, way)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "figure4.toml", tmp_path / "configs")
    monkeypatch.setattr(cli, "start_jax", lambda *_: None)

    def call(arguments):
        done = CliRunner().invoke(cli.app, arguments, prog_name="ddln")
        assert done.exit_code == 0, f"{arguments}: {done.output} {done.exception!r}"
        return done.stdout

    return call


def follow(page, call, tiny=None):
    """Run the commands of a page with the overrides `tiny`; without them, only plan its runs."""
    outputs = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        for arguments in commands(block):
            verb = arguments[0]
            if verb in QUICK:
                outputs.append(call(arguments))
            elif tiny is None:
                if verb in ("run", "verify"):
                    call(["check", *without_options(arguments[1:])])
            elif verb in ("run", "verify"):
                outputs.append(call([*arguments, *tiny]))
            elif verb not in LEFT_ALONE:
                outputs.append(call(arguments))
    return outputs


def without_options(words):
    """The words of a `run` command without the options that `check` lacks."""
    taking = [i for i, word in enumerate(words) if word in ("--out", "--cluster")]
    values = {i + 1 for i in taking}
    return [w for i, w in enumerate(words) if i not in values and not w.startswith("--")]


TYPED = [page for page in PAGES if any(map(commands, blocks(page.read_text(encoding="utf-8"))))]


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.stem)
def test_commands_on_the_pages_are_valid(page, call):
    follow(page, call)


ELSEWHERE = {"cluster": "test_cluster", "experiments": "test_experiments"}
"""Pages, and folders of them, whose runs have tests of their own."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in TYPED if not {page.stem, page.parent.name} & ELSEWHERE.keys()],
    ids=lambda page: page.stem,
)
def test_commands_on_the_pages_run(page, call):
    if page.stem == "howto":  # its runs are those of the first run
        call(["run", "figure4", *TINY])
    follow(page, call, TINY)


def test_quick_start_ends_with_a_sweep_on_the_users_file(call, tmp_path):
    page = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    *_, plan, folder = [block.text for block in blocks(page) if block.language == "text"]
    message = follow(DOCS / "quickstart.md", call)
    pattern = r".*".join(re.escape(part) for part in plan.split("…"))
    assert re.fullmatch(pattern, message[-1])
    shown = call(["run", "prices", *TINY, "dynamics.solver=tsit5"])
    assert "networks: 5 ok" in shown
    assert shown.splitlines()[-1].startswith(folder.partition("…")[0])
    (run,) = (tmp_path / "runs").iterdir()
    assert "price" in (run / "config.toml").read_text(encoding="utf-8")
    assert (run / "report.html").is_file()
    assert {path.suffix for path in (run / "figures").iterdir()} >= {".png", ".pdf"}


def test_the_page_on_data_shows_what_check_prints(call):
    page = DOCS / "data.md"
    shown = [block.text for block in blocks(page.read_text(encoding="utf-8"))]
    plan, *_ = [text for text in shown if text.startswith("  problem")]
    assert any(plan in told for told in follow(page, call))


def test_badges_state_what_the_project_declares():
    badges = re.findall(r"shields\.io/badge/(\S+?)-\w+\)", (ROOT / "README.md").read_text())
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = re.findall(r'"(3\.\d+)"', (ROOT / ".github" / "workflows" / "ci.yml").read_text())
    oldest, *_, newest = sorted(set(tested), key=lambda version: int(version.partition(".")[2]))
    assert declared["requires-python"] == f">={oldest}"
    assert badges == [
        f"Python-{oldest}_to_{newest}",
        f"licence-{declared['license'].replace('-', '--')}",
        f"arXiv-{declared['urls']['Paper'].rpartition('/')[2]}",
    ]


def slug(heading):
    """A heading's anchor, as Python-Markdown makes it."""
    text = re.sub(r"[`*]|[^\w\s-]", "", heading, flags=re.ASCII)
    return re.sub(r"[-\s]+", "-", text.strip().lower())


def anchors(path):
    made = {"config.md": config, "results.md": results}.get(path.name, str)
    text = plain(path) + made()
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_have_targets(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", plain(page)):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


FORMULA = re.compile(r"(?<![\\$\w])(\$\$?)(?![\s$]*\$)(.+?)\1(?![\w$])", re.DOTALL)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_formulas_read_alike_on_github_and_on_the_site(page):
    """GitHub takes a backslash before punctuation for an escape, and tables split at bars."""
    text = re.sub(r"`[^`\n]*`", "", plain(page))
    formulas = [body for _, body in FORMULA.findall(text)]
    assert [body for body in formulas if re.search(r"\\[^A-Za-z\s]|\||\n\n", body)] == []
    assert "$" not in FORMULA.sub("", text)


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = {path.relative_to(DOCS).as_posix() for path in PAGES}
    assert sorted(navigation) == sorted(pages)


def test_verbs_that_the_pages_name_exist():
    for page in [*PAGES, ROOT / "README.md"]:
        named = set(re.findall(r"`ddln ([a-z]+)\b", page.read_text(encoding="utf-8")))
        assert named <= VERBS.keys(), page.name


def test_every_verb_is_on_the_page_of_the_command_line():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    verbs = [name for name, verb in VERBS.items() if not verb.hidden]
    assert [verb for verb in verbs if not re.search(rf"`{verb}\b", page)] == []


def test_every_status_is_under_troubleshooting_with_its_meaning():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", page, re.MULTILINE)
    assert dict(rows) == {status.value: status.meaning for status in Status}


def test_config_reference_lists_every_key_with_range_default_and_meaning():
    schema = Experiment.model_json_schema()
    text = config()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    tables = [schema, *schema["$defs"].values()]
    keys = [key for table in tables for key in table.get("properties", ())]
    assert sorted(row[0].strip("| `") for row in rows) == sorted(keys)
    bare = [row[0] for row in rows if len(row) != 5 or not row[3] or row[4] == " |"]
    assert bare == []
    assert "| `rtol` | number | > 0, < 1 | `1e-09` | relative tolerance |" in text.replace(
        "&gt;", ">"
    ).replace("&lt;", "<")


def test_links_of_the_reference_lead_to_its_tables():
    text = config()
    targets, ids = re.findall(r"\(#(\w+)\)", text), re.findall(r"\{ #(\w+) \}", text)
    assert set(targets) <= set(ids)
    assert len(set(ids)) == len(ids)


def test_python_reference_lists_every_name_once():
    pages = python_api.pages()
    documented = re.findall(r"^::: ddln\.([\w.]+)$", "\n".join(pages.values()), re.MULTILINE)
    named = {name.partition(".")[0] for name in documented}
    assert set(ddln.__all__) - {"__version__"} == named
    assert {"init.balanced", "theory.min_l1", "diagnostics.gain"} <= set(documented)
    objects = [id(python_api.find(f"ddln.{name}")) for name in documented]
    assert len(set(objects)) == len(objects)


def test_summary_of_the_reference_leads_to_every_entry():
    overview, *details = python_api.pages().values()
    rows = re.findall(r"^\| \[`(.+)`\]\((api/\w+\.md)#(.+)\) \| (.+) \|$", overview, re.MULTILINE)
    entries = re.findall(r"^::: (.+)$", "\n".join(details), re.MULTILINE)
    assert [anchor for _, _, anchor, _ in rows] == entries == [name for name, *_ in rows]
    assert all((DOCS / page).is_file() for _, page, *_ in rows)


def test_reference_of_variables_is_that_of_the_schema():
    rows = [line.split(" | ") for line in variables().splitlines() if line.startswith("| `")]
    table = {row[0].strip("| `"): row for row in rows}
    never_saved = {"smallest", "initial_layers", "divergence"}
    assert table.keys() == dataset_schema.VARIABLES.keys() - never_saved
    assert table["theta"][1:3] == ["`time`, `coordinate`", "1"]
    assert table["theta"][4:] == ["every run", "`theta` |"]
    assert table["bound"][4:] == ["flows", "`loss` |"]
    assert table["step"][4] == "training by steps"
    assert table["dose"][4] == "flows with `weight_decay`"
    assert table["gain"][4] == "runs with this `measure`"


class Tracker(ModuleType):
    """Stands in for wandb and mlflow: keeps what each run logs."""

    def __init__(self, name):
        super().__init__(name)
        self.points, self.rows = [], []

    @contextlib.contextmanager
    def init(self, *, project, config, mode):
        assert (project, mode) == ("figure4", "offline")
        self.log_params(config)
        yield SimpleNamespace(log=self.rows.append)

    def set_tracking_uri(self, uri):
        assert uri.startswith("sqlite:///")

    def set_experiment(self, name):
        assert name == "figure4"

    start_run = contextlib.nullcontext

    def log_params(self, params):
        self.points.append(params)

    def log_metric(self, key, value, *, step):
        assert isinstance(step, int)
        self.rows.append({key: value})


@pytest.mark.slow
def test_recipes_for_trackers_log_each_network_as_a_run(monkeypatch):
    small = ["network.depth=2", "dynamics.until=1.0", "dynamics.points=11"]
    dataset = ddln.run(ddln.load(ROOT / "configs" / "figure4.toml", small))
    page = (DOCS / "export.md").read_text(encoding="utf-8")
    for name in ("wandb", "mlflow"):
        tracker = Tracker(name)
        monkeypatch.setitem(sys.modules, name, tracker)
        (block,) = (b for b in blocks(page) if b.text.startswith(f"import {name}"))
        exec(block.text, {"dataset": dataset})
        assert [list(point.values()) for point in tracker.points] == [[1.0], [1.4], [1.8]]
        gaps = [row["gap"] for row in tracker.rows]
        np.testing.assert_array_equal(gaps, dataset["gap"].values.ravel())
