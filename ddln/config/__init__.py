"""Experiments as TOML files: parse, validate, override and sweep.

`experiment` turns a file and its overrides into an immutable `Experiment`; `schema` and the modules
that end in `_schema` define its tables, `sweep_axes` the values of the axes of a sweep, and
`datasets` the data sets that a configuration can name. `data_files` and the modules below it read
files as people have them. Nothing here imports JAX at its top, so that
`ddln check` answers at once.

Public: `ddln.load`, `ddln.Experiment`.
"""
