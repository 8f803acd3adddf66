"""Drop compiled programs before they take more memory maps than a process may have.

XLA maps each piece of code and each constant of a CPU program separately: a flow and its
certificates at a new shape take 1,000 to 1,800 maps. Linux allows a process 65,530 of them
(`vm.max_map_count`); beyond that the compiler fails with "Cannot allocate memory".
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from ddln._internal.validation import is_concrete

_MAPS, _MAX_MAPS = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_COUNT_EVERY = 8
"""Programs to compile between two counts of the maps; a count takes 1 ms for 1,000 maps."""
_MAX_PROGRAMS = 2_000
"""Programs to compile between two drops where the system does not report its maps."""


class _Compiled:
    """Programs compiled since the last count of the maps, and since the last drop."""

    since_count, since_drop = 0, 0


def _record(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == _COMPILED:
        _Compiled.since_count += 1
        _Compiled.since_drop += 1


jax.monitoring.register_event_duration_secs_listener(_record)


def memory_maps() -> tuple[int, int] | None:
    """Memory maps of this process and their limit; None where the system does not report them.

    >>> maps = memory_maps()
    >>> maps is None or 0 < maps[0] < maps[1]
    True
    """
    try:
        with _MAPS.open("rb") as maps:
            return sum(1 for _ in maps), int(_MAX_MAPS.read_text())
    except (OSError, ValueError):
        return None


def drop_programs() -> None:
    """Drop all compiled programs (`jax.clear_caches`) once half of the memory maps are in use.

    Every computation calls this before it begins. JAX compiles programs again when it needs them,
    or takes them from the persistent cache. Under a transformation nothing is dropped.
    """
    if _Compiled.since_count < _COUNT_EVERY or not is_concrete(jnp.zeros(())):
        return
    _Compiled.since_count = 0
    maps = memory_maps()
    if maps is None:
        is_due = _Compiled.since_drop >= _MAX_PROGRAMS
    else:
        used, limit = maps
        is_due = used > limit // 2
    if is_due:
        jax.clear_caches()
        _Compiled.since_count = _Compiled.since_drop = 0
