"""Check a computed run against the theorems.

`flow_certificates` and `descent_certificates` turn each statement into a `Claim` with a measured
value, a predicted value and a tolerance; `error_estimate` compares a flow with a finer solution;
`diagnostics` measures runs and `tables` prints the results.

Public: `ddln.certify`, `ddln.Certificates`, `ddln.Claim`, `ddln.discretisation_order`,
`ddln.diagnostics`.
"""
