"""Progress of a sweep: a bar on a terminal, lines elsewhere, JSON lines for programs.

`--json-lines` prints one JSON object for each event on standard output; times are in seconds:

    {"event": "plan", "run": …, "lanes": …, "chunks": …, "lanes_done": …, "chunks_done": …}
    {"event": "chunk", "chunk": …, "status": {"ok": …}, "seconds": …,
     "lanes_done": …, "lanes_failed": …, "chunks_done": …}
    {"event": "steps", "chunk": …, "share": …}   of a long descent's steps, some twenty a chunk
    {"event": "finished", "run": …, "ok": …, "failed": [the certificates and claims that fail]}
    {"event": "failed", "run": …, "error": the study's}
    {"event": "stopped", "exit": …}
"""

import contextlib
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import typer

from ddln.solvers.status import FINISHED
from ddln.sweeps.plan import Chunk, Plan

Item = TypeVar("Item")
Result = TypeVar("Result")
Advance = Callable[[Chunk, Mapping[str, int]], None]
"""Records a finished chunk with the number of its networks for each status name."""


def prefetch(
    function: Callable[[Item], Result], items: Sequence[Item], ahead: int = 2
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result, in order, while threads compute the next results.

    The main thread only waits, so it handles a signal at once; a compiled program does not return
    to Python before it ends.

    >>> list(prefetch(lambda number: number**2, [2, 3]))
    [(2, 4), (3, 9)]
    """
    pool = ThreadPoolExecutor(max_workers=ahead)
    futures = (pool.submit(function, item) for item in items)
    begun = deque(islice(futures, ahead))
    for item in items:
        result = begun.popleft().result()
        begun.extend(islice(futures, 1))
        yield item, result


class Progress:
    """The finished part of a plan.

    Args:
        plan: the whole plan.
        status: how many networks are finished already, by status name.
        chunks: how many chunks are finished already.
    """

    def __init__(self, plan: Plan, status: Mapping[str, int], chunks: int):
        self.plan, self.status, self.chunks = plan, Counter(status), chunks
        self.share = 0.0
        self.on_share: Callable[[Chunk, float], None] = lambda *_: None
        self._began = time.monotonic()
        self._marks = [(0.0, self.lanes)]

    def add(self, status: Mapping[str, int]) -> None:
        """Count one more finished chunk and the status of its networks."""
        self.status.update(status)
        self.chunks += 1
        self.share = 0.0
        self._marks = [*self._marks[:2], (self.seconds, self.lanes)]

    def update_share(self, chunk: Chunk, share: float) -> None:
        """Record the finished share of a chunk's steps, and call `on_share` with both."""
        self.share = share
        self.on_share(chunk, share)

    @property
    def lanes(self) -> int:
        """The number of finished networks."""
        return self.status.total()

    @property
    def failed(self) -> int:
        """The number of networks that stopped before their end."""
        return self.lanes - sum(self.status[name] for name in FINISHED)

    @property
    def seconds(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Networks per second of this process."""
        return (self.lanes - self._marks[0][1]) / max(self.seconds, 1e-9)

    @property
    def seconds_per_lane(self) -> float | None:
        """Seconds for each network after the first chunk; None before the second is finished."""
        if len(self._marks) < 3:
            return None
        (began, before), (ended, after) = self._marks[1:]
        return (ended - began) / max(after - before, 1)

    @property
    def remaining(self) -> float | None:
        """Estimate the seconds left from the measured chunks; None before the first is finished.

        The first chunk includes compiling, so once a second is finished, only the time since the
        first counts.
        """
        if len(self._marks) < 2:
            return None
        (began, before), (ended, after) = self._marks[-2:]
        return (self.plan.lanes - after) * (ended - began) / max(after - before, 1)


def format_duration(seconds: float) -> str:
    """Seconds in a unit that fits.

    >>> [format_duration(seconds) for seconds in (0.2, 95.0, 5400.0, 2e5)]
    ['1 s', '95 s', '90 min', '56 h']
    """
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


@contextlib.contextmanager
def progress_display(
    progress: Progress, run: str = "", *, json_lines: bool = False
) -> Iterator[Advance]:
    """Show the progress while the context lasts.

    Args:
        progress: with the chunks that are finished already.
        run: the run folder.
        json_lines: print events on standard output, see above.

    Returns:
        A function to call with each finished chunk and its status.
    """
    if json_lines:
        with _events(progress, run) as advance:
            yield advance
    elif sys.stderr.isatty():
        with _bar(progress) as advance:
            yield advance
    else:
        left = progress.plan.lanes - progress.lanes
        typer.echo(f"computing {left:,} of {progress.plan.lanes:,} networks", err=True)
        yield partial(_advance_with_line, progress, progress.chunks)


def _advance_with_line(
    progress: Progress, before: int, chunk: Chunk, status: Mapping[str, int]
) -> None:
    """Count a chunk; after the first of several, print how long the others will take."""
    progress.add(status)
    left = len(progress.plan.chunks) - progress.chunks
    if left and progress.chunks == before + 1 and progress.remaining is not None:
        took, remaining = map(format_duration, (progress.seconds, progress.remaining))
        chunks = f"{left:,} more chunk{'s' * (left > 1)}"
        typer.echo(f"first chunk in {took}; at most about {remaining} for {chunks}", err=True)


@contextlib.contextmanager
def _events(progress: Progress, run: str) -> Iterator[Advance]:
    plan = progress.plan
    done = {"lanes_done": progress.lanes, "chunks_done": progress.chunks}
    event("plan", run=run, lanes=plan.lanes, chunks=len(plan.chunks), **done)
    progress.on_share = lambda chunk, share: event("steps", chunk=chunk.index, share=share)

    def advance(chunk: Chunk, status: Mapping[str, int]) -> None:
        progress.add(status)
        event(
            "chunk",
            chunk=chunk.index,
            status=dict(status),
            seconds=round(progress.seconds, 3),
            lanes_done=progress.lanes,
            lanes_failed=progress.failed,
            chunks_done=progress.chunks,
        )

    yield advance


@contextlib.contextmanager
def _bar(progress: Progress) -> Iterator[Advance]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.BarColumn(bar_width=20),
        bars.MofNCompleteColumn(),
        bars.TextColumn("chunks, {task.description}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        total = len(progress.plan.chunks)
        task = bar.add_task(_description(progress), total=total, completed=progress.chunks)

        def update() -> None:
            done = progress.chunks + progress.share
            bar.update(task, completed=done, description=_description(progress))

        def advance(chunk: Chunk, status: Mapping[str, int]) -> None:
            progress.add(status)
            update()

        progress.on_share = lambda *_: update()
        yield advance


def _description(progress: Progress) -> str:
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    rate = f", {progress.rate:,.1f}/s" if progress.rate else ""
    share = f", {progress.share:.0%} of the next" if progress.share else ""
    left = f", {format_duration(progress.remaining)} left" if progress.remaining else ""
    return f"{progress.lanes:,} of {progress.plan.lanes:,} networks{failed}{rate}{share}{left}"


def event(kind: str, **facts: Any) -> None:
    """Print one event on standard output."""
    typer.echo(json.dumps({"event": kind, **facts}))
    sys.stdout.flush()
