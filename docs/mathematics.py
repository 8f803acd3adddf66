"""For the pages: `$…$` and `$$…$$`, which GitHub typesets, as MathML that browsers typeset."""

import re
from re import Match
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor

_FORMULA = r"(?<![\\$\w])(\$\$?)(?![\s$]*\$)(.+?)(?<!\\)\1(?![\w$])"
_NAME = re.compile(r"<m[io]>([A-Za-z]{2,})</m[io]>(<mo[^>]*>&#x00028;</mo>)?")
_BAR = re.compile(r"<mo>(&#x02016;|&#x0007C;)</mo>")
"""Of a norm or an absolute value: browsers take one inside a formula for a relation."""
_AFTER_CODE = 185
"""Below code (190), in which a dollar is a dollar, and above escapes (180) and emphasis."""


class Mathematics(Extension):
    """Typesets when the site is built: the pages need no script and no network."""

    def extendMarkdown(self, md: Markdown) -> None:  # the name is Markdown's
        """Called by Markdown."""
        md.inlinePatterns.register(_Formula(_FORMULA, md), "mathematics", _AFTER_CODE)


class _Formula(InlineProcessor):
    def handleMatch(  # the name is Markdown's
        self, m: Match[str], data: str
    ) -> tuple[Element | str, int, int]:
        return self.md.htmlStash.store(mathml(m[2], display=m[1] == "$$")), m.start(0), m.end(0)


def mathml(latex: str, *, display: bool = False) -> str:
    """A formula as MathML, with the spaces around names of functions that TeX leaves."""
    made = convert(latex.strip(), display="block" if display else "inline")
    made = _BAR.sub(r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', made)
    return _NAME.sub(_spaced, made)


def _spaced(name: Match[str]) -> str:
    after = "0" if name[2] else "0.17em"
    return f'<mo form="prefix" lspace="0.17em" rspace="{after}">{name[1]}</mo>{name[2] or ""}'


def makeExtension(**options: Any) -> Mathematics:
    """Called by Markdown."""
    return Mathematics(**options)
