"""Starts and trains a run of any task of `transfer`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scalekd.data import seed_all
from scalekd.engine.context import RunContext, run_context
from scalekd.engine.learner import Learner
from scalekd.engine.loop import Loop, LoopSettings, resume_command
from scalekd.engine.optimisation import build_optimizer
from scalekd.engine.processes import check_devices
from scalekd.errors import UserError
from scalekd.hardware import Compute, keep_freed_memory
from scalekd.models.weights import file_hash
from scalekd.runs.checkpoints import Checkpoint
from scalekd.runs.group import RunGroup
from scalekd.runs.logs import JsonLines, TensorBoardEvents
from scalekd.tasks.transfer.backbone import Backbone, weights_in
from scalekd.tasks.transfer.keys import Transfer
from scalekd.tasks.transfer.task import TransferTask

R = TypeVar("R", bound=Transfer)


@contextmanager
def transfer_context(
    recipe: Transfer, output: str | Path, compute: Compute, *, resume: bool, overwrite: bool, console: Console | None
) -> Iterator[RunContext]:
    """Return the run context after checking the run folder and processes.

    Args:
        recipe: The run's settings, from `located`.
        output: The run folder.
        compute: Where and in which number format the model will run.
        resume: Whether to resume the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Raises:
        UserError: If the folder holds another run or cannot be written, or there is nothing to resume.
    """
    with run_context(RunGroup(output), recipe.devices, resume=resume, console=console) as context:
        processes = context.processes
        processes.from_first(lambda: context.group.check([recipe], resume=resume, overwrite=overwrite))
        check_devices(processes, recipe.accelerator, compute.device)
        if recipe.batch % (processes.count * (recipe.micro_batch or 1)):
            raise UserError(f"batch: {recipe.batch} cannot be shared equally by {processes.count} processes")
        yield context


def prepare(context: RunContext, recipe: Transfer, backbone: Backbone, inputs: dict[str, Any]) -> None:
    """Write the recipe and inputs of the run; called last, so that a run that cannot start does not delete another.

    Raises:
        UserError: If the processes read different inputs, or the inputs of a resumed run have changed.
    """
    weights = {} if backbone.file is None else {"backbone weights": file_hash(backbone.file)}
    inputs = inputs | weights
    if any(other != inputs for other in context.processes.gather(inputs)):
        raise UserError("data: the processes do not read the same data or weights; pass the same to all")
    context.processes.from_first(lambda: context.group.prepare([recipe], [inputs], resume=context.resume))


def named_backbone(recipe: Transfer) -> str:
    """Return the backbone's name or path.

    Raises:
        UserError: If the recipe specifies none.
    """
    if recipe.backbone is None:
        raise UserError("backbone: none is given; pass --backbone (a run folder, a weights file or a timm name)")
    return recipe.backbone


def located(recipe: R) -> R:
    """Replace a backbone's folder in a recipe with the weights file in it.

    Raises:
        UserError: If there is no backbone, or the folder holds no weights.
    """
    named = named_backbone(recipe)
    if not os.path.isdir(named):
        return recipe
    return recipe.model_copy(update={"backbone": os.path.abspath(weights_in(Path(named)))})


def build_backbone(recipe: Transfer, *, spread: bool = False) -> Backbone:
    """Build the recipe's backbone, and seed the random state again for what is built after it.

    Raises:
        UserError: If the recipe names no backbone, or it cannot be built.
    """
    seed_all(recipe.seed)
    backbone = Backbone(
        named_backbone(recipe),
        weights=recipe.backbone_weights,
        pretrained=recipe.backbone_pretrained,
        spread=spread,
        **recipe.backbone_args,
    )
    seed_all(recipe.seed)
    return backbone


def build_learner(
    context: RunContext,
    recipe: Transfer,
    model: nn.Module,
    schedule: Callable[[Optimizer], Scheduler],
    device: torch.device,
) -> Learner:
    """Create the learner of a model: on its device, shared among the processes, with optimiser and logs.

    Args:
        context: The run's surroundings.
        recipe: The run's settings.
        model: The model to train.
        schedule: Creates the learning-rate schedule of an optimiser, in optimiser steps.
        device: Where to train.
    """
    processes = context.processes
    model.to(device)
    average = ModelEmaV3(model, decay=recipe.ema) if recipe.ema else None
    called = model
    if processes.count > 1:
        called = DistributedDataParallel(
            model,
            device_ids=[processes.local_rank] if device.type == "cuda" else None,
            broadcast_buffers=False,  # shared at validations only, see `Loop`
            find_unused_parameters=True,  # a batch without objects leaves heads without a gradient
        )
    optimizer = build_optimizer(recipe, model)
    return Learner(
        model,
        model,
        keys=recipe,
        optimizer=optimizer,
        schedule=schedule(optimizer),
        average=average,
        called=called,
        processes=processes,
        logs=(JsonLines(context.folder.metrics), TensorBoardEvents(context.folder.tensorboard)),
    )


def fit(
    context: RunContext,
    compute: Compute,
    task: TransferTask,
    settings: LoopSettings,
    training: Callable[[int], Iterable[Any]],
    *,
    validation: Iterable[Any],
    checkpoint: Checkpoint | None,
) -> dict[str, Any]:
    """Train a model, and validate it during training.

    Args:
        context: The run's surroundings.
        compute: Where and in which number format the model runs.
        task: What is trained.
        settings: Length of the run, and when it logs, validates and saves.
        training: Returns this process's micro-batches, starting with a given one.
        validation: The validation batches of this process.
        checkpoint: Where to resume, from `find_checkpoint`.

    Returns:
        The part of the result that describes the training: steps, samples, seconds and so on.
    """
    keep_freed_memory()
    loop = Loop(
        task,
        settings,
        context,
        compute=compute,
        resume_with=resume_command(f"transfer {task.name}", context.group.path),
    )
    return loop.run(training, validation, checkpoint) | {
        "skipped_steps": task.learner.skipped_steps,
        "processes": context.processes.count,
        "device": compute.device.type,
        "dtype": str(compute.dtype).removeprefix("torch."),
    }
