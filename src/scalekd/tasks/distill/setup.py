"""Builds a run from recipes: reads the data's listing and builds the models. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from scalekd.data import Batch, CorruptImages, Key, Split, evaluation_loader, seed_all
from scalekd.data.cache import TeacherCache, open_cache
from scalekd.data.worker_restarts import RestartingLoader
from scalekd.engine.batchnorm import batchnorm_over
from scalekd.engine.context import RunContext
from scalekd.engine.processes import Processes, check_devices
from scalekd.engine.sharding import shard_teacher
from scalekd.errors import UserError
from scalekd.hardware import Compute, pick_compute
from scalekd.keys import TRANSFORMERS
from scalekd.methods.base import Method
from scalekd.models import Teacher
from scalekd.models.memory_format import prepare
from scalekd.models.sources import PYTHON
from scalekd.progress import working
from scalekd.recipes import Recipe
from scalekd.runs.group import naming
from scalekd.tasks.distill.build import build_method, build_student, build_teacher, head_width
from scalekd.tasks.distill.caching import find_cache
from scalekd.tasks.distill.given import Given
from scalekd.tasks.distill.inputs import evaluation_images, read_data
from scalekd.tasks.distill.micro_batch import fitting_micro_batch
from scalekd.tasks.distill.trial import random_losses


@dataclass(frozen=True)
class Run:
    """A distillation of one student, or of several whose recipes differ in `student` only.

    Attributes:
        context: Folder, processes, signals and console.
        recipes: The settings of each student, `micro_batch` among them.
        train: Training images.
        val: Validation images.
        compute: Where and in which number format the models are trained.
        teacher: The teacher of all students; None for method none.
        teacher_hash: Of the weights of a teacher that was given as a module; otherwise None.
        cache: The teacher cache; None if the recipe names none.
        methods: The method of each student, which joins it with the teacher.
        accumulate: Micro-batches per optimiser step in each process.
        batchnorm: Context manager for each forward in training (see `batchnorm_over`).
        val_loader: The validation batches of this process.
        corrupt: Counter of unreadable images.
        notes: Warnings from building, one line each.
    """

    context: RunContext
    recipes: tuple[Recipe, ...]
    train: Split
    val: Split
    compute: Compute
    teacher: Teacher | None
    teacher_hash: str | None
    cache: TeacherCache | None
    methods: tuple[Method, ...]
    accumulate: int
    batchnorm: AbstractContextManager[Any]
    val_loader: RestartingLoader[Batch, Key]
    corrupt: CorruptImages
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """The settings that all students share."""
        return self.recipes[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the data."""
        return self.val.classes

    @property
    def micro_batch(self) -> int:
        """Images at once in each process."""
        assert self.recipe.micro_batch is not None  # `build_run` chooses it
        return self.recipe.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return len(self.train) // self.recipe.batch

    @property
    def measured(self) -> bool:
        """Whether there is an accuracy to measure: validation images, and a head."""
        return len(self.val) > 0 and self.methods[0].student.num_classes > 0

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the models (FSDP)."""
        return _is_sharded(self.recipe, self.context.processes)


def build_run(recipes: Sequence[Recipe], context: RunContext, given: Given) -> Run:
    """Read the data's listing, build the pairs, and find out how many images fit in memory at once.

    Args:
        recipes: The settings of each student.
        context: The run's surroundings; its files are not touched.
        given: Objects in place of what the recipe names.

    Raises:
        UserError: If the data or the models do not match the recipes, each other or the processes.
    """
    recipe, processes = recipes[0], context.processes
    if processes.count > 1 and (given.teacher is not None or given.student is not None):
        raise UserError("student, teacher: modules are for one process; name the model, as python:module.callable, say")
    train, val = given.splits or read_data(recipe)
    compute = pick_compute(recipe)
    _check_processes(recipes, processes, compute.device, len(val))
    teacher = build_teacher(recipe, val.classes, module=given.teacher) if recipe.method != "none" else None
    cache = _find_cache(recipe, teacher, train, compute)
    # Weights that are not in a file that the recipe names are known by their content.
    unnamed = given.teacher is not None or str(recipe.teacher).startswith((PYTHON, TRANSFORMERS))
    teacher_hash = teacher.weights_hash() if teacher is not None and unnamed else None
    named = zip(recipes, context.group.names, strict=True)
    counts = train.class_counts.tolist()
    methods = tuple(
        _join(each, name, teacher, val.classes, counts=counts, module=given.student) for each, name in named
    )
    if recipe.batch > len(train):  # after the models: a wrong name is reported first
        raise UserError(
            f"batch: {recipe.batch} is larger than the {len(train)} training images; set it to {len(train)} or less"
        )
    _lay_out(methods, recipe, processes, compute)
    at_once, notes = _images_at_once(recipes, methods, context, compute)
    if fault := recipe.share_fault(at_once):
        raise UserError(fault)
    return Run(
        context=context,
        recipes=tuple(
            each.model_copy(update={"micro_batch": at_once}) for each in recipes
        ),  # so that the run can be reproduced
        train=train,
        val=val,
        compute=compute,
        teacher=teacher,
        teacher_hash=teacher_hash,
        cache=cache,
        methods=methods,
        accumulate=recipe.batch // (at_once * processes.count),
        batchnorm=batchnorm_over(recipe, processes, at_once),
        val_loader=_validation_loader(recipe, val, at_once, context),
        corrupt=CorruptImages(recipe.max_corrupt, context.report),
        notes=notes,
    )


def _is_sharded(recipe: Recipe, processes: Processes) -> bool:
    return recipe.strategy == "fsdp" and processes.count > 1


def _check_processes(recipes: Sequence[Recipe], processes: Processes, device: torch.device, val: int) -> None:
    """Check that the processes can share the batch and the `val` validation images."""
    recipe, count = recipes[0], processes.count
    if count == 1:
        return
    if len(recipes) > 1:
        raise UserError(f"student: several students train in one process, not in {count}; pass one --student")
    check_devices(processes, recipe.accelerator, device)
    if recipe.batch % (count * (recipe.micro_batch or 1)):
        at_once = f" with {recipe.micro_batch} images at once (micro_batch)" if recipe.micro_batch else ""
        raise UserError(f"batch: {recipe.batch} cannot be shared equally by {count} processes{at_once}")
    sharded = _is_sharded(recipe, processes)
    if sharded and recipe.micro_batch is None:
        raise UserError(
            "micro_batch: strategy fsdp needs it, because memory is predicted for whole models only; set one"
        )
    for key, value in (("compile", True), ("optimizer", "lamb")):
        if sharded and getattr(recipe, key) == value:
            raise UserError(f"{key}: {value} cannot be combined with strategy fsdp; change one of them")
    if 0 < val < count:
        raise UserError(f"data: {val} validation image(s) for {count} processes; start fewer")


def _find_cache(recipe: Recipe, teacher: Teacher | None, train: Split, compute: Compute) -> TeacherCache | None:
    """Open the recipe's teacher cache; None if it names none or there is no teacher."""
    if teacher is None or recipe.cache is None:
        return None
    return open_cache(recipe.cache, *find_cache(recipe, teacher, train, compute.dtype), recipe.augmented_views)


