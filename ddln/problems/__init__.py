"""Losses ℒ(θ) to minimise, with their gradients and minima.

`least_squares` and `signed` problems, other `convex` losses of a linear predictor, those with kinks
(`piecewise_linear`), `multinomial` loss of several classes, `custom` losses from a Python function.
`sharding` puts a problem on several devices and `out_of_core` reduces data that does not fit in
memory.

Public: `ddln.Problem`, `ddln.LeastSquares`, `ddln.Signed`, `ddln.least_squares`, `ddln.signed`,
`ddln.logistic`, `ddln.multinomial`, `ddln.exponential`, `ddln.poisson`, `ddln.huber`, `ddln.hinge`,
`ddln.quantile`, `ddln.from_function`.
"""
