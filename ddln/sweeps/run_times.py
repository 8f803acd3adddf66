"""Times of finished runs, kept for each type of processor: `ddln check` estimates the next one.

Runs are alike if they differ only in numbers that change no shape, and in how many networks they
have. A run of n networks then takes about

    S + r (n − m)

if the last one like it took S seconds for m networks, and r seconds for each network after its
first chunk.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ddln._internal.files import read_limited, write_whole
from ddln.config.experiment import changes_shape, numeric_leaves, substitute
from ddln.sweeps.environment import processor
from ddln.sweeps.plan import Plan

_LARGEST = 2**20
_KEPT = 500
"""Kinds of runs that are remembered, the latest ones."""


def record(plan: Plan, seconds: float, seconds_per_lane: float | None) -> None:
    """Remember how long a whole run took; without a word if that cannot be written.

    Args:
        plan: of the run.
        seconds: from the start of the command to its end.
        seconds_per_lane: of the chunks after the first; `None` if there were none.
    """
    known, key = _read(), _key(plan)
    # A run of one chunk says nothing about r.
    rate = known.pop(key, {}).get("per_lane") if seconds_per_lane is None else seconds_per_lane
    known.pop(key, None)
    known[key] = {"lanes": plan.lanes, "seconds": seconds, "per_lane": rate}
    text = json.dumps(dict(list(known.items())[-_KEPT:]), indent=1)
    with contextlib.suppress(OSError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_path(), lambda path: path.write_text(text, encoding="utf-8"))


def estimate(plan: Plan) -> float | None:
    """Seconds that a run of this plan will take; None if no run like it was finished here."""
    last = _read().get(_key(plan))
    if last is None:
        return None
    more, rate = plan.lanes - last["lanes"], last["per_lane"]
    if rate is None:
        return last["seconds"] if more == 0 else None
    return max(last["seconds"] + rate * more, rate * plan.lanes)


def _path() -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "ddln" / f"times-{processor()}.json"


def _read() -> dict[str, dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        known = json.loads(read_limited(_path(), _LARGEST))
        return {
            str(key): {
                "lanes": int(row["lanes"]),
                "seconds": float(row["seconds"]),
                "per_lane": None if row["per_lane"] is None else float(row["per_lane"]),
            }
            for key, row in known.items()
        }
    return {}


def _key(plan: Plan) -> str:
    """What runs that are alike have in common."""
    forms = []
    for chunk in plan.programs:
        leaves = numeric_leaves(chunk.experiment)
        numbers = [name for name, leaf in leaves.items() if not changes_shape(leaf)]
        form = substitute(chunk.experiment, dict.fromkeys(numbers, 0))
        forms.append([form.model_dump_json(), *chunk.values])
    return hashlib.sha256(json.dumps(forms).encode()).hexdigest()[:16]
