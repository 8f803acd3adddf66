"""Labels from the words, symbols and units of variables, and descriptions of figures."""

import re
from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

SYMBOLS = {
    "time": "$t$",
    "step": "$k$",
    "gap": r"$\mathcal{L}(\theta(t)) - \mathcal{L}^*$",
    "loss": r"$\mathcal{L}(\theta(t))$",
    "network.depth": "$L$",
    "network.scale": "$a$",
    "dynamics.optimiser.learning_rate": r"$\gamma$",
    "dynamics.optimiser.intrinsic_step": r"$\lambda$",
    "dynamics.optimiser.momentum": r"$\beta$",
    "dynamics.sampling.batch": "$b$",
    "dynamics.sampling.label_noise": r"$\sigma$",
    "dynamics.sharpness_aware.rho": r"$\rho$",
}
WORDS = {
    "gap": "loss gap",
    "loss": "loss",
    "network.depth": "depth",
    "network.scale": "initialisation scale",
    "dynamics.optimiser.learning_rate": "step size",
    "dynamics.optimiser.intrinsic_step": "intrinsic step",
    "dynamics.sampling.batch": "batch size",
    "dynamics.sampling.label_noise": "label noise",
}
_SPOKEN = {
    "^*": "*",
    r"\mathcal{L}": "ℒ",
    r"\theta": "θ",
    r"\lambda": "λ",
    r"\gamma": "γ",
    r"\beta": "β",
    r"\sigma": "σ",
    r"\rho": "ρ",
    r"\sqrt": "√",
    r"\pm": "±",
    r"\odot": "⊙",
    r"\cdots": "…",
}


def words(variable: xr.DataArray) -> str:
    """The name of a variable in words: from `WORDS`, its `long_name` or the last part of its name.

    >>> words(xr.DataArray(0.0, name="network.init.seed"))
    'seed'
    """
    name = str(variable.name)
    return WORDS.get(name) or variable.attrs.get("long_name") or name.rpartition(".")[2]


def axis_label(variable: xr.DataArray) -> str:
    """A variable's words, symbol and units, for an axis.

    >>> axis_label(xr.DataArray([0.0], name="time", attrs={"long_name": "flow time", "units": "s"}))
    'flow time $t$ (s)'
    """
    name, units = words(variable), variable.attrs.get("units", "1")
    shown = "" if units == "1" or units in name else f"({units})"
    return " ".join(filter(None, [name, SYMBOLS.get(str(variable.name)), shown]))


def value_label(variable: xr.DataArray) -> str:
    """A value of a swept axis, for a legend.

    >>> value_label(xr.DataArray(1.4, name="network.scale"))
    '$a$ = 1.4'
    """
    return f"{SYMBOLS.get(str(variable.name)) or words(variable)} = {variable.item():.3g}"


def power_label(symbol: str) -> Callable[[xr.DataArray], str]:
    """A function that labels values as powers of ten, for `figures.curves`.

    >>> power_label("a")(xr.DataArray(1e-15))
    '$a = 10^{-15}$'
    """
    return lambda value: f"${symbol} = 10^{{{np.log10(value.item()):.0f}}}$"


def describe(figure: Figure) -> str:
    """The alternative text of a figure, made of its titles, axis labels and curve names.

    Args:
        figure: any figure of matplotlib.

    >>> import matplotlib.figure
    >>> figure = matplotlib.figure.Figure()
    >>> _ = figure.subplots().set(xlabel="$t$", ylabel=r"$\\mathcal{L}$")
    >>> describe(figure)
    'ℒ against t.'
    """
    panels = []
    for axes in figure.axes:
        x, y = axes.get_xlabel(), axes.get_ylabel()
        axis = f"{y} against {x}" if x and y else x or y
        panels.append(": ".join(filter(None, [axes.get_title(loc="left"), axis])))
    curves = [name for axes in figure.axes for name in axes.get_legend_handles_labels()[1]]
    kinds = [text.get_text() for key in figure.legends for text in key.get_texts()]
    named = ", ".join(dict.fromkeys(filter(None, [*curves, *kinds])))
    text = ". ".join([*filter(None, panels), *([f"Lines: {named}"] if named else [])])
    for symbol, spoken in _SPOKEN.items():
        text = text.replace(symbol, spoken)
    return re.sub(r"[\\${}]", "", text) + "."
