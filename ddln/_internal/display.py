"""Notebook displays, loaded when a notebook asks for one.

`ddln.plotting` comes after every package whose objects it draws, so the lookup is by name.
"""

import importlib


def html(value: object) -> str | None:
    """The HTML that a notebook shows for a problem, a run, an entropy or certificates.

    Without the packages of the extra `run` there is none, and notebooks show the text.
    """
    try:
        displays = importlib.import_module("ddln.plotting.displays")
    except ModuleNotFoundError:
        return None
    return displays.html(value)
