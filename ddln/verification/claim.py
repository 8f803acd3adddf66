"""Claims of a study: that a measured number equals another, or is at most a bound."""

from typing import SupportsFloat

from ddln.verification.certificates import Claim


def equal(
    name: str,
    measured: SupportsFloat,
    expected: SupportsFloat,
    *,
    tol: SupportsFloat = 0.0,
    why: str,
    statement: str = "",
    source: str = "",
    applies: SupportsFloat = True,
) -> Claim:
    """Claim that a number equals another to a tolerance.

    Args:
        name: what tells the claim from the study's others.
        measured: one number: a float, or an array of one element.
        expected: what it should be.
        tol: the largest |measured − expected| with which the claim holds.
        why: the reason for this tolerance.
        statement: what is claimed, in words; the name if it says all.
        source: paper and statement; the study's `SOURCE` if there is none.
        applies: whether the hypotheses hold and the run is long enough to tell.

    Returns:
        The claim.

    Raises:
        TypeError: a number that is an array of several elements.

    >>> claim = ddln.claim.equal("a third", 0.33333, 1 / 3, tol=1e-5, why="five digits")
    >>> claim.relation, bool(claim.holds)
    ('=', True)
    """
    numbers = float(measured), float(expected), float(tol)
    return Claim(name, source, statement or name, *numbers, "=", why, bool(applies))


def at_most(
    name: str,
    measured: SupportsFloat,
    bound: SupportsFloat,
    *,
    tol: SupportsFloat = 0.0,
    why: str = "only the inequality is claimed",
    statement: str = "",
    source: str = "",
    applies: SupportsFloat = True,
) -> Claim:
    """Claim that a number does not exceed a bound.

    Args:
        name: what tells the claim from the study's others.
        measured: one number: a float, or an array of one element.
        bound: what it should not exceed.
        tol: by how much it may do so nevertheless.
        why: the reason for this tolerance or bound.
        statement: what is claimed, in words; the name if it says all.
        source: paper and statement; the study's `SOURCE` if there is none.
        applies: whether the hypotheses hold and the run is long enough to tell.

    Returns:
        The claim.

    Raises:
        TypeError: a number that is an array of several elements.

    >>> claim = ddln.claim.at_most("loss", 0.2, 0.1, tol=0.01, why="a few per cent of noise")
    >>> claim.relation, bool(claim.holds)
    ('<=', False)
    """
    numbers = float(measured), float(bound), float(tol)
    return Claim(name, source, statement or name, *numbers, "<=", why, bool(applies))
