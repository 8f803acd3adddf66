"""Check a computed run against the theorems.

A `Claim` (`certificates`) compares a measured with a predicted value, with a tolerance and its
reason. `certify` returns all claims of a run: those of a flow are in `consistency`,
`_conservation_laws`, `_mirror_flow` and `_convergence_bounds`, a theorem each, those of a discrete
run in `descent_certificates`. `claim` builds the claims of a study. `error_estimate` predicts the
global error of a flow, on which the tolerances rest, `discretisation` compares gradient descent
with the flow, `diagnostics` measures runs, and `tables` prints claims.

Public: `ddln.certify`, `ddln.Certificates`, `ddln.Claim`, `ddln.discretisation_order`,
`ddln.diagnostics`.
"""
