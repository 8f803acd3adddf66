"""The Python reference: a page for each topic, and a summary of all names."""

import importlib
import inspect
from html import escape
from pathlib import Path
from typing import Any

import ddln
from docs.docstring_text import typeset

TOPICS: dict[str, tuple[str, ...]] = {
    "networks": (
        *("effective_parameter", "imbalance", "mobility", "coordinate_kinds", "describe"),
        *("init", "Reduction", "factorise", "collapse", "Factorised"),
    ),
    "entropy": ("Entropy", "Parametrisation", "entropy_profile", "mirror_descent", "factored"),
    "problems": (
        *("least_squares", "logistic", "multinomial", "exponential", "poisson", "huber", "hinge"),
        *("quantile", "from_function", "signed", "Problem", "LeastSquares", "Signed"),
    ),
    "flows": (
        *("gradient_flow", "gradient_flows", "mirror_flow", "stochastic_flow"),
        *("weight_decay", "Trajectory", "Flows", "Diffusion"),
    ),
    "training": ("descend", "optimiser", "Sampling", "SharpnessAware", "Descent"),
    "theory": (
        *("check_hypotheses", "rate_bound", "asymptotic_rate", "limit_point", "escape_times"),
        "theory",
    ),
    "certificates": (
        *("certify", "Certificates", "Claim", "claim", "diagnostics", "discretisation_order"),
    ),
    "experiments": ("load", "Experiment", "run", "sweep", "open", "figures"),
}
"""page: names of `ddln`; a module stands for its functions and classes."""


def pages() -> dict[str, str]:
    """What the overview and the page of each topic include, by file name."""
    named = members()
    overview = [
        f"## [{_title(topic)}](api/{topic}.md)\n\n{_summary(names, f'api/{topic}.md')}\n"
        for topic, names in named.items()
    ]
    details = {f"api/{topic}.md": _details(names) for topic, names in named.items()}
    return {"api.md": "\n".join(overview), **details}


def members() -> dict[str, list[str]]:
    """The names of each topic, such as `ddln.init.balanced`, each object once."""
    seen: list[object] = []
    found: dict[str, list[str]] = {}
    for topic, entries in TOPICS.items():
        found[topic] = []
        for entry in entries:
            for name in _members_of(entry) if entry in ddln._MODULES else [f"ddln.{entry}"]:
                if not any(find(name) is other for other in seen):
                    seen.append(find(name))
                    found[topic].append(name)
    return found


def _members_of(module: str) -> list[str]:
    """The functions and classes of a module, its own or from a private module beside it."""
    home = f"ddln.{ddln._MODULES[module]}"
    private = f"{home.rpartition('.')[0]}._"
    return [
        f"ddln.{module}.{name}"
        for name, value in vars(importlib.import_module(home)).items()
        if not name.startswith("_")
        and callable(value)
        and (getattr(value, "__module__", None) or "").startswith((home, private))
    ]


def find(name: str) -> Any:
    """The object with a name such as `ddln.init.balanced`."""
    value: Any = ddln
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def _title(topic: str) -> str:
    page = Path(__file__).parent / "api" / f"{topic}.md"
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _summary(names: list[str], page: str) -> str:
    rows = [f"| [`{name}`]({page}#{name}) | {_first_line(find(name))} |" for name in names]
    return "\n".join(["| name | purpose |", "|---|---|", *rows])


def _first_line(value: object) -> str:
    """The first sentence of a docstring, safe in a table."""
    text = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    parts = escape(text, quote=False).replace("|", "\\|").split("`")
    parts[::2] = [part.replace("*", "\\*").replace("_", "\\_") for part in map(typeset, parts[::2])]
    return "`".join(parts)


def _details(names: list[str]) -> str:
    return "\n".join([_summary(names, ""), "", *(f"::: {name}\n" for name in names)])
