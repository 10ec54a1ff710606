"""Where what is downloaded or indexed once is kept for later commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder in `$XDG_CACHE_HOME/scalekd`, by default `~/.cache/scalekd`; it need not exist.

    Without a home folder it is a relative path.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = home if os.path.isabs(home) else os.path.expanduser("~/.cache")
    return Path(base, "scalekd", *parts)
