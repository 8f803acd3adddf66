"""What work there is and when it is done, for those who do it and for `check`, which tells before
anything is imported.

Steps of an integrator are counted in explicit ones.
"""

from typing import Any

import numpy as np

FINISHED = ("ok", "stopped")
"""How a run ends that came to its end: all of it done, or its target gap reached."""
CORES = 4
"""That the work of one process is cut for, whatever the machine has: another cut has other last
digits."""
CERTIFIED_DUALS = 33
"""Saved times at which a flow's mirror map is checked."""
DENSE = 64
"""Coordinates up to which ∇²Q, which is diagonal, is formed whole."""


def accurate_steps(rtol: Any) -> Any:
    """That accuracy asks of a method of order 5, explicit or not; of every tolerance given.

    >>> round(float(accurate_steps(1e-9)))
    158
    """
    return 2.5 * np.power(rtol, -0.2)


def surcharge(dim: int) -> float:
    """What a linearly implicit step costs on top of an explicit one, as measured.

    >>> surcharge(32)
    4.0
    """
    return (dim / 16) ** 2
