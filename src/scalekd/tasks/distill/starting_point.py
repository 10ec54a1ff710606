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

IMAGES = 1000  # labelled images of each split that are looked at, at most


def describe_starting_points(run: Run, teacher: Accuracy | None) -> list[str]:
    """Measure the features of each student that starts from weights, and compare it with the teacher.

    Returns:
        A line for each of them, and a warning if the teacher is no better; nothing if there are no labels or the
        recipe switches the check of the teacher off.
    """
    labelled = run.train.unlabelled < len(run.train)
    if not (run.recipe.check_teacher and run.measured and labelled) or run.sharded:
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
        if teacher is not None and teacher.top1 <= start:
            lines.append(
                f"warning: the teacher ({teacher.top1:.1f}%) is no better than the features that the student "
                f"{whose}starts from ({start:.1f}%): it may hold the student back. Fine-tune it first (scalekd adapt "
                "--mode finetune), lower --logit-weight, or train the student alone (--method none)"
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
        train, val = (_features(run, pooled, split) for split in (run.train, run.val))
    finally:
        student.train(training)
    return knn_accuracy(train, val)


def _features(run: Run, pooled: Callable[[Tensor], Tensor], split: Split) -> Features:
    images = evaluation_images(run.recipe, draw(split, IMAGES, run.recipe.seed))
    loader = evaluation_loader(images, run.micro_batch, run.recipe.workers, run.context.say)
    return Features(*collect_features(pooled, loader, compute=run.compute, corrupt=run.corrupt))
