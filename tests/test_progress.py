"""Progress on a terminal and without one; `test_cli` tests its JSON events."""

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


def test_bar_on_a_terminal_shows_counts_failures_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    plan = make_plan(ddln.load(FIGURE4, ["sweep.network.depth=[2, 3]"]))
    done = progress.Progress(plan, {}, 0)
    with progress.progress_display(done) as advance:
        advance(plan.chunks[0], {"ok": 2, "diverged": 1})
        done.update_share(plan.chunks[1], 0.5)
    last = terminal.getvalue().split("\r")[-1]
    assert "1/2" in last
    assert " chunks, 3 of 6 networks, 1 failed, " in last
    assert "/s, 50% of the next, 1 s left" in last


def test_remaining_time_follows_from_the_chunks_after_the_first(monkeypatch):
    """The first chunk takes 10 s, as it compiles; the others take 1 s for each of 3 networks."""
    clock = iter([0.0, 10.0, 10.0, 13.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    plan = make_plan(ddln.load(FIGURE4, ["sweep.network.depth=[2, 3, 4, 5]"]))
    done = progress.Progress(plan, {}, 0)
    assert done.remaining is None
    done.add({"ok": 3})
    assert done.remaining == 9 * 10 / 3
    assert done.seconds == 10.0
    done.add({"ok": 3})
    assert done.remaining == 6 * 1.0


def test_time_of_the_first_chunk_is_printed_without_a_terminal(capsys):
    plan = make_plan(ddln.load(FIGURE4, ["sweep.network.depth=[2, 3, 4]"]))
    with progress.progress_display(progress.Progress(plan, {}, 0)) as advance:
        for chunk in plan.chunks:
            advance(chunk, {"ok": 3})
    assert capsys.readouterr().err.splitlines() == [
        "computing 9 of 9 networks",
        "first chunk in 1 s; at most about 1 s for 2 more chunks",
    ]
