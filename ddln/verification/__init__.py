"""Check a computed run against the theorems.

A `Claim` compares a measured with a predicted value, with a tolerance and its reason. `certify`
(`flow_certificates`, `descent_certificates`) returns all claims of a run; each theorem has a module
of its own. `claim` builds the claims of a study. `error_estimate` predicts the global error of a
flow, on which the tolerances rest, `discretisation` compares gradient descent with the flow,
`diagnostics` measures runs, and `tables` prints claims.

Public: `ddln.certify`, `ddln.Certificates`, `ddln.Claim`, `ddln.discretisation_order`,
`ddln.diagnostics`.
"""
