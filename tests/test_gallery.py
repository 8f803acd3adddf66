"""The gallery: every config has a page with a figure, and the example runs."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ddln
from ddln.cli import main as cli

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "docs" / "experiments"
NAMES = sorted({ddln.load(path).study for path in (ROOT / "configs").glob("*.toml")})
LARGEST = 150_000  # bytes of a figure on a page
LONGEST = 30  # lines from an idea to a figure
BLOCK = re.compile(r"```(console|toml|python)\n(.*?)```", re.DOTALL)


def figures_of(page):
    return re.findall(r"\]\(\.\./images/(\w+\.png)\)", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_study_has_a_page_with_its_command_and_figure(name):
    page = GALLERY / f"{name}.md"
    assert f"ddln run {name}\n" in page.read_text(encoding="utf-8")
    shown = figures_of(page)
    assert shown
    for figure in shown:
        assert figure.startswith(name)
        assert (ROOT / "docs" / "images" / figure).stat().st_size <= LARGEST


def test_index_lists_every_page_with_its_figure():
    index = GALLERY / "README.md"
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \|", index.read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == NAMES
    assert figures_of(index) == [figures_of(GALLERY / f"{name}.md")[0] for name in listed]
    assert {path.stem for path in GALLERY.glob("[a-z]*.md")} == set(NAMES)


def test_links_of_the_gallery_resolve():
    for page in GALLERY.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


@pytest.mark.slow
def test_gallery_example_runs_in_a_few_lines(tmp_path, monkeypatch):
    blocks = BLOCK.findall((GALLERY / "README.md").read_text(encoding="utf-8"))
    assert sum(len(text.splitlines()) for _, text in blocks) <= LONGEST
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "start_jax", lambda *_: None)
    for kind, text in blocks:
        if kind == "console":
            for command in text.splitlines():
                done = CliRunner().invoke(cli.app, command.removeprefix("ddln ").split())
                assert done.exit_code == 0, done.output
        else:
            path = text.partition("\n")[0].removeprefix("# ")
            assert (tmp_path / path).is_file()  # written by `ddln new`
            (tmp_path / path).write_text(text, encoding="utf-8")
    assert "ℓ1 norm, smallest" in done.stdout
    (figure,) = tmp_path.glob("runs/*/figures/*.png")
    assert figure.stat().st_size > 1000
