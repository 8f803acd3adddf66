"""Serves the pages of `ddln explore`, which are marimo apps.

`network_app` and `run_app` are the pages: their controls and their layout. `network_controls`,
`network_view` and `run_browser` compute and draw what they show.
"""

import json
import os
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from threading import Timer

from ddln._internal.extras import install_command
from ddln.config.experiment import add_source, load
from ddln.plotting.explorer import run_browser
from ddln.sweeps import saved_runs, studies
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import StoreError

HOST = "127.0.0.1"
_SUBJECT = "DDLN_SUBJECT"


class ServerError(ValueError):
    """The page cannot be served."""


def subject() -> list[str]:
    """The subject of the served page: a config and its overrides, or a run folder."""
    subject = os.environ.get(_SUBJECT)
    return json.loads(subject) if subject else open_subject("explore", [], Path("runs"))[1]


def open_subject(name: str, overrides: Sequence[str], root: Path) -> tuple[str, list[str]]:
    """Find a config or a run folder, and the page that shows it.

    Args:
        name: the name of a config or, if there is none, of a run folder.
        overrides: values that replace the config's.
        root: the folder of run folders.

    Returns:
        The page, "network" or "run", and its subject.

    Raises:
        ValueError: neither a config nor a run has this name, or it cannot be used.
    """
    try:
        config = studies.find_config(name)
    except studies.StudyError as no_config:
        try:
            folder = saved_runs.newest(name, root)
        except StoreError as no_run:
            raise ValueError(f"{no_config}\n{no_run}") from None
        run_browser.read(folder).close()
        return "run", [str(folder.path)]
    experiment = load(config, overrides)
    with add_source(config):
        make_plan(experiment)
    return "network", [str(config), *overrides]


def serve(page: str, subject: Sequence[str], *, port: int, window: bool) -> None:
    """Serve a page on 127.0.0.1 until Ctrl-C.

    Args:
        page: "network" or "run".
        subject: from `open_subject`.
        port: 0 takes a free one.
        window: open the page in a browser.

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
            listener.listen()  # clients that connect before the server runs wait
        except OSError as error:
            raise ServerError(
                f"port {port}: {error.strerror}; --port takes another, 0 any that is free"
            ) from None
        app = marimo.create_asgi_app(quiet=True, skew_protection=True).with_app(
            path="", root=str(Path(__file__).with_name(f"{page}_app.py"))
        )
        # Reject other host names: a page of another site could resolve its name to this address.
        guarded = TrustedHostMiddleware(app.build(), allowed_hosts=[HOST, "localhost"])
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        print(f"{address}  (Ctrl-C stops it)", flush=True)
        if window:
            Timer(1.0, webbrowser.open, [address]).start()
        config = uvicorn.Config(guarded, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        try:
            server.run([listener])
        except KeyboardInterrupt:
            pass  # uvicorn raises it again after stopping
        except SystemExit as error:
            raise ServerError("the page's application failed as it started; see above") from error
    # A page that is still open has a thread that Python would wait for.
    os._exit(0)
