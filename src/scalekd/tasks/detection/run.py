"""Trains and evaluates a detector: from a recipe to a run folder with the detector and its figures."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torchvision.models.detection import FasterRCNN, MaskRCNN

from scalekd.atomic import write_json
from scalekd.data import CorruptImages
from scalekd.engine.context import RunContext, find_checkpoint
from scalekd.engine.loop import LoopSettings
from scalekd.engine.processes import Processes
from scalekd.hardware import Compute, pick_compute, to_device
from scalekd.models.weights import file_hash
from scalekd.progress import plain_lines, watched
from scalekd.runs.folder import RunFolder
from scalekd.tasks.detection.coco import CocoSplit
from scalekd.tasks.detection.data import evaluation_batches, noise, training_batches
from scalekd.tasks.detection.detector import load_detector
from scalekd.tasks.detection.measuring import Tally, draw
from scalekd.tasks.detection.model import build_detector, detector_name
from scalekd.tasks.detection.reading import facts, read_data, read_validation
from scalekd.tasks.detection.schema import Detection
from scalekd.tasks.detection.task import DetectionTask, detection_losses, step_schedule
from scalekd.tasks.transfer.running import build_backbone, build_learner, fit, located, prepare, transfer_context
from scalekd.tasks.transfer.trial import try_training


def train(
    recipe: Detection,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a detector; see `scalekd.commands.transfer.Runs` for the arguments and errors.

    Returns:
        The content of `result.json`: average precisions of boxes and, if learned, of masks, overall and per class;
        which data could not be used as is.
    """
    recipe, compute = located(recipe), pick_compute(recipe)
    with transfer_context(recipe, output, compute, resume=resume, overwrite=overwrite, console=console) as context:
        learned, val = read_data(recipe, context.say)
        backbone = build_backbone(recipe)
        for line in _describe_masks(recipe, learned, val):
            context.say(line)
        detector = build_detector(recipe, backbone, len(val.classes), masks=recipe.masks and learned.masked)
        try_detector(detector, recipe, compute)
        inputs = {"training data": learned.fingerprint, "validation data": val.fingerprint}
        prepare(context, recipe, backbone, inputs)
        return _train(context, recipe, detector, learned, val, compute=compute)


def evaluate(recipe: Detection, output: str | Path, *, console: Console | None = None) -> dict[str, Any]:
    """Measure the detector of a run; see `scalekd.commands.transfer.Runs`. Data and image sizes may differ."""
    compute = pick_compute(recipe)
    folder, (detector, classes) = RunFolder(Path(output)), load_detector(output, recipe)
    console = console or Console(stderr=True)
    say = plain_lines(console)
    val = read_validation(recipe, classes, say)
    corrupt, tally = CorruptImages(recipe.max_corrupt, say), Tally(val, masks=isinstance(detector, MaskRCNN))
    detector.to(compute.device)
    with torch.inference_mode():
        for batch in watched(evaluation_batches(val, recipe, say, Processes()), "measure", console):
            corrupt.add(batch.corrupt)
            with compute.autocast():
                tally.add(detector, to_device(batch, compute.device))
    draw(detector, val, recipe, folder.pictures, compute=compute)
    return {
        **{kind: asdict(measured) for kind, measured in tally.figures().items()},
        "images": len(tally.seen),
        "data": {"validation": facts(val, training=False)},
        "corrupt_images": sorted(corrupt.paths),
        "detector": folder.detector.name,
    }


def try_detector(detector: FasterRCNN, recipe: Detection, compute: Compute) -> None:
    """Train a copy of a detector for one step on noise; see `try_training`."""
    batch = noise(recipe)
    try_training(
        detector,
        detection_losses,
        batch,
        task=DetectionTask.name,
        name=detector_name(detector),
        shape=(len(batch.images), *batch.images[0].shape),
        seed=recipe.seed,
        compute=compute,
    )


def _describe_masks(recipe: Detection, learned: CocoSplit, val: CocoSplit) -> list[str]:
    """Return a line if masks are wanted but not learned or not measured."""
    if not recipe.masks:
        return []
    if not learned.masked:
        return ["model     no training object has a mask: Faster R-CNN learns boxes, and boxes are measured"]
    if not any(instance.mask is not None and not instance.crowd for instance in val.objects):
        return ["warning: no validation object has a mask: masks are learned, but mask AP cannot be measured"]
    return []


def _train(
    context: RunContext,
    recipe: Detection,
    detector: FasterRCNN,
    learned: CocoSplit,
    val: CocoSplit,
    *,
    compute: Compute,
) -> dict[str, Any]:
    processes, steps = context.processes, len(learned) // recipe.batch
    checkpoint = find_checkpoint(context, recipe.epochs * steps)
    learner = build_learner(context, recipe, detector, partial(step_schedule, recipe, steps), compute.device)
    task = DetectionTask(context, recipe, learner, val)
    settings = LoopSettings(
        steps=recipe.epochs * steps,
        steps_per_epoch=steps,
        batch=recipe.batch,
        accumulate=recipe.accumulate(processes.count),
        validate_every=recipe.validate_every * steps,
        log_every=recipe.log_every,
        checkpoint_minutes=recipe.checkpoint_minutes,
        keep=recipe.keep,
    )
    masks = isinstance(detector, MaskRCNN)
    trained = fit(
        context,
        compute,
        task,
        settings,
        lambda start: training_batches(learned, recipe, context.say, processes, masks=masks, start=start),
        validation=evaluation_batches(val, recipe, context.say, processes),
        checkpoint=checkpoint,
    )
    result = {
        **{kind: asdict(measured) for kind, measured in task.figures.items()},
        "images": task.seen,
        "data": {"training": facts(learned, training=True), "validation": facts(val, training=False)},
        **trained,
        "backbone": detector.backbone.backbone.name,
        "detector": context.folder.detector.name,
    }
    return processes.from_first(lambda: _conclude(task, recipe, val, context, result, compute=compute))


def _conclude(
    task: DetectionTask,
    recipe: Detection,
    val: CocoSplit,
    context: RunContext,
    result: dict[str, Any],
    *,
    compute: Compute,
) -> dict[str, Any]:
    """Draw pictures and write the result."""
    draw(task.final.eval(), val, recipe, context.folder.pictures, compute=compute)
    result = result | {"sha256": file_hash(context.folder.detector)}
    write_json(context.folder.result, result)
    return result
