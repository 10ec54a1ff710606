"""Which weights a folder stands for, where a model is named by one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scalekd.errors import UserError
from scalekd.models.described import LOCAL

TEACHER = "teacher.safetensors"  # what `adapt` leaves
STUDENT, RESULT = "student.safetensors", "result.json"  # what a run leaves, and what is there once it is finished
CONFIG, WEIGHTS = "config.json", "model.safetensors"  # what timm and the hub save


class Found(NamedTuple):
    """A model's name, empty where the weights say it, and its weights."""

    name: str
    weights: Path


def weights_of(folder: Path) -> Found:
    """The model in a folder of `adapt`'s, of a finished run or of timm's.

    Raises:
        UserError: If it holds none, or one that is not finished.
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
            f"model: the run in {folder} has not ended; resume it, or name {student} to take its student as last saved"
        )
    inside = sorted(path.parent for path in folder.glob(f"*/{STUDENT}"))
    files = sorted(folder.glob("*.safetensors"))
    hint = f"; name the folder of one of its runs: {inside[0]}" if inside else ""
    hint = f"; give a weights file: {files[0]}" if files else hint
    raise UserError(
        f"model: the folder {folder} holds no {TEACHER}, no finished run's {STUDENT} and no {CONFIG} of timm's{hint}"
    )
