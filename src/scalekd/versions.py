"""Versions, git revision and system, for bug reports and run folders. Torch is not imported."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import scalekd

_PACKAGES = ("scalekd", "torch", "torchvision", "timm", "torchmetrics", "numpy", "pillow", "transformers")
# Instructions that determine how fast each number format is.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def versions() -> str:
    """Return what a bug report needs, one line each: versions, git revision, CUDA, devices, system."""
    git = f" (git {found})" if (found := revision()) else ""
    packages = packages_found() | {"scalekd": scalekd.__version__ + git}
    packages["torch"] = f"{packages['torch']} ({_cuda()})"
    lines = packages | {
        "python": platform.python_version(),
        "gpus": ", ".join(_gpus()) or "none listed by NVIDIA's driver for Linux",
        "cpu": _cpu(),
        "system": platform.platform(),
    }
    return "\n".join(f"{name} {value}" for name, value in lines.items())


def packages_found() -> dict[str, str | None]:
    """Return the installed versions; None for a package that is not installed, such as scalekd on PYTHONPATH."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def revision() -> str | None:
    """Return the git revision of this checkout; None if scalekd does not run from a checkout or git is missing."""
    checkout = Path(scalekd.__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def _cuda() -> str:
    """Return the CUDA version that torch was built for, read from its `version.py`."""
    package = importlib.util.find_spec("torch")
    places = package.submodule_search_locations if package is not None else None
    file = Path(places[0], "version.py") if places else None
    text = file.read_text("utf-8") if file is not None and file.is_file() else ""
    found = re.search(r"^cuda\b.*= *'([^']+)'", text, re.M)
    return f"CUDA {found[1]}" if found else "without CUDA"


def _gpus() -> list[str]:
    """Return the names of NVIDIA GPUs from the Linux driver."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [found[1] for file in files if (found := re.search(r"^Model:\s*(.+)$", file.read_text(), re.M))]


def _cpu() -> str:
    """Return the processor's name, the number of logical processors, and its instructions for matrix products."""
    info = Path("/proc/cpuinfo")
    text = info.read_text("utf-8", "replace") if info.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.M)
    formats = [each for each in _INSTRUCTION_SETS if flags and each in flags[1].split()]
    return ", ".join([name[1] if name else platform.machine(), f"{os.cpu_count()} processors", *formats])
