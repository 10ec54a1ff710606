"""The folder that keeps downloads and indices for later commands."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """Return a folder in `$XDG_CACHE_HOME/scalekd`, by default `~/.cache/scalekd`; it need not exist.

    A user without a home folder, as containers have, gets one in the system's folder for temporary files.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        base = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return Path(base, "scalekd", *parts)
