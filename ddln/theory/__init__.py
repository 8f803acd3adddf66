"""What the theorems predict for a network and a problem, one statement a function.

Rates are those of the distance to the minimisers, so that the gap ℒ − ℒ* decays like
exp(−2 · rate · t) in flow time t.
"""

from ddln.theory.bounds import Predictions as Predictions
from ddln.theory.bounds import asymptotic_rate as asymptotic_rate
from ddln.theory.bounds import divergence_bound as divergence_bound
from ddln.theory.bounds import exponential_bound as exponential_bound
from ddln.theory.bounds import mode_rates as mode_rates
from ddln.theory.bounds import posterior_bound as posterior_bound
from ddln.theory.bounds import predict as predict
from ddln.theory.bounds import rate_bound as rate_bound
from ddln.theory.bounds import smallest_mobility_integral as smallest_mobility_integral
from ddln.theory.bounds import time_to_gap as time_to_gap
from ddln.theory.design import imbalance_for_rate as imbalance_for_rate
from ddln.theory.design import layers_for_entropy as layers_for_entropy
from ddln.theory.design import scale_for_rate as scale_for_rate
from ddln.theory.limit import kkt_residual as kkt_residual
from ddln.theory.limit import limit_point as limit_point
from ddln.theory.references import lasso as lasso
from ddln.theory.references import max_margin as max_margin
from ddln.theory.references import min_l1 as min_l1
from ddln.theory.references import min_l2 as min_l2
from ddln.theory.saddles import escape_times as escape_times
from ddln.theory.saddles import saddle_path as saddle_path
from ddln.theory.steps import largest_stable_step as largest_stable_step
from ddln.theory.steps import sharpness as sharpness
