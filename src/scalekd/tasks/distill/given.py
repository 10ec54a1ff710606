"""What a caller in Python passes as objects instead of naming it in the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from scalekd.tasks.distill.inputs import Splits


@dataclass(frozen=True)
class Given:
    """Objects that take the place of what the recipe names.

    Attributes:
        splits: Training and validation images, instead of the recipe's `data`.
        teacher: The teacher's module; a copy of it is used.
        student: The student's module; a copy of it is trained.
    """

    splits: Splits | None = None
    teacher: nn.Module | None = None
    student: nn.Module | None = None
