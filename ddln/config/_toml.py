"""Configurations before validation: nested tables read from TOML text and overrides.

In such a document the axes below `sweep` have their dotted names as keys, whether the text nests
them or quotes them: `parse_document` and `set_path` see to it.
"""

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddln._internal.files import read_limited
from ddln.config.axis_schema import FORMS

_MAX_FILE_BYTES = 2**23
_MAX_DEPTH = 32
_LONG_NAME = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){32}""")


class ConfigError(ValueError):
    """Every problem of a configuration, one line each, by dotted path.

    Attributes:
        problems: the lines.
    """

    def __init__(self, problems: Sequence[str], source: str = ""):
        self.problems = tuple(problems)
        head, indent = (f"{source}:\n", "  ") if source else ("", "")
        super().__init__(head + "\n".join(indent + problem for problem in problems))


@contextlib.contextmanager
def add_source(source: Path) -> Iterator[None]:
    """Raise every ValueError as a ConfigError that names the file."""
    try:
        yield
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
        raise ConfigError(problems, str(source)) from None


def read_document(path: Path) -> dict[str, Any]:
    """The document in a TOML file.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        return parse_document(read_limited(path, _MAX_FILE_BYTES).decode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except ValueError as error:
        reason = str(error)
    raise ConfigError([f"{path}: {reason}"])


def parse_document(text: str) -> dict[str, Any]:
    """The document in TOML text.

    Raises:
        ValueError: it is not TOML, or nested too deeply.
    """
    document = _parse_toml(text)
    if "sweep" in document:
        document["sweep"] = _flat(document["sweep"])
    return document


def _parse_toml(text: str) -> dict[str, Any]:
    try:
        # The parser's time is quadratic in the number of parts of a dotted name.
        if not _LONG_NAME.search(text) and not _is_deep(document := tomllib.loads(text)):
            return document
    except RecursionError:
        pass
    raise ValueError("nested too deeply")


def _is_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(_MAX_DEPTH):
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
    return bool(level)


def set_path(document: dict[str, Any], name: str, value: Any) -> None:
    """Set the value at a dotted name.

    Raises:
        ConfigError: a part of the name is not a table.
    """
    head, _, axis = name.partition(".")
    *tables, key = ["sweep", axis] if head == "sweep" and axis else name.split(".")
    node = document
    for table in tables:
        node = node.setdefault(table, {})
        if not isinstance(node, dict):
            raise ConfigError([f"{name}: `{table}` is not a table"])
    node[key] = value
    if head == "sweep":
        document["sweep"] = _flat(document["sweep"])


def parse_override(override: str) -> tuple[str, Any]:
    """The name and the value of NAME=VALUE; the value is TOML, and a bare word is text.

    Raises:
        ConfigError: it is not of this form.
    """
    name, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not all(name.split(".")):
        raise ConfigError([f"{override}: an override is NAME=VALUE, for instance network.depth=8"])
    try:
        parsed = _parse_toml(f"value = {text}")
    except ValueError:
        if not re.fullmatch(r"[\w./~+-]+", text):
            raise ConfigError([f"{name}: not a TOML value: {text}"]) from None
        return name, text
    if list(parsed) != ["value"]:
        raise ConfigError([f"{name}: one value at a time, got {text}"])
    return name, parsed["value"]


def _flat(sweep: Any, prefix: str = "") -> Any:
    """The axes of a sweep by dotted name, from any nesting of tables."""
    if not isinstance(sweep, dict):
        return sweep
    axes = {}
    for name, axis in sweep.items():
        if isinstance(axis, dict) and not FORMS & axis.keys():
            axes |= _flat(axis, f"{prefix}{name}.")
        else:
            axes[prefix + name] = axis
    return axes


def resolve_data_path(document: dict[str, Any], folder: Path) -> None:
    """Make the path of a data file absolute; a relative one is relative to the folder."""
    problem = document.get("problem")
    data = problem.get("data") if isinstance(problem, dict) else None
    if isinstance(data, dict) and data.get("kind") == "file" and isinstance(data.get("path"), str):
        data["path"] = str((folder / Path(data["path"]).expanduser()).absolute())


def as_json(value: Any) -> Any:
    """The default of `json.dumps`: lists for arrays, text for everything else."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def as_toml(document: Mapping[str, Any]) -> str:
    """The document as TOML text."""
    return "\n".join(_toml_lines(document)) + "\n"


def _toml_lines(document: Mapping[str, Any]) -> Iterator[str]:
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    for key, value in document.items():
        if key not in tables:
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for name, table in tables.items():
        yield f"\n[{name}]"
        for key, value in _kind_first(table):
            yield f"{_toml_key(key)} = {_toml_value(value)}"


def _kind_first(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(table.items(), key=lambda item: item[0] != "kind")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {_toml_value(item)}" for key, item in _kind_first(value))
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # JSON writes text, booleans and numbers as TOML does, but leaves this character unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
