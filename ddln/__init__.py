"""Deep diagonal linear networks in JAX: flows, entropies, and every theorem checked on every run.

Names are imported on first use, so that `import ddln` and `ddln --help` are fast.
"""

import importlib
from typing import TYPE_CHECKING

from ddln._internal.extras import needed_for

if TYPE_CHECKING:
    from ddln import theory as theory
    from ddln.config.experiment import Experiment as Experiment
    from ddln.config.experiment import load as load
    from ddln.networks import init as init
    from ddln.networks.entropy import Entropy as Entropy
    from ddln.networks.factorised import Factorised as Factorised
    from ddln.networks.factorised import collapse as collapse
    from ddln.networks.factorised import factorise as factorise
    from ddln.networks.layers import coordinate_kinds as coordinate_kinds
    from ddln.networks.layers import describe as describe
    from ddln.networks.layers import effective_parameter as effective_parameter
    from ddln.networks.layers import imbalance as imbalance
    from ddln.networks.layers import mobility as mobility
    from ddln.networks.parametrisation import Parametrisation as Parametrisation
    from ddln.networks.product_geometry import factored as factored
    from ddln.networks.reparametrisation import Reduction as Reduction
    from ddln.plotting import figures as figures
    from ddln.plotting.entropy_profile import entropy_profile as entropy_profile
    from ddln.problems.base import Problem as Problem
    from ddln.problems.convex import exponential as exponential
    from ddln.problems.convex import huber as huber
    from ddln.problems.convex import logistic as logistic
    from ddln.problems.convex import poisson as poisson
    from ddln.problems.custom import from_function as from_function
    from ddln.problems.least_squares import LeastSquares as LeastSquares
    from ddln.problems.least_squares import least_squares as least_squares
    from ddln.problems.multinomial import multinomial as multinomial
    from ddln.problems.piecewise_linear import hinge as hinge
    from ddln.problems.piecewise_linear import quantile as quantile
    from ddln.problems.signed import Signed as Signed
    from ddln.problems.signed import signed as signed
    from ddln.solvers import weight_decay as weight_decay
    from ddln.solvers.batched_flow import Flows as Flows
    from ddln.solvers.batched_flow import gradient_flows as gradient_flows
    from ddln.solvers.gradient_descent import Descent as Descent
    from ddln.solvers.gradient_descent import descend as descend
    from ddln.solvers.gradient_estimators import Sampling as Sampling
    from ddln.solvers.gradient_estimators import SharpnessAware as SharpnessAware
    from ddln.solvers.gradient_flow import gradient_flow as gradient_flow
    from ddln.solvers.gradient_flow import mirror_flow as mirror_flow
    from ddln.solvers.mirror_descent import mirror_descent as mirror_descent
    from ddln.solvers.optimisers import optimiser as optimiser
    from ddln.solvers.sde import Diffusion as Diffusion
    from ddln.solvers.sde import stochastic_flow as stochastic_flow
    from ddln.solvers.trajectory import Trajectory as Trajectory
    from ddln.sweeps.compute import run as run
    from ddln.sweeps.compute import sweep as sweep
    from ddln.sweeps.saved_runs import open as open
    from ddln.theory import asymptotic_rate as asymptotic_rate
    from ddln.theory import escape_times as escape_times
    from ddln.theory import limit_point as limit_point
    from ddln.theory import rate_bound as rate_bound
    from ddln.theory.assumptions import check_hypotheses as check_hypotheses
    from ddln.verification import claim as claim
    from ddln.verification import diagnostics as diagnostics
    from ddln.verification.certificates import Certificates as Certificates
    from ddln.verification.certificates import Claim as Claim
    from ddln.verification.certify import certify as certify
    from ddln.verification.discretisation import discretisation_order as discretisation_order

__version__ = "0.1.0"

_HOMES = {
    "networks.entropy": ("Entropy",),
    "networks.factorised": ("Factorised", "collapse", "factorise"),
    "networks.parametrisation": ("Parametrisation",),
    "networks.product_geometry": ("factored",),
    "networks.reparametrisation": ("Reduction",),
    "networks.layers": (
        "coordinate_kinds",
        "describe",
        "effective_parameter",
        "imbalance",
        "mobility",
    ),
    "problems.custom": ("from_function",),
    "problems.convex": ("exponential", "huber", "logistic", "poisson"),
    "problems.base": ("Problem",),
    "problems.least_squares": ("LeastSquares", "least_squares"),
    "problems.multinomial": ("multinomial",),
    "problems.piecewise_linear": ("hinge", "quantile"),
    "problems.signed": ("Signed", "signed"),
    "config.experiment": ("Experiment", "load"),
    "solvers.gradient_descent": ("Descent", "descend"),
    "solvers.batched_flow": ("Flows", "gradient_flows"),
    "solvers.gradient_flow": ("gradient_flow", "mirror_flow"),
    "solvers.trajectory": ("Trajectory",),
    "solvers.mirror_descent": ("mirror_descent",),
    "solvers.optimisers": ("optimiser",),
    "solvers.gradient_estimators": ("Sampling", "SharpnessAware"),
    "solvers.sde": ("Diffusion", "stochastic_flow"),
    "theory.assumptions": ("check_hypotheses",),
    "theory": ("asymptotic_rate", "escape_times", "limit_point", "rate_bound"),
    "verification.certify": ("certify",),
    "verification.certificates": ("Certificates", "Claim"),
    "verification.discretisation": ("discretisation_order",),
    "sweeps.compute": ("run", "sweep"),
    "sweeps.saved_runs": ("open",),
    "plotting.entropy_profile": ("entropy_profile",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {
    "claim": "verification.claim",
    "diagnostics": "verification.diagnostics",
    "figures": "plotting.figures",
    "init": "networks.init",
    "theory": "theory",
    "weight_decay": "solvers.weight_decay",
}
__all__ = [*_MODULE_OF, *_MODULES, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    home = _MODULES.get(name) or _MODULE_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'ddln' has no attribute {name!r}")
    with needed_for(f"ddln.{name}", "run"):
        module = importlib.import_module(f"ddln.{home}")
    if name in _MODULES:
        return module
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
