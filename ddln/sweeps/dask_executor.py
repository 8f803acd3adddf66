"""A sweep's chunks computed by the workers of a Dask cluster.

The client sends numbers of chunks. A worker reads the plan from the run folder, which lies on
storage that all share, computes a chunk, writes it there with its receipt, and answers how its
lanes ended. Nothing large travels, and what was finished stays so whoever dies: a worker's chunk is
given to another one, a scheduler that comes back is asked again for what is missing, and a client
that is started again begins with what the folder has.
"""

import contextlib
import hashlib
import ipaddress
import json
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import typer

from ddln._internal.files import remove_unfinished
from ddln.config.experiment import load
from ddln.config.schema import Devices
from ddln.solvers.cost_model import ASSUMED_CORES
from ddln.sweeps._manifest import differences
from ddln.sweeps.environment import install_command, provenance, start_jax
from ddln.sweeps.executor import Here, LostChunks, Way
from ddln.sweeps.plan import Chunk, Plan, make_plan
from ddln.sweeps.run_folder import RunFolder

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 2
"""So often a chunk is tried again when computing it failed."""
ALLOWED_FAILURES = 10
"""So many workers may die of a chunk: machines are taken away, and that is nobody's fault."""
PATIENCE = 600.0
"""Seconds in which a scheduler may come back."""
UNSEEN = 120.0
"""Seconds after which this machine must see a file that another one wrote."""
_LOOKS = 0.5
"""Seconds after which it is seen whether the scheduler is still there."""

_WATCHES = "distributed.worker.profile.enabled"

_ALONE = threading.Lock()


def compute_chunk(path: str, index: int, ground: Mapping[str, Any]) -> dict[str, int]:
    """Computes a chunk into its run folder, unless it is there and whole; what a worker does.

    Args:
        path: the folder, open.
        index: the number of the chunk.
        ground: versions, device, dtype and settings that the run was begun with.

    Returns:
        How many of its lanes ended in which way.

    Raises:
        RuntimeError: this worker's are others.
        ValueError: Dask looks at what its threads do.
    """
    # A program has the whole process: in one with more threads the others wait.
    with _ALONE:
        _refuse_to_be_watched()
        start_jax()
        if differing := differences(ground, provenance()):
            raise RuntimeError(
                f"{socket.gethostname()}: the run was begun with {', '.join(differing)}; a worker's"
                " must be the same"
            )
        folder, chunk = RunFolder(path), _plan(path).chunks[index]
        endings = folder.kept(chunk)
        if endings is None:
            from dask import config

            from ddln.sweeps import compute as lanes

            # Else xarray would ask the scheduler for a lock on the file.
            with config.set(scheduler="threads"):
                endings = folder.write_chunk(chunk, lanes.compute(chunk))
        return endings


@lru_cache(maxsize=1)
def _plan(path: str) -> Plan:
    return make_plan(load(Path(path) / "config.toml"))


def _ground(devices: Devices | None) -> dict[str, Any]:
    with _ALONE:
        _refuse_to_be_watched()
        start_jax()
        return Here().provenance(devices)


def _refuse_to_be_watched() -> None:
    """Who looks at a thread's frames holds them, and with them parts of an HDF5 file open; where
    its parts lie depends on when they are closed."""
    from dask import config

    if config.get(_WATCHES, default=True):
        raise ValueError(
            f"{socket.gethostname()}: workers must be started with "
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=false, or the bytes of files would depend "
            "on when Dask looks at them"
        )


