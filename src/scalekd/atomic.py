"""Files that are written atomically: each is replaced as a whole or not changed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, *, concurrently: bool = False) -> Iterator[Path]:
    """A file to write instead of `path`. It is renamed to `path` once it is on the disk, and removed after an error.

    Args:
        path: The file to replace; its folder exists.
        concurrently: Whether other processes may write it concurrently; the last one wins. A killed process then
            leaves a file that no other process overwrites.

    Yields:
        A path next to it, which ends in `.partial`.

    Raises:
        OSError: If it cannot be written; names a file.
    """
    writer = f".{secrets.token_hex(8)}" if concurrently else ""
    partial = path.with_name(f"{path.name}{writer}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)  # for the new name
    except OSError as error:
        if error.errno is not None:  # one of the file system; a name would hide the message of any other
            error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, concurrently: bool = False) -> None:
    """Write a file atomically; see `replacing`."""
    with replacing(path, concurrently=concurrently) as partial:
        partial.write_bytes(content)


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_bytes(Path(path), (json.dumps(content, indent=2) + "\n").encode())


def _sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
