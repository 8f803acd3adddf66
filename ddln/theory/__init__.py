"""Predictions of the theorems for a network and a problem, one statement a function.

`assumptions` checks the hypotheses of the theorems. `convergence` has bounds on the gap,
`linearised_flow` asymptotic rates, `implicit_bias` limit points, `decay_limits` those of weight
decay, `saddle_to_saddle` the limit of small initialisations, `stability` the sharpness,
`inverse_design` initialisations with prescribed properties, and `reference_solutions` the solutions
of least norm and largest margin.

A rate is that of the distance to the minimisers: the gap ℒ − ℒ* decays like exp(−2 · rate · t) in
flow time t.

Public: `ddln.theory` and, from it, `ddln.rate_bound`, `asymptotic_rate`, `escape_times`,
`limit_point` and `check_hypotheses`.
"""

from ddln.theory.convergence import Predictions as Predictions
from ddln.theory.convergence import divergence_bound as divergence_bound
from ddln.theory.convergence import exponential_bound as exponential_bound
from ddln.theory.convergence import posterior_bound as posterior_bound
from ddln.theory.convergence import predict as predict
from ddln.theory.convergence import rate_bound as rate_bound
from ddln.theory.convergence import smallest_mobility_integral as smallest_mobility_integral
from ddln.theory.convergence import time_to_gap as time_to_gap
from ddln.theory.decay_limits import decay_penalty as decay_penalty
from ddln.theory.decay_limits import decay_thresholds as decay_thresholds
from ddln.theory.implicit_bias import kkt_residual as kkt_residual
from ddln.theory.implicit_bias import limit_point as limit_point
from ddln.theory.inverse_design import imbalance_for_rate as imbalance_for_rate
from ddln.theory.inverse_design import layers_for_entropy as layers_for_entropy
from ddln.theory.inverse_design import scale_for_rate as scale_for_rate
from ddln.theory.linearised_flow import asymptotic_rate as asymptotic_rate
from ddln.theory.linearised_flow import mode_rates as mode_rates
from ddln.theory.reference_solutions import lasso as lasso
from ddln.theory.reference_solutions import max_margin as max_margin
from ddln.theory.reference_solutions import min_l1 as min_l1
from ddln.theory.reference_solutions import min_l2 as min_l2
from ddln.theory.reference_solutions import statistical_dimension as statistical_dimension
from ddln.theory.saddle_to_saddle import escape_times as escape_times
from ddln.theory.saddle_to_saddle import excess_norm as excess_norm
from ddln.theory.saddle_to_saddle import growth_range as growth_range
from ddln.theory.saddle_to_saddle import saddle_path as saddle_path
from ddln.theory.stability import largest_stable_step as largest_stable_step
from ddln.theory.stability import sharpness as sharpness
