"""Text from outside, such as names of files and classes, as a terminal may be given it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with line breaks, control characters and what is no valid text written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
