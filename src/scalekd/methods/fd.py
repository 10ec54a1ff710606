"""`fd`: distillation of last-stage features."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scalekd.methods.base import DEFAULTS, Method, TaskLoss
from scalekd.methods.label_loss import cross_entropy
from scalekd.methods.mimicking import view_distance
from scalekd.methods.outputs import StudentLike, StudentOutputs, TeacherLike, TeacherOutputs
from scalekd.methods.projector import LinearProjector
from scalekd.methods.registry import METHODS, MethodKeys


class FeatureDistillation(Method):
    """`fd`: learn from labels and from last-stage features, with a 1x1 projection and the spatial distance of DFM.

    If the grids differ, the projected map is resized bilinearly to the teacher's grid, as is usual for such methods.

    Args:
        teacher: A vision transformer.
        student: The student to train.
        alpha: Weight of the distance.
        logit_weight: `lambda`, 0 by default: features only.
        temperature: `tau`.
        task_loss: See `Method`.
        feature_share: See `Method`.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        *,
        alpha: float = DEFAULTS.alpha_spatial,
        logit_weight: float = METHODS["fd"].logit_weight,
        temperature: float = DEFAULTS.temperature,
        task_loss: TaskLoss = cross_entropy,
        feature_share: float = DEFAULTS.feature_share,
    ) -> None:
        super().__init__(
            teacher,
            student,
            logit_weight=logit_weight,
            temperature=temperature,
            task_loss=task_loss,
            feature_share=feature_share,
        )
        self.alpha = alpha
        self.projection = LinearProjector(student.maps[1], teacher.tokens)

    @staticmethod
    def arguments(keys: MethodKeys) -> dict[str, Any]:
        """Return the arguments of all methods and the weight of the distance."""
        return Method.arguments(keys) | {"alpha": keys.alpha_spatial, "feature_share": keys.feature_share}

    def feature_terms(
        self, student: StudentOutputs, teacher: TeacherOutputs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the normalised distance between the projected last map and the teacher's tokens."""
        assert teacher is not None
        distance, cosine = view_distance(self.projection(student.last), teacher.tokens, "spatial")
        return {"feature": self.alpha * distance}, {"feature": cosine}
