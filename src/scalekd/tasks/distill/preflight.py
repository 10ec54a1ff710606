"""Checks of a run before it writes anything. They print nothing; they return lines or raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from scalekd.data import Batch
from scalekd.engine.optimisation import layer_scales
from scalekd.errors import UserError, printable
from scalekd.evaluation import Accuracy, measure_accuracy
from scalekd.progress import watched
from scalekd.runs.folder import weight_hashes
from scalekd.runs.group import naming
from scalekd.tasks.distill.caching import compare_sample
from scalekd.tasks.distill.inputs import training_images
from scalekd.tasks.distill.setup import Run
from scalekd.tasks.distill.trial import try_training


def check_training(run: Run) -> list[str]:
    """Try a training step of each pair on the device.

    Returns:
        One line per student whose memory layout had to be changed.

    Raises:
        UserError: If a step fails, the layers for `layer_decay` are not known, or `patience` waits for an accuracy that
            is not measured.
    """
    if run.recipe.patience is not None and not run.measured:
        raise UserError("patience: no accuracy is measured in this run, so that nothing could end it; leave it out")
    if run.sharded:  # no process holds the whole model; `shard_trained` runs it
        return []
    over, count = run.recipe.batchnorm_over, run.context.processes.count
    together = over if isinstance(over, int) else run.micro_batch * (count if over == "all" else 1)
    lines: list[str] = []
    for recipe, method, name in zip(run.recipes, run.methods, run.context.group.names, strict=True):
        with naming(name):
            if recipe.layer_decay < 1:
                layer_scales(method, recipe.layer_decay)
            try_training(
                method.to(run.compute.device),
                recipe,
                at_once=run.micro_batch,
                together=together,
                batchnorm=run.batchnorm if count == 1 else nullcontext(),  # the other processes do not take part
                dtype=run.compute.dtype,
                say=lines.append,
            )
    return lines


def check_cache(run: Run) -> list[str]:
    """Compare a sample of the cache with the teacher; returns a line with the agreement, nothing without a cache.

    Raises:
        UserError: If they do not agree.
    """
    if run.cache is None or run.teacher is None:
        return []
    views = run.recipe.augmented_views
    agreement = compare_sample(
        run.cache,
        training_images(run.recipe, run.train),
        run.teacher.to(run.compute.device),
        views=views,
        micro_batch=run.micro_batch,
        compute=run.compute,
    )
    where, kind = printable(run.cache.path), run.cache.layout.cache_format
    return [f"cache     teacher outputs from {where} ({kind}, {views} view(s), {agreement})"]


def check_teacher(run: Run) -> Accuracy | None:
    """Measure the teacher on the validation images; None if its classes differ or the recipe switches the check off.

    Raises:
        UserError: If its accuracy is near chance and its logits are used.
    """
    teacher, classes = run.teacher, len(run.classes)
    if teacher is None or not run.measured or teacher.num_classes != classes or not run.recipe.check_teacher:
        return None
    teacher.to(run.compute.device)
    accuracy = measure_accuracy(
        lambda images: teacher(images).logits,
        _validation_batches(run),
        num_classes=classes,
        compute=run.compute,
        corrupt=run.corrupt,
        multi_label=run.recipe.multi_label,
        blank=torch.zeros(1, 3, run.recipe.resolution, run.recipe.resolution) if run.sharded else None,
    )
    # Of answers in a random order, the average precision is the share of the class's images.
    chance = 100 / classes if run.val.sets is None else 100 * float(run.val.class_counts.mean()) / len(run.val)
    if run.methods[0].logit_weight > 0 and accuracy.main < chance + 0.1 * (100 - chance):
        raise UserError(
            f"teacher: {teacher.name} scores {accuracy.main:.1f}% ({accuracy.metric}) on {run.val.root}, "
            f"where chance is {chance:.1f}%; its classes are probably "
            "in another order, or it, or at least its head, was not trained enough (see `scalekd adapt`). "
            "--no-check-teacher continues anyway"
        )
    return accuracy


def _validation_batches(run: Run) -> Iterator[Batch]:
    """Yield this process's validation batches; ends when all processes have read theirs."""
    yield from watched(run.val_loader, "measure", run.context.console)
    run.context.processes.wait()


def check_inputs(run: Run) -> list[dict[str, Any]]:
    """Return the inputs of each student's run: fingerprints of the splits, hashes of local weights, the cache's format.

    Raises:
        UserError: If the processes read different inputs.
    """
    common: dict[str, Any] = {"training data": run.train.fingerprint, "validation data": run.val.fingerprint}
    if run.cache is not None and not run.cache.layout.exact:
        common["teacher outputs"] = f"from a cache, as {run.recipe.cache_format}"
    if run.teacher_hash is not None:
        common["teacher weights"] = run.teacher_hash
    own = [common | weight_hashes(recipe) for recipe in run.recipes]
    everyone = run.context.processes.gather(own)
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            what = next(k for k, v in other[0].items() if v != everyone[0][0].get(k))
            raise UserError(f"data: {what} of process {rank} are not those of process 0; pass the same to all")
    return own
