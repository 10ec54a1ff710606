"""A detection run, from a recipe to a folder with the detector and its figures."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from scalekd.data import CorruptImages, TrainingStream
from scalekd.data.decoding import UnreadableImageError
from scalekd.downstream.backbone import Backbone
from scalekd.downstream.detection.coco import CocoSplit, read_coco
from scalekd.downstream.detection.data import CocoDataset, evaluation_batches, read_picture, training_batches
from scalekd.downstream.detection.folder import DetectionFolder, build
from scalekd.downstream.detection.keeper import DetectionKeeper
from scalekd.downstream.detection.module import DetectionModule, scaled
from scalekd.downstream.detection.pictures import write_comparison
from scalekd.downstream.detection.schema import Detection
from scalekd.errors import UserError
from scalekd.hardware import autocast, keep_freed_memory, pick_device, pick_dtype
from scalekd.models.weights import file_hash
from scalekd.training.folder import write_json
from scalekd.training.logs import JsonLinesLogger, quieten_lightning


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
        output: Folder for everything the run leaves (see `DetectionFolder`).
        resume: Whether to go on with the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Returns:
        What `result.json` holds: average precisions of boxes and masks, overall and of each class.

    Raises:
        UserError: For any wrong input.
        Interrupted: If the user stopped the run; the checkpoint is written.
    """
    quieten_lightning()
    console = console or Console(stderr=True)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    if recipe.backbone is None:
        raise UserError("backbone: none is given; give --backbone (a run's folder, a weights file or a timm name)")
    folder = DetectionFolder(output)
    folder.check(recipe, resume=resume, overwrite=overwrite)
    learned, val = _read_data(recipe, say)
    seed_everything(recipe.seed, verbose=False)
    backbone = Backbone(
        recipe.backbone,
        weights=recipe.backbone_weights,
        pretrained=recipe.backbone_pretrained,
        **recipe.backbone_args,
    )
    seed_everything(recipe.seed, verbose=False)  # the heads' start depends on no backbone
    detector = build(recipe, backbone, len(val.classes))
    inputs = {
        "backbone weights": None if backbone.file is None else file_hash(backbone.file),
        "training data": learned.fingerprint,
        "validation data": val.fingerprint,
    }
    if not resume:
        folder.clear()  # last: what cannot start must not delete another run
    folder.prepare(recipe, inputs, resume=resume)
    corrupt = CorruptImages(recipe.max_corrupt, say)
    module = DetectionModule(recipe, detector, val, steps_per_epoch=len(learned) // recipe.batch, corrupt=corrupt)
    seconds = _fit(module, learned, folder, resume and folder.checkpoint.is_file(), console)
    return _conclude(module, folder, backbone.name, seconds)


def _read_data(recipe: Detection, say: Any) -> tuple[CocoSplit, CocoSplit]:
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


def _fit(module: DetectionModule, train: CocoSplit, folder: DetectionFolder, resume: bool, console: Console) -> float:
    """Train and validate; the seconds it took."""
    recipe, steps = module.recipe, module.steps_per_epoch
    device = pick_device(recipe.accelerator)
    bf16 = pick_dtype(recipe.precision, device) == torch.bfloat16
    at_once = recipe.batch // recipe.accumulate
    step = _read_step(folder.checkpoint) if resume else 0
    folder.trim_metrics(step)
    stream = TrainingStream(
        size=len(train),
        batch=recipe.batch,
        epochs=recipe.epochs,
        seed=recipe.seed,
        accumulate=recipe.accumulate,
        start=step * recipe.accumulate,
    )
    keep_freed_memory()
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        accumulate_grad_batches=recipe.accumulate,
        precision="bf16-mixed" if bf16 else "32-true",
        max_steps=steps * recipe.epochs,  # the whole run is one stream of batches, see TrainingStream
        max_epochs=-1,
        val_check_interval=steps * recipe.accumulate * recipe.validate_every,
        check_val_every_n_epoch=None,
        gradient_clip_val=recipe.clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=[JsonLinesLogger(folder.metrics), TensorBoardLogger(folder.path, name="tensorboard", version="")],
        callbacks=[DetectionKeeper(folder, console)],
        default_root_dir=folder.path,
    )
    started = time.perf_counter()
    dataset = CocoDataset(train, seed=recipe.seed, flip=recipe.flip, learning=True)
    trainer.fit(
        module,
        training_batches(dataset, stream, recipe.workers),
        evaluation_batches(CocoDataset(module.val), at_once, recipe.workers),
        ckpt_path=folder.checkpoint if resume else None,
        weights_only=True,
    )
    return round(time.perf_counter() - started, 1)


def _read_step(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint was written at."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise UserError(
            f"resume: {checkpoint} cannot be read ({type(error).__name__}); start anew with --overwrite"
        ) from error


def _conclude(module: DetectionModule, folder: DetectionFolder, backbone: str, seconds: float) -> dict[str, Any]:
    """Write the detector, the pictures and the result."""
    assert module.boxes is not None
    assert module.masks is not None
    recipe = module.recipe
    folder.save(module.final_detector, backbone, module.val.classes)
    _draw(module, folder)
    result = {
        "boxes": asdict(module.boxes),
        "masks": asdict(module.masks),
        "images": len(module.val),
        "samples": recipe.epochs * module.steps_per_epoch * recipe.batch,
        "seconds_since_start_or_resume": seconds,
        "corrupt_images": sorted(module.corrupt.paths),
        "detector": folder.detector.name,
        "sha256": file_hash(folder.detector),
    }
    write_json(folder.result, result)
    return result


@torch.inference_mode()
def _draw(module: DetectionModule, folder: DetectionFolder) -> None:
    """Pictures of the first validation images that can be read."""
    device = pick_device(module.recipe.accelerator)
    detector = module.final_detector.to(device).eval()
    folder.pictures.mkdir(exist_ok=True)
    for picture in module.val.pictures[: module.recipe.pictures]:
        try:
            image = read_picture(picture)
        except UnreadableImageError:  # counted in the validation
            continue
        with autocast(device, pick_dtype(module.recipe.precision, device)):
            (found,) = detector(scaled([image.to(device)]))
        write_comparison(folder.pictures / f"{picture.path.stem}.png", image, picture, found, module.val.classes)
