"""Files that appear whole or not at all, files not to be trusted, and locks that die with their
holder."""

import contextlib
import errno
import hashlib
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_TEMPORARY = ".part"


def write_whole(target: Path, write: Callable[[Path], Any]) -> str:
    """Writes a file under a temporary name, then renames it; returns its SHA-256."""
    # A name of its own: on a cluster another process may be writing the same file.
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        write(temporary)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        digest = sha256_of(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)
    return digest


def read_limited(path: Path, most: int) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return content


def refuse_links(folder: Path) -> None:
    """Sees to it that a folder's files are its own.

    Raises:
        ValueError: something below it is a symbolic link.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(f"{path}: a link; the files of a run folder must be its own")


def remove_unfinished(folder: Path) -> None:
    """Removes what a process left under temporary names when it was killed."""
    for left_over in folder.rglob(f"*{_TEMPORARY}"):
        left_over.unlink()


def digest_of(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return ""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def sync_folder(folder: Path) -> None:
    """Makes a rename outlive a power cut, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
