"""HTML that is put together from text, all of it escaped.

An element's content is escaped unless it is `Markup`, which only the functions here make: so no
text from a config, a data file or a run folder becomes markup by being forgotten.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any


class Markup(str):
    """Text that is HTML already, and not to be escaped; a notebook shows it as such."""

    def _repr_html_(self) -> str:
        return str(self)


def element(tag: str, content: str | None, attributes: Mapping[str, Any] | None = None) -> Markup:
    """One element; `content` is escaped unless it is `Markup`, and None for a void element.

    >>> element("b", "1 < 2", {"title": '"'})
    '<b title="&quot;">1 &lt; 2</b>'
    """
    given = (attributes or {}).items()
    opening = "".join(f' {name}="{escape(str(value))}"' for name, value in given)
    if content is None:
        return Markup(f"<{tag}{opening}>")
    inner = content if isinstance(content, Markup) else escape(content)
    return Markup(f"<{tag}{opening}>{inner}</{tag}>")


def join(*parts: Markup) -> Markup:
    """The parts, one after the other."""
    return Markup("".join(parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table that a narrow screen shows as cards: each cell carries its column's name."""
    head = [element("th", name, {"scope": "col"}) for name in heads]
    body = [
        [element("td", cell, {"data-of": name}) for name, cell in zip(heads, row, strict=True)]
        for row in rows
    ]
    lines = [element("tr", join(*cells)) for cells in body]
    top, rest = element("tr", join(*head)), join(*lines)
    return element("table", join(element("thead", top), element("tbody", rest)))


def card(title: str, facts: Mapping[str, str], *more: Markup) -> str:
    """What a notebook shows of a value: its title, a line of facts, then drawings or tables.

    In the reader's own font and colours, so that it is at home on light and on dark.

    >>> card("A network", {"depth": "3"}).count("depth")
    1
    """
    told = [
        element("span", join(element("i", f"{name} "), element("b", value)), {"style": _FACT})
        for name, value in facts.items()
    ]
    head = join(element("div", title, {"style": "font-weight: 600"}), element("div", join(*told)))
    # Plain text: what serialises a notebook need not know what else text can be.
    return str(element("div", join(head, *more), {"style": _CARD, "class": "ddln"}))


def number(value: float) -> str:
    """Four digits: enough to compare, few enough to read.

    >>> number(-0.123456), number(float("nan"))
    ('−0.1235', '–')
    """
    return "–" if math.isnan(value) else f"{value:.4g}".replace("-", "−")


def count(things: int, noun: str) -> str:
    """A number of things.

    >>> count(1, "lane"), count(2000, "lane")
    ('1 lane', '2,000 lanes')
    """
    return f"{things:,} {noun}{'' if things == 1 else 's'}"


_CARD = "max-width: 46rem; overflow-x: auto; font-size: .9em; line-height: 1.5"
_FACT = "display: inline-block; margin-right: 1.2em; white-space: nowrap"
