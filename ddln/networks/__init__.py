"""Deep diagonal linear networks and the geometry they induce on the effective parameter.

A network is an array of layers, shape (depth, dim), with effective parameter θ = u¹ ⊙ … ⊙ u^L.
`layers` defines θ, the imbalances, the mobility and the reduced coordinates; `init` draws initial
layers; `entropy` evaluates the entropy Q of Theorem 1, its mirror map, conjugate and divergence.

Public: `ddln.effective_parameter`, `ddln.imbalance`, `ddln.mobility`, `ddln.coordinate_kinds`,
`ddln.describe`, `ddln.Reduction`, `ddln.init`, `ddln.Entropy`.
"""
