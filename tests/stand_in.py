"""The command line without its numerics: processes that start in milliseconds.

Run as a program, it imports once and then forks. It answers each line of JSON on standard input:
`{"start": …}` with the process id of a child, `{"wait": pid}` with its exit status, which is −n
after signal n. Tests use it through `Processes`.
"""

import ctypes
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "figure4.toml")
STUDY = '''
"""A study with one claim and a small figure."""
from types import SimpleNamespace
from matplotlib.figure import Figure

def claims(dataset):
    row = {"name": "mean", "applies": True, "holds": True}
    mean = float(dataset["loss"].mean())
    return [SimpleNamespace(row=lambda: {**row, "measured": mean})]

def draw(dataset):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot(dataset["loss"].values.reshape(-1)[:50])
    return figure
'''
_DAC_OVERRIDE = 1 << 1
"""The capability by which root may write to read-only files."""


def sweep(chunks: int) -> list[str]:
    """Overrides of a config that make this many chunks of two networks each."""
    return [f"sweep={{network.init.seed={{range=[0, {2 * chunks}]}}}}", "memory=0.003"]


class Processes:
    """Real processes of the stand-in.

    Args:
        folder: the working folder; a study is written into it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "experiments").mkdir()
        (folder / "experiments" / "figure4.py").write_text(STUDY)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, *arguments: str, **controls: Any) -> int:
        """Start `ddln` with the `controls` of `_child`; return its process id."""
        return self._ask({"start": arguments, "cwd": str(self.folder), **controls})

    def wait(self, pid: int) -> int:
        """Wait for a process, and return its exit status."""
        return self._ask({"wait": pid})

    def call(self, *arguments: str, **controls: Any) -> tuple[int, str]:
        """Run `ddln`, and return its exit status and standard error."""
        pid = self.start(*arguments, **controls)
        return self.wait(pid), self.said(pid)

    def said(self, pid: int) -> str:
        """The standard error of a process; empty if it was killed early."""
        file = self.folder / f"{pid}.err"
        return file.read_text() if file.exists() else ""

    def close(self) -> None:
        """End the server."""
        self._server.communicate()

    def _ask(self, question: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def _compute(chunk: Any, report: Any = None) -> Any:
    import numpy as np
    import xarray as xr

    time.sleep(0.01)
    count = chunk.lanes.size
    noise = np.random.default_rng(chunk.index).normal(size=(count, 301))
    status = {"flag_values": [0, 1], "flag_meanings": "ok diverged"}
    return xr.Dataset(
        {
            "flow_time": (("lane", "time"), np.ones((count, 1)) * np.arange(301)),
            "loss": (("lane", "time"), noise),
            "status": ("lane", np.zeros(count, int), status),
            "steps": ("lane", np.ones(count, int)),
            "rounds": ("lane", np.ones(count, int)),
        },
        coords={"lane": chunk.lanes, "certificate": ["bound"], "hypothesis": ["convex"]},
    )


def _prepare() -> Any:
    """Import what a run imports, with stand-ins for the numerical modules."""
    from ddln.sweeps import environment as runtime

    runtime.start_jax = lambda *_: None
    runtime.provenance = lambda: {"versions": {"jax": "0"}, "device": "cpu", "dtype": "float64"}
    stand_ins = {
        "sweeps.compute": {"validate": lambda chunk: None, "compute": _compute},
        "verification.certificates": {"summary": lambda dataset: []},
    }
    for name, functions in stand_ins.items():
        module = ModuleType(f"ddln.{name}")
        vars(module).update(functions)
        sys.modules[f"ddln.{name}"] = module
        package, _, base = name.partition(".")
        setattr(importlib.import_module(f"ddln.{package}"), base, module)
    for library in (
        "h5netcdf",
        "xarray",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_pdf",
    ):
        importlib.import_module(library)
    for module in ("assemble", "progress", "report", "run_folder", "studies"):
        importlib.import_module(f"ddln.sweeps.{module}")
    _rehearse()
    return importlib.import_module("ddln.cli.main")


def _rehearse() -> None:
    """Write a data set and a figure: the first of each imports hundreds of modules."""
    import xarray as xr
    from matplotlib.figure import Figure

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/dataset.nc"
        xr.Dataset({"loss": ("time", [1.0])}).to_netcdf(path, engine="h5netcdf")
        xr.open_dataset(path, engine="h5netcdf").close()
        for kind in ("png", "pdf"):
            Figure().savefig(f"{folder}/figure.{kind}")


def _child(cli: Any, arguments: list[str], controls: dict[str, Any]) -> None:
    """Run `ddln` in this process.

    Args:
        cli: the module.
        arguments: of the command line.
        controls: `cwd`; `fsize`, the largest size of a file in bytes; `unprivileged`, to drop
            root's right to write everywhere; `clock`, to let the time of day go backwards.
    """
    os.chdir(controls["cwd"])
    for number, kind in ((1, "out"), (2, "err")):
        file = os.open(f"{os.getpid()}.{kind}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(file, number)
    if "fsize" in controls:
        resource.setrlimit(resource.RLIMIT_FSIZE, (controls["fsize"],) * 2)
    if controls.get("unprivileged"):
        _drop_privilege()
    if controls.get("clock"):
        time.time = lambda: 4e9 - time.monotonic()
    sys.argv = ["ddln", *arguments]
    cli.main()


def _drop_privilege() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    data[0] &= ~_DAC_OVERRIDE
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def _serve() -> None:
    cli = _prepare()
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            _, status = os.waitpid(question["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        if (pid := os.fork()) == 0:
            status = 1
            try:
                _child(cli, question["start"], question)
            except SystemExit as done:
                status = done.code if isinstance(done.code, int) else 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
