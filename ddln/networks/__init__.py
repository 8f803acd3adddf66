"""Deep diagonal linear networks and the geometry they induce on the effective parameter.

A network is an array of layers, shape (depth, dim), with effective parameter θ = u¹ ⊙ … ⊙ u^L.
`layers` defines θ, its chain rule, the imbalances and the mobility; `reparametrisation` reduces
each coordinate to one number; `init` draws initial layers; `entropy` evaluates the entropy Q of
Theorem 1, its mirror map, conjugate and divergence, by way of `_coordinate_maps`,
`_inverse_mirror_map`, `_quadrature` and `_closed_forms`. `separable_entropy` is what it shares with
`parametrisation`, the entropy of any coordinatewise θ_k = G(w_k), by way of `_gradient_curve`.
`factorised` puts products in place of the weights of any model, and `product_geometry` is the
mirror map of such a product.

Public: `ddln.effective_parameter`, `ddln.imbalance`, `ddln.mobility`, `ddln.coordinate_kinds`,
`ddln.describe`, `ddln.Reduction`, `ddln.init`, `ddln.Entropy`, `ddln.Parametrisation`,
`ddln.factorise`, `ddln.collapse`, `ddln.Factorised`, `ddln.factored`.
"""
