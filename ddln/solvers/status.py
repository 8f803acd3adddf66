"""How a run can end: one word for each way, its meaning, and advice about failures.

The standard library suffices here, so that the command line can import it without loading JAX.
"""

import enum


class Status(enum.Enum):
    """How a run ended. The value is the word in data sets, messages and on the command line.

    >>> Status("max_steps").is_finished, Status.MAX_STEPS.meaning
    (False, 'the solver used up its steps before the last time')
    """

    OK = "ok"
    MAX_STEPS = "max_steps"
    DIVERGED = "diverged"
    STOPPED = "stopped"

    @property
    def is_finished(self) -> bool:
        """Whether the run did all that it was to do, or reached its target gap."""
        return self in (Status.OK, Status.STOPPED)

    @property
    def meaning(self) -> str:
        """What happened."""
        return _MEANINGS[self]

    @property
    def advice(self) -> str:
        """What to change after a failure; empty if the run finished."""
        return _ADVICE.get(self, "")


_MEANINGS = {
    Status.OK: "the run covered all of its points",
    Status.STOPPED: "a target was reached: of the gap, the norm or the held-out loss",
    Status.MAX_STEPS: "the solver used up its steps before the last time",
    Status.DIVERGED: "the layers or the loss left the range of floating-point numbers, or the step "
    "size shrank to nothing",
}
_ADVICE = {
    Status.MAX_STEPS: "raise max_steps, end at an earlier time, loosen rtol and atol, or choose an "
    "implicit solver such as Kvaerno5",
    Status.DIVERGED: "lower the scale of the layers or of the data, the last time, or the step "
    "size of training (ddln.theory.largest_stable_step is the limit of gradient descent)",
}

FINISHED = tuple(status.value for status in Status if status.is_finished)
"""The words of runs that finished."""
