"""What a data set of runs holds: its variables, their dimensions, units and words.

One network's numbers along `time`, `layer`, `coordinate` and `feature`, then its certificates and
hypotheses; a sweep puts the dimensions of its grid before these. `dynamics.save` says which are
kept in files.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from ddln.config.datasets import has_truth, shape_of
from ddln.config.dynamics import Descent
from ddln.config.experiment import Experiment
from ddln.solvers.cost_model import LARGEST_DENSE_DIM, MIRROR_MAP_CHECKS

if TYPE_CHECKING:
    import xarray as xr

_TIME, _THETA, _LAYERS = ("time",), ("time", "coordinate"), ("time", "layer", "coordinate")
_CERTIFICATE = ("certificate",)
_PREDICTOR = ("time", "feature")
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "step": (_TIME, "1", "training step"),
    "flow_time": (_TIME, "flow time", "flow time"),
    "loss": (_TIME, "loss", "loss ℒ(θ)"),
    "gap": (_TIME, "loss", "loss gap ℒ(θ) − ℒ*"),
    "theta": (_THETA, "1", "effective parameter θ"),
    "predictor": (_PREDICTOR, "1", "linear predictor θ₊ − θ₋"),
    "truth": (("feature",), "1", "θ* that the data were made with"),
    "velocity": (_THETA, "1 / flow time", "dθ/dt"),
    "layers": (_LAYERS, "1", "layers u"),
    "bound": (_TIME, "loss", "exponential bound of Theorem 2 on the gap"),
    "posterior_bound": (_TIME, "loss", "a-posteriori bound on the gap"),
    "divergence_bound": (_TIME, "loss", "bound D_Q(θ*, θ(0)) / t of Theorem 2 on the gap"),
    "sharpness": (_TIME, "1 / flow time", "sharpness λ_max(∂²ℒ/∂u²)"),
    "gain": (_THETA, "1", "gain ln |(u² − v²)₀ / (u² − v²)|"),
    "effective_initialisation": (_THETA, "1", "effective initialisation (|u² − v²| / 2)^½"),
    "rate_bound": ((), "1 / flow time", "rate μc of the exponential bound exp(−2μct)"),
    "asymptotic_rate": ((), "1 / flow time", "asymptotic rate r, the gap decays like exp(−2rt)"),
    "discrepancy": (
        (),
        "1",
        "distance to θ solved at a thirtieth of the tolerances, over the error these let expect",
    ),
    "status": ((), "1", "how the run ended"),
    "steps": ((), "1", "steps taken"),
    "rounds": ((), "1", "steps computed for the lane, also while it waited for others"),
    "hypothesis_holds": (("hypothesis",), "1", "whether the theorems' hypothesis holds"),
    "certificate_measured": (_CERTIFICATE, "1", "measured"),
    "certificate_predicted": (_CERTIFICATE, "1", "predicted"),
    "certificate_tolerance": (_CERTIFICATE, "1", "tolerance"),
    "certificate_applies": (_CERTIFICATE, "1", "whether the claim's hypotheses hold"),
    "certificate_holds": (_CERTIFICATE, "1", "whether the claim holds"),
}
"""name: (dimensions, units, long name)."""

_OF_FLOWS = {
    *("velocity", "bound", "posterior_bound", "divergence_bound"),
    *("rate_bound", "asymptotic_rate", "discrepancy"),
}
_OF_DESCENTS = {"step"}
_MEASURED = {"sharpness", "gain", "effective_initialisation"}

FINER = 30
"""By how much finer the tolerances of a lane are that is solved again."""
_FLAGS = ("hypothesis_holds", "certificate_applies", "certificate_holds")
_LEFT_OUT = {"all": set(), "theta": {"layer"}, "loss": {"layer", "coordinate", "feature"}}
_WORKSPACE, _COPIES = 20, 6
"""Numbers held at once for each saved coordinate, and copies of what is saved: measured, as those
below, on networks of 8 to 300 coordinates."""
_EACH_DUAL, _HESSIANS = 100, 30
"""What a coordinate takes wherever its mirror map is checked, and ∇²Q."""
_COPIES_OF_A_DESCENT = 14
"""Its ledger and its rule's state among them: measured on networks of 30 and 500 coordinates."""
_CERTIFICATES, _CERTIFICATES_OF_A_DESCENT = 14, 7
"""How many claims a run is certified by; of the size of a file only."""


