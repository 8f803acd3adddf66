"""A run, from a plan and a folder to its tables, figures and page.

Its chunks are computed in some *way*: by this process, or by others. Whatever the way, a chunk is
in the folder, whole, when it is told of; so a run that one way began another can go on with.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ddln.config.schema import Devices
from ddln.sweeps import progress, studies
from ddln.sweeps.environment import provenance, relative_path
from ddln.sweeps.plan import Chunk, Plan
from ddln.sweeps.run_folder import RunFolder, StoreError

LISTED = 5
"""Lost chunks that are told of one by one."""


class LostChunks(Exception):
    """Chunks that could not be computed, while the others were.

    Args:
        chunks: how many were to be computed.
        faults: why, by the number of the chunk.
    """

    def __init__(self, chunks: int, faults: Mapping[int, BaseException]):
        shown = [
            f"chunk {index}: {type(fault).__name__}: {fault}"
            for index, fault in sorted(faults.items())[:LISTED]
        ]
        more = [f"and {len(faults) - LISTED:,} more"] if len(faults) > LISTED else []
        told = f"{len(faults):,} of {chunks:,} chunks could not be computed; the others are kept,"
        super().__init__("\n".join([f"{told} and the same command tries again", *shown, *more]))
        self.faults = faults


class Way(ABC):
    """How chunks are computed."""

    @abstractmethod
    def provenance(self, devices: Devices | None) -> dict[str, Any]:
        """Versions, device and dtype of who computes: chunks of others are not alike.

        Raises:
            ValueError: it has fewer devices than are asked for.
        """

    @abstractmethod
    def compute(
        self, folder: RunFolder, chunks: Sequence[Chunk], report: Callable[[Chunk, float], None]
    ) -> Iterable[tuple[Chunk, Mapping[str, int]]]:
        """Each chunk, once it is in the folder, and how many of its lanes ended in which way.

        Args:
            folder: open.
            chunks: to be computed.
            report: may be told of a chunk how large a share of it is done.
        """


class Here(Way):
    """In this process, one chunk after the other."""

    def provenance(self, devices: Devices | None) -> dict[str, Any]:
        if devices is not None:
            from ddln.sweeps import build

            build.mesh_of(devices)
        return provenance()

    def compute(
        self, folder: RunFolder, chunks: Sequence[Chunk], report: Callable[[Chunk, float], None]
    ) -> Iterator[tuple[Chunk, Mapping[str, int]]]:
        from ddln.sweeps import compute as lanes

        for chunk, dataset in progress.computed(partial(lanes.compute, report=report), chunks):
            yield chunk, folder.write_chunk(chunk, dataset)


@contextlib.contextmanager
def begun(folder: RunFolder, plan: Plan, way: Way) -> Iterator[None]:
    """The folder held for this process, and open to be computed in this way.

    Raises:
        StoreError: another process holds it, or it was begun on another ground.
        ValueError: there are fewer devices than the plan asks for.
    """
    with folder.locked():
        folder.open(plan, **way.provenance(plan.experiment.devices))
        yield


def compute(folder: RunFolder, plan: Plan, way: Way, *, json_lines: bool = False) -> None:
    """Compute what is missing.

    Args:
        folder: begun.
        plan: of the run.
        way: of computing it.
        json_lines: show progress as events, see `ddln.sweeps.progress`.

    Raises:
        OSError: a chunk could not be written.
        LostChunks: some could not be computed; all others are in the folder.
    """
    missing = folder.missing(plan)
    before = folder.endings(missing)
    done = progress.Progress(plan, before, len(plan.chunks) - len(missing))
    with progress.shown(done, str(folder.path), json_lines=json_lines) as advance:
        for chunk, endings in way.compute(folder, missing, done.reach):
            advance(chunk, endings)


def publish(
    folder: RunFolder,
    plan: Plan,
    study: ModuleType | studies.StudyError,
    fingerprint: str,
    say: Callable[[str], None],
) -> None:
    """Put the chunks together, certify, let the study claim and draw, write the page, finish.

    Where the study fails, certificates and page are written all the same, and the run is not
    finished.

    Args:
        folder: with all its chunks.
        plan: of the run.
        study: from `ddln.sweeps.studies.find`, or why there is none.
        fingerprint: of its file.
        say: told of each stage.

    Raises:
        StudyError: the study cannot use the data set.
        OSError: something could not be written.
    """
    from ddln.sweeps import report
    from ddln.verification import claims

    if not folder.is_whole("dataset.nc"):
        say("assembling")
        folder.write_dataset(plan)
        say(f"written {relative_path(folder.path / 'dataset.nc')}")
    dataset = folder.read_dataset()
    say("certifying")
    rows, faults, claimed = claims.summary(dataset), [], []
    try:
        claimed = studies.claims(_usable(study), dataset)
    except studies.StudyError as error:
        faults.append(str(error))
    folder.write_claims({"certificates": rows, "claims": claimed})
    say("drawing")
    try:
        draw(folder, _usable(study), dataset)
    except studies.StudyError as error:
        folder.write_figures({})
        faults.append(str(error))
    folder.record(report.write(folder.path))
    if faults:
        raise studies.StudyError("\n".join(dict.fromkeys(faults)))
    folder.finish(fingerprint)


def draw(folder: RunFolder, study: ModuleType, dataset: Any) -> list[Path]:
    """Write the study's figures, and give their paths.

    Raises:
        StudyError: the study cannot draw the data set.
        OSError: something could not be written.
    """
    figures = studies.figures(study, dataset)
    with studies.attributed(study, "draw", but=(OSError, StoreError)):
        return folder.write_figures(figures)


def _usable(study: ModuleType | studies.StudyError) -> ModuleType:
    if isinstance(study, studies.StudyError):
        raise study
    return study
