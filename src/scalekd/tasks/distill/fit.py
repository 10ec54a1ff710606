"""Training of a run that is built: learners, loop, results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scalekd.data import TrainingStream, training_loader
from scalekd.data.cache import CacheReader
from scalekd.engine.context import find_checkpoint
from scalekd.engine.loop import Loop, LoopSettings, resume_command
from scalekd.engine.optimisation import build_optimizer, build_schedule
from scalekd.engine.sharding import shard_trained
from scalekd.errors import Interrupted
from scalekd.evaluation import Accuracy
from scalekd.hardware import keep_freed_memory
from scalekd.methods.base import Method
from scalekd.methods.share import FeatureShare
from scalekd.recipes import Recipe, resolved
from scalekd.runs.logs import JsonLines, TensorBoardEvents
from scalekd.runs.services import Outcome, ServiceLog, open_service
from scalekd.tasks.distill.collapse import CollapseWatch
from scalekd.tasks.distill.inputs import training_images
from scalekd.tasks.distill.live import Live, Watcher
from scalekd.tasks.distill.result import write_result
from scalekd.tasks.distill.setup import Run
from scalekd.tasks.distill.task import DistillationTask, StudentLearner
from scalekd.tasks.distill.trial import random_losses


def fit(
    run: Run, teacher_accuracy: Accuracy | None, live: Live | None, resume_with: str | None
) -> list[dict[str, Any]]:
    """Train, validate, and write the results.

    Args:
        run: What is trained.
        teacher_accuracy: The teacher's, for the results.
        live: Creates pictures at each validation.
        resume_with: What resumes the run, for the message when it is stopped. Default: `scalekd distill`.

    Returns:
        The result of each student.
    """
    recipe, context = run.recipe, run.context
    settings = LoopSettings(
        steps=run.steps_per_epoch * recipe.epochs,
        steps_per_epoch=run.steps_per_epoch,
        batch=recipe.batch,
        accumulate=run.accumulate,
        validate_every=run.steps_per_epoch * recipe.validate_every,
        log_every=recipe.log_every,
        checkpoint_minutes=recipe.checkpoint_minutes,
        keep=recipe.keep,
    )
    checkpoint = find_checkpoint(context, settings.steps)
    keep_freed_memory()
    resume_with = resume_with or resume_command("distill", context.group.path)
    services = _open_services(run)
    with _closing(services):
        learners = [_learner(run, index, live, services[index]) for index in range(len(run.recipes))]
        if run.cache is not None and run.teacher is not None and not run.sharded:
            run.teacher.keep_tail_only()
        task = DistillationTask(
            learners,
            run.classes,
            run.corrupt,
            steps=settings.steps,
            micro_batches=run.accumulate * context.processes.count,
        )
        loop = Loop(task, settings, context, compute=run.compute, resume_with=resume_with)
        trained = loop.run(partial(_batches, run), run.val_loader if run.measured else None, checkpoint)
    facts = {
        "teacher_top1": None,
        **({} if teacher_accuracy is None else {f"teacher_{teacher_accuracy.metric}": teacher_accuracy.main}),
        "teacher_license": None if run.teacher is None else run.teacher.license,
        **trained,
    }
    return context.processes.from_first(lambda: [write_result(run, learner, facts) for learner in learners])


def _batches(run: Run, start: int) -> Any:
    """Return the loader of this process's micro-batches, starting with micro-batch `start`."""
    recipe = run.recipe
    stream = TrainingStream(
        size=len(run.train),
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=recipe.seed,
        accumulate=run.accumulate,
        rank=run.context.processes.rank,
        count=run.context.processes.count,
        start=start,
        views=recipe.augmented_views,
        share=FeatureShare(recipe.feature_share),
    )
    reader = None if run.cache is None else CacheReader(run.cache, recipe.stored_share)
    dataset = training_images(recipe, run.train, reader)
    return training_loader(dataset, stream, recipe.workers, run.context.say)


