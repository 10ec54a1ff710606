"""From a recipe to teacher, student and method."""

from __future__ import annotations

import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor

from scalekd.errors import UserError
from scalekd.method import FeatureDistillation, LogitDistillation, Method, ScaleKD, Supervised
from scalekd.method.objective import TaskLoss
from scalekd.models import Student, Teacher
from scalekd.recipes import Recipe


def build_teacher(recipe: Recipe, classes: tuple[str, ...]) -> Teacher:
    """The recipe's teacher.

    Raises:
        UserError: If none is named, or the logit term is wanted and the head has other classes than the data.
    """
    if recipe.teacher is None:
        raise UserError(f"teacher: method {recipe.method} needs one; give --teacher (a timm name or a weights file)")
    teacher = Teacher(
        recipe.teacher,
        weights=recipe.teacher_weights,
        resolution=recipe.teacher_resolution,
        tail_blocks=recipe.tail_blocks,
        **recipe.teacher_args,
    )
    if logit_weight(recipe):
        try:
            teacher.check_classes(classes)
        except UserError as error:
            raise UserError(f"{error}; or set logit_weight to 0 to learn from its features only") from None
    return teacher


def logit_weight(recipe: Recipe) -> float:
    """The recipe's lambda: 0.5 for kd and scalekd and 0 for fd and none where it is left open."""
    if recipe.method == "none":
        return 0.0
    if recipe.logit_weight is not None:
        return recipe.logit_weight
    return 0.0 if recipe.method == "fd" else 0.5


def build_student(recipe: Recipe, num_classes: int) -> Student:
    """The recipe's student with a head of `num_classes`.

    Raises:
        UserError: If none is named or it cannot be built.
    """
    if recipe.student is None:
        raise UserError("student: none is named; give --student (a timm name such as resnet50d)")
    student = Student(
        recipe.student,
        num_classes=num_classes,
        weights=recipe.student_weights,
        resolution=recipe.resolution,
        pretrained=recipe.student_pretrained,
        **recipe.student_args,
    )
    student.crop_fraction = recipe.crop_fraction
    return student


def task_loss(recipe: Recipe) -> TaskLoss:
    """The recipe's loss on labels, which are indices `[B]` or, after mixup, probabilities `[B, K]`."""
    if recipe.task_loss == "bce":
        loss: TaskLoss = BinaryCrossEntropy(smoothing=recipe.label_smoothing, sum_classes=True)
        return loss

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        # Mixup has already smoothed the probabilities it gives.
        smoothing = recipe.label_smoothing if labels.ndim == 1 else 0.0
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)

    return cross_entropy


def build_method(recipe: Recipe, teacher: Teacher | None, student: Student) -> Method:
    """Join the pair.

    Raises:
        UserError: If the settings do not fit the pair.
    """
    loss = task_loss(recipe)
    if recipe.method == "none":
        return Supervised(student, task_loss=loss)
    assert teacher is not None
    weight = logit_weight(recipe)
    if recipe.method == "kd":
        return LogitDistillation(teacher, student, logit_weight=weight, temperature=recipe.temperature, task_loss=loss)
    if recipe.method == "fd":
        return FeatureDistillation(
            teacher,
            student,
            alpha=recipe.alpha_spatial,
            logit_weight=weight,
            temperature=recipe.temperature,
            task_loss=loss,
        )
    alpha = {"spatial": recipe.alpha_spatial, "frequency": recipe.alpha_frequency}
    try:
        return ScaleKD(
            teacher,
            student,
            alpha={view: alpha[view] for view in recipe.views},
            tpp=recipe.tpp,
            query=recipe.query,
            heads=recipe.heads,
            softmax_scale=recipe.softmax_scale,
            logit_weight=weight,
            temperature=recipe.temperature,
            task_loss=loss,
        )
    except ValueError as error:
        raise UserError(f"recipe: {error}") from error
