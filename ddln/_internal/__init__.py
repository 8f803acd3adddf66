"""Helpers that all packages share and that no user calls.

`validation` checks and converts user input; `files` writes files atomically and reads untrusted
ones; `random` makes keys from seeds; `compiled_programs` bounds the memory maps of JAX's programs;
`compiler_options` chooses how much XLA optimises; `program_store` keeps traced programs for later
processes; `text` formats numbers; `extras` names the command that installs a missing package;
`display` finds the notebook display of an object in `ddln.plotting`.
"""
