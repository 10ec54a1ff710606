"""`none`: training without a teacher."""

from __future__ import annotations

from typing import Any, ClassVar

from scalekd.methods.base import Method, TaskLoss
from scalekd.methods.label_loss import cross_entropy
from scalekd.methods.outputs import StudentLike
from scalekd.methods.registry import MethodKeys


class Supervised(Method):
    """`none`: learn from labels only, the baseline for a comparison with distillation."""

    needs_teacher: ClassVar[bool] = False

    def __init__(self, student: StudentLike, *, task_loss: TaskLoss = cross_entropy) -> None:
        super().__init__(None, student, logit_weight=0.0, task_loss=task_loss)

    @staticmethod
    def arguments(keys: MethodKeys) -> dict[str, Any]:
        """Return no arguments."""
        return {}
