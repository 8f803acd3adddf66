"""The `ddln` command.

`main` defines the verbs, `printing` prints plans and results, and `signals` turns errors and
interruptions into messages and exit statuses.
"""
