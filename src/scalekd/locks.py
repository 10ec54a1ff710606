"""Locks between processes, which the system ends with the process that holds one. For Linux and macOS (`fcntl`)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def lock(file: IO[str], *, wait: bool = True) -> bool:
    """Lock an open file until it is closed, here and in processes forked from here.

    Returns:
        False where another process has it and `wait` is false.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_for_this_process(file: IO[str]) -> bool:
    """Lock an open file until this process ends, even where processes forked from it live on; does not wait.

    Returns:
        False where another process has it.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
        return False
    return True


def leads_to(path: Path, file: IO[str]) -> bool:
    """Whether an open file is still what a path leads to; a lock on a removed file keeps nobody out."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder and be the only process at work in it; others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a", encoding="utf-8") as file:
        lock(file)
        yield
