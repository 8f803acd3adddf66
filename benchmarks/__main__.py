"""Run every benchmark and write benchmarks/RESULTS.md."""

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax


def main() -> None:
    """Write the page."""
    jax.config.update("jax_enable_x64", True)
    from benchmarks import descent, entropy, estimators, latency, sparse_networks, sweep

    names = ("jax", "jaxlib", "diffrax", "numpy", "scipy")
    head = [
        "# Measured",
        "",
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{jax.devices()[0].device_kind}; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names)
        + ". Ratios within a table carry over to other machines, times do not.",
        "",
        "Written by `make bench`.",
        "",
    ]
    page = "\n".join(head)
    for module in (sweep, descent, entropy, latency, estimators, sparse_networks):
        page += "\n" + module.table() + "\n"
        print(page, flush=True)
    Path(__file__).with_name("RESULTS.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
