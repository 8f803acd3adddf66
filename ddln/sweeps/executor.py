"""Compute a run into its folder, then publish its tables, figures and page.

An `Executor` computes the chunks, in this process or in others. Each reports a chunk only once it
is complete in the folder, so one executor can resume a run that another began.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ddln.config.schema import DevicesConfig
from ddln.sweeps import progress, studies
from ddln.sweeps.environment import provenance, relative_path
from ddln.sweeps.plan import Chunk, Plan
from ddln.sweeps.run_folder import RunFolder, StoreError

LISTED = 5
"""How many lost chunks an error lists one by one."""


class LostChunks(Exception):
    """Some chunks could not be computed; all others are in the folder.

    Args:
        chunks: how many chunks were to be computed.
        faults: the error of each lost chunk, by its index.
    """

    def __init__(self, chunks: int, faults: Mapping[int, BaseException]):
        shown = [
            f"chunk {index}: {type(fault).__name__}: {fault}"
            for index, fault in sorted(faults.items())[:LISTED]
        ]
        more = [f"and {len(faults) - LISTED:,} more"] if len(faults) > LISTED else []
        head = f"{len(faults):,} of {chunks:,} chunks could not be computed; the others are kept,"
        super().__init__("\n".join([f"{head} and the same command tries again", *shown, *more]))
        self.faults = faults


class Executor(ABC):
    """Computes chunks into a run folder."""

    @abstractmethod
    def provenance(self, devices: DevicesConfig | None) -> dict[str, Any]:
        """The versions, device, dtype and settings of the computing process.

        Chunks of processes that differ in these are not alike.

        Raises:
            ValueError: the process has fewer devices than the config asks for.
        """

    @abstractmethod
    def compute(
        self, folder: RunFolder, chunks: Sequence[Chunk], report: Callable[[Chunk, float], None]
    ) -> Iterable[tuple[Chunk, Mapping[str, int]]]:
        """Yield each chunk once it is in the folder, with its number of networks by status name.

        Args:
            folder: open.
            chunks: to be computed.
            report: may be called with a chunk and its finished share.
        """


class LocalExecutor(Executor):
    """Computes in this process, one chunk after the other."""

    def provenance(self, devices: DevicesConfig | None) -> dict[str, Any]:
        if devices is not None:
            from ddln.sweeps import build

            build.make_mesh(devices)
        return provenance()

    def compute(
        self, folder: RunFolder, chunks: Sequence[Chunk], report: Callable[[Chunk, float], None]
    ) -> Iterator[tuple[Chunk, Mapping[str, int]]]:
        from ddln.sweeps import compute

        compute_one = partial(compute.compute, report=report)
        for chunk, dataset in progress.prefetch(compute_one, chunks):
            yield chunk, folder.write_chunk(chunk, dataset)


@contextlib.contextmanager
def open_run(folder: RunFolder, plan: Plan, executor: Executor) -> Iterator[None]:
    """Lock the folder for this process, and open it with the provenance of the executor.

    Raises:
        StoreError: another process holds the folder, or the run began with another provenance.
        ValueError: there are fewer devices than the plan asks for.
    """
    with folder.locked():
        folder.open(plan, **executor.provenance(plan.experiment.devices))
        yield


def compute(
    folder: RunFolder, plan: Plan, executor: Executor, *, json_lines: bool = False
) -> progress.Progress:
    """Compute the missing chunks, and return the progress made, all of it.

    Args:
        folder: from `open_run`.
        plan: of the run.
        executor: computes the chunks.
        json_lines: print progress as JSON events, see `ddln.sweeps.progress`.

    Raises:
        OSError: a chunk could not be written.
        LostChunks: some chunks could not be computed; all others are in the folder.
    """
    missing = folder.missing(plan)
    before = folder.status_counts(missing)
    done = progress.Progress(plan, before, len(plan.chunks) - len(missing))
    display = progress.progress_display(done, str(folder.path), json_lines=json_lines)
    with display as advance:
        for chunk, status in executor.compute(folder, missing, done.update_share):
            advance(chunk, status)
    return done


def publish(
    folder: RunFolder,
    plan: Plan,
    study: ModuleType | studies.StudyError,
    fingerprint: str,
    log: Callable[[str], None],
) -> None:
    """Assemble the data set, check certificates and claims, draw figures and write the page.

    If the study fails, certificates and page are still written, but the run is not marked complete.

    Args:
        folder: with all its chunks.
        plan: of the run.
        study: from `ddln.sweeps.studies.find`, or the error of finding it.
        fingerprint: SHA-256 of the study's file.
        log: called with a message at each stage.

    Raises:
        StudyError: the study cannot use the data set.
        OSError: a file could not be written.
    """
    from ddln.sweeps import report
    from ddln.verification import certificates

    if plan.is_portable and not folder.is_whole("dataset.nc"):
        log("assembling")
        folder.write_dataset(plan)
        log(f"written {relative_path(folder.path / 'dataset.nc')}")
    dataset = folder.read_dataset()
    log("certifying")
    rows, faults, claimed = certificates.summary(dataset), [], []
    try:
        claimed = studies.claims(_usable(study), dataset)
    except studies.StudyError as error:
        faults.append(str(error))
    folder.write_claims({"certificates": rows, "claims": claimed})
    log("drawing")
    try:
        draw(folder, _usable(study), dataset)
    except studies.StudyError as error:
        folder.write_figures({})
        faults.append(str(error))
    faults = list(dict.fromkeys(faults))
    folder.record(report.write(folder.path, faults, dataset))
    if faults:
        raise studies.StudyError("\n".join(faults))
    folder.finish(fingerprint)


def draw(folder: RunFolder, study: ModuleType, dataset: Any) -> list[Path]:
    """Write the study's figures, and return their paths.

    Raises:
        StudyError: the study cannot draw the data set.
        OSError: a file could not be written.
    """
    figures = studies.figures(study, dataset)
    with studies.attributed(study, "draw", but=(OSError, StoreError)):
        return folder.write_figures(figures)


def _usable(study: ModuleType | studies.StudyError) -> ModuleType:
    if isinstance(study, studies.StudyError):
        raise study
    return study
