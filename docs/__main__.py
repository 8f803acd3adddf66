"""Write what `make docs` includes in the pages, to build/docs/.

Nothing in it is kept by hand: the next build has every new key of `ddln.config.schema`, every new
name of `ddln.__all__` and every new variable of `ddln.sweeps.dataset_schema`.
"""

import inspect
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ddln.config.axis_schema import FORMS
from ddln.config.experiment import Experiment, changes_shape, units_of
from docs import python_api
from docs.variables import variables

ROOT = Path(__file__).parent.parent
SIGNS = {"ge": "≥", "gt": "&gt;", "le": "≤", "lt": "&lt;"}
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false"}

Tables = dict[type[BaseModel], list[str]]


def main() -> None:
    """Write them."""
    made = {
        "config.md": config(),
        "results.md": results(),
        "variables.md": variables(),
        **python_api.pages(),
    }
    for name, text in made.items():
        path = ROOT / "build" / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def results() -> str:
    """What `make experiments` wrote, without its title; and a line for each config not run yet."""
    page = ROOT / "experiments" / "RESULTS.md"
    text = page.read_text(encoding="utf-8").partition("\n")[2] if page.is_file() else ""
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.toml"))
    missing = [name for name in names if f"\n## {name}\n" not in text]
    return "".join([text, *(f"\n## {name}\n\nNot run yet.\n" for name in missing)])


def config() -> str:
    """Every table of a config as a section, every key of it as a row."""
    lines = []
    for table, places in tables().items():
        lines += [f"### {_title(table, places)} {{ #{_anchor(table)} }}", ""]
        lines += [_about(table), ""]
        lines += ["| key | type | range | default | meaning |", "|---|---|---|---|---|"]
        fields = sorted(table.model_fields.items(), key=lambda item: item[0] != "kind")
        lines += [*(_row(name, field) for name, field in fields), ""]
    return "\n".join(lines)


def tables() -> Tables:
    """Every table, and the dotted names of the places where it can stand."""
    found: Tables = {Experiment: []}
    _walk(Experiment, "", found)
    return found


def _walk(table: type[BaseModel], prefix: str, found: Tables) -> None:
    for name, field in table.model_fields.items():
        place = f"{prefix}{name}" + ".NAME" * (get_origin(field.annotation) is dict)
        for member in _members(field.annotation):
            found.setdefault(member, []).append(place)
            _walk(member, f"{place}.", found)


def _members(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _members(part)


def _title(table: type[BaseModel], places: list[str]) -> str:
    where = " and ".join(f"`{place}`" for place in dict.fromkeys(places))
    kind = "kind" in table.model_fields
    kinds = " or ".join(f'`"{name}"`' if kind else f"`{name}`" for name in _kinds(table))
    return f"{where or 'The top of the file'}{kinds and ': '}{kinds}"


def _kinds(table: type[BaseModel]) -> list[str]:
    """The kinds of a table, or the form of an axis."""
    if "kind" in table.model_fields:
        return list(get_args(table.model_fields["kind"].annotation))
    return [form for form in FORMS if form in table.model_fields]


def _about(table: type[BaseModel]) -> str:
    """The first paragraph of its docstring."""
    return (inspect.getdoc(table) or "").partition("\n\n")[0]


def _anchor(table: type[BaseModel]) -> str:
    return table.__name__.removesuffix("Config").lower()


def _row(name: str, field: FieldInfo) -> str:
    members = list(_members(field.annotation))
    about = _about(members[0]) if len(members) == 1 else "one of these tables" if members else ""
    meaning = [escape(field.description or about.rstrip(".").lower(), quote=False)]
    if units_of(field) != "1" and units_of(field) not in meaning[0]:
        meaning.append(f"in {units_of(field)}")
    if changes_shape(field):
        meaning.append("in a sweep, each value compiles its own program")
    if name == "kind":
        meaning = ["selects this table"]
    limits = ", ".join(
        f"{sign} {getattr(mark, key)}"
        for mark in field.metadata
        for key, sign in SIGNS.items()
        if hasattr(mark, key)
    )
    default = "required" if field.is_required() else _default(field.default)
    cells = f"`{name}`", _type(field.annotation), limits, default, "; ".join(filter(None, meaning))
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"`{kind}`" if kind else "the defaults of that table"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(annotation: Any) -> str:
    if annotation in TYPES:
        return TYPES[annotation]
    if get_origin(annotation) is Literal:
        return ", ".join(f'`"{one}"`' for one in get_args(annotation))
    members = list(dict.fromkeys(_members(annotation)))
    parts = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    if get_origin(annotation) is dict:
        return "table of axes: a list, or " + _links(members)
    if members:
        return "table: " + _links(members)
    if get_origin(annotation) is tuple:
        return "list"
    return " or ".join(dict.fromkeys(_type(part) for part in parts))


def _links(tables: list[type[BaseModel]]) -> str:
    names = {table: _kinds(table) or [_anchor(table)] for table in tables}
    return ", ".join(f"[{' or '.join(words)}](#{_anchor(table)})" for table, words in names.items())


if __name__ == "__main__":
    main()
