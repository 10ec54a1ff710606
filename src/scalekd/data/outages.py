"""Wait, up to a limit, for data that is temporarily unavailable, as on a network disk."""

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
_OUTAGE_ERRNOS = {
    errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip


class DataGoneError(UserError):
    """The folder of the images became unavailable and did not come back in time."""


class OutageRetry:
    """Retries reading an image while its folder is unavailable; a corrupt image is not retried.

    Args:
        seconds: How long to keep trying.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # Whether the outage has been reported; shared by the loader's workers, so that only the first one reports it.
        self._reported = torch.zeros(1, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    def read(self, root: Path, reading: Callable[[], T]) -> T:
        """Call `reading` until it succeeds, and return its result.

        Args:
            root: Where the images are.
            reading: Reads one image.

        Raises:
            UnreadableImageError: If the image itself is unreadable.
            DataGoneError: If the folder does not come back in time.
        """
        started, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                result = reading()
            except UnreadableImageError as error:
                reason = _why_unavailable(error, root)
                left = started + self.seconds - time.monotonic()
                if reason is None:
                    raise
                if left <= 0:
                    raise DataGoneError(
                        f"data: {root} is unavailable: {reason}; waited {self.seconds:g} s for it (data_patience); "
                        "bring it back, then run the command again (training: with --resume)"
                    ) from None
                self._report(
                    True, f"warning: data: {root} is unavailable: {reason}; waiting up to {self.seconds:g} s for it"
                )
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if pause > _FIRST_PAUSE:
                    self._report(False, f"data      {root} is available again")
                return result

    def _report(self, gone: bool, line: str) -> None:
        if bool(self._reported) is not gone:
            self._reported.fill_(gone)
            os.write(2, f"{printable(line)}\n".encode())  # a worker has no console, only the user's standard error


def _why_unavailable(error: UnreadableImageError, root: Path) -> str | None:
    """Return what is wrong with the image's folder, or None if the image itself is unreadable."""
    cause = error.__cause__
    if not isinstance(cause, OSError):
        return None
    if cause.errno in _OUTAGE_ERRNOS:
        return f"{cause.filename or 'an image'}: {cause.strerror}"
    if not isinstance(cause, FileNotFoundError | NotADirectoryError | PermissionError):
        return None
    folder = os.path.dirname(cause.filename) if isinstance(cause.filename, str) else root
    try:
        with os.scandir(folder) as entries:
            return f"{folder} is empty" if next(entries, None) is None else None
    except OSError as fault:
        return f"{folder}: {fault.strerror}"
