"""The process that computes: jax's settings, its cache of compiled programs, and what it is."""

import contextlib
import os
from pathlib import Path
from typing import Any

from ddln._internal.random import fix_generator

_SETTINGS = ("jax_disable_jit", "jax_disable_most_optimizations", "jax_default_matmul_precision")
"""Of jax, those that change the last digits of what is drawn and computed."""
_HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump", "--xla_gpu_cuda_data_dir")
"""Flags of XLA that change no number."""


def start_jax() -> None:
    """Float64, and compiled programs that outlive the process."""
    # Read when equinox is imported: its default puts a callback into programs, and such programs
    # are not cached. What could raise has been checked before they run.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    os.environ.setdefault("MPLBACKEND", "Agg")
    from ddln.solvers.cost_model import ASSUMED_CORES

    # Of how many threads sums are cut into, last digits depend: so it is not left to the machine.
    # XLA reads the first; LAPACK, whose threads side by side wait for each other, the second.
    os.environ["NPROC"], os.environ["OPENBLAS_NUM_THREADS"] = str(ASSUMED_CORES), "1"
    import jax

    jax.config.update("jax_enable_x64", True)
    fix_generator()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # Without a place to write to, every process compiles for itself.
        with contextlib.suppress(OSError, RuntimeError):
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            folder = home / "ddln" / f"xla-{_cpu()}"
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def _cpu() -> str:
    """A name for this type of processor: a program compiled for one may not run on another."""
    import hashlib
    import platform

    text = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        text += "".join(sorted({line for line in lines if line.startswith(("model", "flags"))}))
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def provenance() -> dict[str, Any]:
    """Versions, device, dtype and the settings that change numbers, for a run's manifest."""
    import platform
    from importlib.metadata import version

    import jax

    from ddln import __version__

    packages = ("jax", "jaxlib", "equinox", "diffrax", "numpy", "xarray")
    own = {"python": platform.python_version(), "ddln": __version__}
    device = jax.devices()[0]
    return {
        "versions": own | {package: version(package) for package in packages},
        "device": device.device_kind,
        "dtype": str(jax.numpy.result_type(float)),
        "settings": _settings(),
    }


def _settings() -> dict[str, str]:
    """What is not as jax and XLA come: the last digits of every number depend on it."""
    import jax

    told = {name: getattr(jax.config, name, None) for name in _SETTINGS}
    flags = os.environ.get("XLA_FLAGS", "").split()
    told["XLA_FLAGS"] = " ".join(sorted(flag for flag in flags if not flag.startswith(_HARMLESS)))
    return {name: str(value) for name, value in told.items() if value}


def install_command(extra: str) -> str:
    """What installs the parts of an extra, be `ddln` a checkout or a wheel: it is on no index.

    >>> install_command("explore").endswith(" -m pip install 'marimo>=0.25'")
    True
    """
    import shlex
    import sys
    from importlib.metadata import requires

    named = [each.partition(";") for each in requires("ddln") or ()]
    parts = [part.strip() for part, _, marker in named if f"extra == '{extra}'" in marker]
    return shlex.join([sys.executable, "-m", "pip", "install", *parts])


def relative_path(path: Path) -> Path:
    """The path relative to the working directory, if it is below it; otherwise as it is."""
    absolute = path.absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path
