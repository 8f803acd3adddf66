"""Claims that compare measured with predicted numbers, of one run or over a data set."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ddln._internal import display
from ddln._internal.validation import Number, is_concrete
from ddln.theory import Predictions
from ddln.verification import tables

if TYPE_CHECKING:
    import xarray as xr

_TEXTS = ("name", "source", "statement", "relation", "reason")
_NUMBERS = ("measured", "predicted", "tolerance")


class Claim(eqx.Module):
    """A measured number and its predicted value, or its upper bound.

    >>> claim = ddln.Claim("half", "arithmetic", "1/2", measured=0.5, predicted=0.5, tolerance=0.0)
    >>> bool(claim.holds)
    True
    """

    name: str = eqx.field(static=True)
    source: str = eqx.field(static=True)
    """Paper and statement."""
    statement: str = eqx.field(static=True)
    measured: Number
    predicted: Number
    tolerance: Number
    relation: str = eqx.field(static=True, default="=")
    """`=` (within the tolerance) or `<=` (measured ≤ predicted + tolerance)."""
    reason: str = eqx.field(static=True, default="")
    """Why this tolerance."""
    applies: Number = True
    """Whether the statement's hypotheses hold and the run resolves it."""

    @property
    def holds(self) -> Bool[Array, "..."]:
        """Whether the claim is true or does not apply; NaN in any number makes it fail."""
        excess = jnp.asarray(self.measured) - self.predicted
        excess = jnp.abs(excess) if self.relation == "=" else excess
        return (excess <= self.tolerance) | ~jnp.asarray(self.applies)

    def row(self) -> dict:
        """The claim as plain values, for tables and JSON."""
        return (
            {name: getattr(self, name) for name in _TEXTS}
            | {name: float(np.asarray(getattr(self, name))) for name in _NUMBERS}
            | {"applies": bool(np.asarray(self.applies)), "holds": bool(self.holds)}
        )


class Certificates(eqx.Module):
    """The claims of one run; under `jax.vmap` every number has a leading axis of runs."""

    claims: tuple[Claim, ...]

    @property
    def ok(self) -> Bool[Array, "..."]:
        """Whether every claim that applies holds."""
        return jnp.all(jnp.stack([jnp.asarray(claim.holds) for claim in self.claims]), axis=0)

    def __getitem__(self, name: str) -> Claim:
        return {claim.name: claim for claim in self.claims}[name]

    def _repr_html_(self) -> str | None:
        return display.html(self)

    def __repr__(self) -> str:
        if not is_concrete(self.ok) or self.ok.ndim:
            return f"Certificates({', '.join(claim.name for claim in self.claims)})"
        return tables.render([claim.row() for claim in self.claims], "Certificates")


class FlowCertificates(Certificates):
    """The claims of a flow and the bounds predicted for it."""

    predictions: Predictions


def statements(claims: Sequence[Claim]) -> str:
    """The texts of the claims as JSON: a list of {name, source, statement, relation, reason}."""
    return json.dumps([{key: getattr(claim, key) for key in _TEXTS} for claim in claims])


def summary(dataset: "xr.Dataset") -> list[dict[str, Any]]:
    """One row per certificate of a dataset, with the numbers of its worst run.

    Args:
        dataset: from `ddln.run`.

    Returns:
        Rows as `Claim.row`, and the counts `lanes` (runs), `lanes_applicable` and `lanes_holding`.

    >>> import xarray as xr
    >>> texts = {"name": "a", "source": "b", "statement": "c", "relation": "=", "reason": "d"}
    >>> dataset = xr.Dataset(
    ...     {
    ...         f"certificate_{name}": (("network.scale", "certificate"), values)
    ...         for name, values in {
    ...             "measured": [[1.0], [3.0]],
    ...             "predicted": [[1.0], [2.0]],
    ...             "tolerance": [[0.1], [0.1]],
    ...             "applies": [[True], [True]],
    ...             "holds": [[True], [False]],
    ...         }.items()
    ...     },
    ...     coords={"certificate": ["a"]},
    ...     attrs={"certificate_statements": json.dumps([texts])},
    ... )
    >>> row = summary(dataset)[0]
    >>> row["measured"], row["holds"], row["lanes_holding"], row["lanes"]
    (3.0, False, 1, 2)
    """
    rows, index = [], dataset.get_index("certificate")
    numbers = [
        dataset[f"certificate_{name}"].transpose("certificate", ...).values
        for name in ("measured", "predicted", "tolerance", "applies", "holds")
    ]
    for texts in json.loads(dataset.attrs["certificate_statements"]):
        row = index.get_loc(texts["name"])
        measured, predicted, tolerance, applies, holds = (values[row].ravel() for values in numbers)
        excess = measured - predicted
        excess = np.abs(excess) if texts["relation"] == "=" else excess
        with np.errstate(divide="ignore", invalid="ignore"):
            closeness = np.where(excess <= 0, 0.0, excess / tolerance)
        worst = int(np.argmax(np.where(applies, np.where(holds, closeness, np.inf), -1.0)))
        rows.append(
            texts
            | {
                "measured": float(measured[worst]),
                "predicted": float(predicted[worst]),
                "tolerance": float(tolerance[worst]),
                "applies": bool(applies.any()),
                "holds": bool(holds[applies].all()),
                "lanes": applies.size,
                "lanes_applicable": int(applies.sum()),
                "lanes_holding": int((applies & holds).sum()),
            }
        )
    return rows
