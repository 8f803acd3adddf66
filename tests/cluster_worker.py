"""A preload for the workers of the tests: chunks take a moment, and one of them may fail.

Environment variables control it: SECONDS for each chunk, and POISON, such as `3:raise` or
`3:die`.
"""

import os
import signal
import sys
import time
from functools import partial

import stand_in


def dask_setup(worker):
    """Replace the numerical modules when a worker starts."""
    stand_in._prepare()
    vars(sys.modules["ddln.sweeps.compute"])["compute"] = partial(_compute, stand_in._compute)


def _compute(quick, chunk, report=None):
    time.sleep(float(os.environ.get("SECONDS", "0.1")))
    index, _, how = os.environ.get("POISON", "-1:").partition(":")
    if chunk.index == int(index):
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("poisoned")
    return quick(chunk)
