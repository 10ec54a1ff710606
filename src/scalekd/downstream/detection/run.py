"""A detection run, from a recipe to a folder with the detector and its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torchvision.models.detection import MaskRCNN

from scalekd.data import CorruptImages
from scalekd.downstream.detection.coco import CocoSplit, read_coco
from scalekd.downstream.detection.data import evaluation_batches, training_batches
from scalekd.downstream.detection.detector import build, load_detector, save_detector
from scalekd.downstream.detection.module import DetectionModule
from scalekd.downstream.detection.schema import Detection
from scalekd.downstream.detection.testing import Tally, draw
from scalekd.downstream.running import Run, begun, build_backbone, fit
from scalekd.errors import UserError
from scalekd.hardware import autocast, pick_device, pick_dtype
from scalekd.progress import watched
from scalekd.training.folder import RunFolder, write_json


def train(
    recipe: Detection,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a detector on a student's maps as the recipe says, and measure it.

    Args:
        recipe: The run's settings, `backbone` and `data` among them.
        output: Folder for everything the run leaves (see `RunFolder`).
        resume: Whether to go on with the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Returns:
        What `result.json` holds: average precisions of boxes and masks, overall and of each class.

    Raises:
        UserError: For any wrong input.
        Interrupted: If a signal stopped the run; in training, the checkpoint is written.
    """
    with begun(recipe, output, resume=resume, overwrite=overwrite, console=console) as run:
        learned, val = _read_data(recipe, run.say)
        backbone = build_backbone(recipe)
        detector = build(recipe, backbone, len(val.classes))
        run.prepare(backbone, {"training data": learned.fingerprint, "validation data": val.fingerprint})
        return _train(run, recipe, detector, learned, val)


def evaluate(recipe: Detection, output: Path, *, console: Console | None = None) -> dict[str, Any]:
    """Measure the detector that a run left, and draw its pictures anew.

    Args:
        recipe: The run's settings; data and image sizes may be others.
        output: The run's folder.
        console: Where the progress bar goes.

    Raises:
        UserError: If there is no trained detector, or the data is not as the recipe says or has other classes.
    """
    folder, (detector, classes) = RunFolder(output), load_detector(output, recipe)
    val = read_coco(_data(recipe), recipe.val_split)
    if val.classes != classes:
        raise UserError(f"data: {val.file} lists other categories than the detector was trained for")
    console = console or Console(stderr=True)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    device = pick_device(recipe.accelerator)
    cast = partial(autocast, device, pick_dtype(recipe.precision, device))
    corrupt, tally = CorruptImages(recipe.max_corrupt, say), Tally(val)
    detector.to(device)
    with torch.inference_mode():
        for batch in watched(evaluation_batches(val, recipe, say), "measure", console):
            corrupt.add(batch.corrupt)
            with cast():
                tally.add(detector, batch._replace(images=[image.to(device) for image in batch.images]))
    draw(detector, val, recipe, folder.pictures, autocast=cast)
    boxes, masks = map(asdict, tally.figures())
    seen, unread = len(tally.seen), sorted(corrupt.paths)
    return {
        "boxes": boxes,
        "masks": masks,
        "images": seen,
        "corrupt_images": unread,
        "detector": folder.detector.name,
    }


def _data(recipe: Detection) -> Path:
    if recipe.data is None:
        raise UserError("data: none is given; give --data (a folder with annotations/, train2017/ and val2017/)")
    return recipe.data


def _read_data(recipe: Detection, say: Callable[[str], None]) -> tuple[CocoSplit, CocoSplit]:
    """Both splits, with a line on each; they must have the same categories."""
    splits = [read_coco(_data(recipe), split) for split in (recipe.train_split, recipe.val_split)]
    for split in splits:
        counted = "".join(f"; {count} {what}" for what, count in split.left_out.items())
        say(f"data      {split.file}: {len(split)} images, {len(split.content['annotations'])} objects{counted}")
    train, val = splits
    if (train.category_ids, train.classes) != (val.category_ids, val.classes):
        raise UserError(f"data: {train.file} and {val.file} list different categories; they must list the same")
    learned = train if recipe.empty_images else train.without_empty()
    if len(learned) < len(train):
        say(f"data      {len(train) - len(learned)} training images without objects are left out; see empty_images")
    if recipe.batch > len(learned):
        raise UserError(f"batch: {recipe.batch} is larger than the {len(learned)} training images; set it to less")
    steps = len(learned) // recipe.batch * recipe.epochs
    if recipe.warmup_steps >= steps:
        raise UserError(f"warmup_steps: {recipe.warmup_steps} must be less than the {steps} steps of the run")
    rest = len(learned) % recipe.batch
    if rest:
        say(f"data      {rest} training images are left out of each epoch: they do not fill a batch")
    return learned, val


def _train(run: Run, recipe: Detection, detector: MaskRCNN, learned: CocoSplit, val: CocoSplit) -> dict[str, Any]:
    steps = len(learned) // recipe.batch
    module = DetectionModule(recipe, detector, val, steps_per_epoch=steps, corrupt=run.corrupt())

    def save() -> str:
        return save_detector(run.folder.detector, module.final, recipe, val.classes)

    facts = fit(
        run,
        module,
        lambda start: training_batches(learned, recipe, run.say, start=start),
        evaluation_batches(val, recipe, run.say),
        save,
    )
    assert module.boxes is not None
    assert module.masks is not None
    device = pick_device(recipe.accelerator)
    cast = partial(autocast, device, pick_dtype(recipe.precision, device))
    draw(module.final.to(device).eval(), val, recipe, run.folder.pictures, autocast=cast)
    result = {
        "boxes": asdict(module.boxes),
        "masks": asdict(module.masks),
        "images": module.seen,
        **facts,
        "backbone": detector.backbone.backbone.name,
        "detector": run.folder.detector.name,
        "sha256": save(),
    }
    write_json(run.folder.result, result)
    return result
