"""Figures for papers and notebooks, and the interactive explorer.

`figures` draws runs and data sets with matplotlib in one style, and `entropy_profile` draws the
entropy of a network. `displays` builds what notebooks show of a value, from `html` elements and
`svg` charts. `explorer` is the marimo application behind `ddln explore`.

Public: `ddln.figures`, `ddln.entropy_profile`.
"""
