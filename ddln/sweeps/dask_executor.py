"""Compute the chunks of a sweep by the workers of a Dask cluster.

The client sends chunk indices. A worker reads the plan from the run folder, which must be on shared
storage, computes a chunk, writes it there with its record, and returns the number of its networks
for each status name. Nothing large is sent, and finished chunks survive every failure: if a worker
dies, another one takes over its chunk; if the scheduler restarts, the client submits the missing
chunks again; if the client restarts, it begins with the chunks in the folder.
"""

import contextlib
import hashlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddln._internal.extras import install_command
from ddln._internal.files import remove_unfinished
from ddln.config.experiment import load
from ddln.config.schema import DevicesConfig
from ddln.sweeps._dask_address import local_workers, log, scheduler_address
from ddln.sweeps._manifest import differences
from ddln.sweeps.environment import provenance, start_jax
from ddln.sweeps.executor import Executor, LocalExecutor, LostChunks
from ddln.sweeps.plan import Chunk, Plan, make_plan
from ddln.sweeps.run_folder import RunFolder

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 2
"""How often a chunk is tried again after an error."""
ALLOWED_FAILURES = 10
"""How many workers of `local:N` may die over a chunk; other schedulers have their own setting."""
RECONNECT_TIMEOUT = 600.0
"""Seconds to wait for a scheduler to come back."""
VISIBLE_TIMEOUT = 120.0
"""Seconds within which this machine must see a file that another one wrote."""
_POLL_INTERVAL = 0.5
"""Seconds between two checks that the scheduler is still there."""

_PROFILER = "distributed.worker.profile.enabled"

_COMPUTING = threading.Lock()
"""One program at a time uses all cores of the process."""


def compute_chunk(path: str, index: int, expected: Mapping[str, Any]) -> dict[str, int]:
    """Compute a chunk into its run folder, unless it is there already; workers call this.

    Args:
        path: the folder, open.
        index: the index of the chunk.
        expected: versions, device, dtype and settings that the run began with.

    Returns:
        The number of its networks for each status name.

    Raises:
        RuntimeError: the versions, device, dtype or settings of this worker differ.
        ValueError: Dask's profiler is on.
    """
    with _COMPUTING:
        _refuse_profiler()
        start_jax()
        if differing := differences(expected, provenance()):
            raise RuntimeError(
                f"{socket.gethostname()}: the run was begun with {', '.join(differing)}; a worker's"
                " must be the same"
            )
        folder, chunk = RunFolder(path), _plan(path).chunks[index]
        status = folder.chunk_status(chunk)
        if status is None:
            from dask import config

            from ddln.sweeps import compute

            # By default xarray would ask the distributed scheduler for a lock on the file.
            with config.set(scheduler="threads"):
                status = folder.write_chunk(chunk, compute.compute(chunk))
        return status


@lru_cache(maxsize=1)
def _plan(path: str) -> Plan:
    return make_plan(load(Path(path) / "config.toml"))


def _worker_provenance(devices: DevicesConfig | None) -> dict[str, Any]:
    with _COMPUTING:
        _refuse_profiler()
        start_jax()
        return LocalExecutor().provenance(devices)


def _refuse_profiler() -> None:
    """Raise if Dask's profiler is on.

    It holds references to the frames of a thread, and so keeps parts of an HDF5 file open; the
    layout of the file depends on when they are closed.
    """
    from dask import config

    if config.get(_PROFILER, default=True):
        raise ValueError(
            f"{socket.gethostname()}: workers must be started with "
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=false, or the bytes of files would depend "
            "on when Dask looks at them"
        )


