"""The table `[dynamics]` of a descent: valid values, leaves that can be swept, saved steps."""

from pathlib import Path

import numpy as np
import pytest

from ddln.config.dynamics_schema import DescentConfig, FlowConfig
from ddln.config.experiment import ConfigError, changes_shape, load, numeric_leaves
from ddln.config.weight_decay_schema import ConstantDecayConfig, CosineDecayConfig
from ddln.sweeps import build

FIGURE4 = Path(__file__).parent.parent / "configs" / "figure4.toml"
DESCENT = load(FIGURE4, ["sweep={}"]).with_(
    {
        "dynamics": {
            "kind": "descent",
            "steps": 1000,
            "points": 21,
            "optimiser": {"kind": "heavy_ball", "intrinsic_step": 0.01, "momentum": 0.9},
            "sampling": {"batch": 2, "label_noise": 0.1},
            "sharpness_aware": {"rho": 0.1},
        }
    }
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 0}, "dynamics.steps: must be ≥ 1, got 0"),
        ({"steps": 2**31}, "dynamics.steps: must be < 2.1"),
        ({"until": 3.0}, "dynamics.until: unknown key"),
        ({"target_gap": 0}, "dynamics.target_gap: must be > 0, got 0"),
        ({"optimiser.momentum": 1}, "dynamics.optimiser.momentum: must be < 1, got 1"),
        ({"optimiser.kind": "nestrov"}, 'kind: unknown kind "nestrov", did you mean "nesterov"?'),
        ({"optimiser.learning_rate": 1}, "optimiser: needs one of learning_rate and .* got both"),
        ({"optimiser": {"kind": "nesterov", "momentum": 0.9}}, "intrinsic_step, got neither"),
        ({"optimiser": {"kind": "sgd"}}, "dynamics.optimiser.learning_rate: is missing"),
        ({"sampling.batch": 11}, "sampling.batch: must be ≤ 10, the number of samples, got 11"),
        ({"sampling.noisy": 3}, "dynamics.sampling: noisy must be ≤ batch, got 3 and 2"),
        ({"sampling": {"noisy": 3}}, "dynamics.sampling: noisy needs label_noise"),
        ({"sampling": {"noisy": 11, "label_noise": 1}}, "sampling.noisy: must be ≤ 10, the number"),
        ({"sharpness_aware.group": 3}, "sharpness_aware.group: must divide the batch of 2, got 3"),
        ({"optimiser.drops": [[5, 0]]}, r"optimiser.drops\[0\]\[1\]: must be > 0, got 0"),
        ({"optimiser.drops": [[0.5, 1]]}, r"optimiser.drops\[0\]\[0\]: must be a whole number"),
        ({"measure": ["gain"]}, "dynamics.measure: gain requires depth 2, got depth 6"),
        ({"measure": ["speed"]}, r"dynamics.measure\[0\]: must be one of 'sharpness'"),
        ({"sharpness_aware.rho": -1}, "dynamics.sharpness_aware.rho: must be ≥ 0, got -1"),
        ({"times": [5, 5, 10]}, r"times: must increase, from above 0 to below 1000, got \[5, 5"),
        ({"times": [5, 10, 1000]}, r"times: must increase, from above 0 to below 1000"),
        ({"times": [5, 10]}, "dynamics.times: must have 3 or more values"),
        ({"patience": 3}, "dynamics.patience: needs held-out rows, problem.data.test"),
        ({"measure": ["held_out_loss"]}, "dynamics.measure: needs held-out rows"),
        ({"optimiser.clip": 0}, "dynamics.optimiser.clip: must be > 0, got 0"),
        (
            {"optimiser.schedule": {"kind": "linear", "warm_up": 1000}},
            "optimiser.schedule.warm_up: must be < steps, got 1000 and 1000",
        ),
        (
            {"optimiser.schedule": {"kind": "linear"}, "optimiser.drops": [[5, 0.1]]},
            "optimiser: takes `schedule` or `drops`, got both",
        ),
    ],
    ids=lambda case: next(iter(case), "") if isinstance(case, dict) else "",
)
def test_invalid_descent_is_reported(changes, expected):
    with pytest.raises(ConfigError, match=expected):
        DESCENT.with_({f"dynamics.{name}": value for name, value in changes.items()})


@pytest.mark.parametrize("changes", [{"kind": "mirror_flow"}, {"solver": "kvaerno5"}])
def test_flow_integrated_by_diffrax_takes_no_target_gap(changes):
    flow = {"kind": "gradient_flow", "until": 1.0, "target_gap": 1e-3}
    with pytest.raises(ConfigError, match="target_gap: is for the gradient flow in reduced"):
        DESCENT.with_({"dynamics": flow | changes})


