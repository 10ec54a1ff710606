"""Describes the software versions, revision and hardware that results depend on."""

from __future__ import annotations

import platform
from typing import Any

import torch

from scalekd.versions import packages_found, revision


def describe_environment() -> dict[str, Any]:
    """Return the versions, revision and hardware that results depend on."""
    return {
        "packages": packages_found(),
        "python": platform.python_version(),
        "git": revision(),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability() + (" with AMX" if torch.cpu._is_amx_tile_supported() else ""),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
