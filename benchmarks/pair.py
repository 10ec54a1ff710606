"""A pair to measure, with random weights, and the step that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scalekd import ScaleKD, Student, Teacher
from scalekd.errors import UserError
from scalekd.hardware import autocast, keep_freed_memory
from scalekd.models import memory_format
from scalekd.planner.fake import device_of

STEP = (
    "teacher forward, student forward, all ScaleKD losses, backward; "
    "gradients set to None before, no optimiser step, no data loading"
)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student by their timm names.

    Attributes:
        teacher: Name of the teacher.
        student: Name of the student.
        resolution: Image side of both in pixels.
        num_classes: Width of both heads.
        teacher_args: Further arguments of the teacher's architecture.
        student_args: Further arguments of the student's architecture.
    """

    teacher: str
    student: str
    resolution: int = 224
    num_classes: int = 1000
    teacher_args: Mapping[str, Any] = field(default_factory=dict)
    student_args: Mapping[str, Any] = field(default_factory=dict)

    def models(self, device: torch.device) -> tuple[Teacher, Student]:
        """Build both in float32, always with the same random weights.

        Raises:
            UserError: If a name is unknown or cannot be built.
        """
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"num_classes": self.num_classes, "resolution": self.resolution}
        teacher = Teacher(self.teacher, pretrained=False, **sizes, **self.teacher_args)
        student = Student(self.student, **sizes, **self.student_args)
        return teacher.to(device), student.to(device)

    def method(self, device: torch.device) -> ScaleKD:
        """Build the method of the pair, in float32.

        Raises:
            UserError: If they cannot be built or joined.
        """
        return join(*self.models(device))

    def batch(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return random images `[size, 3, h, w]` in [0, 1] and labels `[size]`, always the same."""
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(size, 3, self.resolution, self.resolution, generator=generator)
        return images.to(device), torch.randint(self.num_classes, (size,), generator=generator).to(device)


def join(teacher: Teacher, student: Student) -> ScaleKD:
    """Join teacher and student with the package's method, on their device.

    Raises:
        UserError: If the two cannot be joined.
    """
    try:
        return ScaleKD(teacher, student).to(next(student.parameters()).device).train()
    except ValueError as error:
        raise UserError(f"pair: {error}") from error


def prepare(method: ScaleKD, dtype: torch.dtype) -> None:
    """Prepare the method as training does before its first step."""
    memory_format.prepare(method, device_of(method), dtype, channels_last=True)
    keep_freed_memory()


def step(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype, **known: Any) -> Tensor:
    """Take the measured step, see `STEP`; return the total loss.

    Args:
        model: Returns the total loss, or `Losses`.
        images: `[B, 3, h, w]`.
        labels: `[B]`.
        dtype: The autocast type; float32 switches autocast off.
        known: `teacher_outputs`, to skip the teacher's forward.
    """
    model.zero_grad(set_to_none=True)
    with autocast(images.device, dtype):
        losses = model(images, labels, **known)
        total: Tensor = losses if isinstance(losses, Tensor) else losses.total
    total.backward()  # type: ignore[no-untyped-call]
    return total.detach()
