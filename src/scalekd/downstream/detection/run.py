"""A detection run, from a recipe to a folder with the detector and its figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torchvision.models.detection import MaskRCNN

from scalekd.data.decoding import UnreadableImageError
from scalekd.downstream.detection.coco import CocoSplit, read_coco
from scalekd.downstream.detection.data import evaluation_batches, read_picture, training_batches
from scalekd.downstream.detection.detector import build, save_detector
from scalekd.downstream.detection.module import DetectionModule, scaled
from scalekd.downstream.detection.pictures import write_comparison
from scalekd.downstream.detection.schema import Detection
from scalekd.downstream.running import Run, begun, build_backbone, fit
from scalekd.errors import UserError
from scalekd.hardware import autocast, pick_device, pick_dtype
from scalekd.training.folder import write_json


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


def _read_data(recipe: Detection, say: Callable[[str], None]) -> tuple[CocoSplit, CocoSplit]:
    """Both splits, with a line on each; they must have the same categories."""
    if recipe.data is None:
        raise UserError("data: none is given; give --data (a folder with annotations/, train2017/ and val2017/)")
    splits = [read_coco(recipe.data, split) for split in (recipe.train_split, recipe.val_split)]
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
    _draw(module, recipe, run.folder.pictures)
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


@torch.inference_mode()
def _draw(module: DetectionModule, recipe: Detection, folder: Path) -> None:
    """Pictures of the first validation images that can be read."""
    device = pick_device(recipe.accelerator)
    detector = module.final.to(device).eval()
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(module.val.pictures[: recipe.pictures]):
        try:
            image = read_picture(picture, recipe.max_pixels)
        except UnreadableImageError:  # counted in the validation
            continue
        with autocast(device, pick_dtype(recipe.precision, device)):
            (found,) = detector(scaled([image.to(device)]))
        write_comparison(folder / f"{number:03}-{picture.path.stem}.png", image, picture, found, module.val.classes)
