"""Packages that an extra installs, and what to say if one is missing."""

import contextlib
import shlex
import sys
from collections.abc import Iterator


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra; `ddln` itself is on no index.

    >>> install_command("explore").endswith(" -m pip install 'marimo>=0.25'")
    True
    """
    from importlib.metadata import requires

    named = [each.partition(";") for each in requires("ddln") or ()]
    parts = [part.strip() for part, _, marker in named if f"extra == '{extra}'" in marker]
    return shlex.join([sys.executable, "-m", "pip", "install", *parts])


@contextlib.contextmanager
def needed_for(what: str, extra: str) -> Iterator[None]:
    """Name what needs a missing package, and the command that installs it.

    Args:
        what: the function or command.
        extra: that brings the package.

    Raises:
        ImportError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "ddln":
            raise
        raise ImportError(
            f"{what} needs the package {package}: {install_command(extra)}"
        ) from error
