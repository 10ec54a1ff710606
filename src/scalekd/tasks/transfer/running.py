"""How a run of any task begins, trains and goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scalekd.data import CorruptImages, seed_all
from scalekd.energy import EnergyMeter
from scalekd.engine.display import Display
from scalekd.engine.launched import launched
from scalekd.engine.learner import Learner
from scalekd.engine.loop import Loop, Schedule
from scalekd.engine.optimisation import build_optimizer, quieten_timm
from scalekd.engine.processes import Processes, check_devices, joined
from scalekd.engine.signals import Stop
from scalekd.errors import UserError
from scalekd.hardware import keep_freed_memory, pick_device, pick_dtype
from scalekd.models.weights import file_hash
from scalekd.progress import plain_lines
from scalekd.runs.checkpoints import Checkpoint
from scalekd.runs.folder import RunFolder
from scalekd.runs.group import Group
from scalekd.runs.logs import JsonLines, TensorBoardEvents
from scalekd.tasks.transfer.backbone import Backbone, weights_in
from scalekd.tasks.transfer.keys import Transfer
from scalekd.tasks.transfer.task import TransferTask

R = TypeVar("R", bound=Transfer)


@dataclass(frozen=True)
class Run:
    """A run whose folder is ours.

    Attributes:
        recipe: Its settings.
        group: Its folder, as a group of one.
        stop: Whether somebody asks to stop.
        resume: Whether it goes on.
        console: Where to print; silent in all but the first process.
        processes: Those that train together.
    """

    recipe: Transfer
    group: Group
    stop: Stop
    resume: bool
    console: Console
    processes: Processes

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return self.group.runs[0]

    @property
    def say(self) -> Callable[[str], None]:
        """Prints a line as it is."""
        return plain_lines(self.console)

    def corrupt(self) -> CorruptImages:
        """A counter of unreadable images."""
        return CorruptImages(self.recipe.max_corrupt, self.say)

    def prepare(self, backbone: Backbone, inputs: dict[str, Any]) -> None:
        """Write what the run starts from, last of all: what cannot start must not delete another run."""
        weights = {} if backbone.file is None else {"backbone weights": file_hash(backbone.file)}
        inputs = inputs | weights
        if any(other != inputs for other in self.processes.gather(inputs)):
            raise UserError("data: the processes do not read the same data or weights; give all the same")
        self.processes.first_says(lambda: self.group.prepare([self.recipe], [inputs], resume=self.resume))


@contextmanager
def begun(
    recipe: Transfer, output: str | Path, *, resume: bool, overwrite: bool, console: Console | None
) -> Iterator[Run]:
    """Claim the folder of a run.

    Args:
        recipe: The run's settings.
        output: Its folder.
        resume: Whether to resume the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Raises:
        UserError: If the folder is another run's or cannot be written, or there is nothing to resume.
    """
    quieten_timm()
    if recipe.devices > 1 and not launched():
        raise UserError(f"devices: {recipe.devices} need as many processes; start them with torchrun")
    recipe = located(recipe)
    with Stop() as stop, joined() as processes, ExitStack() as stack:
        console = (console or Console(stderr=True)) if processes.first else Console(quiet=True)
        run = Run(recipe, Group(output), stop, resume, console, processes)
        if processes.first:
            stack.enter_context(run.group.claimed(run.say, resume=resume))
        processes.first_says(lambda: run.group.check([recipe], resume=resume, overwrite=overwrite))
        check_devices(processes, recipe.accelerator, pick_device(recipe.accelerator))
        if recipe.batch % (processes.count * (recipe.micro_batch or 1)):
            raise UserError(f"batch: {recipe.batch} cannot be shared equally by {processes.count} processes")
        yield run


def named_backbone(recipe: Transfer) -> str:
    """The backbone's name or path.

    Raises:
        UserError: If there is none.
    """
    if recipe.backbone is None:
        raise UserError("backbone: none is given; give --backbone (a run's folder, a weights file or a timm name)")
    return recipe.backbone


def located(recipe: R) -> R:
    """The recipe with the weights file of its backbone in place of the folder that holds it.

    Raises:
        UserError: If there is no backbone, or the folder holds no weights.
    """
    named = named_backbone(recipe)
    if not os.path.isdir(named):
        return recipe
    return recipe.model_copy(update={"backbone": os.path.abspath(weights_in(Path(named)))})


def build_backbone(recipe: Transfer, *, spread: bool = False) -> Backbone:
    """The backbone that a recipe names; what comes after it draws from the seed, whatever it has drawn.

    Raises:
        UserError: If it names none, or none that can be built.
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
    run: Run, model: nn.Module, schedule: Callable[[Optimizer], Scheduler], device: torch.device
) -> Learner:
    """A model ready to be trained: on its device, shared among the processes, with optimiser and logs.

    Args:
        run: The run.
        model: What is trained.
        schedule: Gives the learning rate by optimiser steps.
        device: Where it is trained.
    """
    recipe, processes = run.recipe, run.processes
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
        logs=(JsonLines(run.folder.metrics), TensorBoardEvents(run.folder.tensorboard)),
    )


def fit(
    run: Run,
    task: TransferTask,
    schedule: Schedule,
    training: Callable[[int], Iterable[Any]],
    validation: Iterable[Any],
    *,
    checkpoint: Checkpoint | None,
) -> dict[str, Any]:
    """Train and validate.

    Args:
        run: The run.
        task: What is trained.
        schedule: What happens at which step.
        training: The training micro-batches of this process from one of them on.
        validation: The validation batches of this process.
        checkpoint: Where to resume, from `find_checkpoint`.

    Returns:
        What the result says of the training: steps, samples, seconds and so on.
    """
    recipe, processes = run.recipe, run.processes
    device = pick_device(recipe.accelerator)
    dtype = pick_dtype(recipe.precision, device)
    keep_freed_memory()
    loop = Loop(
        task,
        schedule,
        folders=run.group.runs,
        checkpoints=run.group.checkpoints,
        stop=run.stop,
        processes=processes,
        device=device,
        dtype=dtype,
        display=Display(
            run.console, batch=schedule.batch, steps=schedule.steps, steps_per_epoch=schedule.steps_per_epoch
        ),
        say=run.say,
        meter=EnergyMeter(processes.local_count if device.type == "cuda" else 0),
        resume_with=f"scalekd transfer {task.name} --resume --output {run.folder.path}",
    )
    processes.gather(None)
    processes.training = True
    facts = loop.run(training, validation, checkpoint)
    task.save(measured=True)
    processes.gather(None)
    processes.training = False
    return facts | {
        "skipped_steps": task.learner.skipped_steps,
        "processes": processes.count,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }


def find_checkpoint(run: Run) -> Checkpoint | None:
    """The newest checkpoint of a run to be resumed, with its logs cut to what they were then.

    It comes before `build_learner`, which names the new file of events by those that are left.
    """
    if not run.resume:
        return None
    checkpoint = run.processes.first_says(lambda: run.group.checkpoints.newest(run.say))
    if checkpoint is None:
        run.say(f"warning: no checkpoint is in {run.group.checkpoints.folder}; the run begins from scratch")
    else:
        run.say(f"resume    from {checkpoint.path.name}")
    if run.processes.first:
        run.folder.cut_logs({} if checkpoint is None else checkpoint.run["logs"][0])
    return checkpoint
