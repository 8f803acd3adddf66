"""Input validation and file handling shared by all packages.

`validation` checks and converts arrays and numbers from users; `files` reads and writes files
atomically; `html` and `svg` build the snippets that notebooks display.
"""
