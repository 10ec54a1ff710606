"""A folder belongs to one run at a time, and a run that cannot start leaves none behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from scalekd.errors import UserError
from scalekd.locks import leads_to, lock_for_this_process

NAME = ".lock"


@contextmanager
def locked(folder: Path, warn: Callable[[str], object]) -> Iterator[None]:
    """Keep other processes out of a folder. The system ends it with this process, whichever children live on.

    Who has the lock may remove its file; who gets the lock of a file that is no longer there has come too late.

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
            ours = lock_for_this_process(file)
        except OSError as error:
            warn(f"warning: {path} cannot be locked ({error}); make sure that no other run writes to {folder}")
        else:
            if not ours:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise UserError(f"output: {folder} is in use by {owner}; wait for it or choose another folder")
            if not leads_to(path, file):
                raise UserError(f"output: {folder} was in use by another process; try again")
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def missing(folder: Path) -> list[Path]:
    """The folder and those that it is in, as far as they are not there, itself first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and take it back if what runs inside fails before it has left anything there."""
    made = missing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # there is something in one of them
            for path in made:
                path.rmdir()
        raise


def remove_unused(folder: Path, made: Sequence[Path]) -> None:
    """Remove the lock of a folder without a run, which is still held, and what was made for it and is empty.

    Args:
        folder: The run's folder.
        made: What `missing` gave before it was made.
    """
    (folder / NAME).unlink(missing_ok=True)
    with suppress(OSError):  # there is something in one of them
        for path in made:
            path.rmdir()
