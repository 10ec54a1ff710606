"""Locks between processes. The system releases a lock when its process ends. For Linux and macOS (`fcntl`)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def lock(file: IO[str], *, wait: bool = True) -> bool:
    """Lock an open file until it is closed, in this process and in processes forked from it.

    Returns:
        False if another user has it and `wait` is false.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_for_this_process(file: IO[str]) -> bool:
    """Lock an open file until this process ends, even if processes forked from it continue. Does not wait.

    Returns:
        False if another process has it.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, depending on the system
        return False
    return True


def leads_to(path: Path, file: IO[str]) -> bool:
    """Whether a path still leads to an open file. A lock on a removed file excludes nobody."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder and exclude all others that call this for it; they wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a", encoding="utf-8") as file:
        lock(file)
        yield
