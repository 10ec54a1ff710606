"""Find the weights in a folder, if a model is specified by a folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scalekd.errors import UserError
from scalekd.models.timm_config import LOCAL

TEACHER = "teacher.safetensors"  # written by `adapt`
STUDENT, RESULT = "student.safetensors", "result.json"  # written by a run; the result only when it is finished
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # written by timm and the hub


class Found(NamedTuple):
    """A model's name (empty if the weights' card says it) and its weights."""

    name: str
    weights: Path


def weights_of(folder: Path) -> Found:
    """Find the model in a folder of `adapt`, of a finished run or in timm's format.

    Raises:
        UserError: If the folder holds no model, or its run is not finished.
    """
    if (folder / TEACHER).is_file():
        return Found("", folder / TEACHER)
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return Found(f"{LOCAL}{folder}", folder / WEIGHTS)
    student = folder / STUDENT
    if student.is_file() and (folder / RESULT).is_file():
        return Found("", student)
    if student.is_file():
        raise UserError(
            f"model: the run in {folder} is not finished; resume it, or specify {student} to use the student as saved"
        )
    inside = sorted(path.parent for path in folder.glob(f"*/{STUDENT}"))
    files = sorted(folder.glob("*.safetensors"))
    hint = f"; specify the folder of one of its runs: {inside[0]}" if inside else ""
    hint = f"; specify a weights file: {files[0]}" if files else hint
    raise UserError(
        f"model: the folder {folder} holds no {TEACHER}, no finished run's {STUDENT} and no {CONFIG} of timm's{hint}"
    )
