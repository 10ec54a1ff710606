"""`kd`: plain logit distillation."""

from __future__ import annotations

from typing import Unpack

from scalekd.methods.base import Method, Shared
from scalekd.methods.outputs import StudentLike, TeacherLike


class LogitDistillation(Method):
    """`kd`: learn from labels and logits (Hinton et al., arXiv 1503.02531); ScaleKD without its feature terms.

    Raises:
        ValueError: If the teacher has no logits for the student's classes, or `logit_weight` is 0.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(teacher, student, **shared)
        if shared.get("logit_weight") == 0:
            raise ValueError(f"logit_weight: {type(self).__name__} learns from logits; set a weight above 0")
        if not self.logit_weight:
            raise ValueError(
                f"teacher: has logits for {teacher.num_classes} classes, the student for {student.num_classes}; "
                f"{type(self).__name__} learns from logits"
            )
