"""Base class of all methods: a loss on labels, a loss on logits if the teacher has any, and further terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypedDict

import torch.nn.functional as F
from torch import Tensor, nn

from scalekd.methods.label_loss import cross_entropy
from scalekd.methods.outputs import Losses, StudentLike, StudentOutputs, TeacherLike, TeacherOutputs
from scalekd.methods.registry import LOGIT_WEIGHT, MethodKeys
from scalekd.methods.share import FeatureShare

TaskLoss = Callable[[Tensor, Tensor], Tensor]
DEFAULTS = MethodKeys()


class Shared(TypedDict, total=False):
    """Arguments of all methods that learn from logits; see `Method`."""

    logit_weight: float
    temperature: float
    task_loss: TaskLoss
    feature_share: float
    multi_label: bool


def logit_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `tau^2 * CE(softmax(t / tau), softmax(s / tau))`, the mean over the batch, in float32.

    Args:
        student: Logits `[B, K]`.
        teacher: Logits `[B, K]`.
        temperature: `tau`.

    Returns:
        A scalar.
    """
    target = F.softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.cross_entropy(student.float() / temperature, target)


def binary_logit_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `tau^2 * sum_k BCE(sigmoid(t_k / tau), sigmoid(s_k / tau))`, the mean over the batch, in float32.

    It takes the place of `logit_distance` where an image may have several classes (ours: the paper has one per image).

    Args:
        student: Logits `[B, K]`.
        teacher: Logits `[B, K]`.
        temperature: `tau`.

    Returns:
        A scalar.
    """
    target = (teacher.float() / temperature).sigmoid()
    losses = F.binary_cross_entropy_with_logits(student.float() / temperature, target, reduction="none")
    return temperature**2 * losses.sum(-1).mean()


class Method(nn.Module):
    """Base class of a training method: combines the loss terms that all methods share.

    `L = (1 - lambda) * task + lambda * logit terms + feature terms`. Subclasses define the last two. Without labels
    there is no task term; if only some images of a batch are labelled, the others add 0 to it. If the teacher has no
    logits for these classes, `lambda` is 0.

    The teacher is not part of `parameters()` and `state_dict()`, and therefore not of optimisers, checkpoints and DDP;
    `.to(device)` still moves it.

    Args:
        teacher: The frozen teacher; None for a method without one.
        student: The student to train.
        logit_weight: `lambda`.
        temperature: `tau` of the logit term.
        task_loss: `(logits [B, K], labels) -> scalar`; labels are indices `[B]`, -1 for an unlabelled image, or
            probabilities `[B, K]`; with several labels per image see `multi_label_cross_entropy`.
        feature_share: Part of each batch, from its beginning, on which features are compared (ours, not the paper's).
        multi_label: Whether an image may have several classes.
    """

    needs_teacher: ClassVar[bool] = True
    teacher: Any

    def __init__(
        self,
        teacher: TeacherLike | None,
        student: StudentLike,
        *,
        logit_weight: float = LOGIT_WEIGHT,
        temperature: float = DEFAULTS.temperature,
        task_loss: TaskLoss = cross_entropy,
        feature_share: float = DEFAULTS.feature_share,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        if teacher is None and self.needs_teacher:
            raise ValueError(f"{type(self).__name__} needs a teacher")
        object.__setattr__(self, "teacher", teacher)  # not registered: see the class docstring
        self.student = student
        has_logits = teacher is not None and teacher.num_classes == student.num_classes > 0
        self.logit_weight = logit_weight if has_logits else 0.0
        self.temperature = temperature
        self.task_loss = task_loss
        self.feature_share = FeatureShare(feature_share)
        self.multi_label = multi_label

    @staticmethod
    def arguments(keys: MethodKeys) -> dict[str, Any]:
        """Return the constructor's arguments from a recipe's keys, without the pair and the loss on labels."""
        return {"logit_weight": keys.used_logit_weight, "temperature": keys.temperature}

    def compared(self, images: int) -> int:
        """Return on how many images of a batch features are compared: the first ones, at least one."""
        return max(1, self.feature_share.count(images))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Method:
        if isinstance(self.teacher, nn.Module):
            self.teacher._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        teacher_outputs: TeacherOutputs | None = None,
        feature_scale: float | Tensor = 1.0,
    ) -> Losses:
        """Run teacher and student once each, and return the losses.

        Args:
            images: RGB in [0, 1], `[B, 3, height, width]`.
            labels: Indices `[B]`, -1 for an unlabelled image, or probabilities `[B, K]`; None to learn without labels.
            teacher_outputs: The teacher's outputs for these images; if None, the teacher is run.
            feature_scale: Factor on the feature terms.
        """
        if teacher_outputs is None and self.needs_teacher:
            teacher_outputs = self.teach(images)
        return self.losses(self.student(images), teacher_outputs, labels, feature_scale)

    def teach(self, images: Tensor) -> TeacherOutputs:
        """Run the teacher on images `[B, 3, h, w]`: on all if logits are used, otherwise on those that are compared."""
        outputs: TeacherOutputs = self.teacher(images if self.logit_weight else images[: self.compared(len(images))])
        return outputs

    def losses(
        self,
        student: StudentOutputs,
        teacher: TeacherOutputs | None,
        labels: Tensor | None = None,
        feature_scale: float | Tensor = 1.0,
    ) -> Losses:
        """Return the losses of given outputs.

        Args:
            student: Outputs for all images of the batch.
            teacher: Logits for all images, tokens at least for those that are compared.
            labels: See `forward`.
            feature_scale: See `forward`.

        Raises:
            ValueError: If no term is left (no labels, no teacher logits and no feature term).
        """
        terms: dict[str, Tensor] = {}
        if labels is not None:
            terms["task"] = (1 - self.logit_weight) * self.task_loss(student.logits.float(), labels)
        if self.logit_weight and teacher is not None and teacher.logits is not None:
            logit_terms = self.logit_terms(student, teacher.logits, labels)
            terms |= {name: self.logit_weight * value for name, value in logit_terms.items()}
        features, cosines = self.feature_terms(*self._to_compare(student, teacher))
        terms |= {name: feature_scale * value for name, value in features.items()}
        if not terms:
            raise ValueError("nothing to learn from: neither labels, nor teacher logits, nor a feature term")
        return Losses(terms=terms, cosines=cosines, student_logits=student.logits)

    def _to_compare(
        self, student: StudentOutputs, teacher: TeacherOutputs | None
    ) -> tuple[StudentOutputs, TeacherOutputs | None]:
        """Return the outputs for those images of the batch whose features are compared."""
        if self.feature_share.share == 1:
            return student, teacher
        count = self.compared(len(student.last))
        part = StudentOutputs(student.previous[:count], student.last[:count], student.logits[:count])
        if teacher is None:
            return part, None
        return part, TeacherOutputs(teacher.tokens[:count], None if teacher.logits is None else teacher.logits[:count])

    def logit_terms(self, student: StudentOutputs, teacher_logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Return the loss terms on the teacher's logits `[B, K]` by name, not yet multiplied by `lambda`."""
        distance = binary_logit_distance if self.multi_label else logit_distance
        return {"kd": distance(student.logits, teacher_logits, self.temperature)}

    def feature_terms(
        self, student: StudentOutputs, teacher: TeacherOutputs | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the loss terms on features, weights applied, and the teacher-student cosines, both by name."""
        return {}, {}
