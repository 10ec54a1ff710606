"""The folder that keeps downloads and indices for later commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder in `$XDG_CACHE_HOME/scalekd`, by default `~/.cache/scalekd`; it need not exist.

    It is a relative path if the user has no home folder.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return Path(base, "scalekd", *parts)
