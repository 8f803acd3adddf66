"""Variables of a data set of runs: their dimensions, units and long names.

The variables of one network lie along `time`, `layer`, `coordinate` and `feature`, its certificates
and hypotheses along dimensions of their own; a sweep puts the dimensions of its grid first.
`dynamics.save` selects the variables that are saved. Some of these follow from others and are not
stored: `ddln.sweeps.derived` computes them when they are read.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ddln._internal.text import count
from ddln.config.datasets import has_truth, shape_of
from ddln.config.dynamics_schema import DescentConfig
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
    "dose": (_TIME, "1", "dose Ω = ∫ω of weight decay"),
    "layers": (_LAYERS, "1", "layers u"),
    "bound": (_TIME, "loss", "exponential bound of Theorem 2 on the gap"),
    "posterior_bound": (_TIME, "loss", "a-posteriori bound on the gap"),
    "divergence_bound": (_TIME, "loss", "bound D_Q(θ*, θ(0)) / t of Theorem 2 on the gap"),
    "sharpness": (_TIME, "1 / flow time", "sharpness λ_max(∂²ℒ/∂u²)"),
    "held_out_loss": (_TIME, "loss", "loss of the held-out samples, times n/m"),
    "gain": (_THETA, "1", "gain ln |(u² − v²)₀ / (u² − v²)|"),
    "effective_initialisation": (_THETA, "1", "effective initialisation (|u² − v²| / 2)^½"),
    "rate_bound": ((), "1 / flow time", "rate μc of the exponential bound exp(−2μct)"),
    "asymptotic_rate": ((), "1 / flow time", "asymptotic rate r, the gap decays like exp(−2rt)"),
    "discrepancy": (
        (),
        "1",
        "distance to θ recomputed at a thirtieth of the tolerances, over the expected error",
    ),
    "status": ((), "1", "how the run ended"),
    "steps": ((), "1", "steps taken"),
    "rounds": ((), "1", "steps computed for the network, also while it waited for others"),
    "hypothesis_holds": (("hypothesis",), "1", "whether the theorems' hypothesis holds"),
    "certificate_measured": (_CERTIFICATE, "1", "measured"),
    "certificate_predicted": (_CERTIFICATE, "1", "predicted"),
    "certificate_tolerance": (_CERTIFICATE, "1", "tolerance"),
    "certificate_applies": (_CERTIFICATE, "1", "whether the claim's hypotheses hold"),
    "certificate_holds": (_CERTIFICATE, "1", "whether the claim holds"),
    "smallest": (_THETA, "1", "smallest layer w, up to sign"),
    "initial_layers": (("layer", "coordinate"), "1", "initial layers u(0)"),
    "divergence": ((), "loss · flow time", "D_Q(θ*, θ(0))"),
}
"""name: (dimensions, units, long name)."""

_ONLY_STORED = {"smallest", "initial_layers", "divergence"}
SHARED_TIMES = {"flow_time", "step"}
"""Variables that are stored once for a chunk if all of its networks share them."""

_FLOW_ONLY = {
    *("velocity", "bound", "posterior_bound", "divergence_bound"),
    *("rate_bound", "asymptotic_rate", "discrepancy"),
}
_DESCENT_ONLY = {"step"}
_MEASURED = {"sharpness", "held_out_loss", "gain", "effective_initialisation"}

FINER = 30
"""The factor by which the tolerances of a recomputed run are finer."""
_FLAGS = ("hypothesis_holds", "certificate_applies", "certificate_holds")
_UNSAVED_DIMS = {"all": set(), "theta": {"layer"}, "loss": {"layer", "coordinate", "feature"}}
_WORKSPACE, _COPIES = 20, 6
"""Numbers in memory at once for each saved coordinate, and copies of each saved number. These and
the next constants were measured on networks of 8 to 300 coordinates."""
_MIRROR_MAP, _HESSIANS = 100, 30
"""Numbers in memory for each coordinate whose mirror map is checked, and for each entry of ∇²Q."""
_DESCENT_COPIES = 14
"""Copies of each layer, with ledger and optimiser state: measured on 30 and 500 coordinates."""
HEADER_BYTES = 40_000
"""Bytes of a chunk's file besides the numbers of its networks."""
_HYPOTHESES, _CERTIFICATES, _DESCENT_CERTIFICATES = 5, 14, 7
"""How many hypotheses there are, and claims that certify a run; only file sizes depend on it."""


def saved_variables(experiment: Experiment) -> tuple[str, ...]:
    """The names of the variables that are saved of a run.

    >>> from ddln.config.experiment import load
    >>> loss = load("configs/figure4.toml", ["dynamics.save=loss"])
    >>> "gap" in saved_variables(loss), "theta" in saved_variables(loss)
    (True, False)
    """
    dynamics = experiment.dynamics
    unsaved_dims = _UNSAVED_DIMS[dynamics.save]
    absent = _FLOW_ONLY if isinstance(dynamics, DescentConfig) else _DESCENT_ONLY
    if isinstance(dynamics, DescentConfig) or dynamics.weight_decay is None:
        absent = absent | {"dose"}
    if not experiment.network.signed:
        absent = absent | {"predictor"}
    if not has_truth(experiment.problem.data, experiment.problem.loss.kind):
        absent = absent | {"truth"}
    absent = absent | (_MEASURED - set(dynamics.measure)) | _ONLY_STORED
    return tuple(
        name
        for name, (dimensions, _, _) in VARIABLES.items()
        if not unsaved_dims & set(dimensions) and name not in absent
    )


