"""Numbers and counts as text, for pages and notebooks."""

import math


def number(value: float) -> str:
    """A number to four significant digits.

    >>> number(-0.123456), number(float("nan"))
    ('−0.1235', '–')
    """
    return "–" if math.isnan(value) else f"{value:.4g}".replace("-", "−")


def count(number_of: int, noun: str) -> str:
    """A number with its noun, in the plural if needed.

    >>> count(1, "network"), count(2000, "network")
    ('1 network', '2,000 networks')
    """
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"
