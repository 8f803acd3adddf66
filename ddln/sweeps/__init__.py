"""Run an experiment over a grid of values, in memory or into a resumable run folder.

`plan` cuts the grid into chunks, `build` turns a configuration into problems and layers, `compute`
runs a chunk (`_runners` computes each variable) and `assemble` joins the chunks into one xarray
data set, described in `dataset_schema`; `derived` has the variables that follow from others.
`run_folder` stores finished chunks; `executor` and `dask_executor` run them on
one machine or on a cluster. `studies` finds the study of an experiment and `report` writes its
page.

Public: `ddln.run`, `ddln.sweep`.
"""
