"""Describes a pair and a run in lines of text. Nothing is printed, measured or changed."""

from __future__ import annotations

import torch

from scalekd.data.skipped_files import left_out
from scalekd.methods.base import Method
from scalekd.methods.registry import METHODS, has_key
from scalekd.methods.scalekd import ScaleKD
from scalekd.models import Student, Teacher
from scalekd.models.teacher import resolution_note
from scalekd.recipes import Recipe
from scalekd.tasks.distill.no_learning import few_steps
from scalekd.tasks.distill.setup import Run

_NOT_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research", "amlr")  # parts of such licences' names


def describe_pair(method: Method) -> str:
    """Describe a pair, human-readable: ScaleKD's plan or teacher and student, and remarks on both."""
    teacher, student = method.teacher, method.student
    if isinstance(method, ScaleKD):
        lines = [str(method.plan)]
    else:
        lines = [*([] if teacher is None else [f"teacher   {teacher}"]), f"student   {student}"]
    assert isinstance(student, Student)
    if method.feature_share.share < 1:
        lines.append(f"features  compared on {method.feature_share.share:.4g} of the images (feature_share)")
    if isinstance(teacher, Teacher):
        if isinstance(method, ScaleKD) and not teacher.tail_name and method.last is not None and method.last.projectors:
            lines.append("teacher   no tail is named (teacher_tail), so there is no TPP")
        lines += remarks(teacher)
    return "\n".join([*lines, *(f"student   {note}" for note in student.notes)])


def remarks(teacher: Teacher) -> list[str]:
    """Return remarks on a teacher: its kind, how its weights were read, their licence, whether it is expensive."""
    slow = resolution_note(teacher, "--teacher-resolution") or ""
    notes = (teacher.note, *teacher.notes, *license_note(teacher), slow)
    return [f"teacher   {note}" for note in notes if note]


def license_note(teacher: Teacher) -> list[str]:
    """Return a line on the licence of the teacher's weights; none for random weights and for modules."""
    if teacher.license is not None:
        limited = any(word in teacher.license for word in _NOT_COMMERCIAL)
        return [f"licence of its weights: {teacher.license}{' (not for commercial use)' if limited else ''}"]
    if teacher.weights is None and not teacher.from_hub:
        return []
    return ["licence of its weights: not known, because their file does not state it"]


def describe_run(run: Run) -> list[str]:
    """Describe what is trained, on which images and in which steps; returns lines."""
    return [*run.notes, *map(describe_pair, run.methods), *_data(run), *_schedule(run), *_batch(run), *_accuracy(run)]


def _data(run: Run) -> list[str]:
    precision = "bf16" if run.compute.dtype == torch.bfloat16 else "float32"
    unlabelled = f" ({run.train.unlabelled} without label)" if run.train.unlabelled else ""
    return [
        f"data      {len(run.train)} training images{unlabelled} and {len(run.val)} validation images, "
        f"{len(run.classes)} classes{_labels_each(run)}; {run.compute.device.type}, {precision}",
        *left_out({run.recipe.train_split: run.train.skipped, run.recipe.val_split: run.val.skipped}),
    ]


def _labels_each(run: Run) -> str:
    """Describe how many labels an image has, if it may have several."""
    if run.train.sets is None:
        return ""
    each = run.train.class_counts.sum() / max(len(run.train) - run.train.unlabelled, 1)
    return f", {each:.2g} per labelled image"


def _schedule(run: Run) -> list[str]:
    recipe = run.recipe
    rest = len(run.train) % recipe.batch
    unused = f"; {rest} images that do not fill a batch are left out of each epoch" if rest else ""
    few = few_steps(len(run.train), recipe.batch, recipe.epochs)
    return [
        f"schedule  {recipe.epochs} epochs of {run.steps_per_epoch} steps of {recipe.batch} images{unused}",
        *([few] if few else []),
        *_projector_rate(recipe),
    ]


def _projector_rate(recipe: Recipe) -> list[str]:
    """Return a line with the projectors' learning rate if it is not the student's."""
    scale = recipe.used_projector_lr_scale
    if scale == 1 or not has_key(recipe.method, "projector_lr_scale"):
        return []
    return [f"rates     student {recipe.lr:g}, projectors {scale * recipe.lr:g} (projector_lr_scale {scale:.4g})"]


def _batch(run: Run) -> list[str]:
    """Describe how the batch is cut into micro-batches; empty if it is not cut."""
    recipe, count = run.recipe, run.context.processes.count
    if run.accumulate * count == 1:
        return []
    each = f" in each of {count} processes" if count > 1 else ""
    over = f"batch norm over {recipe.batchnorm_over} images"
    if recipe.batchnorm_over == "process":
        over = "batch norm over these: compare runs of equal micro_batch"
    lines = [f"batch     {recipe.batch} as {run.accumulate} times {recipe.micro_batch} images at once{each}; {over}"]
    if compares := METHODS[recipe.method].compares:
        lines.append(f"warning: {recipe.method}'s {compares} is over the images at once, not over the batch")
    return lines


def _accuracy(run: Run) -> list[str]:
    """Return a line that says why no accuracy is measured; nothing if it is measured."""
    if run.measured:
        return []
    return ["accuracy  not measured: " + ("no head to train" if len(run.val) else "no validation images")]
