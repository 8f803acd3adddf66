"""Files that appear whole or not at all, and locks that die with their holder."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_TEMPORARY = ".part"


def write_whole(target: Path, write: Callable[[Path], Any]) -> str:
    """Writes a file under a temporary name, then renames it; returns its SHA-256."""
    temporary = target.with_name(target.name + _TEMPORARY)
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        digest = digest_of(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return digest


def remove_unfinished(folder: Path) -> None:
    """Removes what a process left under temporary names when it was killed."""
    for left_over in folder.rglob(f"*{_TEMPORARY}"):
        left_over.unlink()


def digest_of(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def try_lock(file: BinaryIO) -> bool:
    """Locks an open file for this process; False where another one has it."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
