"""Files of one run folder: written whole or not at all, read with their checksum, never links.

`FolderFiles` knows the manifest, the chunk records and where files belong; `RunFolder` builds on it
what a run does.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ddln._internal import files
from ddln._internal.files import digest_of
from ddln.sweeps._manifest import (
    ChunkRecord,
    Manifest,
    RunProvenance,
    read_record,
    run_provenance,
    with_checksum,
)
from ddln.sweeps.plan import Chunk, Plan


class StoreError(ValueError):
    """A run folder that cannot be used as asked."""


class FolderFiles:
    """The files of a run folder.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def _own_path(self, name: str) -> Path:
        """The path of a file, which must be in the folder and no link.

        Raises:
            StoreError: the file or its folder is a link.
        """
        path = self.path / name
        for part in (path, *([path.parent] if path.parent != self.path else [])):
            if part.is_symlink():
                raise StoreError(f"{part}: a link; the files of a run folder must be its own")
        return path

    def _write(self, name: str, write: Callable[[Path], Any]) -> str:
        """Write a file, whole or not at all, and return its SHA-256."""
        target = self.path / name
        try:
            target.parent.mkdir(exist_ok=True)
            return files.write_whole(target, write)
        except OSError as error:
            advice = "finished chunks are kept, and the same command resumes the run"
            reason = f"{error.strerror or error}; {advice}"
            raise OSError(error.errno or errno.EIO, reason, str(target)) from error

    def _write_text(self, name: str, text: str) -> str:
        return self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _read_record(self, name: str, kind: type) -> Any:
        with as_store_error(f"{self.path}: "):
            return read_record(self._own_path(name), kind)

    def _read_manifest(self) -> Manifest | None:
        return self._read_record("manifest.json", Manifest)

    def _write_manifest(self, manifest: Manifest) -> None:
        self._write_text("manifest.json", with_checksum(manifest))

    def _update_manifest(self, **facts: Any) -> None:
        manifest = self._read_manifest()
        known = {} if manifest is None else manifest.model_dump()
        self._write_manifest(Manifest(**{**known, **facts}))

    def _record_file(self, name: str, digest: str) -> None:
        """Enter a file and its SHA-256 into the manifest."""
        self._update_manifest(files={**self._recorded_files(), name: digest})

    def _forget_file(self, name: str) -> None:
        """Remove a file from the manifest."""
        recorded = self._recorded_files()
        self._update_manifest(files={other: recorded[other] for other in recorded if other != name})

    def _recorded_files(self) -> dict[str, str]:
        manifest = self._read_manifest()
        return {} if manifest is None else manifest.files

    def _read_chunk_record(self, chunk: Chunk) -> ChunkRecord | None:
        return self._read_record(chunk_file(chunk, "json"), ChunkRecord)

    def _chunk_records(self) -> Iterator[ChunkRecord]:
        """The chunk records of this run; without a manifest, of the run of the first record."""
        run = self._provenance()
        for path in sorted(self.path.glob("chunks/*.json")):
            record = self._read_record(f"chunks/{path.name}", ChunkRecord)
            if record is not None and run is not None and record.run.digest == run.digest:
                yield record

    def is_whole(self, name: str) -> bool:
        """Whether a file of the manifest is there, with the content that was written."""
        recorded = self._recorded_files().get(name)
        return recorded is not None and digest_of(self._own_path(name)) == recorded

    def missing(self, plan: Plan) -> list[Chunk]:
        """The chunks still to be computed: never written, lost, altered or truncated."""
        run = run_provenance(plan)
        return [chunk for chunk in plan.chunks if self._finished(chunk, run) is None]

    def chunk_status(self, chunk: Chunk) -> dict[str, int] | None:
        """The number of a chunk's networks for each status name; None if it is still missing."""
        run = self._read_manifest()
        record = None if run is None else self._finished(chunk, run)
        return None if record is None else record.status

    def _finished(self, chunk: Chunk, run: RunProvenance) -> ChunkRecord | None:
        """The record of a chunk of this run whose file is undamaged, else None."""
        record = self._read_chunk_record(chunk)
        is_finished = (
            record is not None
            and (record.run.digest, record.run.plan) == (run.digest, run.plan)
            and record.chunk == chunk.index
            and record.sha256 == digest_of(self._own_path(chunk_file(chunk)))
        )
        return record if is_finished else None

    def _provenance(self) -> RunProvenance | None:
        """The provenance of the run, from the manifest or else from any chunk record."""
        manifest = self._read_manifest()
        if manifest is not None:
            return provenance_in(manifest)
        for path in sorted(self.path.glob("chunks/*.json")):
            record = self._read_record(f"chunks/{path.name}", ChunkRecord)
            if record is not None:
                return record.run
        return None


def provenance_in(manifest: Manifest) -> RunProvenance:
    """The provenance that a manifest repeats."""
    return RunProvenance(**manifest.model_dump(include=set(RunProvenance.model_fields)))


def chunk_file(chunk: Chunk, kind: str = "nc") -> str:
    """The name of a chunk's file in its run folder."""
    return f"chunks/{chunk.index:05d}.{kind}"


@contextlib.contextmanager
def as_store_error(prefix: str = "") -> Iterator[None]:
    """Turn a ValueError or OSError into a StoreError."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise StoreError(f"{prefix}{error}") from None
