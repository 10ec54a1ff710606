"""Data that is gone for a while, as on a network disk: wait for it, up to a bound."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from scalekd.data.decoding import UnreadableImageError
from scalekd.errors import UserError, printable

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_OF_THE_PLACE = {
    errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip


class DataGoneError(UserError):
    """The folder of the images is gone, and did not come back in time."""


class Patience:
    """Reads again where the place of an image is gone rather than the image broken.

    Args:
        seconds: For how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # Whether the user knows that we wait: of all the loader's workers, the first one says so.
        self._told = torch.zeros(1, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def read(self, root: Path, reading: Callable[[], T]) -> T:
        """What `reading` returns, in the end.

        Args:
            root: Where the images are.
            reading: Reads one.

        Raises:
            UnreadableImageError: If it is the image's own fault.
            DataGoneError: If the place does not come back in time.
        """
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                result = reading()
            except UnreadableImageError as error:
                reason = _fault_of_the_place(error, root)
                left = started + self.seconds - time.monotonic()
                if reason is None:
                    raise
                if left <= 0:
                    raise DataGoneError(
                        f"data: {root} is gone: {reason}; waited {self.seconds:g} s for it (data_patience); "
                        "bring it back, then go on (a training with --resume)"
                    ) from None
                self._tell(True, f"warning: data: {root} is gone: {reason}; waiting up to {self.seconds:g} s for it")
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if pause > _FIRST_PAUSE:
                    self._tell(False, f"data      {root} is back")
                return result

    def _tell(self, gone: bool, line: str) -> None:
        if bool(self._told) is not gone:
            self._told.fill_(gone)
            os.write(2, f"{printable(line)}\n".encode())  # a worker has no console, but the user's standard error


def _fault_of_the_place(error: UnreadableImageError, root: Path) -> str | None:
    """What is wrong with the place, or None where it is the image."""
    cause = error.__cause__
    if not isinstance(cause, OSError):
        return None
    if cause.errno in _OF_THE_PLACE:
        return f"{cause.filename or 'an image'}: {cause.strerror}"
    if not isinstance(cause, FileNotFoundError | NotADirectoryError | PermissionError):
        return None
    folder = os.path.dirname(cause.filename) if isinstance(cause.filename, str) else root
    try:
        with os.scandir(folder) as entries:
            return f"{folder} is empty" if next(entries, None) is None else None
    except OSError as fault:
        return f"{folder}: {fault.strerror}"
