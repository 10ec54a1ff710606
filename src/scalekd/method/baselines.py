"""The baselines that ScaleKD is compared with, behind the same interface."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.method.mimicking import view_distance
from scalekd.method.objective import Method, TaskLoss
from scalekd.method.outputs import StudentLike, StudentOutputs, TeacherLike, TeacherOutputs


class Supervised(Method):
    """`none`: the individually trained counterpart, labels only."""

    needs_teacher: ClassVar[bool] = False

    def __init__(self, student: StudentLike, *, task_loss: TaskLoss = F.cross_entropy) -> None:
        super().__init__(None, student, logit_weight=0.0, task_loss=task_loss)


class LogitDistillation(Method):
    """`kd`: labels and logits (Hinton et al., arXiv 1503.02531), the logit term of ScaleKD alone."""


class FeatureDistillation(Method):
    """`fd`: labels and the last stage through a 1x1 projection, the spatial distance of DFM.

    Where the grids differ the projected map is resized bilinearly to the teacher's, as such methods do.

    Args:
        teacher: A vision transformer.
        student: The student to train.
        alpha: Weight of the distance.
        logit_weight: `lambda`, 0 by default: features only.
        temperature: `tau`.
        task_loss: See `Method`.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        *,
        alpha: float = 0.08,
        logit_weight: float = 0.0,
        temperature: float = 1.0,
        task_loss: TaskLoss = F.cross_entropy,
    ) -> None:
        super().__init__(teacher, student, logit_weight=logit_weight, temperature=temperature, task_loss=task_loss)
        self.alpha = alpha
        self.projection = nn.Conv2d(student.maps[1].channels, teacher.tokens.channels, 1)

    def feature_terms(
        self, student: StudentOutputs, teacher: TeacherOutputs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The normalised distance between the projected last map and the teacher's tokens."""
        assert teacher is not None
        grid = (self.teacher.tokens.height, self.teacher.tokens.width)
        projected = self.projection(student.last)
        if projected.shape[-2:] != grid:
            projected = F.interpolate(projected, grid, mode="bilinear", align_corners=False)
        tokens = projected.flatten(2).transpose(1, 2)  # BxDxHxW -> BxNxD
        distance, cosine = view_distance(tokens, teacher.tokens, "spatial")
        return {"feature": self.alpha * distance}, {"feature": cosine}
