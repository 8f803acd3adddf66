"""`python -m ddln.cli`."""

from ddln.cli.main import main

main()
