"""The hypotheses of the theorems on a network and a loss, checked on a run."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ddln.networks.layers import OPEN, coordinate_kinds
from ddln.problems.base import Problem
from ddln.solvers.gradient_descent import Descent
from ddln.solvers.trajectory import Trajectory

if TYPE_CHECKING:
    import xarray as xr

STATEMENTS = {
    "unique smallest layer": (
        "Theorems 1, 2, Corollary 1",
        "at the start one layer is smallest in every coordinate",
    ),
    "differentiable loss": (
        "Theorems 1, 2, Corollary 1",
        "∇ℒ exists everywhere: hinge and quantile loss have kinks",
    ),
    "convex loss": ("Theorem 2", "ℒ is convex as a function of θ"),
    "minimum attained": ("Theorem 2", "ℒ has a minimiser"),
    "PL condition": (
        "Theorem 2, Corollary 1",
        "½‖∇ℒ‖² ≥ μ (ℒ − ℒ*) for a known μ > 0, all along",
    ),
}
"""name: (theorems that need it, statement)."""

DECAY_STATEMENTS = {
    "no weight decay": (
        "Theorems 1, 2, Corollary 1",
        "ω = 0; under decay Proposition 1 and Theorem 1 hold of e^Ω u, Theorem 2 does not",
    ),
    "no trap at 0": (
        "limits under weight decay",
        "no decay, or depth 2; else θ_k = 0 is a local minimum, and along θ_k the only one if "
        "|t| ≤ (x + x/p) with x = (ωp/a)^{1/(1+p)}, p = 1 − 2/L, t = θ_k − ∇ℒ_k/a, a = ∇²ℒ_kk",
    ),
}
"""The further hypotheses of a run with weight decay."""


@eqx.filter_jit
def check_hypotheses(problem: Problem, run: Trajectory | Descent) -> dict[str, Bool[Array, ""]]:
    """Check each hypothesis of `STATEMENTS`; under weight decay also of `DECAY_STATEMENTS`.

    If a smallest layer is tied, the theorems still hold on the half-lines that the coordinates
    cannot leave (docs/theory.md), but the rate bound μc is 0. Under weight decay at depth ≥ 3, 0 is
    always a local minimum of every θ_k: `theory.decay_thresholds` tells from where on there is
    another.

    Args:
        problem: the loss.
        run: from `gradient_flow`, `mirror_flow` or `descend`.

    Returns:
        Whether each hypothesis holds, by name.

    Source: arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [2.0])
    >>> run = ddln.gradient_flow(problem, [[0.0, 1.0], [1.0, 1.0]], [0.0, 1.0])
    >>> [name for name, holds in ddln.check_hypotheses(problem, run).items() if not holds]
    ['unique smallest layer']
    """
    mu = problem.pl_constant
    satisfied = jnp.asarray(False)
    if mu is not None:
        half_square = jnp.sum(jax.vmap(problem.gradient)(run.theta) ** 2, axis=1) / 2
        rounding = 1e3 * jnp.finfo(run.gap.dtype).eps
        gap_error = rounding**2 * run.gap[0] + rounding * jnp.abs(problem.minimum)
        lower = mu * (run.gap - gap_error) * (1 - rounding)
        satisfied = (mu > 0) & jnp.all(half_square >= lower)
    holds = {
        "unique smallest layer": jnp.all(coordinate_kinds(run.layers[0]) == OPEN),
        "differentiable loss": jnp.asarray(problem.differentiable),
        "convex loss": jnp.asarray(problem.convex),
        "minimum attained": problem.attained,
        "PL condition": satisfied,
    }
    if isinstance(run, Trajectory) and run.decay is not None:
        holds["no weight decay"] = jnp.all(run.decay.dose == 0)
        holds["no trap at 0"] = holds["no weight decay"] | (run.layers.shape[1] == 2)
    return holds


def summary(dataset: "xr.Dataset") -> list[dict[str, Any]]:
    """One row per hypothesis over all networks of a dataset.

    Args:
        dataset: from `ddln.run`.

    Returns:
        Rows with name, source, statement, lanes (networks), lanes_holding and holds (for all).
    """
    rows = []
    statements = STATEMENTS | DECAY_STATEMENTS
    known = {name: statements[name] for name in dataset["hypothesis"].values.tolist()}
    for name, (source, statement) in known.items():
        holds = dataset["hypothesis_holds"].sel(hypothesis=name).values
        rows.append(
            {
                "name": name,
                "source": source,
                "statement": statement,
                "lanes": int(holds.size),
                "lanes_holding": int(holds.sum()),
                "holds": bool(holds.all()),
            }
        )
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """The rows of `summary` as plain text, 80 columns wide."""
    lines = ["Hypotheses"]
    for row in rows:
        of_all = f" {row['lanes_holding']}/{row['lanes']}" if row["lanes"] > 1 else ""
        verdict = "holds" if row["holds"] else "does not hold"
        lines.append(f"  {row['name']:22} {row['source']:27} {verdict}{of_all}")
        lines.append(f"      {row['statement']}")
    return "\n".join(lines)