def test_chosen_times_are_saved_between_the_first_and_the_last():
    descent = DESCENT.with_({"dynamics.times": [3, 10, 999]}).dynamics
    assert isinstance(descent, DescentConfig)
    assert descent.records.tolist() == [0, 3, 10, 999, 1000]
    flow = load(FIGURE4, ["dynamics.times=[0.1, 0.2, 2.5]", "sweep={}"]).dynamics
    assert isinstance(flow, FlowConfig)
    assert build.saved_times(flow).tolist() == [0.0, 0.1, 0.2, 2.5, 3.0]
    assert flow.saved == 5


def test_batch_fits_at_every_point_of_a_sweep():
    expected = r"dynamics.sampling.batch: must be ≤ 3, the number of samples, got 4 \(swept to"
    axes = {"dynamics.sampling.batch": [2, 4], "problem.data.samples": [3, 10]}
    with pytest.raises(ConfigError, match=expected):
        DESCENT.with_({"sweep": axes})


def test_exactly_the_given_numbers_can_be_swept():
    numbers = {
        name.removeprefix("dynamics."): changes_shape(leaf)
        for name, leaf in numeric_leaves(DESCENT).items()
        if name.startswith("dynamics.")
    }
    assert numbers == {
        "points": True,
        "steps": True,
        "sampling.batch": True,
        "optimiser.intrinsic_step": False,
        "optimiser.momentum": False,
        "sampling.label_noise": False,
        "sampling.seed": False,
        "sharpness_aware.rho": False,
    }
    with pytest.raises(ConfigError, match=r"sweep.dynamics.target_gap: not a numeric key"):
        DESCENT.with_({"sweep.dynamics.target_gap": [1e-3]})


@pytest.mark.parametrize("steps", [1, 4, 5, 19, 20, 21, 1000, 2**31 - 1])
@pytest.mark.parametrize("spacing", ["linear", "log"])
def test_saved_steps_increase_from_first_to_last(steps, spacing):
    descent = DESCENT.with_({"dynamics.steps": steps, "dynamics.spacing": spacing}).dynamics
    assert isinstance(descent, DescentConfig)
    records = descent.records
    assert records.size == descent.saved == min(21, steps + 1)
    assert (records[0], records[-1]) == (0, steps)
    assert (np.diff(records) >= 1).all()
    if spacing == "log" and steps > 1000:
        np.testing.assert_allclose(np.diff(np.log(records[8:])), np.log(steps) / 19, rtol=1e-2)


DECAYED = load(FIGURE4, ["dynamics.weight_decay=0.1", "sweep={}"])


def decay_of(experiment):
    assert isinstance(experiment.dynamics, FlowConfig)
    return experiment.dynamics.weight_decay


def test_weight_decay_is_a_number_or_a_schedule():
    assert decay_of(DECAYED) == ConstantDecayConfig(rate=0.1)
    assert "dynamics.weight_decay.rate" in numeric_leaves(DECAYED)
    cosine = DECAYED.with_({"dynamics.weight_decay": {"kind": "cosine", "rate": 1, "until": 9}})
    assert decay_of(cosine) == CosineDecayConfig(kind="cosine", rate=1.0, final=0.0, until=9.0)
    off = DECAYED.with_({"dynamics.weight_decay.until": 2.0})
    assert decay_of(off) == ConstantDecayConfig(rate=0.1, until=2.0)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (-0.1, "dynamics.weight_decay: must be ≥ 0, got -0.1"),
        ({"kind": "linear", "rate": 1}, 'weight_decay.kind: unknown kind "linear"'),
        ({"kind": "cosine", "rate": 1, "until": 2}, "must not end before the flow, at 3, got 2"),
        ({"kind": "piecewise", "rates": [1], "until": [2]}, "before the flow, at 3, got 2"),
        ({"kind": "piecewise", "rates": [1, 2], "until": [5]}, "until: must increase and have 2"),
        ({"kind": "piecewise", "rates": [-1], "until": [5]}, r"rates\[0\]: must be ≥ 0, got -1"),
        ("often", "weight_decay"),
    ],
)
def test_invalid_weight_decay_is_reported(decay, expected):
    with pytest.raises(ConfigError, match=expected):
        DECAYED.with_({"dynamics.weight_decay": decay})


def test_target_gap_is_refused_under_weight_decay():
    with pytest.raises(ConfigError, match="target_gap: a flow with weight_decay does not stop"):
        DECAYED.with_({"dynamics.target_gap": 1e-3})
