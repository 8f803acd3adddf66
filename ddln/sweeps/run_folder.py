"""Run folders: what was computed, kept so that a killed run can go on and a damaged one is found.

    runs/<study>-<digest>/  config.toml  manifest.json  chunks/00000.nc  chunks/00000.json
                            dataset.nc  claims.json  figures/*.{png,svg,pdf}  report.html

Every file appears whole or not at all (a temporary name in the same folder, fsync, rename). A chunk
counts as done when its file has the sum in the receipt beside it (`ddln.sweeps._manifest`), which
says what the run was begun with, too: chunks need no manifest to be known again. The manifest holds
the sums of what was made of them.
"""

import contextlib
import errno
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddln._internal import files
from ddln._internal.files import digest_of
from ddln.config.experiment import Experiment
from ddln.sweeps import _netcdf
from ddln.sweeps._manifest import (
    FIGURE,
    Begun,
    Manifest,
    Receipt,
    begun_with,
    changes,
    finite,
    rows_of,
    sealed,
    unsealed,
)
from ddln.sweeps.dataset_schema import solved_again, status_counts
from ddln.sweeps.plan import Chunk, Plan

if TYPE_CHECKING:
    import xarray as xr

_LARGEST = 2**26
"""Bytes of the claims that are read."""


class StoreError(ValueError):
    """A run folder that cannot be used as asked."""


