"""A folder belongs to one run at a time."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scalekd.errors import UserError

NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def locked(folder: Path, warn: Callable[[str], object]) -> Iterator[None]:
    """Keep other processes out of a folder. The system ends it with this process, whichever children live on.

    The lock is a record lock on a file that stays: such locks are not inherited by a forked process, and a file that
    is not removed needs no second look.

    Args:
        folder: The folder; it is there.
        warn: Called with a line where the file system knows no locks.

    Raises:
        UserError: If another process has it; names that one. Or if nothing can be written there.
    """
    path = folder / NAME
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"output: {folder} cannot be written: {error.strerror or error}") from error
        try:
            import fcntl  # noqa: PLC0415  # not there on Windows

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _TAKEN:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(
                    f"output: {folder} is in use by {owner}; wait for it or choose another folder"
                ) from None
            warn(f"warning: {path} cannot be locked ({error}); make sure that no other run writes to {folder}")
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
