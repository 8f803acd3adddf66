"""Figures for papers and notebooks, and the interactive explorer.

`figures` draws runs and data sets with matplotlib in one style, `entropy_profile` the entropy of a
network; `explorer` is the marimo application behind `ddln explore`.

Public: `ddln.figures`, `ddln.entropy_profile`.
"""