class RunFolder:
    """One run's folder.

    Args:
        path: the folder; nothing is made until `locked`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def of(cls, experiment: Experiment, root: str | Path = "runs") -> "RunFolder":
        """The folder of an experiment: root/<study>-<digest>."""
        return cls(Path(root) / f"{experiment.study}-{experiment.digest()}")

    @classmethod
    def existing(cls, name: str, root: str | Path = "runs") -> "RunFolder":
        """The newest of the folders that `name` may mean, see `matching`."""
        return cls.matching(name, root)[0]

    @classmethod
    def matching(cls, name: str, root: str | Path = "runs") -> "list[RunFolder]":
        """The folders that `name` may mean, the one begun last first.

        Args:
            name: a path, a study's, or the beginning of a folder's name in `root`.
            root: of run folders.

        Raises:
            StoreError: there is none, or they are of several studies.
        """
        if (Path(name) / "manifest.json").is_file():
            return [cls(name)]
        runs = sorted(manifest.parent for manifest in Path(root).glob("*/manifest.json"))
        of_study = [run for run in runs if _study_of(run) == name]
        found = of_study or [run for run in runs if run.name.startswith(name)]
        if len({_study_of(run) for run in found}) > 1:
            raise StoreError(f"{name}: which of {', '.join(run.name for run in found)}?")
        if found:
            return [cls(run) for run in sorted(found, key=_begun_at, reverse=True)]
        known = ", ".join(run.name for run in runs) or "no run"
        raise StoreError(
            f"{name}: not a run folder, nor the beginning of one in {root}/, which has {known};"
            " `--out` names another folder"
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process, making it where needed.

        The lock is the operating system's and ends with the process, however that ends.

        Raises:
            StoreError: another process holds it, or something in it is a link.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _told():
            files.refuse_links(self.path)
        with (self.path / ".lock").open("a+b") as file:
            if not files.try_lock(file):
                raise StoreError(
                    f"{self.path}: another process is working on this run; wait, or stop it"
                )
            files.remove_unfinished(self.path)
            yield

    def open(self, plan: Plan, **provenance: Any) -> None:
        """Starts the manifest and writes the resolved config, or goes on with what is there.

        Args:
            plan: of the run.
            provenance: for the manifest: versions, device, dtype.

        Raises:
            StoreError: the folder is another experiment's, or the run was begun on another ground
                and some of it is still to be computed.
        """
        manifest, begun = self._manifest(), self._begun()
        here = begun_with(plan, provenance)
        if begun is None:
            if any(self.path.glob("chunks/*")):
                raise StoreError(
                    f"{self.path}: nothing tells what its chunks are; move the folder away"
                )
            begun = here
        elif begun.digest != here.digest:
            raise StoreError(f"{self.path}: holds the run {begun.digest}, not {here.digest}")
        elif (changed := changes(begun, here)) and self.missing(plan):
            raise StoreError(
                f"{self.path}: begun with {', '.join(changed)}; its chunks would not be"
                " alike: move the folder away to run again"
            )
        (self.path / "chunks").mkdir(exist_ok=True)
        if manifest is None:
            self._write_text("config.toml", plan.experiment.to_toml())
            self._write_manifest(Manifest(**begun.model_dump()))
            files.sync_folder(self.path.parent)
        elif manifest.files and self.missing(plan):
            # What was made of other chunks.
            self._update(files={}, complete=False)

    def manifest(self) -> dict[str, Any]:
        """The manifest; empty where there is none that is whole.

        Raises:
            StoreError: it was written in another format, or by something else.
        """
        manifest = self._manifest()
        return {} if manifest is None else manifest.model_dump()

    def is_complete(self, plan: Plan, study: str = "") -> bool:
        """Whether all is there and whole.

        Args:
            plan: of the run.
            study: sum of the study that made the claims; another one makes other claims.
        """
        manifest = self._manifest()
        return (
            manifest is not None
            and manifest.complete
            and manifest.study_sha256 == study
            and manifest.files.keys() >= {"dataset.nc", "claims.json"}
            and all(self.is_whole(name) for name in manifest.files)
            and not self.missing(plan)
        )

    def is_whole(self, name: str) -> bool:
        """Whether a file of the manifest is there with the content it was written with."""
        recorded = self.manifest().get("files", {}).get(name)
        return recorded is not None and digest_of(self._at(name)) == recorded

    def missing(self, plan: Plan) -> list[Chunk]:
        """The chunks still to be computed: never written, lost, altered or cut short."""
        run = begun_with(plan)
        return [chunk for chunk in plan.chunks if not self._is_done(chunk, run)]

    def kept(self, chunk: Chunk) -> dict[str, int] | None:
        """How many lanes of a chunk ended in which way; None where it is still to be computed."""
        run, receipt = self._manifest(), self._read(_chunk_name(chunk, "json"), Receipt)
        is_done = run is not None and receipt is not None and self._is_done(chunk, run)
        return receipt.status if receipt is not None and is_done else None

    def _is_done(self, chunk: Chunk, run: Begun) -> bool:
        receipt = self._read(_chunk_name(chunk, "json"), Receipt)
        return (
            receipt is not None
            and (receipt.run.digest, receipt.run.plan) == (run.digest, run.plan)
            and receipt.chunk == chunk.index
            and receipt.sha256 == digest_of(self._at(_chunk_name(chunk)))
        )

    def write_chunk(self, chunk: Chunk, dataset: "xr.Dataset") -> dict[str, int]:
        """Writes a chunk's lanes, then its receipt.

        Returns:
            How many of them ended in which way.

        Raises:
            StoreError: the data set does not have the chunk's lanes, or the folder is not open.
        """
        if dataset.sizes["lane"] != chunk.lanes.size:
            raise StoreError(
                f"chunk {chunk.index}: {dataset.sizes['lane']} lanes for {chunk.lanes.size}"
            )
        manifest = self._manifest()
        if manifest is None:
            raise StoreError(f"{self.path}: has no manifest; `open` makes it")

        def write(path: Path) -> None:
            with _netcdf.written(path) as file:
                dataset.to_netcdf(file, engine="h5netcdf")

        digest, endings = self._write(_chunk_name(chunk), write), status_counts(dataset)
        again, inexact = solved_again(dataset)
        receipt = Receipt(
            run=Begun(**manifest.model_dump(include=set(Begun.model_fields))),
            chunk=chunk.index,
            sha256=digest,
            lanes=int(chunk.lanes.size),
            status=endings,
            steps=int(dataset["steps"].sum()),
            rounds=int(dataset["rounds"].sum()),
            solved_again=again,
            inexact=inexact,
            lanes_at_once=dataset.attrs.get("lanes_at_once"),
        )
        self._write_text(_chunk_name(chunk, "json"), sealed(receipt))
        return endings

    def endings(self, but: Iterable[Chunk] = ()) -> dict[str, int]:
        """How many lanes of the finished chunks ended in which way.

        Args:
            but: chunks that are not counted.
        """
        left_out = {chunk.index for chunk in but}
        total: Counter[str] = Counter()
        for receipt in self._receipts():
            if receipt.chunk not in left_out:
                total.update(receipt.status)
        return dict(total)

    def cut(self) -> int:
        """How many chunks were computed with fewer lanes at once, for want of memory."""
        return sum(receipt.lanes_at_once is not None for receipt in self._receipts())

    def solved_again(self) -> tuple[int, int]:
        """How many lanes were solved twice, and how many are off by more than expected."""
        receipts = list(self._receipts())
        return sum(r.solved_again for r in receipts), sum(r.inexact for r in receipts)

    def efficiency(self) -> float:
        """Lane efficiency: steps that lanes made as a share of those computed for them."""
        receipts = list(self._receipts())
        computed = sum(receipt.rounds for receipt in receipts)
        return sum(receipt.steps for receipt in receipts) / max(computed, 1)

    def write_dataset(self, plan: Plan) -> None:
        """Writes the data set of the chunks that are whole, one after the other.

        The lanes of the others are NaN in it: a hole must not pass for a shorter axis.

        Raises:
            StoreError: there is no chunk.
        """
        from ddln.sweeps import assemble

        lost = {chunk.index for chunk in self.missing(plan)}
        if len(lost) == len(plan.chunks):
            raise StoreError(f"{self.path}: no chunk is there and whole")

        def load(chunk: Chunk) -> "xr.Dataset | None":
            if chunk.index in lost:
                return None
            return _netcdf.opened(self._at(_chunk_name(chunk)))

        digest = self._write("dataset.nc", lambda path: assemble.write(plan, load, path))
        self._record("dataset.nc", digest)

    def read_dataset(self) -> "xr.Dataset":
        """The assembled data set, each variable read from the file when it is used.

        Raises:
            StoreError: it is missing or not what was written.
        """
        if not self.is_whole("dataset.nc"):
            raise StoreError(f"{self.path}: dataset.nc is missing or damaged; run again to mend it")
        return _netcdf.opened(self._at("dataset.nc"))

    def write_claims(self, claims: Mapping[str, Any]) -> None:
        """Writes the tables; a number that is not finite becomes null."""
        text = json.dumps(finite(claims), indent=1, ensure_ascii=False) + "\n"
        self._record("claims.json", self._write_text("claims.json", text))

    def read_claims(self) -> dict[str, Any]:
        """The tables.

        Raises:
            StoreError: they are missing or not what was written.
        """
        if not self.is_whole("claims.json"):
            raise StoreError(
                f"{self.path}: claims.json is missing or damaged; run again to mend it"
            )
        with _told(f"{self.path}/claims.json: "):
            return rows_of(files.read_limited(self._at("claims.json"), _LARGEST).decode())

    def write_figures(self, figures: Mapping[str, Any]) -> list[Path]:
        """Writes each figure as PNG (200 dpi), SVG and PDF, and returns the paths.

        Figures written earlier under other names are removed.

        Raises:
            StoreError: a name that cannot be a file's.
        """
        from matplotlib import rc_context

        paths = []
        for name, figure in figures.items():
            if not re.fullmatch(FIGURE, name):
                raise StoreError(f"a figure cannot be called {name!r}")
            # Without a date, and with a salt that follows from its name, it is the same file again.
            formats: tuple[tuple[str, dict[str, Any]], ...] = (
                ("png", {"dpi": 200}),
                ("svg", {"metadata": {"Date": None}}),
                ("pdf", {"metadata": {"CreationDate": None}}),
            )
            for kind, options in formats:
                path = f"figures/{name}.{kind}"
                if figure.get_layout_engine() is None:
                    # What makes room for labels is in the style that it was made without.
                    options["bbox_inches"] = "tight"
                with rc_context({"svg.hashsalt": name}):
                    draw = partial(figure.savefig, format=kind, **options)
                    self._record(path, self._write(path, draw))
                paths.append(self.path / path)
        for old in set((self.path / "figures").glob("*")) - set(paths):
            old.unlink()
            self._forget(old.relative_to(self.path).as_posix())
        return paths

    def record(self, path: Path) -> None:
        """Tells the manifest of a file that another module wrote."""
        self._record(path.relative_to(self.path).as_posix(), files.sha256_of(path))

    def finish(self, study: str = "") -> None:
        """Marks the run complete.

        Args:
            study: sum of the study that made the claims.
        """
        self._update(complete=True, study_sha256=study)

    def _record(self, name: str, digest: str) -> None:
        self._update(files={**self.manifest()["files"], name: digest})

    def _forget(self, name: str) -> None:
        self._update(
            files={known: s for known, s in self.manifest()["files"].items() if known != name}
        )

    def _update(self, **facts: Any) -> None:
        self._write_manifest(Manifest(**{**self.manifest(), **facts}))

    def _write_manifest(self, manifest: Manifest) -> None:
        self._write_text("manifest.json", sealed(manifest))

    def _manifest(self) -> Manifest | None:
        return self._read("manifest.json", Manifest)

    def _receipts(self) -> Iterator[Receipt]:
        """Of the run that the manifest, or else the first of them, is of."""
        begun = self._begun()
        for path in sorted(self.path.glob("chunks/*.json")):
            receipt = self._read(f"chunks/{path.name}", Receipt)
            if receipt is not None and begun is not None and receipt.run.digest == begun.digest:
                yield receipt

    def _begun(self) -> Begun | None:
        """What the run was begun with: the manifest knows, or any receipt."""
        manifest = self._manifest()
        if manifest is not None:
            return Begun(**manifest.model_dump(include=set(Begun.model_fields)))
        for path in sorted(self.path.glob("chunks/*.json")):
            if (receipt := self._read(f"chunks/{path.name}", Receipt)) is not None:
                return receipt.run
        return None

    def _read(self, name: str, kind: type) -> Any:
        with _told(f"{self.path}: "):
            return unsealed(self._at(name), kind)

    def _at(self, name: str) -> Path:
        """The path of a file that is the folder's own."""
        path = self.path / name
        for part in (path, *([path.parent] if path.parent != self.path else [])):
            if part.is_symlink():
                raise StoreError(f"{part}: a link; the files of a run folder must be its own")
        return path

    def _write_text(self, name: str, text: str) -> str:
        return self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], Any]) -> str:
        target = self.path / name
        try:
            target.parent.mkdir(exist_ok=True)
            return files.write_whole(target, write)
        except OSError as error:
            reason = (
                f"{error.strerror or error}; what is finished is kept, and the same command goes on"
            )
            raise OSError(error.errno or errno.EIO, reason, str(target)) from error


@contextlib.contextmanager
def _told(where: str = "") -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise StoreError(f"{where}{error}") from None


def _study_of(run: Path) -> str:
    return run.name.rpartition("-")[0]


def _begun_at(run: Path) -> float:
    """When: the config is written once, the manifest again and again."""
    config = run / "config.toml"
    return (config if config.is_file() else run / "manifest.json").stat().st_mtime


def _chunk_name(chunk: Chunk, kind: str = "nc") -> str:
    return f"chunks/{chunk.index:05d}.{kind}"