def _open_services(run: Run) -> list[ServiceLog | None]:
    """Open the recipe's tracking service for each student, in the first process; None if there is none."""
    if not run.context.processes.first:
        return [None] * len(run.recipes)
    pairs = zip(run.recipes, run.context.group.runs, strict=True)
    return [open_service(recipe.logger, folder, resolved(recipe), run.context.say) for recipe, folder in pairs]


@contextmanager
def _closing(services: Sequence[ServiceLog | None]) -> Iterator[None]:
    """Close the services' runs when training ends, with its outcome."""
    outcome: Outcome = "failed"
    try:
        yield
        outcome = "finished"
    except Interrupted:
        outcome = "stopped"
        raise
    finally:
        for service in services:
            if service is not None:
                service.close(outcome)


def _learner(run: Run, index: int, live: Live | None, service: ServiceLog | None) -> StudentLearner:
    """Create the learner of a student: on its device, shared among the processes, with optimiser and logs."""
    recipe, method, folder = run.recipes[index], run.methods[index], run.context.group.runs[index]
    if recipe.compile:
        method.compile()
    method.to(run.compute.device)
    average = ModelEmaV3(method.student, decay=recipe.ema) if recipe.ema else None
    called: nn.Module = method
    if run.sharded:
        shard_trained(
            method,
            method.get_submodule("student"),
            average,
            run.compute.device,
            partial(random_losses, method, recipe, run.compute.dtype),
        )
    elif run.context.processes.count > 1:
        called = _distributed(run, method)
    optimizer = build_optimizer(recipe, method)
    events = TensorBoardEvents(folder.tensorboard)
    watcher = _watcher(run, live, recipe, method)
    return StudentLearner(
        recipe,
        method,
        folder,
        check_cosines=_collapse_check(run, recipe, run.context.group.names[index]),
        watch=None if watcher is None else partial(watcher.watch, events),
        optimizer=optimizer,
        schedule=build_schedule(recipe, optimizer, run.steps_per_epoch),
        average=average,
        called=called,
        processes=run.context.processes,
        context=run.batchnorm,
        logs=(JsonLines(folder.metrics), events, *([] if service is None else [service])),
        name=run.context.group.names[index],
    )


def _collapse_check(run: Run, recipe: Recipe, name: str) -> Callable[[dict[str, float], int], None] | None:
    """Return what warns if the projectors collapse; None if the frequency view, which shows it, has no weight."""
    if "frequency" not in recipe.views or not recipe.alpha_frequency:
        return None
    watch = CollapseWatch(recipe.warmup_epochs * run.steps_per_epoch, recipe.used_projector_lr_scale)

    def check(cosines: dict[str, float], step: int) -> None:
        if line := watch.look(cosines, step):
            run.context.say(f"warning: {name + ': ' if name else ''}{line}")

    return check


def _watcher(run: Run, live: Live | None, recipe: Recipe, method: Method) -> Watcher | None:
    """Return what draws pictures at validations; None in all but the first process and for sharded weights."""
    if live is None or not run.context.processes.first or run.sharded or not run.measured:
        return None
    visualise = live(recipe, method, run.val)
    if visualise is None:
        return None
    watcher = Watcher(visualise, method, run.compute.autocast, run.context.say)
    if run.cache is not None:
        watcher.prepare()
    return watcher


def _distributed(run: Run, method: Method) -> DistributedDataParallel:
    """Wrap a method so that all processes average its gradients; buffers are shared at validations only (`Loop`).

    DDP waits for a gradient of every parameter. Some parameters get none, such as a last norm if the logits are unused.
    They are found once, as those that the loss of two random images does not depend on, instead of in every step
    (`find_unused_parameters`), and DDP ignores them.
    """
    kept = {name: buffer.clone() for name, buffer in method.named_buffers()}
    total = random_losses(method, run.recipe, run.compute.dtype, training=True).total
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
    devices = [run.context.processes.local_rank] if run.compute.device.type == "cuda" else None
    return DistributedDataParallel(method, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)