def kept(experiment: Experiment) -> tuple[str, ...]:
    """The names of the variables that are kept of a run.

    >>> from ddln.config.experiment import load
    >>> loss = load("configs/figure4.toml", ["dynamics.save=loss"])
    >>> "gap" in kept(loss), "theta" in kept(loss)
    (True, False)
    """
    dynamics = experiment.dynamics
    left_out, of_others = _LEFT_OUT[dynamics.save], _OF_DESCENTS
    if isinstance(dynamics, Descent):
        of_others = _OF_FLOWS
    if not experiment.network.signed:
        of_others = of_others | {"predictor"}
    if not has_truth(experiment.problem.data):
        of_others = of_others | {"truth"}
    of_others = of_others | (_MEASURED - set(dynamics.measure))
    return tuple(
        name
        for name, (dimensions, _, _) in VARIABLES.items()
        if not left_out & set(dimensions) and name not in of_others
    )


def along(name: str, experiment: Experiment) -> tuple[str, ...]:
    """The dimensions of a variable of one lane; a feature is a coordinate unless θ has two of it.

    >>> from ddln.config.experiment import load
    >>> along("truth", load("configs/figure4.toml"))
    ('coordinate',)
    """
    dimensions = VARIABLES[name][0]
    if name == "truth" and not experiment.network.signed:
        return ("coordinate",)
    return dimensions


def sizes(experiment: Experiment) -> dict[str, int]:
    """The sizes of the dimensions that the config decides.

    >>> from ddln.config.experiment import load
    >>> sizes(load("configs/figure4.toml"))
    {'time': 301, 'layer': 6, 'coordinate': 8, 'feature': 8}
    """
    return {
        "time": experiment.dynamics.saved,
        "layer": experiment.network.depth,
        "coordinate": experiment.width,
        "feature": experiment.features,
    }


def lane_bytes(experiment: Experiment) -> int:
    """Bytes of one lane in a file.

    >>> from ddln.config.experiment import load
    >>> figure4 = load("configs/figure4.toml")
    >>> lane_bytes(figure4), lane_bytes(figure4.with_({"dynamics.save": "loss"}))
    (168924, 14812)
    """
    return _bytes(experiment, kept(experiment))


def working_bytes(experiment: Experiment) -> int:
    """Bytes that one lane takes while it is computed, whatever is kept of it; rather too many.

    >>> from ddln.config.experiment import load
    >>> round(working_bytes(load("configs/figure4.toml")) / 1e6, 1)
    1.3
    """
    features, (samples, _) = experiment.features, shape_of(experiment.problem.data)
    positions = experiment.dynamics.saved * experiment.width
    matrices = samples * features + min(samples, features) ** 2
    depth, width = experiment.network.depth, experiment.width
    if isinstance(experiment.dynamics, Descent):
        held = _COPIES_OF_A_DESCENT * depth * positions
    else:
        duals = _EACH_DUAL * width * min(experiment.dynamics.saved, MIRROR_MAP_CHECKS)
        hessians = _HESSIANS * width * min(width, LARGEST_DENSE_DIM)
        held = (_WORKSPACE + _COPIES * depth) * positions + duals + hessians
    return 8 * (held + _COPIES * matrices)


def _bytes(experiment: Experiment, names: tuple[str, ...]) -> int:
    stepwise = isinstance(experiment.dynamics, Descent)
    claims = _CERTIFICATES_OF_A_DESCENT if stepwise else _CERTIFICATES
    known = sizes(experiment) | {"certificate": claims, "hypothesis": 4}
    return sum(
        (1 if name in _FLAGS else 8)
        * math.prod(known[dimension] for dimension in VARIABLES[name][0])
        for name in names
    )


def status_counts(dataset: "xr.Dataset") -> dict[str, int]:
    """How many lanes ended in which way, by the names in the attributes of `status`."""
    status = dataset["status"]
    names = status.attrs["flag_meanings"].split()
    codes = np.atleast_1d(status.attrs["flag_values"]).tolist()
    found, counts = np.unique(status.values, return_counts=True)
    return {
        dict(zip(codes, names, strict=True)).get(int(code), str(code)): int(count)
        for code, count in zip(found, counts, strict=True)
    }


def solved_again(dataset: "xr.Dataset") -> tuple[int, int]:
    """How many lanes were solved twice, and how many of these are off by more than expected."""
    if "discrepancy" not in dataset:
        return 0, 0
    seen = dataset["discrepancy"].values
    return int(np.isfinite(seen).sum()), int((seen > 1).sum())


def accuracy_in_words(lanes: int, off: int) -> str:
    """What that says, and what to change.

    >>> accuracy_in_words(200, 0)
    '200 lanes solved again 30 times finer, all as exact as expected'
    """
    told = f"{lanes:,} lane{'s' * (lanes != 1)} solved again {FINER} times finer, "
    if not off:
        return told + "all as exact as expected"
    return f"{told}{off:,} less exact than expected: lower dynamics.rtol"
