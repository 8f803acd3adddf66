"""The pages of `ddln explore`, which are marimo apps, and how they are served.

What is computed and drawn for them is in `ddln.plotting.explorer.session`,
`ddln.plotting.explorer.run_browser` and `ddln.plotting.explorer.network_view`; a page is its
controls and where things stand.
"""

import contextlib
import json
import os
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from threading import Timer

from ddln.config.experiment import load, told_of
from ddln.plotting.explorer import run_browser
from ddln.sweeps import studies
from ddln.sweeps.environment import install_command
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder, StoreError

HOST = "127.0.0.1"
_SUBJECT = "DDLN_SUBJECT"


class ServerError(ValueError):
    """A page that cannot be served."""


def subject() -> list[str]:
    """What the page is opened on: a config and its overrides, or a run folder."""
    told = os.environ.get(_SUBJECT)
    return json.loads(told) if told else opened("explore", [], Path("runs"))[1]


def opened(name: str, overrides: Sequence[str], root: Path) -> tuple[str, list[str]]:
    """The page that shows what is called so, and what that page is to be told.

    Args:
        name: of a config, or else of a run folder.
        overrides: of the config.
        root: of run folders.

    Raises:
        ValueError: there is neither, or it cannot be used.
    """
    try:
        config = studies.find_config(name)
    except studies.StudyError as no_config:
        try:
            folder = RunFolder.existing(name, root)
        except StoreError as no_run:
            raise ValueError(f"{no_config}\n{no_run}") from None
        run_browser.read(folder).close()
        return "run", [str(folder.path)]
    experiment = load(config, overrides)
    with told_of(config):
        make_plan(experiment)
    return "network", [str(config), *overrides]


def serve(page: str, subject: Sequence[str], *, port: int, window: bool) -> None:
    """Serve a page to this machine until it is stopped.

    Args:
        page: the name of a module here.
        subject: what it is opened on.
        port: on 127.0.0.1; 0 takes one that is free.
        window: open it in a browser.

    Raises:
        ServerError: marimo is not installed, or the port is taken.
    """
    try:
        import marimo
        import uvicorn
    except ImportError as error:
        raise ServerError(f"explore needs marimo ({error}): {install_command('explore')}") from None
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    os.environ[_SUBJECT] = json.dumps(list(subject))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()  # who is quicker than the server waits
        except OSError as error:
            raise ServerError(
                f"port {port}: {error.strerror}; --port takes another, 0 any that is free"
            ) from None
        app = marimo.create_asgi_app(quiet=True, skew_protection=True).with_app(
            path="", root=str(Path(__file__).with_name(f"{page}_app.py"))
        )
        # A name that leads here is another's page: its scripts must not read this one.
        guarded = TrustedHostMiddleware(app.build(), allowed_hosts=[HOST, "localhost"])
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        print(f"{address}  (Ctrl-C stops it)", flush=True)
        if window:
            Timer(1.0, webbrowser.open, [address]).start()
        config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=1)
        with contextlib.suppress(KeyboardInterrupt):  # raised again once it has stopped
            uvicorn.Server(config).run([listener])
    # A page that is still open has a thread, which would be waited for.
    os._exit(0)
