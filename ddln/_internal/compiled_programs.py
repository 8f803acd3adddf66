"""Drop compiled programs before they take more memory maps than a process may have.

XLA compiles for a CPU into many separately mapped pieces of code and constants: a new shape of a
flow and its certificates takes 1,000 to 1,800 maps. Linux allows a process 65,530 of them
(`vm.max_map_count`), and beyond that the compiler fails with "Cannot allocate memory".
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from ddln._internal.validation import is_concrete

_MAPS, _MOST = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_COMPILED = "/jax/core/compile/backend_compile_duration"
_LOOK_EVERY = 8
"""Programs compiled from one count of the maps to the next: it takes 1 ms for 1,000 of them."""
_MOST_PROGRAMS = 2_000
"""Where maps cannot be counted: programs compiled from one `drop_programs` to the next."""


class _Counts:
    looked, dropped = 0, 0
    """Programs compiled since maps were last counted, and since programs were last dropped."""


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == _COMPILED:
        _Counts.looked += 1
        _Counts.dropped += 1


jax.monitoring.register_event_duration_secs_listener(_count)


def memory_maps() -> tuple[int, int] | None:
    """Memory maps of this process, and how many it may have; None where there is no telling.

    >>> counted = memory_maps()
    >>> counted is None or 0 < counted[0] < counted[1]
    True
    """
    try:
        with _MAPS.open("rb") as maps:
            return sum(1 for _ in maps), int(_MOST.read_text())
    except (OSError, ValueError):
        return None


def drop_programs() -> None:
    """Drop all compiled programs (`jax.clear_caches`) once half of the memory maps are in use.

    Called where a computation begins. Programs that are still needed are compiled again, or come
    from the persistent cache. Nothing happens while something is traced.
    """
    if _Counts.looked < _LOOK_EVERY or not is_concrete(jnp.zeros(())):
        return
    _Counts.looked = 0
    counted = memory_maps()
    if counted is None:
        is_due = _Counts.dropped >= _MOST_PROGRAMS
    else:
        used, allowed = counted
        is_due = used > allowed // 2
    if is_due:
        jax.clear_caches()
        _Counts.looked = _Counts.dropped = 0
