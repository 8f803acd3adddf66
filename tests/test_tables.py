"""Tables in a terminal: their width, their colour, and shell completion."""

import io
import re

import pytest
from typer.testing import CliRunner

from ddln.cli import main as cli
from ddln.cli import printing
from ddln.verification import tables

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7]")
ROW = {
    "name": "a-posteriori bound",
    "source": "Theorem 2, Corollary 1, and the definition",
    "measured": -1.234567e-300,
    "predicted": -1.234567e-300,
    "tolerance": 1e-306,
    "relation": "=",
    "applies": True,
    "holds": False,
    "lanes_applicable": 100_000,
    "lanes_holding": 99_999,
}


class Terminal(io.StringIO):
    """A standard output that reports to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """A function that returns the text of a table for a terminal of 80 columns."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")

    def shown(*rows):
        with monkeypatch.context() as patch:
            terminal = Terminal()
            patch.setattr("sys.stdout", terminal)
            printing.print_table(list(rows), "Certificates")
            return terminal.getvalue()

    return shown


def test_widest_row_fits_80_columns_without_truncation():
    lines = tables.render([ROW], "Certificates").splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    letters = re.sub(r"\s", "", text)
    assert all(word in letters for word in ("a-posteriori", "Corollary", "FAILS"))


def test_statement_is_shown_where_it_says_more_than_the_name():
    texts = {"name": "product", "source": "Figure 1", "lanes_applicable": 1, "lanes_holding": 1}
    for statement, claim in (("product", "product"), ("θ = ∏ u", "product: θ = ∏ u")):
        *_, line = tables.markdown([ROW | texts | {"statement": statement}])
        assert line.startswith(f"| {claim} | Figure 1 |")


def test_usual_row_takes_one_line():
    usual = {"source": "Theorem 2", "measured": 1.0, "predicted": 1.0, "tolerance": 1e-6}
    (line,) = tables.render([ROW | usual], "").splitlines()[3:]
    message = " ".join(line.split())
    assert message == "a-posteriori bound Theorem 2 1 = 1 ± 1.0e-06 FAILS 99999/100000"


def test_terminal_has_colour(shown):
    assert COLOUR.search(shown(ROW))


def test_no_color_disables_colour(shown, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    sent = shown(ROW)
    assert "FAILS" in sent
    assert not COLOUR.search(sent)


def test_output_to_a_file_has_no_escapes(capsys):
    printing.print_table([ROW], "Certificates")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ddln ver", ["verify"]),
        ("ddln check figure", ["figure3", "figure4"]),
        ("ddln show f", ["f-1"]),
    ],
)
def test_shell_completes_verbs_configs_and_runs(words, completed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "f-1").mkdir(parents=True)
    (tmp_path / "runs" / "f-1" / "manifest.json").touch()
    environment = {
        "_DDLN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = CliRunner().invoke(cli.app, prog_name="ddln", env=environment)
    assert done.stdout.split() == completed
