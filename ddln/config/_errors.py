"""Validation errors in the user's words: the dotted path, what must hold, and what was given."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from ddln.config.data_files import DataError

AXIS_FORMS = (
    "must be a list, {values = …}, {linspace = …}, {logspace = …}, {range = …} or {expr = …}"
)
_RULES = {
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be ≥ {ge:g}",
    "less_than": "must be < {lt:g}",
    "less_than_equal": "must be ≤ {le:g}",
    "finite_number": "must be finite",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "string_pattern_mismatch": "must match {pattern}",
    "literal_error": "must be one of {expected}",
    "too_short": "must have {min_length} or more values",
    "too_long": "must have {max_length} or fewer values",
}


def rule(fault: Mapping[str, Any]) -> str:
    """What must hold, and what was given."""
    text = _RULES.get(fault["type"], "{msg}").format(msg=fault["msg"], **fault.get("ctx", {}))
    got = _quoted(fault["input"])
    return f"{text}, got {got if len(got) <= 60 else got[:57] + '...'}"


def explain(fault: Mapping[str, Any], document: Any, root: type[BaseModel]) -> tuple[str, str]:
    """The dotted path of a fault, without pydantic's tags of unions, and what is wrong there.

    Args:
        fault: of `pydantic.ValidationError.errors`.
        document: what was validated.
        root: the table it was validated as.
    """
    path, tables, keys = _locate(fault["loc"], document, root)
    kinds = _kinds_of(tables)
    one_of = "one of " + ", ".join(f'"{kind}"' for kind in kinds)
    match fault["type"]:
        case "extra_forbidden":
            return path, "unknown key" + hint(str(fault["loc"][-1]), keys)
        case "missing":
            return path, "is missing"
        case "union_tag_not_found" | "union_tag_invalid" if not kinds:
            return path, AXIS_FORMS
        case "union_tag_not_found":
            return f"{path}.kind", f"is missing, {one_of}"
        case "union_tag_invalid":
            tag = fault["ctx"]["tag"]
            near = hint(tag, kinds)
            return f"{path}.kind", f"unknown kind {_quoted(tag)}{near or ', ' + one_of}"
        case "literal_error":
            choices = re.findall(r"'(.*?)'", fault["ctx"]["expected"])
            return path, rule(fault) + hint(str(fault["input"]), choices)
        case "value_error":
            error = fault["ctx"]["error"]
            return "problem.data" if isinstance(error, DataError) else path, str(error)
    return path, rule(fault)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _locate(
    loc: Iterable[str | int], document: Any, root: type[BaseModel]
) -> tuple[str, list[type[BaseModel]], list[str]]:
    """The dotted path of a location, the tables its value can be, and the keys beside it."""
    path, node, tables = "", document, [root]
    keys: list[str] = []
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
            node = node[part] if isinstance(node, list) and part < len(node) else None
        elif isinstance(node, Mapping) and (part in node or part not in _kinds_of(tables)):
            path += f".{part}" if path else part
            holders, node = tables, node.get(part)
            fields = [table.model_fields[part] for table in tables if part in table.model_fields]
            tables = [member for field in fields for member in members_of(field.annotation, node)]
            keys = [key for table in holders for key in table.model_fields]
    return path, tables, keys


def hint(word: str, known: Iterable[str]) -> str:
    """`, did you mean …?` if a known word is similar, otherwise nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f', did you mean "{near[0]}"?' if near else ""


def members_of(annotation: Any, raw: Any) -> list[type[BaseModel]]:
    """The tables that an annotation allows; only that of the given `kind` if there is one."""
    members = [
        member
        for member in (annotation, *get_args(annotation))
        if isinstance(member, type) and issubclass(member, BaseModel)
    ]
    kind = raw.get("kind") if isinstance(raw, Mapping) else None
    if kind is None:
        return [member for member in members if _has_default_kind(member)] or members
    return [member for member in members if kind in kinds_of(member)] or members


def _has_default_kind(table: type[BaseModel]) -> bool:
    return "kind" in table.model_fields and not table.model_fields["kind"].is_required()


def kinds_of(table: type[BaseModel]) -> tuple[Any, ...]:
    """The values of a table's `kind`; none if it has no `kind`."""
    return get_args(table.model_fields["kind"].annotation) if "kind" in table.model_fields else ()


def _kinds_of(tables: Iterable[type[BaseModel]]) -> list[Any]:
    return [kind for table in tables for kind in kinds_of(table)]
