"""Variables that follow from others: they are not stored, but computed when they are read.

A flow in reduced coordinates is stored by its smallest layers w and its initial layers, since

    u^j = ± √(w² + λ_j),    θ = u¹ ⊙ … ⊙ u^L,    λ_j = (u^j)² − w² at the start;

two bounds of Theorem 2 by one constant each; and times that all networks of a chunk share once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float
from xarray.backends import BackendArray
from xarray.core import indexing

from ddln.config.experiment import Experiment
from ddln.sweeps.dataset_schema import VARIABLES, dims, saved_variables, sizes

Smallest = Float[np.ndarray, "lanes times dim"]
InitialLayers = Float[np.ndarray, "lanes depth dim"]


class _Formula(NamedTuple):
    """How a variable follows from stored ones."""

    sources: tuple[str, ...]
    elementwise: tuple[str, ...]
    """The dimensions along which each entry depends on no other."""
    compute: Callable[..., np.ndarray]


def _layers(
    smallest: Smallest, initial: InitialLayers
) -> Float[np.ndarray, "lanes times depth dim"]:
    """The layers, in their own order and with their own signs."""
    which, sign_of_smallest, signs, imbalances = _invariants(initial)
    w = smallest[:, :, None]
    others = signs[:, None] * np.sqrt(w**2 + imbalances[:, None])
    is_smallest = np.arange(initial.shape[1])[:, None] == which
    return np.where(is_smallest[:, None], sign_of_smallest[:, None] * w, others)


def _theta(smallest: Smallest, initial: InitialLayers) -> Float[np.ndarray, "lanes times dim"]:
    """θ, without all layers in memory at once."""
    which, sign_of_smallest, signs, imbalances = _invariants(initial)
    theta, square = sign_of_smallest * smallest, smallest**2
    for j in range(initial.shape[1]):
        layer = signs[:, j, None] * np.sqrt(square + imbalances[:, j, None])
        theta = np.where(which == j, theta, theta * layer)
    return theta


def _invariants(initial: InitialLayers) -> tuple[np.ndarray, ...]:
    """What a flow conserves of each coordinate.

    Returns:
        Which layer is the smallest and the sign of w in it, shape (lanes, 1, dim) each; the signs
        of all layers, and their λ, shape (lanes, depth, dim) each.
    """
    magnitude = np.abs(initial)
    which = np.argsort(magnitude, axis=1, kind="stable")[:, :1]
    signs = np.where(initial < 0, -1.0, 1.0)
    least = np.take_along_axis(magnitude, which, axis=1)
    # w has the sign that the smallest layer and all others together have.
    of_smallest = np.take_along_axis(signs, which, axis=1)
    sign_of_smallest = np.prod(signs, axis=1, keepdims=True) * of_smallest
    return which, sign_of_smallest, signs, (magnitude - least) * (magnitude + least)


def _predictor(smallest: Smallest, initial: InitialLayers) -> np.ndarray:
    positive, negative = np.split(_theta(smallest, initial), 2, axis=-1)
    return positive - negative


def _exponential_bound(gap: np.ndarray, rate: np.ndarray, times: np.ndarray) -> np.ndarray:
    return gap[:, :1] * np.exp(-2 * rate[:, None] * (times - times[:, :1]))


def _divergence_bound(divergence: np.ndarray, times: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return divergence[:, None] / (times - times[:, :1])


_OF_SMALLEST = ("smallest", "initial_layers")
_FORMULAS = {
    "layers": _Formula(_OF_SMALLEST, ("lane", "time", "coordinate"), _layers),
    "theta": _Formula(_OF_SMALLEST, ("lane", "time", "coordinate"), _theta),
    "predictor": _Formula(_OF_SMALLEST, ("lane", "time"), _predictor),
    "bound": _Formula(("gap", "rate_bound", "flow_time"), ("lane",), _exponential_bound),
    "divergence_bound": _Formula(("divergence", "flow_time"), ("lane",), _divergence_bound),
}


def complete(part: xr.Dataset, experiment: Experiment) -> xr.Dataset:
    """All variables that a chunk's data set has for its user; those not stored are lazy.

    Args:
        part: the stored variables of a chunk, along `lane`.
        experiment: of the chunk.
    """
    stored = {str(name): variable.variable for name, variable in part.data_vars.items()}
    lanes = part.sizes["lane"]
    for name in ("flow_time", "step"):
        if name in stored and stored[name].dims == ("time",):
            stored[name] = stored[name].set_dims({"lane": lanes, "time": stored[name].size})
    known = sizes(experiment) | {"lane": lanes}
    variables = {}
    for name in saved_variables(experiment):
        if name in stored:
            variables[name] = stored[name]
        elif name in _FORMULAS and stored.keys() >= {*_FORMULAS[name].sources}:
            dimensions = ("lane", *dims(name, experiment))
            array = _DerivedArray(_FORMULAS[name], dimensions, stored, known)
            _, units, long_name = VARIABLES[name]
            variables[name] = xr.Variable(
                dimensions,
                indexing.LazilyIndexedArray(array),
                {"units": units, "long_name": long_name},
            )
    return xr.Dataset(variables, part.coords, part.attrs)


class _DerivedArray(BackendArray):
    """Computes the entries of a variable that are asked for, from its stored sources."""

    def __init__(
        self,
        formula: _Formula,
        dimensions: tuple[str, ...],
        stored: dict[str, xr.Variable],
        known: dict[str, int],
    ):
        self._formula, self._dimensions = formula, dimensions
        self._sources = [stored[name] for name in formula.sources]
        self.shape = tuple(known[name] for name in dimensions)
        self.dtype = self._sources[0].dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._compute
        )

    def _compute(self, key: tuple[Any, ...]) -> np.ndarray:
        # An integer selects its entry last, so that the formula finds all dimensions.
        wanted = {
            name: slice(index, index + 1) if isinstance(index, int | np.integer) else index
            for name, index in zip(self._dimensions, key, strict=True)
        }
        first = {name: wanted[name] for name in self._formula.elementwise if name in wanted}
        sources = [
            source.isel({name: index for name, index in first.items() if name in source.dims})
            for source in self._sources
        ]
        values = self._formula.compute(*(np.asarray(source.values) for source in sources))
        for axis, name in reversed([*enumerate(self._dimensions)]):
            if name not in first:
                values = values[(slice(None),) * axis + (wanted[name],)]
        is_integer = [isinstance(index, int | np.integer) for index in key]
        return values[tuple(0 if integer else slice(None) for integer in is_integer)]
