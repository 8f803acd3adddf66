"""Gradient flow, mirror flow, stochastic flow and gradient descent on the layers.

`gradient_flow` integrates one network with diffrax, `batched_flow` many at once;
`gradient_descent` trains with an optax rule from `optimisers` and a gradient estimator from
`gradient_estimators`; `mirror_descent` steps on θ in the geometry of an entropy; `sde` integrates
the diffusions that noisy training follows. `formulations` has the equations that all flows share,
`weight_decay` its schedules. Every solver returns a `result.Run`.

Public: `ddln.gradient_flow`, `ddln.gradient_flows`, `ddln.mirror_flow`, `ddln.stochastic_flow`,
`ddln.descend`, `ddln.optimiser`, `ddln.mirror_descent`, `ddln.Sampling`, `ddln.SharpnessAware`,
`ddln.Diffusion`, and the results `ddln.Trajectory`, `ddln.Flows`, `ddln.Descent`.
"""
