"""Trains and evaluates UPerNet: from a recipe to a run folder with the model, its figures and pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from scalekd.atomic import write_json
from scalekd.data import CorruptImages
from scalekd.data.overlap import refuse_output_among_images
from scalekd.engine.context import RunContext, find_checkpoint
from scalekd.engine.loop import LoopSettings
from scalekd.engine.processes import Processes
from scalekd.errors import UserError
from scalekd.hardware import Compute, pick_compute
from scalekd.models.key_matching import load_weights
from scalekd.models.memory_format import choose_attention, choose_convolutions
from scalekd.models.weights import file_hash, read_weights
from scalekd.progress import plain_lines, watched
from scalekd.recipes import load_as
from scalekd.runs.folder import RunFolder
from scalekd.tasks.segmentation.data import noise, testing_loader, training_loader
from scalekd.tasks.segmentation.files import Pairs, folders_of, read_pairs
from scalekd.tasks.segmentation.label_check import check_labels
from scalekd.tasks.segmentation.measuring import IntersectionOverUnion, draw, measure
from scalekd.tasks.segmentation.model import Segmenter
from scalekd.tasks.segmentation.schema import Segmentation
from scalekd.tasks.segmentation.task import HEAD, SegmentationTask, poly_schedule, segmentation_losses
from scalekd.tasks.transfer.backbone import Backbone, card_of
from scalekd.tasks.transfer.running import build_backbone, build_learner, fit, located, prepare, transfer_context
from scalekd.tasks.transfer.splits import refuse_large_batch, refuse_shared
from scalekd.tasks.transfer.trial import try_training


def train(
    recipe: Segmentation,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train UPerNet; see `scalekd.commands.transfer.Runs` for the arguments and errors.

    Returns:
        The content of `result.json`: mIoU, the number of classes that it averages, IoU per class and pixel accuracy in
        percent, the weights' hash, time.
    """
    recipe, compute = located(recipe), pick_compute(recipe)
    for name in (recipe.train_split, recipe.val_split):
        refuse_output_among_images(Path(output), folders_of(recipe, name))
    with transfer_context(recipe, output, compute, resume=resume, overwrite=overwrite, console=console) as context:
        pairs = [read_pairs(recipe, split) for split in (recipe.train_split, recipe.val_split)]
        refuse_large_batch(recipe.batch, len(pairs[0]))
        if not recipe.class_names:
            raise UserError("num_classes: none is given; pass --num-classes (or the names, as classes in a recipe)")
        refuse_shared(pairs[0].images, pairs[1].images, "remove them from one of the splits")
        share = recipe.batch // context.processes.count
        if min(recipe.micro_batch or share, share) < 2:
            raise UserError(f"batch: UPerNet's batch norms need at least 2 images at once in each process, not {share}")
        if not resume:  # a resumed run has already done so
            for split in pairs:
                check_labels(split, recipe, context.say, context.console)
        segmenter = _build(recipe, build_backbone(recipe, spread=True), compute)
        try_segmenter(segmenter, recipe, compute)
        for line in _describe(segmenter, pairs):
            context.say(line)
        inputs = {"training data": pairs[0].fingerprint, "validation data": pairs[1].fingerprint}
        prepare(context, recipe, segmenter.backbone, inputs)
        return _train(context, recipe, segmenter, *pairs, compute=compute)


def evaluate(recipe: Segmentation, output: str | Path, *, console: Console | None = None) -> dict[str, Any]:
    """Measure the segmenter of a run; see `scalekd.commands.transfer.Runs`. Data and the keys of testing may differ."""
    compute = pick_compute(recipe)
    folder, pairs = RunFolder(Path(output)), read_pairs(recipe, recipe.val_split)
    segmenter = load_segmenter(output, compute)
    console = console or Console(stderr=True)
    say = plain_lines(console)
    check_labels(pairs, recipe, say, console, fewest=1)
    corrupt = CorruptImages(recipe.max_corrupt, say)
    segmenter.to(compute.device)
    batches = watched(testing_loader(pairs, recipe, say, Processes()), "measure", console)
    figures = measure(segmenter, batches, recipe, compute=compute, corrupt=corrupt)
    draw(segmenter, pairs, recipe, folder.pictures, compute=compute)
    return _rounded(figures, recipe) | {"corrupt_images": sorted(corrupt.paths)}