class Cluster(Way):
    """The workers of a cluster.

    Args:
        connect: makes a client of its scheduler, or raises OSError where none answers.
        where: its address, in words.
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
        self._ground: dict[str, Any] = {}

    def provenance(self, devices: Devices | None) -> dict[str, Any]:
        """That of the worker which answers first; the others must have the same.

        Raises:
            ValueError: it cannot compute, or has fewer devices than are asked for.
        """
        client = self._connected()
        future = client.submit(_ground, devices, pure=False)
        with contextlib.suppress(TimeoutError):
            future.exception(timeout=5)
        if not future.done():
            _say(f"waiting for a worker at {self._where}")
        try:
            self._ground = future.result()
        except (ValueError, OSError):
            raise
        except Exception as error:  # whatever scheduler and workers fall over
            raise ValueError(
                f"the cluster at {self._where} cannot compute: its scheduler and workers must have "
                f"the versions of ddln and Dask that are here ({type(error).__name__}: {error})"
            ) from None
        return self._ground

    def compute(
        self, folder: RunFolder, chunks: Sequence[Chunk], report: Callable[[Chunk, float], None]
    ) -> Iterator[tuple[Chunk, Mapping[str, int]]]:
        """As the workers finish them.

        Raises:
            LostChunks: some could not be computed, however often tried; the others are done.
            ConnectionError: the scheduler went away and did not come back.
            OSError: what the workers wrote is not to be seen from here.
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
        _await(folder, [chunk for chunk in chunks if chunk.index not in faults])
        remove_unfinished(folder.path)  # of workers that were killed
        if faults:
            raise LostChunks(len(chunks), faults)

    def close(self) -> None:
        """Lets go of the cluster."""
        if self._client is not None:
            _close(self._client)
            self._client = None

    def _answers(self, folder: RunFolder, indices: list[int]) -> Iterator[tuple[int, Any]]:
        """Endings or a fault, by chunk, until there are all or the scheduler is gone."""
        client, done = self._connected(), queue.SimpleQueue()
        path = str(folder.path.absolute())
        # So named, a chunk that is still computed for a client which died is not computed twice.
        run = hashlib.sha256(path.encode()).hexdigest()[:16]
        futures: list[Future] = client.map(
            compute_chunk,
            [path] * len(indices),
            indices,
            ground=self._ground,
            key=[f"chunk-{run}-{index}" for index in indices],
            retries=RETRIES,
        )
        for index, future in zip(indices, futures, strict=True):
            future.add_done_callback(lambda future, index=index: done.put((index, future)))
        waiting = dict(zip(indices, futures, strict=True))
        while waiting:
            try:
                index, future = done.get(timeout=_LOOKS)
            except queue.Empty:
                if client.status != "running" or any(f.status == "lost" for f in waiting.values()):
                    return
                continue
            try:
                answer = future.exception() or future.result()
            except (OSError, CancelledError):
                return  # it went away while it was asked
            # A result that nobody wants any more cannot be lost with the worker that has it.
            waiting.pop(index).release()
            yield index, answer

    def _connected(self) -> "Client":
        if self._client is None:
            raise ConnectionError(f"the cluster at {self._where} has been let go of")
        return self._client

    def _reconnect(self) -> None:
        self.close()
        _say(f"the scheduler at {self._where} is gone, or what it knew; asking it again")
        until = time.monotonic() + PATIENCE
        while self._client is None:
            try:
                self._client = self._connect()
            except OSError:
                if time.monotonic() > until:
                    raise ConnectionError(
                        f"the scheduler at {self._where} did not come back in {PATIENCE:g} s;"
                        " what was finished is kept"
                    ) from None
                time.sleep(_LOOKS)