def stored_variables(experiment: Experiment) -> tuple[str, ...]:
    """The names of the variables in a chunk's file, from which all that are saved follow.

    >>> from ddln.config.experiment import load
    >>> stored = stored_variables(load("configs/figure4.toml"))
    >>> "smallest" in stored, "layers" in stored
    (True, False)
    """
    saved, dynamics = saved_variables(experiment), experiment.dynamics
    if isinstance(dynamics, DescentConfig):
        return saved
    follows: set[str] = set()
    replaced: tuple[str, ...] = ()
    # Runs that stop at a saved point rest there, which no formula below follows.
    if dynamics.target_norm is not None or dynamics.patience is not None:
        return saved
    if dynamics.weight_decay is not None:
        return saved
    if dynamics.is_batched and dynamics.save == "all":
        follows |= {"layers", "theta", "predictor"}
        replaced += ("smallest", "initial_layers")
    if dynamics.target_gap is None:  # else the bounds rest where a run stopped
        follows |= {"bound", "divergence_bound"}
        replaced += ("divergence",)
    return (*(name for name in saved if name not in follows), *replaced)


def dims(name: str, experiment: Experiment) -> tuple[str, ...]:
    """The dimensions of a variable of one network.

    Features are coordinates, unless the network is signed and θ has two coordinates for each.

    >>> from ddln.config.experiment import load
    >>> dims("truth", load("configs/figure4.toml"))
    ('coordinate',)
    """
    dimensions = VARIABLES[name][0]
    if name == "truth" and not experiment.network.signed:
        return ("coordinate",)
    return dimensions


def sizes(experiment: Experiment) -> dict[str, int]:
    """The sizes of the dimensions that the config determines.

    >>> from ddln.config.experiment import load
    >>> sizes(load("configs/figure4.toml"))
    {'time': 301, 'layer': 6, 'coordinate': 8, 'feature': 8}
    """
    return {
        "time": experiment.dynamics.saved,
        "layer": experiment.network.depth,
        "coordinate": experiment.width,
        "feature": experiment.parameters,
    }


def network_bytes(experiment: Experiment, *, own_times: bool = False) -> int:
    """Bytes of one network in a chunk's file.

    Args:
        experiment: without a sweep.
        own_times: whether the networks of a chunk have different saved times.

    >>> from ddln.config.experiment import load
    >>> figure4 = load("configs/figure4.toml")
    >>> network_bytes(figure4), network_bytes(figure4.with_({"dynamics.save": "loss"}))
    (46561, 7649)
    """
    shared = set() if own_times else SHARED_TIMES
    return _bytes(experiment, [x for x in stored_variables(experiment) if x not in shared])


def portable_bytes(experiment: Experiment) -> int:
    """Bytes of one network in a portable data set, with every saved variable."""
    return _bytes(experiment, saved_variables(experiment))


def working_bytes(experiment: Experiment) -> int:
    """Estimate from above the bytes of memory that computing one network takes.

    >>> from ddln.config.experiment import load
    >>> round(working_bytes(load("configs/figure4.toml")) / 1e6, 1)
    1.3
    """
    samples, _ = shape_of(experiment.problem.data)
    positions = experiment.dynamics.saved * experiment.width
    rows, columns = samples * experiment.outputs, experiment.parameters
    matrices = rows * columns + min(rows, columns) ** 2
    depth, width = experiment.network.depth, experiment.width
    if isinstance(experiment.dynamics, DescentConfig):
        held = _DESCENT_COPIES * depth * positions
    else:
        duals = _MIRROR_MAP * width * min(experiment.dynamics.saved, MIRROR_MAP_CHECKS)
        hessians = _HESSIANS * width * min(width, LARGEST_DENSE_DIM)
        held = (_WORKSPACE + _COPIES * depth) * positions + duals + hessians
    return 8 * (held + _COPIES * matrices)


def _bytes(experiment: Experiment, names: Sequence[str]) -> int:
    stepwise = isinstance(experiment.dynamics, DescentConfig)
    claims = _DESCENT_CERTIFICATES if stepwise else _CERTIFICATES
    known = sizes(experiment) | {"certificate": claims, "hypothesis": _HYPOTHESES}
    return sum(
        (1 if name in _FLAGS else 8)
        * math.prod(known[dimension] for dimension in VARIABLES[name][0])
        for name in names
    )


def status_counts(dataset: "xr.Dataset") -> dict[str, int]:
    """The number of networks for each status name in the attributes of `status`."""
    status = dataset["status"]
    names = status.attrs["flag_meanings"].split()
    codes = np.atleast_1d(status.attrs["flag_values"]).tolist()
    found, counts = np.unique(status.values, return_counts=True)
    return {
        dict(zip(codes, names, strict=True)).get(int(code), str(code)): int(count)
        for code, count in zip(found, counts, strict=True)
    }


def count_recomputed(dataset: "xr.Dataset") -> tuple[int, int]:
    """The number of recomputed networks, and how many of them are less exact than expected."""
    if "discrepancy" not in dataset:
        return 0, 0
    discrepancy = dataset["discrepancy"].values
    return int(np.isfinite(discrepancy).sum()), int((discrepancy > 1).sum())


def accuracy_in_words(recomputed: int, inexact: int) -> str:
    """State the numbers that `count_recomputed` returns, and what to change.

    >>> accuracy_in_words(200, 0)
    '200 networks recomputed at tolerances 30 times finer, all as exact as expected'
    """
    text = f"{count(recomputed, 'network')} recomputed at tolerances {FINER} times finer, "
    if not inexact:
        return text + "all as exact as expected"
    return f"{text}{inexact:,} less exact than expected: lower dynamics.rtol"
