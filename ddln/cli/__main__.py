"""The entry point of `ddln` and of `python -m ddln.cli`."""

import sys

from ddln._internal.extras import needed_for


def start() -> None:
    """Run the command, or name the packages that it lacks."""
    try:
        with needed_for("the command ddln", "run"):
            from ddln.cli.main import main
    except ImportError as error:
        sys.exit(str(error))
    main()


if __name__ == "__main__":
    start()
