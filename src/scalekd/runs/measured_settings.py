"""Finds the settings that a model's accuracy was measured with, so that it can be measured in the same way again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scalekd.errors import UserError
from scalekd.runs.folder import RunFolder, read_json

PROBED = "adapt.json"  # file written by a linear probe
_WEIGHTS = ("student.safetensors", "student.best.safetensors", "teacher.safetensors")


def measured_as(model: str | Path) -> dict[str, Any]:
    """Return the settings that affect rounding when a model is measured.

    They are `precision`, `channels_last` and `batch` (here the images at once). The result is empty if nothing is
    known about the model.

    Args:
        model: The folder of a run or of `adapt`, a weights file in it, or a run's checkpoint.
    """
    path = Path(model)
    if not path.exists():  # the name of a timm model
        return {}
    run = RunFolder(path if path.is_dir() else path.parent.parent if path.suffix == ".ckpt" else path.parent)
    if path.is_file() and path.name not in _WEIGHTS and path.suffix != ".ckpt":
        return {}
    try:
        return _of_a_run(run) if run.exists else _of_a_probe(run.path / PROBED)
    except UserError:  # a caller that needs more than these keys will report the error
        return {}


def _of_a_run(run: RunFolder) -> dict[str, Any]:
    stored = run.stored_keys()
    found: dict[str, Any] = {key: stored[key] for key in ("precision", "channels_last") if key in stored}
    if stored.get("micro_batch"):
        found["batch"] = stored["micro_batch"]
    processes = run.stored_result().get("processes", 1) if run.finished else 1
    if stored.get("strategy") == "fsdp" and processes > 1:  # sharded weights do not use channels-last
        found["channels_last"] = False
    return found


def _of_a_probe(file: Path) -> dict[str, Any]:
    stored = read_json(file) if file.is_file() else {}
    found = {key: stored[key] for key in ("precision", "batch") if key in stored}
    return found | {"channels_last": False} if found else {}
