"""The computing process: jax's settings, the cache of compiled programs, versions and device."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddln._internal.random import fix_generator

_SETTINGS = {
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_default_matmul_precision": None,
    "jax_optimization_level": "UNKNOWN",
    "jax_exec_time_optimization_effort": 0.0,
}
"""Settings of jax that change the last digits of random and computed numbers, and their defaults.
The generator, its partition and the offset of its seeds are fixed: `ddln._internal.random`."""
_HARMLESS = ("--xla_force_host_platform_device_count", "--xla_dump", "--xla_gpu_cuda_data_dir")
"""Flags of XLA that do not change numbers."""


def start_jax(log: Callable[[str], None] | None = None) -> None:
    """Configure jax: float64, and a cache of compiled programs that outlives the process.

    Args:
        log: called with a message before a program is compiled that takes long.
    """
    # Read when equinox is imported. By default equinox puts callbacks into programs, and such
    # programs are not cached. The input is validated before, so that the checks are not needed.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    os.environ.setdefault("MPLBACKEND", "Agg")
    from ddln.solvers.cost_model import ASSUMED_CORES

    # The last digits of sums depend on the number of threads, so it must not depend on the machine.
    # XLA reads NPROC; OpenBLAS reads the other, and is slower with several threads side by side.
    os.environ["NPROC"], os.environ["OPENBLAS_NUM_THREADS"] = str(ASSUMED_CORES), "1"
    import jax

    jax.config.update("jax_enable_x64", True)
    fix_generator()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # If no folder can be written to, every process compiles for itself.
    with contextlib.suppress(OSError, RuntimeError):
        folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or _cache())
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        from ddln._internal import program_store

        program_store.open_store(folder / "traced", log)


def _cache() -> Path:
    """The folder of compiled programs for this type of processor."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ddln" / f"xla-{processor()}"


def processor() -> str:
    """Name this type of processor; a program compiled for one may not run on another."""
    import hashlib
    import platform

    text = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        text += "".join(sorted({line for line in lines if line.startswith(("model", "flags"))}))
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def provenance() -> dict[str, Any]:
    """The versions, device, dtype and settings that change numbers, for a run's manifest."""
    import platform
    from importlib.metadata import version

    import jax

    from ddln import __version__

    packages = ("jax", "jaxlib", "equinox", "diffrax", "optax", "numpy", "scipy", "xarray")
    own = {"python": platform.python_version(), "ddln": __version__}
    device = jax.devices()[0]
    return {
        "versions": own | {package: version(package) for package in packages},
        "device": device.device_kind,
        "dtype": str(jax.numpy.result_type(float)),
        "settings": _settings(),
    }


def _settings() -> dict[str, str]:
    """The settings of jax and XLA that change last digits and differ from the defaults."""
    import jax

    settings = {
        name: str(value)
        for name, default in _SETTINGS.items()
        if (value := getattr(jax.config, name, default)) != default
    }
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = sorted(flag for flag in flags if not flag.startswith(_HARMLESS))
    return settings | ({"XLA_FLAGS": " ".join(kept)} if kept else {})


def relative_path(path: Path) -> Path:
    """The path relative to the working directory, if it is below it; otherwise as it is."""
    absolute = path.absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path
