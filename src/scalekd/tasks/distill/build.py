"""Builds teacher, student and method from a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from scalekd.errors import UserError
from scalekd.keys import TRANSFORMERS
from scalekd.methods.base import Method, TaskLoss
from scalekd.methods.label_loss import (
    BalancedCrossEntropy,
    binary_cross_entropy,
    cross_entropy,
    multi_label_cross_entropy,
)
from scalekd.methods.registry import METHODS
from scalekd.models import Student, Teacher
from scalekd.models.families import TAIL_BLOCKS
from scalekd.models.folders import weights_of
from scalekd.models.sources import PYTHON
from scalekd.recipes import Recipe


def with_files(recipe: Recipe) -> Recipe:
    """Replace folders of models in a recipe with the weights files in them, so that a run knows their hashes.

    Raises:
        UserError: If a folder holds no model.
    """
    changes: dict[str, Any] = {}
    for role in ("teacher", "student") if recipe.method != "none" else ("student",):
        model, weights = getattr(recipe, role), getattr(recipe, f"{role}_weights")
        if model is None or weights is not None or not Path(model).is_dir():
            continue
        found = weights_of(Path(model).absolute())
        changes |= {role: found.name, f"{role}_weights": found.weights} if found.name else {role: str(found.weights)}
    return recipe.model_copy(update=changes)


def build_teacher(
    recipe: Recipe,
    classes: tuple[str, ...] | None = None,
    *,
    pretrained: bool = True,
    num_classes: int | None = None,
    module: nn.Module | None = None,
) -> Teacher:
    """Build the recipe's teacher.

    Args:
        recipe: The run's settings.
        classes: Class names of the data, which the logits must match if they are used; None if unknown.
        pretrained: False for random weights unless the recipe specifies a file.
        num_classes: Width of the head; by default that of the weights or the architecture.
        module: The teacher itself, of which a copy is used; the recipe then only has its name.

    Raises:
        UserError: If the recipe specifies none, it does not fit the settings, or its logits are used and are for other
            classes.
    """
    if recipe.teacher is None:
        raise UserError(f"teacher: method {recipe.method} needs one; pass --teacher (a timm name or a weights file)")
    if recipe.teacher.startswith((PYTHON, TRANSFORMERS)):
        num_classes = None  # its head is as it is
    teacher = Teacher(
        recipe.teacher if module is None else deepcopy(module).cpu(),
        weights=recipe.teacher_weights,
        num_classes=num_classes,
        resolution=recipe.teacher_resolution,
        tail_blocks=recipe.tail_blocks or TAIL_BLOCKS,
        tokens=recipe.teacher_tokens,
        tail=recipe.teacher_tail,
        logits_only=METHODS[recipe.method].logits_only,
        pretrained=pretrained,
        **recipe.teacher_args,
    )
    if recipe.tail_blocks is not None and teacher.is_named:
        raise UserError("tail_blocks: is for timm's teachers; name the modules of the tail in teacher_tail")
    if recipe.tail_blocks is not None and teacher.tail_input != teacher.tokens:
        raise UserError(f"tail_blocks: the tail of {teacher.name} is its whole last stage; leave tail_blocks out")
    if recipe.method == "scalekd" and recipe.tpp and not teacher.tail_name:
        raise UserError(
            f"tpp: needs the last blocks of {teacher.name}; name them with teacher_tail, or set tpp to false"
        )
    if teacher.classes and teacher.multi_label != recipe.multi_label and recipe.used_logit_weight:
        gives, flag = ("several labels", "pass") if teacher.multi_label else ("one label", "leave out")
        raise UserError(
            f"multi_label: {teacher.name} gives an image {gives}; {flag} --multi-label, or adapt the teacher"
        )
    if classes is not None and recipe.used_logit_weight:
        _check_logits(teacher, recipe.method, classes)
    return teacher


def _check_logits(teacher: Teacher, method: str, classes: tuple[str, ...]) -> None:
    """Check that the teacher's logits are for these classes or, if the classes are unknown, that it has logits."""
    try:
        if classes:
            teacher.check_classes(classes)
        elif not teacher.num_classes:
            raise UserError(f"model: {teacher.name} has no head; {teacher.head_advice}")
    except UserError as error:
        method = " --method scalekd" if METHODS[method].logits_only else ""
        raise UserError(
            f"{error}. To learn from its features only, set logit_weight to 0 (--logit-weight 0{method})"
        ) from None


