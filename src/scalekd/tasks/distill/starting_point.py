"""Measures how good a student is before the first step, and compares it with its teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from scalekd.data import Split, evaluation_loader
from scalekd.data.hold_out import draw
from scalekd.evaluation import Accuracy, Features, collect_features, knn_accuracy
from scalekd.models import Student
from scalekd.tasks.distill.inputs import evaluation_images
from scalekd.tasks.distill.setup import Run

NEIGHBOURS_EACH = 20  # labelled training images of each class that are drawn
MEASURED = 1000  # validation images, at most
MOST_CLASSES = 250  # with more, so many images would take longer than they are worth


def describe_starting_points(run: Run, teacher: Accuracy | None) -> list[str]:
    """Measure the features of each student that starts from weights, and compare it with the teacher.

    Returns:
        A line for each of them, and a warning if the teacher is no better; nothing if there are no labels, too many
        classes, or the recipe switches the check of the teacher off.
    """
    labelled = run.train.unlabelled < len(run.train)
    wanted = run.recipe.check_teacher and run.measured and labelled and len(run.classes) <= MOST_CLASSES
    wanted = wanted and not run.recipe.multi_label  # neighbours vote for one class
    if not wanted or run.sharded:
        return []
    lines = []
    for recipe, method, name in zip(run.recipes, run.methods, run.context.group.names, strict=True):
        student = method.student
        assert isinstance(student, Student)
        if not (recipe.student_pretrained or student.weights is not None):
            continue
        start = run.context.processes.from_first(partial(measure_features, run, student))
        whose = f"{name} " if name else ""
        lines.append(
            f"student   {whose}starts from features that classify {start:.1f}% of the images (nearest neighbours)"
        )
        if teacher is not None and teacher.main <= start:
            lower = ", lower --logit-weight" if method.logit_weight else ""
            lines.append(
                f"warning: the teacher ({teacher.main:.1f}%) is no better than the features that the student "
                f"{whose}starts from ({start:.1f}%): it may hold the student back. Fine-tune it first (scalekd adapt "
                f"--mode finetune){lower}, or train the student alone (--method none)"
            )
    return lines


def measure_features(run: Run, student: Student) -> float:
    """Return the accuracy in percent of nearest neighbours, by a student's pooled last maps, on a sample of images."""

    def pooled(images: Tensor) -> Tensor:
        features: Tensor = student(images).last.mean((2, 3))
        return features

    training = student.training
    student.to(run.compute.device).eval()
    try:
        train = _features(run, pooled, draw(run.train, NEIGHBOURS_EACH * len(run.classes), run.recipe.seed))
        val = _features(run, pooled, draw(run.val, MEASURED, run.recipe.seed))
    finally:
        student.train(training)
    return knn_accuracy(train, val)


def _features(run: Run, pooled: Callable[[Tensor], Tensor], split: Split) -> Features:
    images = evaluation_images(run.recipe, split)
    loader = evaluation_loader(images, run.micro_batch, run.recipe.workers, run.context.say)
    return Features(*collect_features(pooled, loader, compute=run.compute, corrupt=run.corrupt))