def _join(
    recipe: Recipe,
    name: str,
    teacher: Teacher | None,
    classes: tuple[str, ...],
    *,
    counts: Sequence[int],
    module: nn.Module | None,
) -> Method:
    """Build a student and its method, with the same random weights as in a run of this student alone."""
    with naming(name):
        # Seeded here and again below, so that all methods start from the same student.
        seed_all(recipe.seed)
        student = build_student(recipe, head_width(recipe, teacher, classes), classes, module=module)
        seed_all(recipe.seed)
        return build_method(recipe, teacher, student, counts)


def _lay_out(methods: Sequence[Method], recipe: Recipe, processes: Processes, compute: Compute) -> None:
    """Set the models' memory layout and precision; shard the teacher if the run is sharded."""
    sharded = _is_sharded(recipe, processes)
    for method in methods:  # FSDP takes parameters in their own layout only
        prepare(method, *compute, channels_last=recipe.channels_last and not sharded)
    if sharded and methods[0].teacher is not None:
        run = partial(random_losses, methods[0], recipe, compute.dtype)
        shard_teacher(methods[0].teacher, compute.device, run)


def _images_at_once(
    recipes: Sequence[Recipe], methods: Sequence[Method], context: RunContext, compute: Compute
) -> tuple[int, tuple[str, ...]]:
    """Return the recipe's micro-batch or the largest that fits in every process's memory, and warnings."""
    if recipes[0].micro_batch is not None:
        return recipes[0].micro_batch, ()
    with working("planning: how many images fit in memory at once?", context.console):
        fitting, notes = fitting_micro_batch(recipes, methods, context.group.names, context.processes, compute)
        return min(context.processes.gather(fitting)), notes


def _validation_loader(recipe: Recipe, val: Split, at_once: int, context: RunContext) -> RestartingLoader[Batch, Key]:
    dataset, processes = evaluation_images(recipe, val), context.processes
    return evaluation_loader(dataset, at_once, recipe.workers, context.say, rank=processes.rank, count=processes.count)
