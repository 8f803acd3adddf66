"""Exit statuses and messages of commands that fail, run out of memory or are interrupted."""

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
def exit_on_error(errors: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Turn an error, such as bad input or a full disk, into one message and exit status 2."""
    try:
        yield
    except errors as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        from ddln.verification.tables import plain

        log(f"ddln: {plain(message)}")
        raise typer.Exit(2) from None


@contextlib.contextmanager
def interruptible(json_lines: bool = False) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, log how to continue and exit with status 128 + the signal's number."""
    received: list[int] = []

    def stop(number: int, _: Any) -> None:
        if number != signal.SIGALRM:
            received.append(number)
        # Python swallows exceptions in finalisers, so raise again until one gets through.
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        if not _netcdf.defers_signals():
            raise KeyboardInterrupt

    hook = sys.unraisablehook

    def ignore_after_signal(unraisable: Any) -> None:
        # Finalisers of half-constructed objects fail after an interruption.
        if not received:
            hook(unraisable)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, stop) for number in numbers}
    sys.unraisablehook = ignore_after_signal
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: log(f"ddln: {message}")
            yield
    except MemoryError as error:
        log(f"ddln: {str(error) or 'out of memory'}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stopped:
        signal.setitimer(signal.ITIMER_REAL, 0)
        traceback.clear_frames(stopped.__traceback__)  # runs these finalisers now
        from ddln.sweeps import progress

        status = 128 + (received or [signal.SIGINT])[-1]
        typer.echo("\nstopped; the same command resumes the run", err=True)
        if json_lines:
            progress.event("stopped", exit=status)
        raise typer.Exit(status) from None
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def log(message: str) -> None:
    """Print a line to standard error, apart from the results on standard output."""
    typer.echo(message, err=True)
