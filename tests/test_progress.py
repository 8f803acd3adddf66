"""What is told on the way, on a terminal; as events it is told in `test_cli`."""

import io
import sys
from pathlib import Path

import ddln
from ddln.sweeps import progress
from ddln.sweeps.plan import make_plan

FIGURE4 = Path(__file__).parent.parent / "configs" / "figure4.toml"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal_tells_what_is_done_and_what_failed(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal())
    plan = make_plan(ddln.load(FIGURE4, ["sweep.network.depth=[2, 3]"]))
    done = progress.Progress(plan, {}, 0)
    with progress.shown(done) as advance:
        advance(plan.chunks[0], {"ok": 2, "diverged": 1})
        done.reach(plan.chunks[1], 0.5)
    last = sys.stderr.getvalue().split("\r")[-1]
    assert "1/2" in last
    assert " chunks, 3 of 6 lanes, 1 failed, " in last
    assert "/s, 50% of the next " in last
