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
from scalekd.hardware import autocast, pick_compute
from scalekd.models.layout import prepare
from scalekd.progress import plain_lines
from scalekd.recipes import Recipe
from scalekd.tasks.distill.build import (
    build_method,
    build_student,
    build_teacher,
    describe,
    head_width,
)
from scalekd.tasks.distill.task import DistillationTask, StudentLearner
from scalekd.tasks.distill.trial import try_training

BATCH = 2
CLASSES = 1000


def check(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
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
    device, dtype = pick_compute(recipe)
    number = min(BATCH, recipe.micro_batch or recipe.batch)
    small = recipe.model_copy(
        update={"batch": number, "micro_batch": number, "student_pretrained": False, "batchnorm_over": "process"}
    )
    seed_all(recipe.seed)
    teacher = build_teacher(small, pretrained=False) if recipe.method != "none" else None
    if teacher is not None and not teacher.num_classes and small.used_logit_weight:
        # Weights written by `adapt` include a head for the data's classes; `distill` refuses weights without one.
        console.print("note: the teacher's architecture has no head; its weights must include one")
        teacher = build_teacher(small, pretrained=False, num_classes=CLASSES)
    classes = teacher.num_classes if teacher is not None and teacher.num_classes else CLASSES
    student = build_student(small, head_width(small, teacher, tuple(map(str, range(classes)))))
    method = build_method(small, teacher, student)
    say(describe(method))
    prepare(method, device, dtype, channels_last=recipe.channels_last)
    try_training(
        method.to(device),
        small,
        at_once=number,
        together=number,
        batchnorm=nullcontext(),
        dtype=dtype,
        say=say,
    )
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    optimizer = build_optimizer(small, method.to(device))
    schedule = build_schedule(small, optimizer, steps_per_epoch=1000)
    learner = StudentLearner(small, method, optimizer=optimizer, schedule=schedule)
    task = DistillationTask([learner], (), CorruptImages(0))
    images = torch.rand(number, 3, recipe.resolution, recipe.resolution)
    batch = Batch(images.to(device), torch.randint(classes, (number,)).to(device), {})
    with autocast(device, dtype):
        total = learner.learn(partial(task.losses, learner, task.prepare(batch, 0)), batch=0, step=0)
    torch.autograd.backward(total)
    learner.descend(1)
    moved = sum(not torch.equal(before[n], p.detach().to(before[n])) for n, p in student.named_parameters())
    if not moved:
        raise UserError("check: the optimiser step changed no parameter of the student")
    terms = {k.removeprefix("train/"): float(v) for k, v in learner.figures.items() if k.startswith("train/")}
    return {
        "losses": {name: round(value, 4) for name, value in terms.items()},
        "student_parameters_moved": moved,
        "student_parameters": len(before),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }
