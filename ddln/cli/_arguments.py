"""Types of the command line's arguments, and their shell completion."""

from pathlib import Path
from typing import Annotated

import typer


def _complete_config(incomplete: str) -> list[str]:
    """Names of configs; the shell falls back to files if none matches."""
    from ddln.sweeps import studies

    return [path.stem for path, _ in studies.configs() if path.stem.startswith(incomplete)]


def _complete_run(incomplete: str) -> list[str]:
    return [path.parent.name for path in sorted(Path("runs").glob(f"{incomplete}*/manifest.json"))]


def _complete_config_or_run(incomplete: str) -> list[str]:
    return [*_complete_config(incomplete), *_complete_run(incomplete)]


Config = Annotated[
    str,
    typer.Argument(
        help="A TOML file, or the name of a config that `list` shows.",
        autocompletion=_complete_config,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Values that replace the config's: network.depth=8 'sweep.network.scale=[1, 2]'."
    ),
]
Run = Annotated[
    str,
    typer.Argument(
        help="A run folder, or the beginning of its name.", autocompletion=_complete_run
    ),
]
ConfigOrRun = Annotated[
    str,
    typer.Argument(
        help="A config or a run.", autocompletion=_complete_config_or_run, metavar="CONFIG|RUN"
    ),
]
Out = Annotated[Path, typer.Option(help="The folder that holds the run folders.")]
JsonLines = Annotated[
    bool,
    typer.Option("--json-lines", help="Print progress and outcome as JSON, one event per line."),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Compute on a Dask cluster: local:N (N processes), tls://HOST:PORT, tcp://HOST:PORT "
        "or a scheduler file."
    ),
]
Runs = Annotated[bool, typer.Option("--runs", help="List the runs instead, newest first.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0 takes a free one.")
]
Browser = Annotated[bool, typer.Option(help="Open the page in a browser.")]
NewName = Annotated[str, typer.Argument(help="Lower-case letters, digits and _.")]
StudyName = Annotated[str, typer.Argument(help="The name of a study.")]
