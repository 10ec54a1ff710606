"""The user's cache folder for downloads and indexes, and the lock on its subfolders."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """Return a folder in `$XDG_CACHE_HOME/scalekd`, by default `~/.cache/scalekd`; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return base.joinpath("scalekd", *parts)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Create a folder and lock it exclusively; other processes wait. The lock is released if its process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
