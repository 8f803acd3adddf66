"""The reference of data sets: every variable, when it is saved, and what it means."""

from pathlib import Path
from typing import get_args

from ddln.config.dynamics_schema import Measure
from ddln.config.experiment import Experiment, load
from ddln.sweeps.dataset_schema import VARIABLES, dims, saved_variables

FIGURE4 = Path(__file__).parent.parent / "configs" / "figure4.toml"
DESCENT = '{ kind = "descent", steps = 9, optimiser = { kind = "sgd", learning_rate = 0.1 } }'
SPARSE = '{ kind = "sparse", samples = 5, features = 8, nonzeros = 2 }'
EVERY_RUN = {"flows", "training by steps"}


def variables() -> str:
    """A table with a row for each variable that a data set can have."""
    head = "variable", "dimensions", "unit", "meaning", "in", "`save`"
    rows = [head, ("---",) * len(head)]
    for name, (where, example) in saved().items():
        _, unit, meaning = VARIABLES[name]
        along = ", ".join(f"`{dimension}`" for dimension in dims(name, example)) or "–"
        text = meaning.replace("|", "\\|").replace("*", "\\*")
        level = least_level(name, example)
        rows.append((f"`{name}`", along, unit, text, where, f"`{level}`"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def saved() -> dict[str, tuple[str, Experiment]]:
    """For each variable that can be saved, which runs have it, and an example of them."""
    found: dict[str, tuple[str, Experiment]] = {}
    cases = examples()
    for name in VARIABLES:
        where = [words for words, example in cases.items() if name in saved_variables(example)]
        if where:
            words = "every run" if set(where) >= EVERY_RUN else where[0]
            found[name] = words, cases[where[0]]
    return found


def examples() -> dict[str, Experiment]:
    """Configurations whose runs have the variables of each kind of run; plain flows come first."""
    flow = load(FIGURE4)
    measured = flow.dynamics.model_copy(update={"measure": get_args(Measure)})
    return {
        "flows": flow,
        "training by steps": load(FIGURE4, [f"dynamics={DESCENT}"]),
        "flows with `weight_decay`": load(FIGURE4, ["dynamics.weight_decay=0.1"]),
        "signed networks": load(FIGURE4, ["network.signed=true"]),
        "data with a known truth": load(FIGURE4, [f"problem.data={SPARSE}"]),
        "runs with this `measure`": flow.model_copy(update={"dynamics": measured}),
    }


def least_level(name: str, example: Experiment) -> str:
    """The first value of `dynamics.save` with which a variable is saved."""
    levels = get_args(type(example.dynamics).model_fields["save"].annotation)
    return next(level for level in levels if name in saved_variables(_saving(example, level)))


def _saving(example: Experiment, level: str) -> Experiment:
    dynamics = example.dynamics.model_copy(update={"save": level})
    return example.model_copy(update={"dynamics": dynamics})
