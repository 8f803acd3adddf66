"""Input validation and file handling shared by all packages.

`validation` checks and converts arrays and numbers from users; `files` reads and writes files
atomically; `display` asks `ddln.plotting` for what a notebook shows, and `html` builds it.
"""
