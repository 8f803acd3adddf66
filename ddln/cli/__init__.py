"""The `ddln` command.

`main` defines the verbs, `output` prints plans and results, and `signals` turns errors and
interruptions into messages and exit statuses.
"""