def load_segmenter(path: str | Path, compute: Compute | None = None) -> Segmenter:
    """Load the segmenter of a run, in eval mode; the backbone's own file is not needed.

    It takes images (RGB in [0, 1], `[B, 3, h, w]`) and returns `Scores`.

    Args:
        path: The run folder.
        compute: Where and in which number format the segmenter will run. Default: as the run did.

    Raises:
        UserError: If there is no such run, or it has not saved a segmenter yet.
    """
    folder = RunFolder(Path(path))
    recipe = load_as(Segmentation, folder.stored_keys(), {})
    state, card = read_weights(folder.segmenter)
    backbone = Backbone.from_card(card_of(folder.segmenter, card, HEAD), spread=True)
    segmenter = _build(recipe, backbone, compute or pick_compute(recipe))
    load_weights(segmenter, state, folder.segmenter)
    return segmenter.eval()


def _build(recipe: Segmentation, backbone: Backbone, compute: Compute) -> Segmenter:
    segmenter = Segmenter(
        backbone,
        len(recipe.class_names),
        decoder_channels=recipe.decoder_channels,
        dropout=recipe.dropout,
        auxiliary=recipe.auxiliary_weight > 0,
    )
    choose_attention(segmenter, *compute)
    choose_convolutions(segmenter, *compute)
    if recipe.channels_last:
        segmenter.to(memory_format=torch.channels_last)
    return segmenter


def try_segmenter(segmenter: Segmenter, recipe: Segmentation, compute: Compute) -> None:
    """Train a copy of a segmenter for one step on noise; see `try_training`."""
    batch = noise(recipe)
    try_training(
        segmenter,
        partial(segmentation_losses, auxiliary_weight=recipe.auxiliary_weight),
        batch,
        task=SegmentationTask.name,
        name=segmenter.name,
        shape=batch.images.shape,
        seed=recipe.seed,
        compute=compute,
    )


def _describe(segmenter: Segmenter, pairs: list[Pairs]) -> list[str]:
    backbone = segmenter.backbone
    millions = sum(parameter.numel() for parameter in segmenter.parameters()) / 1e6
    source = backbone.file or "its name"
    return [
        f"backbone  {backbone.name} from {source}; maps of {', '.join(map(str, backbone.channels))} channels",
        f"model     UPerNet, {millions:.2f} M parameters",
        f"data      {len(pairs[0])} training and {len(pairs[1])} validation images",
    ]


def _train(
    context: RunContext, recipe: Segmentation, segmenter: Segmenter, train: Pairs, val: Pairs, *, compute: Compute
) -> dict[str, Any]:
    processes = context.processes
    checkpoint = find_checkpoint(context, recipe.steps)
    learner = build_learner(context, recipe, segmenter, partial(poly_schedule, recipe), compute.device)
    task = SegmentationTask(context, recipe, learner)
    settings = LoopSettings(
        steps=recipe.steps,
        steps_per_epoch=len(train) // recipe.batch,
        batch=recipe.batch,
        accumulate=recipe.accumulate(processes.count),
        validate_every=recipe.validate_every,
        log_every=recipe.log_every,
        checkpoint_minutes=recipe.checkpoint_minutes,
        keep=recipe.keep,
    )
    facts = fit(
        context,
        compute,
        task,
        settings,
        lambda start: training_loader(train, recipe, context.say, processes, start=start),
        validation=testing_loader(val, recipe, context.say, processes),
        checkpoint=checkpoint,
    )
    assert task.figures is not None
    result = {**_rounded(task.figures, recipe), **facts, "backbone": segmenter.backbone.name}
    return processes.from_first(lambda: _conclude(task, recipe, val, context, result, compute=compute))


def _conclude(
    task: SegmentationTask,
    recipe: Segmentation,
    val: Pairs,
    context: RunContext,
    result: dict[str, Any],
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Draw pictures and write the result."""
    draw(task.segmenter.eval(), val, recipe, context.folder.pictures, compute=compute)
    result = result | {"model": context.folder.segmenter.name, "sha256": file_hash(context.folder.segmenter)}
    write_json(context.folder.result, result)
    return result


def _rounded(figures: IntersectionOverUnion, recipe: Segmentation) -> dict[str, Any]:
    """Return the figures as `result.json` holds them."""
    iou = {
        name: None if value is None else round(value, 3)
        for name, value in zip(recipe.class_names, figures.iou, strict=True)
    }
    return {
        "miou": round(figures.miou, 3),
        "miou_classes": figures.occurring,
        "pixel_accuracy": round(figures.pixel_accuracy, 3),
        "iou": iou,
    }
