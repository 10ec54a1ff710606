"""`ofa`: logit distillation at two stages (OFA-KD)."""

from __future__ import annotations

from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.methods.base import DEFAULTS, Shared
from scalekd.methods.kd import LogitDistillation
from scalekd.methods.label_loss import one_hot
from scalekd.methods.outputs import MapShape, StudentLike, StudentOutputs, TeacherLike
from scalekd.methods.registry import MethodKeys


class LogitSpaceDistillation(LogitDistillation):
    """`ofa`: distil intermediate stages in logit space, after OFA-KD (Hao et al., NeurIPS 2023, arXiv 2310.19444).

    An exit branch maps each of the student's two maps to logits. The logits of both exits and of the student get the
    same loss with adaptive target enhancement, see `enhanced_distance`; `lambda` weights the sum of the three and
    `1 - lambda` the task term. The paper has an exit at each of four stages, built of the architecture's own kind of
    layers; here there are two, of a depthwise 3x3 and a pointwise convolution, batch norm, ReLU, average pooling and a
    linear layer.

    Args:
        teacher: A model with logits for the student's classes.
        student: The student to train.
        gamma: Exponent of the enhancement; 1 for plain distillation.
        shared: `logit_weight`, `temperature` and `task_loss`, see `Method`.

    Raises:
        ValueError: If the teacher has no logits for the student's classes.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        *,
        gamma: float = DEFAULTS.ofa_gamma,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(teacher, student, **shared)
        self.gamma = gamma
        self.exit_previous, self.exit_last = (_exit(features, student.num_classes) for features in student.maps)

    @staticmethod
    def arguments(keys: MethodKeys) -> dict[str, Any]:
        """Return the arguments of `kd` and the exponent."""
        return LogitDistillation.arguments(keys) | {"gamma": keys.ofa_gamma}

    def logit_terms(self, student: StudentOutputs, teacher_logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Return the enhanced distance of the student's logits and of the logits of both exits."""
        exits = {
            "kd": student.logits,
            "exit_previous": self.exit_previous(student.previous),
            "exit_last": self.exit_last(student.last),
        }
        return {
            name: enhanced_distance(logits, teacher_logits, labels, self.gamma, self.temperature)
            for name, logits in exits.items()
        }


def _exit(features: MapShape, num_classes: int) -> nn.Sequential:
    """Build an exit branch: map `[B, C, h, w]` -> logits `[B, K]`."""
    channels = features.channels
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )


def enhanced_distance(
    student: Tensor, teacher: Tensor, labels: Tensor | None, gamma: float, temperature: float
) -> Tensor:
    """OFA-KD's loss `-sum_c w_c log s_c`, `w = (t + y)^gamma - y`, `y` the one-hot labels; the mean over the batch.

    `s` and `t` are the softened probabilities. For the labelled class, the paper's `(1 + t)^gamma` includes the
    cross-entropy of the label. That is already in the task term, so `y` is subtracted. With `gamma` 1 the loss is
    `logit_distance` at `tau` 1.

    Args:
        student: Logits `[B, K]`.
        teacher: Logits `[B, K]`.
        labels: Indices `[B]` (-1: unlabelled), probabilities `[B, K]`, or None. Without a label the weights are
            `t^gamma`, which sum to less than 1 for `gamma` above 1.
        gamma: The exponent.
        temperature: `tau`.

    Returns:
        A scalar.
    """
    theirs = F.softmax(teacher.float() / temperature, dim=-1)
    target = torch.zeros_like(theirs) if labels is None else one_hot(labels, theirs.shape[1])
    weights = (theirs + target) ** gamma - target
    return -(weights * F.log_softmax(student.float() / temperature, dim=-1)).sum(-1).mean()