def head_width(recipe: Recipe, teacher: Teacher | None, classes: tuple[str, ...]) -> int:
    """Return the width of the student's head: the data's classes, else the teacher's; 0 if nothing trains a head."""
    if recipe.labels == "none" and not recipe.used_logit_weight:
        return 0
    return len(classes) or (teacher.num_classes if teacher is not None else 0)


def build_student(
    recipe: Recipe, num_classes: int, classes: tuple[str, ...] = (), *, module: nn.Module | None = None
) -> Student:
    """Build the recipe's student.

    Args:
        recipe: The run's settings.
        num_classes: Width of the head.
        classes: Class names of the head, if they are known.
        module: The student itself, of which a copy is trained; the recipe then only has its name.

    Raises:
        UserError: If the recipe specifies none, or it cannot be built.
    """
    if recipe.student is None:
        raise UserError("student: none is given; pass --student (a timm name such as resnet50d)")
    student = Student(
        recipe.student if module is None else deepcopy(module).cpu(),
        maps=recipe.student_maps,
        num_classes=num_classes if module is None else None,
        weights=recipe.student_weights,
        resolution=recipe.resolution,
        pretrained=recipe.student_pretrained,
        **recipe.student_args,
    )
    student.crop_fraction, student.multi_label = recipe.crop_fraction, recipe.multi_label
    if module is not None and num_classes not in (0, student.num_classes):
        raise UserError(
            f"student: {student.name} has {student.num_classes} classes, not {num_classes}; build it for them"
        )
    differ = next((pair for pair in zip(student.classes, classes, strict=False) if pair[0] != pair[1]), None)
    if differ is not None and len(classes) == num_classes:
        what = "in another order" if set(student.classes) == set(classes) else "other ones"
        note = f"its head is kept, but the file's classes are {what}: {differ[0]!r} where the data has {differ[1]!r}"
        student.notes = (*student.notes, note)
    return student


def task_loss(recipe: Recipe, counts: Sequence[int] | None = None) -> TaskLoss:
    """Return the recipe's loss on labels: indices `[B]` or, after mixup (and its smoothing), probabilities `[B, K]`.

    With several labels per image they are `[B, K]` as in `Split.target`.

    Args:
        recipe: The run's settings.
        counts: Number of labelled training images of each class, for `class_weights`; None if nothing is trained.
    """
    if recipe.class_weights == "balanced" and counts is not None:
        return BalancedCrossEntropy(counts, recipe.label_smoothing)
    losses = {"cross_entropy": cross_entropy, "bce": binary_cross_entropy}
    loss = multi_label_cross_entropy if recipe.multi_label else losses[recipe.task_loss]
    return partial(loss, label_smoothing=recipe.label_smoothing)


def build_method(
    recipe: Recipe, teacher: Teacher | None, student: Student, counts: Sequence[int] | None = None
) -> Method:
    """Build the recipe's method, which joins the pair; see `task_loss` for `counts`.

    Raises:
        UserError: If the settings do not fit the pair.
    """
    cls = METHODS[recipe.method].load()
    pair = (teacher, student) if cls.needs_teacher else (student,)
    arguments = cls.arguments(recipe)
    if recipe.multi_label and cls.needs_teacher:  # labels only compares no logits
        arguments["multi_label"] = True
    try:
        return cls(*pair, task_loss=task_loss(recipe, counts), **arguments)
    except ValueError as error:
        raise UserError(f"recipe: {error}") from error
