"""Docstrings as Markdown: examples as code, and indices such as u^j and θ_k as HTML."""

import re

_EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)

_INDEX = re.compile(
    r"(?P<sign>[\^_])\{(?P<group>[^{}\n]+)\}"
    r"|\^(?P<upper>[A-Za-z](?![A-Za-z])|\d+)"
    r"|(?:(?<=(?<![\w.])[A-Za-zΑ-Ωα-ω])|(?<=\^.)|(?<=[ⁱʲ])|(?<=min)|(?<=max))"
    r"_(?P<lower>min|max|jk|[A-Za-zα-ω0-9∞](?!\w))"
)


def as_markdown(text: str) -> str:
    """The docstring with a fence around each example, and with indices typeset outside of code.

    >>> as_markdown("Of u^j:\\n\\n    u^j = 1\\n\\n>>> 1 + 1\\n2").replace("`", "~")
    'Of u<sup>j</sup>:\\n\\n    u^j = 1\\n\\n~~~pycon\\n>>> 1 + 1\\n2\\n~~~'
    """
    paragraphs = re.split(r"(\n\s*\n)", text)
    # A paragraph that begins indented is a formula in a block of code.
    prose = [part if re.match(r" {4}|\n|>>>", part) else typeset(part) for part in paragraphs]
    return _EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", "".join(prose))


def typeset(text: str) -> str:
    """The text with indices as superscripts and subscripts, except in code between backticks.

    >>> typeset("θ_k = u^1_k ⊙ Π_{i≠j} uⁱ, not `a^b_c` and no file_name")
    'θ<sub>k</sub> = u<sup>1</sup><sub>k</sub> ⊙ Π<sub>i≠j</sub> uⁱ, not `a^b_c` and no file_name'
    """
    parts = text.split("`")
    parts[::2] = [_INDEX.sub(_tagged, part) for part in parts[::2]]
    return "`".join(parts)


def _tagged(index: re.Match[str]) -> str:
    is_lower = index["lower"] or index["sign"] == "_"
    tag = "sub" if is_lower else "sup"
    return f"<{tag}>{index['group'] or index['upper'] or index['lower']}</{tag}>"
