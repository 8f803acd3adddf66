"""How a command ends that does not come to its end: bad input, a signal, too little memory."""

import contextlib
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from ddln.sweeps import _netcdf


@contextlib.contextmanager
def refusing(kinds: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Bad input, or a full disk: one message, exit status 2."""
    try:
        yield
    except kinds as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        from ddln.verification.tables import plain

        say(f"ddln: {plain(message)}")
        raise typer.Exit(2) from None


@contextlib.contextmanager
def interruptible(json_lines: bool = False) -> Iterator[None]:
    """Ctrl-C or SIGTERM: says how to go on; the exit status is 128 and the signal's number."""
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        if number != signal.SIGALRM:
            received.append(number)
        # What is raised in a finaliser is swallowed: once more, until it is heard.
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        if not _netcdf.is_writing():
            raise KeyboardInterrupt

    hook = sys.unraisablehook

    def swallowed(what: Any) -> None:
        # Finalisers of what was half made when it was stopped have nothing to tell.
        if not received:
            hook(what)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, stop) for number in numbers}
    sys.unraisablehook = swallowed
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: say(f"ddln: {message}")
            yield
    except MemoryError as error:
        say(f"ddln: {str(error) or 'out of memory'}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stopped:
        signal.setitimer(signal.ITIMER_REAL, 0)
        traceback.clear_frames(stopped.__traceback__)  # so that they run now
        from ddln.sweeps import progress

        status = 128 + (received or [signal.SIGINT])[-1]
        typer.echo("\nstopped; the same command goes on from here", err=True)
        if json_lines:
            progress.event("stopped", exit=status)
        raise typer.Exit(status) from None
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def say(stage: str) -> None:
    """A line for who waits, not for who reads the output."""
    typer.echo(stage, err=True)
