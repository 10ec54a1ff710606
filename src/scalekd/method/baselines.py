"""The baselines that ScaleKD is compared with, behind the same interface."""

from __future__ import annotations

from typing import ClassVar, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.method.mimicking import view_distance
from scalekd.method.objective import Method, TaskLoss
from scalekd.method.outputs import MapShape, StudentLike, StudentOutputs, TeacherLike, TeacherOutputs
from scalekd.method.task import cross_entropy, one_hot


class Shared(TypedDict, total=False):
    """What all methods that learn from logits take; see `Method`."""

    logit_weight: float
    temperature: float
    task_loss: TaskLoss


class Supervised(Method):
    """`none`: the individually trained counterpart, labels only."""

    needs_teacher: ClassVar[bool] = False

    def __init__(self, student: StudentLike, *, task_loss: TaskLoss = cross_entropy) -> None:
        super().__init__(None, student, logit_weight=0.0, task_loss=task_loss)


class LogitDistillation(Method):
    """`kd`: labels and logits (Hinton et al., arXiv 1503.02531), the logit term of ScaleKD alone.

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
            raise ValueError(f"logit_weight: {type(self).__name__} learns from logits; give a weight above 0")
        if not self.logit_weight:
            raise ValueError(
                f"teacher: has logits for {teacher.num_classes} classes where the student has {student.num_classes}; "
                f"{type(self).__name__} learns from logits"
            )


class RelationalDistillation(LogitDistillation):
    """`dist`: labels and the relations of logits, DIST (Huang et al., NeurIPS 2022, arXiv 2205.10536).

    `beta * inter + gamma * intra` with `tau^2 * (1 - rho)`, `rho` the mean Pearson correlation of the softened
    probabilities: over the classes of each image (inter-class), over the images of the batch for each class
    (intra-class). Here `lambda` divides it and the task term as it does for `kd`.

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
        beta: float = 1.0,
        gamma: float = 1.0,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(teacher, student, **shared)
        self.beta, self.gamma = beta, gamma

    def logit_terms(self, student: StudentOutputs, teacher_logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The inter-class and the intra-class relation."""
        ours = F.softmax(student.logits.float() / self.temperature, dim=-1)
        theirs = F.softmax(teacher_logits.float() / self.temperature, dim=-1)
        scale = self.temperature**2
        return {
            "inter": self.beta * scale * (1 - correlation(ours, theirs, dim=1)),
            "intra": self.gamma * scale * (1 - correlation(ours, theirs, dim=0)),
        }


def correlation(left: Tensor, right: Tensor, dim: int) -> Tensor:
    """Mean Pearson correlation of two tables `[B, K]` of probabilities along `dim`; 0 for what does not vary.

    Norms count as at least 1e-4, far below those of probabilities that say anything. Without that, a student that still
    gives all classes the same (its head begins at zero, as Mixer's) would get gradients of 1e8.
    """
    left, right = left - left.mean(dim, keepdim=True), right - right.mean(dim, keepdim=True)
    products = F.normalize(left, dim=dim, eps=1e-4) * F.normalize(right, dim=dim, eps=1e-4)
    return products.sum(dim).mean()


class LogitSpaceDistillation(LogitDistillation):
    """`ofa`: intermediate stages taught in logit space, in the way of OFA-KD (Hao et al., NeurIPS 2023, 2310.19444).

    Each of the student's two maps gets an exit branch to logits. These and the student's own logits all get the loss
    with adaptive target enhancement, see `enhanced_distance`; `lambda` divides their sum and the task term. The
    paper has an exit at each of four stages, built of the architecture's own kind of layers; here there are two, of a
    depthwise 3x3 and a pointwise convolution, batch norm, ReLU, average pooling and a linear layer.

    Args:
        teacher: A model with logits for the student's classes.
        student: The student to train.
        gamma: Exponent of the enhancement; 1 makes it plain distillation.
        shared: `logit_weight`, `temperature` and `task_loss`, see `Method`.

    Raises:
        ValueError: If the teacher has no logits for the student's classes.
    """

    def __init__(
        self,
        teacher: TeacherLike,
        student: StudentLike,
        *,
        gamma: float = 1.5,
        **shared: Unpack[Shared],
    ) -> None:
        super().__init__(teacher, student, **shared)
        self.gamma = gamma
        self.exit_previous, self.exit_last = (_exit(features, student.num_classes) for features in student.maps)

    def logit_terms(self, student: StudentOutputs, teacher_logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The enhanced distance of the student's logits and of both exits'."""
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
    """An exit branch: map `[B, C, h, w]` -> logits `[B, K]`."""
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
    """OFA-KD's loss: `-sum_c w_c log s_c`, `w = (t + y)^gamma - y`, `y` the one-hot labels; the mean over the batch.

    `s` and `t` are the softened probabilities. For the labelled class the paper's `(1 + t)^gamma` holds the label's
    own cross-entropy, which the task term has already; hence `- y`. With `gamma` 1 it is `logit_distance` at `tau` 1.

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
        task_loss: TaskLoss = cross_entropy,
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
