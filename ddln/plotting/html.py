"""HTML elements with escaped content.

An element's content is escaped unless it is `Markup`, which only the functions here return. Text
from a config, a data file or a run folder therefore cannot become markup by oversight.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


class Markup(str):
    """Text that is HTML already and is not escaped; a notebook renders it."""

    def _repr_html_(self) -> str:
        return str(self)


def element(tag: str, content: str | None, attributes: Mapping[str, Any] | None = None) -> Markup:
    """An element; `content` is escaped unless it is `Markup`, and None makes a void element.

    >>> element("b", "1 < 2", {"title": '"'})
    '<b title="&quot;">1 &lt; 2</b>'
    """
    items = (attributes or {}).items()
    opening = "".join(f' {name}="{escape(str(value))}"' for name, value in items)
    if content is None:
        return Markup(f"<{tag}{opening}>")
    inner = content if isinstance(content, Markup) else escape(content)
    return Markup(f"<{tag}{opening}>{inner}</{tag}>")


def join(*parts: Markup) -> Markup:
    """The parts in order."""
    return Markup("".join(parts))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table; each cell carries its column's name, which a narrow page shows beside the cell."""
    head = [element("th", name, {"scope": "col"}) for name in headers]
    body = [
        [element("td", cell, {"data-of": name}) for name, cell in zip(headers, row, strict=True)]
        for row in rows
    ]
    lines = [element("tr", join(*cells)) for cells in body]
    header = element("thead", element("tr", join(*head)))
    return element("table", join(header, element("tbody", join(*lines))))


def card(title: str, facts: Mapping[str, str], *more: Markup) -> str:
    """A notebook's display of a value: a title, a line of facts, then charts or tables.

    It has the font and the colours of the notebook, light or dark.

    >>> card("A network", {"depth": "3"}).count("depth")
    1
    """
    items = [
        element("span", join(element("i", f"{name} "), element("b", value)), {"style": _FACT})
        for name, value in facts.items()
    ]
    head = join(element("div", title, {"style": "font-weight: 600"}), element("div", join(*items)))
    # A plain string, which every notebook can serialise.
    return str(element("div", join(head, *more), {"style": _CARD, "class": "ddln"}))


_CARD = "max-width: 46rem; overflow-x: auto; font-size: .9em; line-height: 1.5"
_FACT = "display: inline-block; margin-right: 1.2em; white-space: nowrap"
