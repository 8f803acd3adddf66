"""For the pages of the API: the examples of docstrings as code, which Markdown takes for quotes."""

import re
from typing import Any

from griffe import Extension, Object

_BLOCK = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)


class Examples(Extension):
    """Fences every block that begins with `>>>`."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with a fence around each example.

    >>> print(fenced(">>> 1 + 1\\n2").replace("`", "'"))
    '''pycon
    >>> 1 + 1
    2
    '''
    """
    return _BLOCK.sub(r"\1```pycon\n\g<0>\n\1```", text)
