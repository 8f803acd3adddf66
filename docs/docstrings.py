"""For the pages of the API: docstrings as Markdown."""

from typing import Any

from griffe import Extension, Object

from docs.docstring_text import as_markdown


class Docstrings(Extension):
    """Fences the examples of every docstring, and typesets the indices of its text."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
