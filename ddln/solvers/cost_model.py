"""Cost model shared by the planner and the integrator.

Costs are in steps of an explicit method. NumPy suffices here, so that `ddln check` can use the
model without loading JAX.
"""

import numpy as np
from jaxtyping import Float

ASSUMED_CORES = 4
"""Number of cores for which one process divides its work, whatever the machine has: the last digits
depend on the division."""
MIRROR_MAP_CHECKS = 33
"""Number of saved times at which a flow's mirror map is checked."""
LARGEST_DENSE_DIM = 64
"""Largest dimension at which ∇²Q, which is diagonal, is computed as a full matrix."""


def accurate_steps(rtol: float | Float[np.ndarray, "*batch"]) -> np.floating | np.ndarray:
    """Steps that a method of order 5, explicit or implicit, needs for each relative tolerance.

    >>> round(float(accurate_steps(1e-9)))
    158
    """
    return 2.5 * np.power(rtol, -0.2)


def implicit_extra_cost(dim: int) -> float:
    """Measured extra cost of a linearly implicit step, in explicit steps.

    >>> implicit_extra_cost(32)
    4.0
    """
    return (dim / 16) ** 2
