"""The state of the network explorer, its controls, and its encoding in the page's address.

The state is an `Experiment` without a sweep, so that the explorer shows what `ddln run` computes
from the same config. Numbers are arguments of programs that are compiled once per shape: the page
recomputes and redraws another scale, seed, imbalance or step size in a tenth of a second.

The page with the controls is `network_app`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddln.config.experiment import Experiment, numeric_leaves, value_of
from ddln.plotting.explorer import network_view
from ddln.sweeps import build, compute

_LAW = {"kind": "uniform", "low": 0.5, "high": 1.2}
_STEPS = {"kind": "descent", "steps": 2000}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "problem.data": {
        "gaussian": {"kind": "gaussian", "samples": 1, "features": 2, "seed": 0},
        "sparse": {"kind": "sparse", "samples": 10, "features": 20, "nonzeros": 2, "seed": 0},
    },
    "network.init": {
        "zero_first_layer": {"kind": "zero_first_layer", "law": _LAW, "seed": 1},
        "imbalanced": {"kind": "imbalanced", "smallest": 0.3, "imbalance": 1.0},
        "constant": {"kind": "constant", "value": 0.5},
        "normal": {"kind": "normal", "std": 0.5, "seed": 0},
    },
    "dynamics": {
        "gradient_flow": {"kind": "gradient_flow", "until": 10.0},
        "gradient_flow_with_decay": {
            "kind": "gradient_flow",
            "until": 10.0,
            "weight_decay": {"kind": "constant", "rate": 0.1},
        },
        "sgd": {**_STEPS, "optimiser": {"kind": "sgd", "learning_rate": 0.002}},
        "heavy_ball": {
            **_STEPS,
            "optimiser": {"kind": "heavy_ball", "learning_rate": 0.002, "momentum": 0.9},
        },
        "nesterov": {
            **_STEPS,
            "optimiser": {"kind": "nesterov", "learning_rate": 0.002, "momentum": 0.9},
        },
    },
}
"""The tables that a page can choose, by kind; the kind of a descent is that of its optimiser."""


def _even(low: float, high: float, step: float) -> list[float]:
    return [round(low + step * i, 6) for i in range(round((high - low) / step) + 1)]


def _powers(low: int, high: int) -> list[float]:
    return [float(f"{x:.3g}") for x in np.logspace(low, high, 20 * (high - low) + 1)]


_SEEDS = list(range(101))
_RANGES: dict[str, list[Any]] = {
    "network.depth": list(range(2, 11)),
    "network.scale": _powers(-2, 1),
    "network.init.smallest": _even(-1.0, 2.0, 0.02),
    "network.init.imbalance": _even(0.0, 4.0, 0.05),
    "network.init.value": _even(-2.0, 2.0, 0.02),
    "network.init.mean": _even(-2.0, 2.0, 0.05),
    "network.init.std": _even(0.0, 3.0, 0.05),
    "network.init.low": _even(-3.0, 3.0, 0.05),
    "network.init.high": _even(-3.0, 3.0, 0.05),
    "network.init.seed": _SEEDS,
    "problem.data.samples": list(range(1, 41)),
    "problem.data.features": list(range(1, 41)),
    "problem.data.nonzeros": list(range(41)),
    "problem.data.noise": _even(0.0, 2.0, 0.05),
    "problem.data.seed": _SEEDS,
    "dynamics.until": _powers(-2, 4),
    "dynamics.weight_decay.rate": [0.0, *_powers(-3, 1)],
    "dynamics.steps": [100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000],
    "dynamics.optimiser.learning_rate": _powers(-5, 0),
    "dynamics.optimiser.momentum": _even(0.0, 0.99, 0.01),
    "dynamics.sampling.batch": list(range(1, 41)),
    "dynamics.sampling.label_noise": _even(0.0, 2.0, 0.05),
}
for _name in ("low", "high", "mean", "std", "value"):
    _RANGES[f"network.init.law.{_name}"] = _RANGES[f"network.init.{_name}"]


class Control(NamedTuple):
    """A slider: a number of the state and the values it can take."""

    name: str
    """Dotted, as in a config."""
    description: str
    steps: tuple[Any, ...]
    value: Any


def initial_state(experiment: Experiment) -> Experiment:
    """The experiment as one network whose whole curve is saved.

    >>> initial_state(ddln.load("configs/figure4.toml")).sweep
    {}
    """
    return experiment.with_(
        {"study": "explore", "sweep": {}, "dynamics.save": "all", "dynamics.measure": []}
    )


def kind_of(state: Experiment, table: str) -> str:
    """The kind that a table of the state has, as in `TABLES`.

    >>> kind_of(ddln.load("configs/figure4.toml"), "dynamics")
    'gradient_flow'
    """
    value = value_of(state, table)
    return value.method if table == "dynamics" else value.kind


def choices(state: Experiment, table: str) -> list[str]:
    """The kinds that a table can have, including its own.

    >>> choices(ddln.load("configs/figure4.toml"), "problem.data")
    ['gaussian', 'sparse']
    """
    return list(dict.fromkeys([*TABLES[table], kind_of(state, table)]))


def with_kinds(state: Experiment, kinds: Mapping[str, str]) -> Experiment:
    """The state with tables of other kinds, at the values of `TABLES`.

    Raises:
        ConfigError: the tables do not fit together.
        ValueError: an unknown kind.

    >>> state = initial_state(ddln.load("configs/figure4.toml"))
    >>> state = with_kinds(state, {"dynamics": "heavy_ball"})
    >>> state.dynamics.optimiser.momentum
    0.9
    """
    changes = {}
    for table, kind in kinds.items():
        if kind not in choices(state, table):
            known = ", ".join(choices(state, table))
            raise ValueError(f"{table}: must be one of {known}, got {kind!r}")
        if kind != kind_of(state, table):
            changes[table] = TABLES[table][kind]
    return state.with_(changes) if changes else state


def controls(state: Experiment) -> list[Control]:
    """The sliders of the state, at their values.

    >>> [control.value for control in controls(ddln.load("configs/figure4.toml"))][:2]
    [10, 8]
    """
    sliders = []
    for name, leaf in numeric_leaves(state).items():
        value = value_of(state, name)
        if name in _RANGES and value is not None:
            steps = tuple(sorted({*_RANGES[name], value}))
            sliders.append(Control(name, leaf.description or name, steps, value))
    return sliders


def with_values(state: Experiment, values: Mapping[str, Any]) -> Experiment:
    """The state with other values; values of controls that it does not have are ignored.

    Raises:
        ConfigError: the values do not fit together.
    """
    current = {control.name: control.value for control in controls(state)}
    return state.with_({name: x for name, x in values.items() if current.get(name, x) != x})


def to_query(base: Experiment, state: Experiment) -> dict[str, str]:
    """The differences of the state from the base, as the query of a URL; inverse of `from_query`.

    >>> base = initial_state(ddln.load("configs/figure4.toml"))
    >>> to_query(base, with_values(base, {"network.scale": 1.4}))
    {'network.scale': '1.4'}
    """
    kinds = {table: kind_of(state, table) for table in TABLES}
    changed = {table: kind for table, kind in kinds.items() if kind != kind_of(base, table)}
    before = {control.name: control.value for control in controls(with_kinds(base, changed))}
    moved = [control for control in controls(state) if before[control.name] != control.value]
    return changed | {control.name: str(control.value) for control in moved}


def from_query(base: Experiment, query: Mapping[str, str]) -> Experiment:
    """The state that the query of a URL encodes, with kinds and values checked.

    Names without a dot cannot be keys of a config and are ignored.

    Raises:
        ValueError: an unknown kind or control, or a value outside its range.
        ConfigError: the values do not fit together.

    >>> base = initial_state(ddln.load("configs/figure4.toml"))
    >>> from_query(base, {"network.depth": "4"}).network.depth
    4
    """
    kinds = {name: value for name, value in query.items() if name in TABLES}
    state = with_kinds(base, kinds)
    known, values = {control.name: control for control in controls(state)}, {}
    for name, text in query.items():
        if name in TABLES or "." not in name:
            continue
        if name not in known:
            raise ValueError(f"{name}: not a control of this network")
        low, *_, high = known[name].steps
        try:
            values[name] = type(known[name].value)(text)
        except ValueError:
            raise ValueError(f"{name}: must be a number, got {text!r}") from None
        if not low <= values[name] <= high:
            raise ValueError(f"{name}: must be from {low} to {high}, got {text}")
    # All at once, because a lower and an upper end may have to change together.
    return with_values(state, values)


def run_state(state: Experiment) -> network_view.View:
    """Run the state.

    Raises:
        ValueError: the data and the network do not make a problem.
    """
    return network_view.View.of(
        compute.run(state), build.build_problem(state), build.build_layers(state)
    )
