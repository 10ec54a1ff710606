"""Errors that end a command with one line, a wrong input or a signal, and suggestions for misspelt names."""

from __future__ import annotations

import signal
from collections.abc import Iterable

_LONGEST = 2000  # characters of a message
_LONG = 6  # letters from which on a word may be the misspelt beginning of a longer name


def printable(text: object) -> str:
    """Turn a text into one line that is safe to print: control characters, surrogates and the like are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or the error's type if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class UserError(Exception):
    """A wrong input, described in one line that names the key or file, its value and the fix.

    Commands print the line and exit with code 2.
    """

    exit_code = 2

    def __init__(self, message: object) -> None:
        # An error from a loader's worker holds a whole traceback that ends with the error's name and line.
        _, _, line = str(message).rpartition(f"\n{type(self).__module__}.{type(self).__qualname__}: ")
        line = printable(line.rstrip("\n") if line != message else message)
        if len(line) > _LONGEST:  # the start names the key and the end the fix, so cut the middle
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class Interrupted(BaseException):
    """A signal stopped the command. Not an `Exception`, so that it is not handled as an error of the interrupted code.

    Args:
        message: The message for the user.
        number: The signal.
    """

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number  # as shells do

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, signal.Signals]]:
        return type(self), (str(self), self.number)  # otherwise unpickling would call the class with the message only


class Stopped(Exception):  # noqa: N818 (not an error of this process)
    """Another process ended the run. The message is empty if that process has reported the reason.

    Attributes:
        exit_code: The exit code for this process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` with the nearest known word, or an empty text if none is near; see `nearest`."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant; None if there is none.

    It starts with `word`, or differs from it by at most one typing error in three letters or more, two in six, three
    in ten. Long names are also found by a misspelt beginning: `vit_tny` finds `vit_tiny_patch16_224`.
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
    """Return the number of typing errors that a word may have."""
    return sum(len(word) >= length for length in (3, 6, 10))


def _distance(one: str, other: str, most: int) -> int:
    """Count the typing errors between two words: letters inserted, deleted, replaced or swapped with the next.

    This is the optimal string alignment distance, computed row by row. If it exceeds `most`, the result is any larger
    number.
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
