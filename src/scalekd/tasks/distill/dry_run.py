"""Tries out a recipe without data or weights: builds the pair at full size and takes one optimiser step."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from rich.console import Console

from scalekd.data import Batch, CorruptImages, seed_all
from scalekd.engine.optimisation import build_optimizer, build_schedule, quieten_timm
from scalekd.errors import UserError
from scalekd.hardware import Compute, pick_compute, to_device
from scalekd.methods.base import Method
from scalekd.models import Student
from scalekd.models.memory_format import prepare
from scalekd.progress import plain_lines
from scalekd.recipes import Recipe
from scalekd.tasks.distill.build import (
    build_method,
    build_student,
    build_teacher,
    head_width,
)
from scalekd.tasks.distill.describing import describe_pair
from scalekd.tasks.distill.task import DistillationTask, StudentLearner
from scalekd.tasks.distill.trial import try_training

BATCH = 2
CLASSES = 1000


def dry_run(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Build the recipe's pair, print its plan, and take one real optimiser step on 2 generated images.

    Nothing is downloaded and no data is read: weights are random unless the recipe names a file.

    Args:
        recipe: The settings; its batch is replaced by 2.
        console: Where to print the plan. Default: standard error.

    Returns:
        Loss terms, number of the student's parameters that changed, device and dtype.

    Raises:
        UserError: If the recipe cannot run.
    """
    quieten_timm()
    console = console or Console(stderr=True)
    say = plain_lines(console)
    compute = pick_compute(recipe)
    batch = min(BATCH, recipe.micro_batch or recipe.batch)
    small = recipe.model_copy(
        update={"batch": batch, "micro_batch": batch, "student_pretrained": False, "batchnorm_over": "process"}
    )
    method, notes = _build_pair(small)
    for line in (*notes, describe_pair(method)):
        say(line)
    prepare(method, *compute, channels_last=recipe.channels_last)
    method.to(compute.device)
    try_training(method, small, at_once=batch, together=batch, batchnorm=nullcontext(), dtype=compute.dtype, say=say)
    student = method.student
    assert isinstance(student, Student)
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    losses = _take_step(small, method, compute)
    moved = sum(not torch.equal(before[n], p.detach().to(before[n])) for n, p in student.named_parameters())
    if not moved:
        raise UserError("check: the optimiser step changed no parameter of the student")
    return {
        "losses": {name: round(value, 4) for name, value in losses.items()},
        "student_parameters_moved": moved,
        "student_parameters": len(before),
        "device": compute.device.type,
        "dtype": str(compute.dtype).removeprefix("torch."),
    }


def _build_pair(recipe: Recipe) -> tuple[Method, list[str]]:
    """Build the recipe's pair, with random weights if it names no file; and a note if the teacher gets a head."""
    seed_all(recipe.seed)
    notes = []
    teacher = build_teacher(recipe, pretrained=False) if recipe.method != "none" else None
    if teacher is not None and not teacher.num_classes and recipe.used_logit_weight:
        # Weights written by `adapt` include a head for the data's classes; `distill` refuses weights without one.
        notes.append("note: the teacher's architecture has no head; its weights must include one")
        teacher = build_teacher(recipe, pretrained=False, num_classes=CLASSES)
    classes = teacher.num_classes if teacher is not None and teacher.num_classes else CLASSES
    student = build_student(recipe, head_width(recipe, teacher, tuple(map(str, range(classes)))))
    return build_method(recipe, teacher, student), notes


def _take_step(recipe: Recipe, method: Method, compute: Compute) -> dict[str, float]:
    """Take one optimiser step on random images; return the losses by name."""
    optimizer = build_optimizer(recipe, method)
    schedule = build_schedule(recipe, optimizer, steps_per_epoch=1000)
    learner = StudentLearner(recipe, method, optimizer=optimizer, schedule=schedule)
    task = DistillationTask([learner], (), CorruptImages(0))
    classes = max(method.student.num_classes, 1)  # without a head, labels are not used
    images = torch.rand(recipe.batch, 3, recipe.resolution, recipe.resolution)
    batch = to_device(Batch(images, torch.randint(classes, (recipe.batch,)), {}), compute.device)
    with compute.autocast():
        loss = learner.compute_loss(partial(task.losses, learner, task.prepare(batch, 0)), index=0, step=1)
    torch.autograd.backward(loss)
    learner.optimizer_step(1)
    return {k.removeprefix("train/"): float(v) for k, v in learner.figures.items() if k.startswith("train/")}
