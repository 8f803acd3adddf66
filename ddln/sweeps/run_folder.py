"""Run folders: results that survive a kill, and whose damage is detected.

    runs/<study>-<digest>/  config.toml  manifest.json  chunks/00000.nc  chunks/00000.json
                            claims.json  figures/*.{png,svg,pdf}  report.html  [dataset.nc]

Every file appears whole or not at all (a temporary name in the same folder, fsync, rename). A chunk
counts as finished if its file has the checksum in the chunk record beside it
(`ddln.sweeps._manifest`). Chunk records repeat the provenance of the run, so chunks stay valid
without a manifest. The manifest holds the checksums of the files made from the chunks. Small data
sets are also written as one file, dataset.nc, and larger ones on request.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddln._internal import files
from ddln.config.experiment import Experiment, load
from ddln.sweeps import _netcdf
from ddln.sweeps._folder_files import FolderFiles, as_store_error, chunk_file, provenance_in
from ddln.sweeps._folder_files import StoreError as StoreError
from ddln.sweeps._manifest import (
    FIGURE,
    LARGEST_FILE,
    ChunkRecord,
    Manifest,
    finite,
    parse_claims,
    provenance_changes,
    run_provenance,
    with_checksum,
)
from ddln.sweeps.dataset_schema import count_recomputed, status_counts
from ddln.sweeps.plan import Chunk, Plan, make_plan

if TYPE_CHECKING:
    import xarray as xr

    from ddln.sweeps._chunk_files import ChunkWriter

_OPEN_CHUNKS = 1000
"""Chunks of which the layout is kept in memory."""
# Without a date, and with a salt that follows from its name, a figure is the same file again.
_FIGURE_FORMATS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 200},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}


class RunFolder(FolderFiles):
    """One run's folder.

    Args:
        path: the folder; `locked` makes it.
    """

    @classmethod
    def of(cls, experiment: Experiment, root: str | Path = "runs") -> "RunFolder":
        """The folder of an experiment: root/<study>-<digest>."""
        return cls(Path(root) / f"{experiment.study}-{experiment.digest()}")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process; make it if needed.

        The operating system holds the lock and releases it when the process ends in any way.

        Raises:
            StoreError: another process holds the lock, or a file in the folder is a link.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with as_store_error():
            files.refuse_links(self.path)
        with (self.path / ".lock").open("a+b") as file:
            if not files.try_lock(file):
                raise StoreError(
                    f"{self.path}: another process is working on this run; wait, or stop it"
                )
            files.remove_unfinished(self.path)
            yield

    def open(self, plan: Plan, **provenance: Any) -> None:
        """Start the run: write its manifest and resolved config. An existing run is resumed.

        Args:
            plan: of the run.
            provenance: versions, device, dtype and settings of the process, for the manifest.

        Raises:
            StoreError: the folder belongs to another experiment, or the provenance has changed
                and chunks are still missing.
        """
        manifest, then = self._read_manifest(), self._provenance()
        now = run_provenance(plan, provenance)
        if then is None:
            if any(self.path.glob("chunks/*")):
                raise StoreError(
                    f"{self.path}: no record says which run its chunks belong to; move the folder "
                    "away"
                )
            then = now
        elif then.digest != now.digest:
            raise StoreError(f"{self.path}: holds the run {then.digest}, not {now.digest}")
        elif (changed := provenance_changes(then, now)) and self.missing(plan):
            raise StoreError(
                f"{self.path}: begun with {', '.join(changed)}; its chunks would not be"
                " alike: move the folder away to run again"
            )
        (self.path / "chunks").mkdir(exist_ok=True)
        if manifest is None:
            self._write_text("config.toml", plan.experiment.to_toml())
            self._write_manifest(Manifest(**then.model_dump()))
            files.sync_folder(self.path.parent)
        elif manifest.files and self.missing(plan):
            # The recorded files were made from chunks that are missing now.
            self._update_manifest(files={}, complete=False)

    def manifest(self) -> dict[str, Any]:
        """The manifest as a dictionary; empty if it is missing or damaged.

        Raises:
            StoreError: the manifest has another format, or impossible values.
        """
        manifest = self._read_manifest()
        return {} if manifest is None else manifest.model_dump()

    def is_complete(self, plan: Plan, study: str = "") -> bool:
        """Whether every file is there and undamaged.

        Args:
            plan: of the run.
            study: SHA-256 of the study; claims made by another version do not count.
        """
        manifest = self._read_manifest()
        return (
            manifest is not None
            and manifest.complete
            and manifest.study_sha256 == study
            and manifest.files.keys() >= {"claims.json", *["dataset.nc"] * plan.is_portable}
            and all(self.is_whole(name) for name in manifest.files)
            and not self.missing(plan)
        )

    def write_chunk(self, chunk: Chunk, dataset: "xr.Dataset") -> dict[str, int]:
        """Write a chunk's data, then its record.

        Returns:
            The number of networks for each status name.

        Raises:
            StoreError: the data set does not have the chunk's networks, or the folder is not open.
        """
        if dataset.sizes["lane"] != chunk.lanes.size:
            raise StoreError(
                f"chunk {chunk.index}: must have {chunk.lanes.size} networks, "
                f"got {dataset.sizes['lane']}"
            )
        manifest = self._read_manifest()
        if manifest is None:
            raise StoreError(f"{self.path}: has no manifest; `open` makes it")

        write = partial(self._chunk_writer.write, dataset)
        digest, status = self._write(chunk_file(chunk), write), status_counts(dataset)
        recomputed, inexact = count_recomputed(dataset)
        record = ChunkRecord(
            run=provenance_in(manifest),
            chunk=chunk.index,
            sha256=digest,
            lanes=int(chunk.lanes.size),
            status=status,
            steps=int(dataset["steps"].sum()),
            rounds=int(dataset["rounds"].sum()),
            solved_again=recomputed,
            inexact=inexact,
            lanes_at_once=dataset.attrs.get("lanes_at_once"),
        )
        self._write_text(chunk_file(chunk, "json"), with_checksum(record))
        return status

    def status_counts(self, but: Iterable[Chunk] = ()) -> dict[str, int]:
        """The number of networks of the finished chunks for each status name.

        Args:
            but: chunks to leave out.
        """
        left_out = {chunk.index for chunk in but}
        total: Counter[str] = Counter()
        for record in self._chunk_records():
            if record.chunk not in left_out:
                total.update(record.status)
        return dict(total)

    def count_split_chunks(self) -> int:
        """The number of chunks that were split because memory ran out."""
        return sum(record.lanes_at_once is not None for record in self._chunk_records())

    def count_recomputed(self) -> tuple[int, int]:
        """The number of recomputed networks, and how many of them are less exact than expected."""
        records = list(self._chunk_records())
        return sum(r.solved_again for r in records), sum(r.inexact for r in records)

    def efficiency(self) -> float:
        """Batch efficiency: steps of all networks over the loop iterations they took part in."""
        records = list(self._chunk_records())
        loop_iterations = sum(record.rounds for record in records)
        return sum(record.steps for record in records) / max(loop_iterations, 1)

    def write_dataset(self, plan: Plan) -> None:
        """Write the data set of the undamaged chunks as one file with every variable.

        The networks of missing chunks are NaN: a gap must not pass for a shorter axis.

        Raises:
            StoreError: every chunk is missing.
        """
        from ddln.sweeps import assemble

        open_chunk = self._chunk_opener()
        lost = {chunk.index for chunk in self.missing(plan)}
        if len(lost) == len(plan.chunks):
            raise StoreError(f"{self.path}: every chunk is missing or damaged")

        def load(chunk: Chunk) -> "xr.Dataset | None":
            return None if chunk.index in lost else open_chunk(chunk)

        digest = self._write("dataset.nc", lambda path: assemble.write(plan, load, path))
        self._record_file("dataset.nc", digest)

    def read_dataset(self) -> "xr.Dataset":
        """The data set, from its file or else from the chunks; variables are read when used.

        Raises:
            StoreError: the data set is missing or damaged.
        """
        from ddln.sweeps import assemble

        plan = None if "dataset.nc" in self._recorded_files() else self._plan()
        if plan is None or plan.is_portable:
            if not self.is_whole("dataset.nc"):
                raise StoreError(
                    f"{self.path}: dataset.nc is missing or damaged; run again to mend it"
                )
            return _netcdf.open_dataset(self._own_path("dataset.nc"))
        if lost := self.missing(plan):
            raise StoreError(
                f"{self.path}: {len(lost):,} of {len(plan.chunks):,} chunks are missing or damaged;"
                " run again to mend it"
            )
        open_chunk = self._chunk_opener()
        read = lru_cache(maxsize=_OPEN_CHUNKS)(lambda i: open_chunk(plan.chunks[i]))
        return assemble.view(plan, lambda chunk: read(chunk.index))

    def _chunk_opener(self) -> "Callable[[Chunk], xr.Dataset]":
        from ddln.sweeps._chunk_files import ChunkReader

        reader = ChunkReader()
        return lambda chunk: reader.open(chunk, self._own_path(chunk_file(chunk)))

    @cached_property
    def _chunk_writer(self) -> "ChunkWriter":
        from ddln.sweeps._chunk_files import ChunkWriter

        return ChunkWriter()

    def _plan(self) -> Plan:
        """The plan of the run, from its config.

        Raises:
            StoreError: the config is missing or damaged.
        """
        with as_store_error(f"{self.path}: "):
            return make_plan(load(self._own_path("config.toml")))

    def export(self) -> Path:
        """Write dataset.nc, the data set as one file with every variable, and return its path.

        Raises:
            StoreError: chunks are missing or damaged.
        """
        if not self.is_whole("dataset.nc"):
            self.read_dataset()
            self.write_dataset(self._plan())
        return self.path / "dataset.nc"

    def write_claims(self, claims: Mapping[str, Any]) -> None:
        """Write the tables; a number that is not finite becomes null."""
        text = json.dumps(finite(claims), indent=1, ensure_ascii=False) + "\n"
        self._record_file("claims.json", self._write_text("claims.json", text))

    def read_claims(self) -> dict[str, Any]:
        """The tables of certificates and claims.

        Raises:
            StoreError: claims.json is missing or damaged.
        """
        if not self.is_whole("claims.json"):
            raise StoreError(
                f"{self.path}: claims.json is missing or damaged; run again to mend it"
            )
        with as_store_error(f"{self.path}/claims.json: "):
            return parse_claims(
                files.read_limited(self._own_path("claims.json"), LARGEST_FILE).decode()
            )

    def write_figures(self, figures: Mapping[str, Any]) -> list[Path]:
        """Write each figure as PNG (200 dpi), SVG and PDF, and return the paths.

        Figures written earlier under other names are removed.

        Raises:
            StoreError: a figure's name cannot be a file's.
        """
        from matplotlib import rc_context

        paths = []
        for name, figure in figures.items():
            if not re.fullmatch(FIGURE, name):
                raise StoreError(f"a figure cannot be called {name!r}")
            # A figure without a layout engine may have labels beyond its edges: fit the page to it.
            fit = {} if figure.get_layout_engine() is not None else {"bbox_inches": "tight"}
            for kind, options in _FIGURE_FORMATS.items():
                path = f"figures/{name}.{kind}"
                with rc_context({"svg.hashsalt": name}):
                    draw = partial(figure.savefig, format=kind, **options, **fit)
                    self._record_file(path, self._write(path, draw))
                # The layout of the first file serves the others.
                figure.set_layout_engine("none")
                paths.append(self.path / path)
        for old in set((self.path / "figures").glob("*")) - set(paths):
            old.unlink()
            self._forget_file(old.relative_to(self.path).as_posix())
        return paths

    def record(self, path: Path) -> None:
        """Enter a file that another module wrote into the manifest."""
        self._record_file(path.relative_to(self.path).as_posix(), files.sha256_of(path))

    def finish(self, study: str = "") -> None:
        """Mark the run complete.

        Args:
            study: SHA-256 of the study that made the claims.
        """
        self._update_manifest(complete=True, study_sha256=study)
