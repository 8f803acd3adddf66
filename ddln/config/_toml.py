"""A configuration before it is validated: nested tables, as TOML and the command line give them."""

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddln._internal.files import read_limited
from ddln.config.schema import FORMS

LARGEST = 2**23
"""Bytes of a file that is read."""


_DEEPEST = 32
_LONG_NAME = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*){32}""")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, a line each, by dotted path."""

    def __init__(self, problems: Sequence[str], source: str = ""):
        self.problems = tuple(problems)
        head, indent = (f"{source}:\n", "  ") if source else ("", "")
        super().__init__(head + "\n".join(indent + problem for problem in problems))


@contextlib.contextmanager
def told_of(source: Path) -> Iterator[None]:
    """Whatever turns out to be wrong with a configuration is told of the file it is from."""
    try:
        yield
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else str(error).splitlines()
        raise ConfigError(problems, str(source)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        return parse_toml(read_limited(path, LARGEST).decode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except ValueError as error:
        reason = str(error)
    raise ConfigError([f"{path}: {reason}"])


def parse_toml(text: str) -> dict[str, Any]:
    """TOML text as tables; whatever is wrong with it is a ValueError."""
    try:
        # The parser takes the square of the time for a name of many parts.
        if not _LONG_NAME.search(text) and not _is_deep(document := tomllib.loads(text)):
            return document
    except RecursionError:
        pass
    raise ValueError("nested too deeply")


def _is_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
    return bool(level)


def place(document: dict[str, Any], name: str, value: Any) -> None:
    """Sets the value at a dotted name."""
    head, _, rest = name.partition(".")
    # The names below `sweep` are dotted themselves.
    *tables, key = ["sweep", rest] if head == "sweep" and rest else name.split(".")
    for table in tables:
        document = document.setdefault(table, {})
        if not isinstance(document, dict):
            raise ConfigError([f"{name}: `{table}` is not a table"])
    document[key] = value


def parse_override(override: str) -> tuple[str, Any]:
    """Name and value of NAME=VALUE; the value is TOML, a bare word is text."""
    name, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not all(name.split(".")):
        raise ConfigError([f"{override}: an override is NAME=VALUE, for instance network.depth=8"])
    try:
        parsed = parse_toml(f"value = {text}")
    except ValueError:
        if not re.fullmatch(r"[\w./~+-]+", text):
            raise ConfigError([f"{name}: not a TOML value: {text}"]) from None
        return name, text
    if list(parsed) != ["value"]:
        raise ConfigError([f"{name}: one value at a time, got {text}"])
    return name, parsed["value"]


def flatten(sweep: Any, prefix: str = "") -> Any:
    """Dotted names also where they were written without quotes, as tables in tables."""
    if not isinstance(sweep, dict):
        return sweep
    flat = {}
    for name, axis in sweep.items():
        if isinstance(axis, dict) and not FORMS & axis.keys():
            flat |= flatten(axis, f"{prefix}{name}.")
        else:
            flat[prefix + name] = axis
    return flat


def resolve(document: dict[str, Any], folder: Path) -> None:
    """Makes the path of a data file, relative to a folder, an absolute one."""
    problem = document.get("problem")
    data = problem.get("data") if isinstance(problem, dict) else None
    if isinstance(data, dict) and data.get("kind") == "file" and isinstance(data.get("path"), str):
        data["path"] = str((folder / Path(data["path"]).expanduser()).absolute())


def plain(value: Any) -> Any:
    """What JSON has no form for: lists of arrays, and words."""
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
    # JSON's text, true, false and numbers are TOML's; it leaves one control character unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
