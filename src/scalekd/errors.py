"""What ends a command and is told to the user in one line: a wrong input, or a signal."""

from __future__ import annotations

import signal
from collections.abc import Iterable

_LONGEST = 2000
_LONG = 6  # letters of a beginning by which a longer name may be meant


def printable(text: object) -> str:
    """A text as one line that does nothing to a terminal: control characters, surrogates and the like are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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


class Interrupted(BaseException):
    """A signal stopped the command; no `Exception`, so that nothing takes it for a fault of what it stopped.

    Args:
        message: What to tell the user.
        number: The signal.
    """

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # as shells have it


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` with the nearest known word, or nothing where none is near; see `nearest`."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was meant: one that begins with `word`, or is spelt nearly like it; None where none is.

    Nearly is one typing error in three letters or more, two in six, three in ten. Long names are also found by a
    misspelt beginning: `vit_tny` is a `vit_tiny_patch16_224`.
    """
    known = list(known)
    lower, errors = word.lower(), _allowed(word)
    begun = [other for other in known if len(word) > 1 and other.lower().startswith(lower)]
    if begun:
        return min(begun, key=len)
    alike = {other: _distance(lower, other.lower(), errors) for other in known}
    near = [other for other in known if alike[other] <= errors]
    if near:
        return min(near, key=lambda other: alike[other])
    if len(word) < _LONG:
        return None
    lengths = [len(word) + more for more in (0, 1, -1)]
    begins = {other: min(_distance(lower, other[:length].lower(), 1) for length in lengths) for other in known}
    near = [other for other in known if begins[other] <= 1]
    return min(near, key=lambda other: (begins[other], len(other)), default=None)


def _allowed(word: str) -> int:
    """How many typing errors a word may have."""
    return sum(len(word) >= length for length in (3, 6, 10))


def _distance(one: str, other: str, most: int) -> int:
    """Typing errors between two words: letters put in, left out, replaced, or swapped with the next; above `most`, any.

    This is the optimal string alignment distance, by its recurrence over rows.
    """
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above = row
        row = [i]
        for j, letter_of_other in enumerate(other, 1):
            best = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != letter_of_other))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == letter_of_other:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        if min(row) > most:
            return most + 1
        before = above
    return row[-1]
