"""Describes the software versions, revision and hardware that results depend on."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import scalekd
from scalekd.hardware import pick_device, pick_dtype

_PACKAGES = ("scalekd", "torch", "torchvision", "timm", "torchmetrics", "numpy", "pillow")


def describe_environment() -> dict[str, Any]:
    """Return the versions, revision and hardware that results depend on."""
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "git": _revision(Path(scalekd.__file__).parents[2]),
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability() + (" with AMX" if torch.cpu._is_amx_tile_supported() else ""),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> str:
    """Return the facts for a bug report, one per line: versions, git revision, device, number format, system."""
    found = describe_environment()
    device = pick_device("auto")
    number = "bf16" if pick_dtype("auto", device) == torch.bfloat16 else "float32"
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    git = f" (git {found['git']})" if found["git"] else ""
    packages = found["packages"] | {"scalekd": scalekd.__version__ + git, "torch": f"{torch.__version__} ({cuda})"}
    lines = packages | {
        "python": found["python"],
        "device": f"{found['gpu'] or device.type}; precision auto is {number} on it",
        "cpu": f"{found['cpu']}, {found['threads']} threads",
        "system": found["platform"],
    }
    return "\n".join(f"{name} {value}" for name, value in lines.items())


def _version(package: str) -> str | None:
    """Return a package's installed version; None if it is not installed, like scalekd when run from PYTHONPATH."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision(checkout: Path) -> str | None:
    """Return the git revision of scalekd's checkout; None if scalekd does not run from one or git is missing."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
