"""Write files atomically, read files of bounded size, and lock files for the life of a process."""

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
    """Write a file under a temporary name, rename it, and return its SHA-256.

    Args:
        target: the file's name.
        write: writes the content to the path that it gets.
    """
    # The name is unique: on a cluster another process may be writing the same file.
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


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Read the bytes of a file.

    Raises:
        OSError: the file cannot be read, is not a regular file, or has more than `max_bytes` bytes.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes:,} bytes", str(path))
    return content


def refuse_links(folder: Path) -> None:
    """Check that a folder holds no symbolic links.

    Raises:
        ValueError: a file or folder below it is a symbolic link.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ValueError(f"{path}: a link; the files of a run folder must be its own")


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    for temporary in folder.rglob(f"*{_TEMPORARY}"):
        temporary.unlink()


def digest_of(path: Path) -> str:
    """SHA-256 of a file; an empty string if the file cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return ""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_lock(file: BinaryIO) -> bool:
    """Lock an open file for this process; return False if another process holds the lock."""
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
    """Flush a rename to the disk, if the system can open a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
