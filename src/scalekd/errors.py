"""The one error that a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A wrong input, told in one line: the key or file, its value, and the mend. Commands exit with code 2."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the nearest known word, or nothing where none is near."""
    known = list(known)
    near = sorted((other for other in known if word and other.startswith(word)), key=len)
    near = near or get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
