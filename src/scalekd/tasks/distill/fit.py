"""A distillation that is set up, trained: from its parts to the loop, and what it leaves."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scalekd.atomic import write_json
from scalekd.data import TrainingStream, training_loader
from scalekd.data.cache import CacheReader
from scalekd.energy import EnergyMeter
from scalekd.engine.display import Display
from scalekd.engine.loop import Loop, Schedule
from scalekd.engine.optimisation import build_optimizer, build_schedule
from scalekd.engine.sharding import shard_trained
from scalekd.engine.signals import Stop
from scalekd.errors import UserError
from scalekd.hardware import autocast, keep_freed_memory
from scalekd.methods.base import Method
from scalekd.models.weights import file_hash
from scalekd.recipes import Recipe
from scalekd.runs.checkpoints import Checkpoint
from scalekd.runs.logs import JsonLines, TensorBoardEvents
from scalekd.tasks.distill.inputs import training_images
from scalekd.tasks.distill.live import Live, Watcher
from scalekd.tasks.distill.setup import Setup
from scalekd.tasks.distill.signs import logged_losses, nothing_learned
from scalekd.tasks.distill.task import DistillationTask, StudentLearner


def fit(setup: Setup, stop: Stop, *, resume: bool, live: Live | None) -> list[dict[str, Any]]:
    """Train, validate, and write the results."""
    recipe, group, processes = setup.recipe, setup.group, setup.processes
    checkpoint = _checkpoint(setup) if resume else None
    keep_freed_memory()
    learners = [_learner(setup, number, live) for number in range(len(setup.recipes))]
    task = DistillationTask(learners, setup.classes, setup.corrupt)
    steps = setup.steps * recipe.epochs
    loop = Loop(
        task,
        Schedule(
            steps=steps,
            steps_per_epoch=setup.steps,
            batch=recipe.batch,
            accumulate=setup.accumulate,
            validate_every=setup.steps * recipe.validate_every,
            log_every=recipe.log_every,
            checkpoint_minutes=recipe.checkpoint_minutes,
            keep=recipe.keep,
        ),
        folders=group.runs,
        checkpoints=group.checkpoints,
        stop=stop,
        processes=processes,
        device=setup.device,
        dtype=setup.dtype,
        display=Display(setup.console, batch=recipe.batch, steps=steps, steps_per_epoch=setup.steps),
        say=setup.say,
        meter=EnergyMeter(processes.local_count if setup.device.type == "cuda" else 0),
        resume_with=f"scalekd distill --resume --output {group.path}",
    )
    processes.gather(None)
    processes.training = True
    facts = loop.run(partial(_batches, setup), setup.val_loader if setup.measured else None, checkpoint)
    task.save(measured=setup.measured)
    results = processes.first_says(lambda: [_conclude(setup, learner, facts) for learner in learners])
    processes.training = False
    return results


def _checkpoint(setup: Setup) -> Checkpoint | None:
    """The newest checkpoint of a run to be resumed, with the logs cut to what they were then."""
    group, processes = setup.group, setup.processes
    checkpoint = processes.first_says(lambda: group.checkpoints.newest(setup.say))
    if checkpoint is None:
        processes.first_says(lambda: _start_again(setup))
    else:
        done = checkpoint.run["step"]
        setup.say(f"resume    from {checkpoint.path.name}: step {done} of {setup.steps * setup.recipe.epochs} is done")
    for number, folder in enumerate(group.runs if processes.first else ()):
        folder.cut_logs({} if checkpoint is None else checkpoint.run["logs"][number])
    return checkpoint


def _start_again(setup: Setup) -> None:
    """Say that a run to be resumed has written no checkpoint yet; one of an earlier revision is not passed over."""
    earlier = setup.group.checkpoints.folder / "last.ckpt"
    if earlier.exists():
        raise UserError(f"resume: {earlier} is of an earlier revision, which is not read; start again with --overwrite")
    setup.say(f"warning: no checkpoint is in {setup.group.checkpoints.folder}; the run begins from scratch")


def _batches(setup: Setup, start: int) -> Any:
    """The training micro-batches of this process from one of them on."""
    recipe = setup.recipe
    stream = TrainingStream(
        size=len(setup.train),
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=recipe.seed,
        accumulate=setup.accumulate,
        rank=setup.processes.rank,
        count=setup.processes.count,
        start=start,
        views=recipe.augmented_views,
    )
    dataset = training_images(recipe, setup.train, None if setup.cache is None else CacheReader(setup.cache))
    return training_loader(dataset, stream, recipe.workers, setup.say)


def _learner(setup: Setup, number: int, live: Live | None) -> StudentLearner:
    """A student ready to be trained: on its device, shared among the processes, with optimiser and logs."""
    recipe, method, folder = setup.recipes[number], setup.methods[number], setup.group.runs[number]
    if recipe.compile:
        method.compile()
    method.to(setup.device)
    average = ModelEmaV3(method.student, decay=recipe.ema) if recipe.ema else None
    called: nn.Module = method
    if setup.sharded:
        shard_trained(method, method.get_submodule("student"), average, setup.device, setup.probe)
    elif setup.processes.count > 1:
        called = _distributed(setup, method)
    optimizer = build_optimizer(recipe, method)
    events = TensorBoardEvents(folder.tensorboard)
    watcher = _watcher(setup, live, recipe, method)
    return StudentLearner(
        recipe,
        method,
        folder,
        watch=None if watcher is None else partial(watcher.watch, events),
        optimizer=optimizer,
        schedule=build_schedule(recipe, optimizer, setup.steps),
        average=average,
        called=called,
        processes=setup.processes,
        context=setup.batchnorm,
        logs=(JsonLines(folder.metrics), events),
        name=setup.group.names[number],
    )


def _watcher(setup: Setup, live: Live | None, recipe: Recipe, method: Method) -> Watcher | None:
    """What shows a pair at validations: the first process, unless its weights are sharded, which takes all of them."""
    if live is None or not setup.processes.first or setup.sharded or not setup.measured:
        return None
    look = live(recipe, method, setup.val)
    return None if look is None else Watcher(look, method, partial(autocast, setup.device, setup.dtype), setup.say)


def _distributed(setup: Setup, method: Method) -> DistributedDataParallel:
    """A method whose gradients all processes average; buffers are shared at validations only (`Loop`).

    DDP waits for a gradient of every parameter. Those that get none (a last norm, say, where nobody reads the logits)
    are the ones that the loss of two random images does not lead back to; DDP is told to leave them out, as a search
    in every step (`find_unused_parameters`) would find the same.
    """
    kept = {name: buffer.clone() for name, buffer in method.named_buffers()}
    total = setup.probe(training=True).total
    with torch.no_grad():
        for name, buffer in method.named_buffers():
            buffer.copy_(kept[name])
    waiting, seen = [total.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    used = {id(node.variable) for node in seen if hasattr(node, "variable")}
    unused = [name for name, p in method.named_parameters() if p.requires_grad and id(p) not in used]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, unused)  # type: ignore[no-untyped-call]
    devices = [setup.processes.local_rank] if setup.device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def _conclude(setup: Setup, learner: StudentLearner, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the result of a student, and say where it shows that nothing was learned."""
    recipe, folder, accuracies = setup.recipe, learner.folder, learner.accuracies
    assert folder is not None
    warnings = nothing_learned(logged_losses(folder.metrics), accuracies.get("top1"), setup.val)
    for warning in warnings:
        setup.say(f"warning: {learner.name + ': ' if learner.name else ''}{warning}")
    result = {
        "method": recipe.method,
        "top1": None,
        **accuracies,
        "teacher_top1": None if setup.teacher_accuracy is None else setup.teacher_accuracy.top1,
        **facts,
        "warnings": warnings,
        "skipped_steps": learner.skipped_steps,
        "processes": setup.processes.count,
        "device": setup.device.type,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "student": folder.student.name,
        "sha256": file_hash(folder.student),
        **({"group": setup.group.students} if setup.group.students else {}),
    }
    write_json(folder.result, result)
    return result
