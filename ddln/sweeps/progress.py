"""How far a sweep is: a bar on a terminal, a line elsewhere, JSON lines for machines.

The events of `--json-lines`, one object a line on standard output; times are in seconds:

    {"event": "plan", "run": …, "lanes": …, "chunks": …, "lanes_done": …, "chunks_done": …}
    {"event": "chunk", "chunk": …, "status": {"ok": …}, "seconds": …,
     "lanes_done": …, "lanes_failed": …, "chunks_done": …}
    {"event": "steps", "chunk": …, "share": …}   of a long descent's steps, some twenty a chunk
    {"event": "finished", "run": …, "ok": …, "failed": [the certificates and claims that fail]}
    {"event": "stopped", "exit": …}
"""

import contextlib
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import typer

from ddln.solvers.status import FINISHED
from ddln.sweeps.plan import Chunk, Plan

Item = TypeVar("Item")
Result = TypeVar("Result")


def computed(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in order; a thread computes one ahead of the caller.

    The main thread only waits for it, and so hears a signal at once: a compiled program does not
    come back to Python before its end.

    >>> list(computed(lambda number: number**2, [2, 3]))
    [(2, 4), (3, 9)]
    """
    pool = ThreadPoolExecutor(max_workers=1)
    futures = (pool.submit(function, item) for item in items)
    ahead = deque(islice(futures, 1))
    for item in items:
        result = ahead.popleft().result()
        ahead.extend(islice(futures, 1))
        yield item, result


class Progress:
    """How much of a plan is done.

    Args:
        plan: all there is to do.
        endings: how many lanes have ended in which way already, by name.
        chunks: how many chunks these are.
    """

    def __init__(self, plan: Plan, endings: Mapping[str, int], chunks: int):
        self.plan, self.endings, self.chunks = plan, Counter(endings), chunks
        self._lanes_before, self._began = self.lanes, time.monotonic()
        self.share = 0.0
        self.on_share: Callable[[Chunk, float], None] = lambda *_: None

    def add(self, endings: Mapping[str, int]) -> None:
        """One more chunk, whose lanes ended so."""
        self.endings.update(endings)
        self.chunks += 1
        self.share = 0.0

    def reach(self, chunk: Chunk, share: float) -> None:
        """So much of a chunk is done; `on_share` is called with both."""
        self.share = share
        self.on_share(chunk, share)

    @property
    def lanes(self) -> int:
        """Lanes that are done."""
        return self.endings.total()

    @property
    def failed(self) -> int:
        """Lanes that did not come to their end."""
        return self.lanes - sum(self.endings[name] for name in FINISHED)

    @property
    def seconds(self) -> float:
        """Since this process began."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Lanes per second of this process."""
        return (self.lanes - self._lanes_before) / max(self.seconds, 1e-9)


@contextlib.contextmanager
def shown(progress: Progress, run: str = "", *, json_lines: bool = False) -> Iterator[Callable]:
    """Shows the progress while the context lasts.

    Args:
        progress: where it begins.
        run: the run folder.
        json_lines: as events, see above.

    Returns:
        A function of a chunk and its endings, to be called when it is done.
    """
    plan = progress.plan
    if json_lines:
        done = {"lanes_done": progress.lanes, "chunks_done": progress.chunks}
        event("plan", run=run, lanes=plan.lanes, chunks=len(plan.chunks), **done)
        progress.on_share = lambda chunk, share: event("steps", chunk=chunk.index, share=share)

    def advance(chunk: Chunk, endings: Mapping[str, int]) -> None:
        progress.add(endings)
        if json_lines:
            event(
                "chunk",
                chunk=chunk.index,
                status=dict(endings),
                seconds=round(progress.seconds, 3),
                lanes_done=progress.lanes,
                lanes_failed=progress.failed,
                chunks_done=progress.chunks,
            )

    if json_lines or not sys.stderr.isatty():
        if not json_lines:
            left = plan.lanes - progress.lanes
            typer.echo(f"computing {left:,} of {plan.lanes:,} lanes", err=True)
        yield advance
        return
    with _bar(progress) as update:
        progress.on_share = lambda *_: update()

        def advance_bar(chunk: Chunk, endings: Mapping[str, int]) -> None:
            advance(chunk, endings)
            update()

        yield advance_bar


@contextlib.contextmanager
def _bar(progress: Progress) -> Iterator[Callable[[], None]]:
    from rich import progress as bars
    from rich.console import Console

    def words() -> str:
        failed = f", {progress.failed:,} failed" if progress.failed else ""
        rate = f", {progress.rate:,.1f}/s" if progress.rate else ""
        share = f", {progress.share:.0%} of the next" if progress.share else ""
        return f"{progress.lanes:,} of {progress.plan.lanes:,} lanes{failed}{rate}{share}"

    columns = (
        bars.BarColumn(bar_width=20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("chunks, {task.description}"),
        bars.TimeRemainingColumn(),
    )
    # A chunk may take longer than rich's window for its rate.
    with bars.Progress(*columns, console=Console(stderr=True), speed_estimate_period=1e6) as bar:
        total = len(progress.plan.chunks)
        task = bar.add_task(words(), total=total, completed=progress.chunks)

        def update() -> None:
            done = progress.chunks + progress.share
            bar.update(task, completed=done, description=words())

        yield update


def event(kind: str, **facts: Any) -> None:
    """One event on standard output."""
    typer.echo(json.dumps({"event": kind, **facts}))
    sys.stdout.flush()
