"""The runs in a folder: find one by its name, open its data set, list all, remove some."""

import contextlib
import datetime
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddln.sweeps.run_folder import RunFolder, StoreError

if TYPE_CHECKING:
    import xarray as xr


class RunSummary(NamedTuple):
    """One run in brief."""

    name: str
    begun: datetime.datetime
    """In local time."""
    status: str
    networks: int
    """Computed so far."""
    nbytes: int
    """Of all its files."""


def matching(name: str, root: str | Path = "runs") -> list[RunFolder]:
    """The folders that match `name`, newest first.

    Args:
        name: a path, a study, or the beginning of a folder's name in `root`.
        root: the folder of run folders.

    Raises:
        StoreError: no folder matches, or folders of several studies do.
    """
    if (Path(name) / "manifest.json").is_file():
        return [RunFolder(name)]
    runs = sorted(_runs(root))
    of_study = [run for run in runs if _study_of(run) == name]
    found = of_study or [run for run in runs if run.name.startswith(name)]
    if len({_study_of(run) for run in found}) > 1:
        raise StoreError(f"{name}: which of {', '.join(run.name for run in found)}?")
    if found:
        return [RunFolder(run) for run in sorted(found, key=_begun_at, reverse=True)]
    known = ", ".join(run.name for run in runs) or "no run"
    raise StoreError(
        f"{name}: not a run folder, nor the beginning of one in {root}/, which has {known};"
        " `--out` names another folder"
    )


def only(name: str, root: str | Path = "runs") -> RunFolder:
    """The folder that matches `name`, see `matching`.

    Raises:
        StoreError: not exactly one folder matches.
    """
    found = matching(name, root)
    if len(found) > 1:
        raise StoreError(f"{name}: which of {', '.join(folder.path.name for folder in found)}?")
    return found[0]


def newest(name: str, root: str | Path = "runs") -> RunFolder:
    """The newest of the folders that match `name`, see `matching`."""
    return matching(name, root)[0]


def open(run: str, root: str | Path = "runs") -> "xr.Dataset":
    """The data set of a run folder; each variable is read or computed when it is used.

    Args:
        run: a path, a study, or the beginning of a folder's name in `root`; of several runs, the
            newest.
        root: the folder of run folders.

    Raises:
        StoreError: no run matches, or its files are missing or damaged.
    """
    return newest(run, root).read_dataset()


def summaries(root: str | Path = "runs") -> list[RunSummary]:
    """All runs in a folder, newest first; none if there is no such folder.

    Args:
        root: the folder of run folders.
    """
    return [_summary(RunFolder(run)) for run in sorted(_runs(root), key=_begun_at, reverse=True)]


def remove(folder: RunFolder) -> None:
    """Delete a run folder with all its files.

    Raises:
        StoreError: another process works on the run, the folder is a link, or a file cannot be
            deleted.
    """
    if folder.path.is_symlink():
        raise StoreError(f"{folder.path}: must be a folder to be deleted, got a link")
    try:
        with folder.locked():
            # Without its manifest it is no run, even if the rest cannot be deleted.
            (folder.path / "manifest.json").unlink()
        shutil.rmtree(folder.path)
    except OSError as error:
        raise StoreError(f"{folder.path}: cannot be deleted: {error.strerror}") from error


def _summary(folder: RunFolder) -> RunSummary:
    path = folder.path
    status, networks = "damaged", 0
    with contextlib.suppress(StoreError):
        status, networks = _status(folder), sum(folder.status_counts().values())
    nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    begun = datetime.datetime.fromtimestamp(_begun_at(path))
    return RunSummary(path.name, begun, status, networks, nbytes)


def _status(folder: RunFolder) -> str:
    manifest = folder.manifest()
    if not manifest:
        return "damaged"
    if not manifest["complete"]:
        return "not finished"
    rows = [row for table in folder.read_claims().values() for row in table]
    failed = sum(row["applies"] and not row["holds"] for row in rows)
    return f"{failed} of {len(rows)} claims fail" if failed else "all claims hold"


def _runs(root: str | Path) -> list[Path]:
    return [manifest.parent for manifest in Path(root).glob("*/manifest.json")]


def _study_of(run: Path) -> str:
    return run.name.rpartition("-")[0]


def _begun_at(run: Path) -> float:
    """When a run began: its config is written once, its manifest many times."""
    config = run / "config.toml"
    return (config if config.is_file() else run / "manifest.json").stat().st_mtime
