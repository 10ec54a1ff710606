"""`dist`: distillation of relations between logits (DIST)."""

from __future__ import annotations

from typing import Any, Unpack

import torch.nn.functional as F
from torch import Tensor

from scalekd.methods.base import DEFAULTS, Shared
from scalekd.methods.kd import LogitDistillation
from scalekd.methods.outputs import StudentLike, StudentOutputs, TeacherLike
from scalekd.methods.registry import MethodKeys


class RelationalDistillation(LogitDistillation):
    """`dist`: learn from labels and from relations between logits, DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536).

    `beta * inter + gamma * intra` with `tau^2 * (1 - rho)`, `rho` the mean Pearson correlation of the softened
    probabilities: over the classes of each image (inter-class), over the images of the batch for each class
    (intra-class). As for `kd`, `lambda` weights these terms and `1 - lambda` the task term.

    Args:
        teacher: A model with logits for the student's classes.
        student: The student to train.
        beta: Weight of the inter-class relation.
        gamma: Weight of the intra-class relation.
        shared: `logit_weight`, `temperature` and `task_loss`, see `Method`.

    Raises:
        ValueError: If the teacher has no logits for the student's classes.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        *,
        beta: float = DEFAULTS.dist_inter,
        gamma: float = DEFAULTS.dist_intra,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(teacher, student, **shared)
        self.beta, self.gamma = beta, gamma

    @staticmethod
    def arguments(keys: MethodKeys) -> dict[str, Any]:
        """Return the arguments of `kd` and the weights of both relations."""
        return LogitDistillation.arguments(keys) | {"beta": keys.dist_inter, "gamma": keys.dist_intra}

    def logit_terms(self, student: StudentOutputs, teacher_logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Return the inter-class and the intra-class term."""
        ours = F.softmax(student.logits.float() / self.temperature, dim=-1)
        theirs = F.softmax(teacher_logits.float() / self.temperature, dim=-1)
        scale = self.temperature**2
        return {
            "inter": self.beta * scale * (1 - correlation(ours, theirs, dim=1)),
            "intra": self.gamma * scale * (1 - correlation(ours, theirs, dim=0)),
        }


def correlation(left: Tensor, right: Tensor, dim: int) -> Tensor:
    """Return the mean Pearson correlation of two tables `[B, K]` of probabilities along `dim`; 0 for constant entries.

    Norms are clamped to at least 1e-4, far below the norms of informative probabilities. Otherwise, a student that
    still predicts the same probability for all classes (because its head is initialised to zero, as Mixer's is) would
    get gradients of 1e8.
    """
    left, right = left - left.mean(dim, keepdim=True), right - right.mean(dim, keepdim=True)
    products = F.normalize(left, dim=dim, eps=1e-4) * F.normalize(right, dim=dim, eps=1e-4)
    return products.sum(dim).mean()
