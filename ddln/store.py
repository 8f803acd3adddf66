"""Run folders: what was computed, kept so that a killed run can go on and a damaged one is found.

    runs/<study>-<digest>/  config.toml  manifest.json  chunks/00000.nc  dataset.nc  claims.json
                            figures/*.png  figures/*.pdf  report.html

Every file appears whole or not at all (a temporary name in the same folder, fsync, rename), and the
manifest holds its SHA-256. A chunk counts as done when its file has the sum in the manifest.
"""

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddln._files import digest_of, remove_unfinished, try_lock, write_whole
from ddln.config import Experiment, numeric_leaves, value_of
from ddln.plan import Chunk, Plan

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1


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
        """The folder called `name`: a path, or the beginning of a name in `root`.

        Raises:
            StoreError: there is none, or more than one.
        """
        if (Path(name) / "manifest.json").is_file():
            return cls(name)
        runs = sorted(manifest.parent for manifest in Path(root).glob("*/manifest.json"))
        found = [run for run in runs if run.name.startswith(name)]
        if len(found) == 1:
            return cls(found[0])
        if found:
            raise StoreError(f"{name}: which of {', '.join(run.name for run in found)}?")
        raise StoreError(f"{name}: not a run folder, nor the beginning of one in {root}/")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process, making it where needed.

        The lock is the operating system's and ends with the process, however that ends.

        Raises:
            StoreError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+b") as file:
            if not try_lock(file):
                raise StoreError(f"{self.path}: another process is working on this run")
            remove_unfinished(self.path)
            yield

    def open(self, plan: Plan, **provenance: Any) -> None:
        """Starts the manifest and writes the resolved config, unless a run is there already.

        Args:
            plan: of the run.
            provenance: for the manifest: versions, device, dtype.

        Raises:
            StoreError: the run was begun on another ground, and some of it is still to be computed.
        """
        manifest = self.manifest()
        if manifest.get("plan") == _signature(plan):
            changed = _changes(manifest, provenance)
            if changed and self.missing(plan):
                raise StoreError(
                    f"{self.path}: begun with {', '.join(changed)}; its chunks would not be"
                    " alike: move the folder away to run again"
                )
            return
        self._write_text("config.toml", plan.experiment.to_toml())
        self._write_manifest(
            {
                "format": FORMAT,
                "study": plan.experiment.study,
                "digest": plan.experiment.digest(),
                "plan": _signature(plan),
                "seeds": _seeds(plan.experiment),
                **provenance,
                "chunks": {},
                "files": {},
                "complete": False,
            }
        )

    def manifest(self) -> dict[str, Any]:
        """The manifest; empty where there is none that can be read.

        Raises:
            StoreError: it was written in another format.
        """
        try:
            manifest = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(manifest, dict):
            return {}
        if manifest.get("format") != FORMAT:
            raise StoreError(
                f"{self.path}: written in format {manifest.get('format')}, this is {FORMAT};"
                " move the folder away to run again"
            )
        return manifest

    def is_complete(self, plan: Plan, study: str = "") -> bool:
        """Whether all is there and whole.

        Args:
            plan: of the run.
            study: sum of the study that made the claims; another one makes other claims.
        """
        manifest = self.manifest()
        return (
            bool(manifest.get("complete"))
            and manifest.get("study_sha256", "") == study
            and manifest["files"].keys() >= {"dataset.nc", "claims.json"}
            and all(self.is_whole(name) for name in manifest["files"])
            and not self.missing(plan)
        )

    def is_whole(self, name: str) -> bool:
        """Whether a file of the manifest is there with the content it was written with."""
        recorded = self.manifest().get("files", {}).get(name)
        return recorded is not None and digest_of(self.path / name) == recorded

    def missing(self, plan: Plan) -> list[Chunk]:
        """The chunks still to be computed: never written, lost, altered or cut short."""
        recorded = self.manifest().get("chunks", {})
        return [
            chunk
            for chunk in plan.chunks
            if (entry := recorded.get(str(chunk.index))) is None
            or digest_of(self.path / _chunk_name(chunk)) != entry["sha256"]
        ]

    def write_chunk(self, chunk: Chunk, dataset: "xr.Dataset") -> dict[str, int]:
        """Writes a chunk's lanes, then tells the manifest.

        Returns:
            How many of them ended in which way.

        Raises:
            StoreError: the data set does not have the chunk's lanes.
        """
        if dataset.sizes["lane"] != chunk.lanes.size:
            raise StoreError(
                f"chunk {chunk.index}: {dataset.sizes['lane']} lanes for {chunk.lanes.size}"
            )
        name = _chunk_name(chunk)
        digest = self._write(name, lambda path: dataset.to_netcdf(path, engine="h5netcdf"))
        manifest, endings = self.manifest(), status_counts(dataset)
        manifest["chunks"][str(chunk.index)] = {
            "file": name,
            "sha256": digest,
            "lanes": int(chunk.lanes.size),
            "status": endings,
            "steps": int(dataset["steps"].sum()),
            "rounds": int(dataset["rounds"].sum()),
        }
        # What was made of the chunks is no longer theirs.
        manifest.update(complete=False, files={})
        self._write_manifest(manifest)
        return endings

    def endings(self, but: Iterable[Chunk] = ()) -> dict[str, int]:
        """How many lanes of the finished chunks ended in which way.

        Args:
            but: chunks that are not counted.
        """
        left_out = {str(chunk.index) for chunk in but}
        total: Counter[str] = Counter()
        for index, entry in self.manifest().get("chunks", {}).items():
            if index not in left_out:
                total.update(entry["status"])
        return dict(total)

    def efficiency(self) -> float:
        """Lane efficiency: steps that lanes made as a share of those computed for them."""
        entries = self.manifest().get("chunks", {}).values()
        computed = sum(entry["rounds"] for entry in entries)
        return sum(entry["steps"] for entry in entries) / max(computed, 1)

    def write_dataset(self, plan: Plan) -> None:
        """Writes the data set of the chunks that are whole, one after the other.

        The lanes of the others are NaN in it: a hole must not pass for a shorter axis.

        Raises:
            StoreError: there is no chunk.
        """
        from ddln import grid

        lost = {chunk.index for chunk in self.missing(plan)}
        if len(lost) == len(plan.chunks):
            raise StoreError(f"{self.path}: no chunk is there and whole")

        def load(chunk: Chunk) -> "xr.Dataset | None":
            return None if chunk.index in lost else _open(self.path / _chunk_name(chunk))

        digest = self._write("dataset.nc", lambda path: grid.write(plan, load, path))
        self._record("dataset.nc", digest)

    def read_dataset(self) -> "xr.Dataset":
        """The assembled data set, each variable read from the file when it is used.

        Raises:
            StoreError: it is missing or not what was written.
        """
        if not self.is_whole("dataset.nc"):
            raise StoreError(f"{self.path}: dataset.nc is missing or damaged; run again to mend it")
        return _open(self.path / "dataset.nc")

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
        text = (self.path / "claims.json").read_text(encoding="utf-8")
        return json.loads(text, object_hook=_with_nans)

    def write_figures(self, figures: Mapping[str, Any]) -> list[Path]:
        """Writes each figure as PNG (200 dpi) and PDF, and returns the paths.

        Figures written earlier under other names are removed.

        Raises:
            StoreError: a name that cannot be a file's.
        """
        paths = []
        for name, figure in figures.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise StoreError(f"a figure cannot be called {name!r}")
            png = self._write(f"figures/{name}.png", partial(figure.savefig, format="png", dpi=200))
            # Without a date, the same figure is the same file.
            undated = {"CreationDate": None}
            pdf = self._write(
                f"figures/{name}.pdf", partial(figure.savefig, format="pdf", metadata=undated)
            )
            for kind, digest in (("png", png), ("pdf", pdf)):
                self._record(f"figures/{name}.{kind}", digest)
                paths.append(self.path / f"figures/{name}.{kind}")
        for old in set((self.path / "figures").glob("*")) - set(paths):
            old.unlink()
            self._forget(old.relative_to(self.path).as_posix())
        return paths

    def record(self, path: Path) -> None:
        """Tells the manifest of a file that another module wrote."""
        self._record(path.relative_to(self.path).as_posix(), digest_of(path))

    def finish(self, study: str = "") -> None:
        """Marks the run complete.

        Args:
            study: sum of the study that made the claims.
        """
        self._write_manifest({**self.manifest(), "complete": True, "study_sha256": study})

    def _record(self, name: str, digest: str) -> None:
        manifest = self.manifest()
        manifest["files"][name] = digest
        self._write_manifest(manifest)

    def _forget(self, name: str) -> None:
        manifest = self.manifest()
        manifest["files"].pop(name, None)
        self._write_manifest(manifest)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        self._write_text("manifest.json", json.dumps(manifest, indent=1) + "\n")

    def _write_text(self, name: str, text: str) -> str:
        return self._write(name, lambda path: path.write_text(text, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], Any]) -> str:
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        return write_whole(target, write)


