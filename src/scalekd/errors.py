"""The one error that a user is meant to read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

_LONGEST = 2000


def printable(text: object) -> str:
    """A text as one line that does nothing to a terminal: control characters, surrogates and the like are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


class UserError(Exception):
    """A wrong input, told in one line: the key or file, its value, and the mend. Commands exit with code 2."""

    exit_code = 2

    def __init__(self, message: object) -> None:
        # A loader's worker hands on a whole traceback, which ends in the error's name and line.
        _, _, line = str(message).rpartition(f"\n{type(self).__module__}.{type(self).__qualname__}: ")
        line = printable(line.rstrip("\n") if line != message else message)
        if len(line) > _LONGEST:  # its beginning names the key, its end the mend
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the nearest known word, or nothing where none is near.

    What begins like the word goes before what is like it as a whole: `vit_tny` is a `vit_tiny_patch16_224`. The
    initials of several words stand for them: `learning_rate` is `lr`.
    """
    known = list(known)
    near = sorted((other for other in known if word and other.startswith(word)), key=len)
    if not near:
        alike = {other: max(_likeness(word, other[: len(word) + more]) for more in (0, 1)) for other in known}
        near = sorted((other for other in known if alike[other] >= 0.8), key=lambda other: (-alike[other], len(other)))
    near = near or [other for other in known if other in _short(word) or word in _short(other)]
    near = near or get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _short(words: str) -> tuple[str, ...]:
    """The initials of several words, as a key and as a flag; nothing for one word."""
    initials = "".join(part[0] for part in re.split("[-_]", words) if part)
    return (initials, f"--{initials}") if len(initials) > 1 else ()


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()