class DaskExecutor(Executor):
    """Computes by the workers of a Dask cluster.

    Args:
        connect: makes a client of the scheduler; raises OSError if none answers.
        where: the address of the scheduler, for messages.

    Raises:
        ConnectionError: no scheduler answers.
    """

    def __init__(self, connect: "Callable[[], Client]", where: str):
        self._connect, self._where = connect, where
        try:
            self._client: Client | None = connect()
        except OSError as error:
            raise ConnectionError(
                f"no scheduler answers at {where}: `dask scheduler` must be running there, with the"
                f" protocol and settings that docs/cluster.md tells ({error})"
            ) from None
        self._provenance: dict[str, Any] = {}

    def provenance(self, devices: DevicesConfig | None) -> dict[str, Any]:
        """The provenance of the worker that answers first; all others must have the same.

        Raises:
            ValueError: the worker cannot compute, or has fewer devices than the config asks for.
        """
        client = self._connected()
        future = client.submit(_worker_provenance, devices, pure=False)
        with contextlib.suppress(TimeoutError):
            future.exception(timeout=5)
        if not future.done():
            log(f"waiting for a worker at {self._where}")
        try:
            self._provenance = future.result()
        except (ValueError, OSError):
            raise
        except Exception as error:  # scheduler and workers may raise anything
            raise ValueError(
                f"the cluster at {self._where} cannot compute: its scheduler and workers must have "
                f"the versions of ddln and Dask that are here ({type(error).__name__}: {error})"
            ) from None
        return self._provenance

    def compute(
        self, folder: RunFolder, chunks: Sequence[Chunk], report: Callable[[Chunk, float], None]
    ) -> Iterator[tuple[Chunk, Mapping[str, int]]]:
        """Yield the chunks as the workers finish them.

        Raises:
            LostChunks: some chunks failed after all retries; the others are in the folder.
            ConnectionError: the scheduler went away and did not come back.
            OSError: this machine does not see the files that the workers wrote.
        """
        left, faults = {chunk.index: chunk for chunk in chunks}, {}
        while left:
            for index, answer in self._answers(folder, list(left)):
                chunk = left.pop(index)
                if isinstance(answer, BaseException):
                    faults[index] = answer
                else:
                    yield chunk, answer
            if left:
                self._reconnect()
        _await_visible(folder, [chunk for chunk in chunks if chunk.index not in faults])
        remove_unfinished(folder.path)  # files of killed workers
        if faults:
            raise LostChunks(len(chunks), faults)

    def close(self) -> None:
        """Disconnect from the cluster."""
        if self._client is not None:
            _close(self._client)
            self._client = None

    def _answers(self, folder: RunFolder, indices: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield the status or error of each chunk, until all are done or the scheduler dies."""
        client, done = self._connected(), queue.SimpleQueue()
        path = str(folder.path.absolute())
        # With these keys, a chunk still being computed for a dead client is not computed twice.
        run = hashlib.sha256(path.encode()).hexdigest()[:16]
        futures: list[Future] = client.map(
            compute_chunk,
            [path] * len(indices),
            indices,
            expected=self._provenance,
            key=[f"chunk-{run}-{index}" for index in indices],
            retries=RETRIES,
        )
        for index, future in zip(indices, futures, strict=True):
            future.add_done_callback(lambda future, index=index: done.put((index, future)))
        waiting = dict(zip(indices, futures, strict=True))
        while waiting:
            try:
                index, future = done.get(timeout=_POLL_INTERVAL)
            except queue.Empty:
                if client.status != "running" or any(f.status == "lost" for f in waiting.values()):
                    return
                continue
            try:
                answer = future.exception() or future.result()
            except (OSError, CancelledError):
                return  # the scheduler died meanwhile
            # Once released, the result cannot be lost with the worker that holds it.
            waiting.pop(index).release()
            yield index, answer

    def _connected(self) -> "Client":
        if self._client is None:
            raise ConnectionError(f"the cluster at {self._where} is closed")
        return self._client

    def _reconnect(self) -> None:
        self.close()
        log(
            f"the scheduler at {self._where} is gone or was restarted; submitting the missing "
            "chunks again"
        )
        until = time.monotonic() + RECONNECT_TIMEOUT
        while self._client is None:
            try:
                self._client = self._connect()
            except OSError:
                if time.monotonic() > until:
                    raise ConnectionError(
                        f"the scheduler at {self._where} did not come back in "
                        f"{RECONNECT_TIMEOUT:g} s; what was finished is kept"
                    ) from None
                time.sleep(_POLL_INTERVAL)


@contextlib.contextmanager
def open_executor(where: str | None) -> Iterator[Executor]:
    """Make an executor, and keep its cluster while the context lasts.

    Args:
        where: None for this process; `local:N` for N processes of this machine (`local`: one for
            every four cores); a scheduler's address, `tls://…` or `tcp://…`; or a scheduler file.

    Raises:
        ValueError: `where` is none of these, or Dask is not installed.
        OSError: no scheduler answers, or the workers of this machine do not start.
    """
    if where is None:
        yield LocalExecutor()
        return
    try:
        import distributed
        from dask import config
    except ImportError:
        raise ValueError(f"--cluster needs Dask: {install_command('cluster')}") from None
    import jax

    jax.config.update("jax_platforms", "cpu")  # only the workers use other devices
    for name in ("distributed", "distributed.client"):  # this module logs what matters
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        settings = {
            "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
            "distributed.worker.multiprocessing-method": "spawn",
            _PROFILER: False,
        }
        stack.enter_context(config.set(settings))
        if count := local_workers(where):
            local = _local_cluster(count)
            stack.callback(_close, local)
            address = local.scheduler_address
        else:
            address = scheduler_address(where)
        executor = DaskExecutor(
            lambda: distributed.Client(address, timeout=10, set_as_default=False), address
        )
        stack.callback(executor.close)
        yield executor


def _local_cluster(count: int) -> Any:
    """Workers on this machine.

    Raises:
        OSError: they do not start.
    """
    import distributed

    try:
        return distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=None,
            silence_logs=logging.CRITICAL,
            preload=["ddln.sweeps.dask_executor"],
        )
    except RuntimeError as error:  # Dask's for whatever went wrong in a process
        raise OSError(f"--cluster: {count} local workers did not start: {error}") from error


def _await_visible(folder: RunFolder, chunks: Sequence[Chunk]) -> None:
    """Wait until this machine sees the chunks that the workers wrote: file systems cache absence.

    Raises:
        OSError: some chunks do not become visible.
    """
    until = time.monotonic() + VISIBLE_TIMEOUT
    while chunks := [chunk for chunk in chunks if folder.chunk_status(chunk) is None]:
        if time.monotonic() > until:
            raise OSError(
                f"{len(chunks):,} chunks that workers wrote are not in {folder.path} here: it must"
                " be on storage that all share"
            )
        time.sleep(_POLL_INTERVAL)


def _close(cluster: Any) -> None:
    # Workers that do not answer are killed, which loses nothing: files on disk are complete.
    with contextlib.suppress(TimeoutError):
        cluster.close(timeout=2)


def dask_setup(worker: Any) -> None:
    """Prepare a worker of `local:N`; Dask calls this first.

    Only the client handles Ctrl-C, and each worker gets one of the devices that
    CUDA_VISIBLE_DEVICES lists.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if devices and str(worker.name).isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(worker.name) % len(devices)]


def dask_teardown(worker: Any) -> None:
    """End such a worker at once; Dask calls this last.

    Python would wait for a running program, or crash in it. Files on disk are complete.
    """
    os._exit(0)
