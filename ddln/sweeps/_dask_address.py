"""Read the option `--cluster`: worker processes of this machine, or a scheduler's address."""

import ipaddress
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

import typer

from ddln.solvers.cost_model import ASSUMED_CORES


def local_workers(where: str) -> int:
    """The number of worker processes on this machine; 0 if `where` is not `local` or `local:N`.

    Raises:
        ValueError: N is less than 1.
    """
    if where == "local":
        return max(1, (os.cpu_count() or 1) // ASSUMED_CORES)
    if not (given := re.fullmatch(r"local:(\d+)", where)):
        return 0
    if (count := int(given[1])) < 1:
        raise ValueError(f"--cluster: local:N must have N ≥ 1, got {where}")
    return count


def scheduler_address(where: str) -> str:
    """The address of a scheduler, from an address or a scheduler file.

    A warning is printed if anybody who reaches the address can use the cluster.

    Raises:
        ValueError: `where` is neither, or TLS certificates are missing.
    """
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
        log(
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


def log(message: str) -> None:
    """Print a message on standard error."""
    typer.echo(message, err=True)
    sys.stderr.flush()