def status_counts(dataset: "xr.Dataset") -> dict[str, int]:
    """How many lanes ended in which way, by the names in the attributes of `status`."""
    import numpy as np

    status = dataset["status"]
    names = status.attrs["flag_meanings"].split()
    codes = np.atleast_1d(status.attrs["flag_values"]).tolist()
    found, counts = np.unique(status.values, return_counts=True)
    return {
        dict(zip(codes, names, strict=True)).get(int(code), str(code)): int(count)
        for code, count in zip(found, counts, strict=True)
    }


def _changes(begun: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What of the ground is another one than at the beginning."""
    changes = []
    for name, value in here.items():
        if isinstance(value, Mapping):
            changes += _changes(begun.get(name, {}), value)
        elif begun.get(name) != value:
            changes.append(f"{name} {begun.get(name)}, now {value}")
    return changes


def _seeds(experiment: Experiment) -> dict[str, Any]:
    return {
        name: "swept" if name in experiment.sweep else value_of(experiment, name)
        for name in numeric_leaves(experiment)
        if name.endswith("seed")
    }


def _chunk_name(chunk: Chunk) -> str:
    return f"chunks/{chunk.index:05d}.nc"


def _signature(plan: Plan) -> list[int]:
    return [*plan.shape, *(int(chunk.lanes.size) for chunk in plan.chunks)]


def _open(path: Path) -> "xr.Dataset":
    import xarray as xr

    # What was read is not kept: a data set may be larger than memory.
    return xr.open_dataset(path, engine="h5netcdf", cache=False)


def finite(value: Any) -> Any:
    """Plain values for JSON, which has no word for a number that is not finite: null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nans(table: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in table.items()}