@contextlib.contextmanager
def way_to_compute(where: str | None) -> Iterator[Way]:
    """This process, or a cluster that is held while the context lasts.

    Args:
        where: None for this process; `local:N` for N processes of this machine (`local`: one for
            every four cores); a scheduler's address, `tls://…` or `tcp://…`; or a scheduler file.

    Raises:
        ValueError: no such place, or Dask is not installed.
        OSError: no scheduler answers there.
    """
    if where is None:
        yield Here()
        return
    try:
        import distributed
        from dask import config
    except ImportError:
        raise ValueError(f"--cluster needs Dask: {install_command('cluster')}") from None
    import jax

    jax.config.update("jax_platforms", "cpu")  # the devices are the workers'
    for name in ("distributed", "distributed.client"):  # what counts of it is said here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        settings = {
            "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
            "distributed.worker.multiprocessing-method": "spawn",
            _WATCHES: False,
        }
        stack.enter_context(config.set(settings))
        if count := _local(where):
            local = distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=None,
                silence_logs=logging.CRITICAL,
                preload=["ddln.sweeps.dask_executor"],
            )
            stack.callback(_close, local)
            address = local.scheduler_address
        else:
            address = _address(where)
        cluster = Cluster(
            lambda: distributed.Client(address, timeout=10, set_as_default=False), address
        )
        stack.callback(cluster.close)
        yield cluster


def _await(folder: RunFolder, chunks: Sequence[Chunk]) -> None:
    """Returns once this machine sees what the workers wrote: storage may remember an absence.

    Raises:
        OSError: it does not come to see all.
    """
    until = time.monotonic() + UNSEEN
    while chunks := [chunk for chunk in chunks if folder.kept(chunk) is None]:
        if time.monotonic() > until:
            raise OSError(
                f"{len(chunks):,} chunks that workers wrote are not in {folder.path} here: it must"
                " be on storage that all share"
            )
        time.sleep(_LOOKS)


def _close(cluster: Any) -> None:
    # Workers that are deaf are killed, which is no matter: whatever is on disk is whole.
    with contextlib.suppress(TimeoutError):
        cluster.close(timeout=2)


def _local(where: str) -> int:
    """How many processes of this machine; 0 where the cluster is another one."""
    if where == "local":
        return max(1, (os.cpu_count() or 1) // ASSUMED_CORES)
    if not (given := re.fullmatch(r"local:(\d+)", where)):
        return 0
    if (count := int(given[1])) < 1:
        raise ValueError(f"--cluster: local:N must have N ≥ 1, got {where}")
    return count


def _address(where: str) -> str:
    """The address of a scheduler, which may be in a file; a warning where strangers can use it."""
    address = where
    if "://" not in where:
        try:
            address = json.loads(Path(where).read_text(encoding="utf-8"))["address"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"--cluster: must be local, local:N, tls://HOST:PORT, tcp://HOST:PORT or a "
                f"scheduler file, got {where}"
            ) from None
    parts = urlsplit(address)
    try:
        host = parts.hostname if parts.port else None
    except ValueError:  # a port that is no number, or too large a one
        host = None
    if parts.scheme not in ("tcp", "tls") or not host:
        raise ValueError(f"--cluster: must be tls://HOST:PORT or tcp://HOST:PORT, got {address}")
    if parts.scheme == "tls" and not _has_certificates():
        raise ValueError(
            f"{address}: needs certificates, in DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
            "…__CLIENT__CERT and …__CLIENT__KEY; docs/cluster.md tells how to make them"
        )
    if parts.scheme == "tcp" and not _is_loopback(host):
        _say(
            f"{address}: not encrypted, and whoever reaches it can run programs as you; "
            "docs/cluster.md tells how to use tls://"
        )
    return address


def _has_certificates() -> bool:
    from distributed.security import Security

    return Security().get_connection_args("client")["ssl_context"] is not None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def dask_setup(worker: Any) -> None:
    """What Dask calls in a worker of `local:N` before anything else.

    Ctrl-C is the client's to hear, and of the devices that CUDA_VISIBLE_DEVICES lists each worker
    has its own.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if devices and str(worker.name).isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(worker.name) % len(devices)]


def dask_teardown(worker: Any) -> None:
    """What Dask calls when such a worker is to end, which it does at once.

    Python would wait for what is computed, or fall over it. Whatever is on disk is whole.
    """
    os._exit(0)


def _say(message: str) -> None:
    typer.echo(message, err=True)
    sys.stderr.flush()
