"""Experiments as TOML files: parse, validate, override and sweep.

`experiment` turns a file and its overrides into a frozen `Experiment`; `schema` and `dynamics`
define the tables and their ranges, `sweep_axes` the axes of `[sweep]`, and `datasets` the data sets
that a configuration can name. Nothing here imports JAX, so that `ddln check` answers at once.

Public: `ddln.load`, `ddln.Experiment`.
"""
