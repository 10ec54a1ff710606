"""Lock a run folder for one process at a time, and remove folders of runs that failed to start."""

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
    """Lock a folder against other processes. The lock ends with this process, even if its children live on.

    The holder may remove the lock's file; a process that then locks the removed file has lost the race, which is
    detected by comparing the file with the path.

    Args:
        folder: The folder, which must exist.
        warn: Called with a line if the file system does not support locks.

    Raises:
        UserError: If another process holds the lock (the message names it), or the folder cannot be written.
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
    """Return the folder and its parents that do not exist, the folder itself first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Create a folder, and remove it again if the body fails before it has written anything there."""
    made = missing(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # one of them is not empty
            for path in made:
                path.rmdir()
        raise


def remove_unused(folder: Path, made: Sequence[Path]) -> None:
    """Remove the lock of a folder without a run, while it is held, and the empty folders that were created for it.

    Args:
        folder: The run's folder.
        made: What `missing` returned before the folder was created.
    """
    (folder / NAME).unlink(missing_ok=True)
    with suppress(OSError):  # one of them is not empty
        for path in made:
            path.rmdir()
