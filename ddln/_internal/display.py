"""Notebook displays, loaded when a notebook asks for one.

`ddln.plotting` comes after every package whose objects it draws, so the lookup is by name.
"""

import importlib


def html(value: object) -> str:
    """The HTML that a notebook shows for a problem, a run, an entropy or certificates."""
    return importlib.import_module("ddln.plotting.displays").html(value)
