"""A segmentation run, from a recipe to a folder with the trained model, its figures and pictures."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from scalekd.data import CorruptImages
from scalekd.downstream.backbone import Backbone
from scalekd.downstream.segmentation.data import Pairs, read_pairs, testing_loader, training_loader
from scalekd.downstream.segmentation.model import Segmenter
from scalekd.downstream.segmentation.schema import Segmentation
from scalekd.downstream.segmentation.testing import Figures, draw, measure
from scalekd.downstream.segmentation.training import Keeper, SegmentationModule
from scalekd.errors import UserError
from scalekd.evaluation.progress import watched
from scalekd.hardware import autocast, keep_freed_memory, pick_device, pick_dtype
from scalekd.models.layout import choose_attention
from scalekd.models.weights import Card, file_hash, load_weights, read_weights, save_weights
from scalekd.training import RunFolder
from scalekd.training.folder import write_json
from scalekd.training.logs import JsonLinesLogger, quieten_lightning

_WEIGHTS = "segmenter.safetensors"
_PICTURES = "pictures"


def train(
    recipe: Segmentation,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train UPerNet on a student as the recipe says.

    Args:
        recipe: The run's settings, `data` and `backbone` among them.
        output: Folder for everything the run leaves.
        resume: Whether to go on with the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Returns:
        What `result.json` holds: mIoU, IoU by class and pixel accuracy in percent, the weights' hash, time.

    Raises:
        UserError: For any wrong input.
        Interrupted: If the user stopped the run; the checkpoint is written.
    """
    quieten_lightning()
    console = console or Console(stderr=True)
    folder = RunFolder(output)
    _check_output(folder, recipe, resume=resume, overwrite=overwrite)
    pairs = [read_pairs(recipe, split) for split in (recipe.train_split, recipe.val_split)]
    if recipe.batch > len(pairs[0]):
        raise UserError(f"batch: {recipe.batch} is larger than the {len(pairs[0])} training images; set it to less")
    segmenter = _build(recipe)
    inputs = {"training data": pairs[0].fingerprint, "validation data": pairs[1].fingerprint}
    if segmenter.backbone.file is not None:
        inputs["backbone weights"] = file_hash(segmenter.backbone.file)
    if folder.exists and not resume:
        _clear(folder)
    folder.prepare(recipe, inputs, resume=resume)
    _say(console, segmenter, pairs)
    return _fit(recipe, folder, segmenter, pairs, console, resume=resume and folder.checkpoint.is_file())


def evaluate(recipe: Segmentation, output: Path, *, console: Console | None = None) -> dict[str, Any]:
    """Measure the model that a run left, and draw its pictures anew.

    Args:
        recipe: The run's settings; those of testing may be others.
        output: The run's folder.
        console: Where the progress bar goes.

    Raises:
        UserError: If there is no trained model, or the data is not as the recipe says.
    """
    pairs = read_pairs(recipe, recipe.val_split)
    state, _ = read_weights(output / _WEIGHTS)
    segmenter = _build(recipe)
    load_weights(segmenter, state, output / _WEIGHTS)
    device = pick_device(recipe.accelerator)
    console = console or Console(stderr=True)
    corrupt = _corrupt(recipe, console)
    segmenter.to(device).eval()
    figures = _measure(segmenter, pairs, recipe, corrupt=corrupt, console=console)
    cast = partial(autocast, device, pick_dtype(recipe.precision, device))
    draw(segmenter, pairs, recipe, output / _PICTURES, autocast=cast)
    return _in_words(figures, recipe) | {"corrupt_images": sorted(corrupt.paths)}


def _check_output(folder: RunFolder, recipe: Segmentation, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("output: --resume and --overwrite exclude each other")
    if resume:
        folder.check_same(recipe)
        if folder.finished:
            raise UserError(f"resume: the run in {folder.path} is finished; start anew with --overwrite")
    elif folder.exists and not overwrite:
        kind, mend = ("a finished", "") if folder.finished else ("an unfinished", "--resume to go on or ")
        raise UserError(f"output: {folder.path} holds {kind} run; add {mend}--overwrite to replace it")
    folder.checkpoint.parent.mkdir(parents=True, exist_ok=True)


def _clear(folder: RunFolder) -> None:
    folder.clear()
    (folder.path / _WEIGHTS).unlink(missing_ok=True)
    for picture in (folder.path / _PICTURES).glob("*.png"):
        picture.unlink()
    folder.checkpoint.parent.mkdir(parents=True, exist_ok=True)


def _build(recipe: Segmentation) -> Segmenter:
    if recipe.backbone is None:
        raise UserError("backbone: none is given; give --backbone (a run's folder, a weights file or a timm name)")
    if not recipe.class_names:
        raise UserError("num_classes: none is given; give --num-classes (or the names, as classes in a recipe)")
    seed_everything(recipe.seed, verbose=False)
    backbone = Backbone(
        recipe.backbone,
        weights=recipe.backbone_weights,
        pretrained=recipe.backbone_pretrained,
        spread=True,
        **recipe.backbone_args,
    )
    seed_everything(recipe.seed, verbose=False)  # the decoder's start depends on no backbone
    segmenter = Segmenter(
        backbone,
        len(recipe.class_names),
        decoder_channels=recipe.decoder_channels,
        dropout=recipe.dropout,
        auxiliary=recipe.auxiliary_weight > 0,
    )
    device = pick_device(recipe.accelerator)
    choose_attention(segmenter, device, pick_dtype(recipe.precision, device))
    if recipe.channels_last:
        segmenter.to(memory_format=torch.channels_last)
    return segmenter


def _say(console: Console, segmenter: Segmenter, pairs: list[Pairs]) -> None:
    backbone = segmenter.backbone
    millions = sum(parameter.numel() for parameter in segmenter.parameters()) / 1e6
    source = backbone.file or "its name"
    for line in (
        f"backbone  {backbone.name} from {source}; maps of {', '.join(map(str, backbone.channels))} channels",
        f"model     UPerNet, {millions:.2f} M parameters",
        f"data      {len(pairs[0])} training and {len(pairs[1])} validation images",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _fit(
    recipe: Segmentation, folder: RunFolder, segmenter: Segmenter, pairs: list[Pairs], console: Console, *, resume: bool
) -> dict[str, Any]:
    step = _read_step(folder.checkpoint) if resume else 0
    folder.trim_metrics(step)
    device = pick_device(recipe.accelerator)
    dtype = pick_dtype(recipe.precision, device)
    accumulate = recipe.batch // (recipe.micro_batch or recipe.batch)
    corrupt = _corrupt(recipe, console)
    module = SegmentationModule(segmenter, recipe, accumulate=accumulate, corrupt=corrupt)
    keep_freed_memory()
    trainer = Trainer(
        accelerator=device.type,
        devices=1,
        accumulate_grad_batches=accumulate,
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
        max_steps=recipe.steps,  # one stream of batches: Lightning counts steps, not epochs
        max_epochs=-1,
        val_check_interval=recipe.validate_every * accumulate,
        check_val_every_n_epoch=None,
        gradient_clip_val=recipe.clip,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=[JsonLinesLogger(folder.metrics), TensorBoardLogger(folder.path, name="tensorboard", version="")],
        callbacks=[Keeper(folder, partial(_save, module, folder), console)],
        default_root_dir=folder.path,
    )
    started = time.perf_counter()
    trainer.fit(
        module,
        training_loader(pairs[0], recipe, accumulate=accumulate, start=step * accumulate),
        testing_loader(pairs[1], recipe),
        ckpt_path=folder.checkpoint if resume else None,
        weights_only=True,
    )
    seconds = round(time.perf_counter() - started, 1)
    final = module.final.to(device).eval()
    figures = module.figures
    if figures is None:  # resumed after its last step
        figures = _measure(final, pairs[1], recipe, corrupt=corrupt, console=console)
    draw(final, pairs[1], recipe, folder.path / _PICTURES, autocast=partial(autocast, device, dtype))
    result = _in_words(figures, recipe) | {
        "steps": module.global_step,
        "samples": module.global_step * recipe.batch,
        "seconds_since_start_or_resume": seconds,
        "corrupt_images": sorted(corrupt.paths),
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "backbone": segmenter.backbone.name,
        "model": _WEIGHTS,
        "sha256": _save(module, folder),
    }
    write_json(folder.result, result)
    return result


def _measure(
    segmenter: Segmenter,
    pairs: Pairs,
    recipe: Segmentation,
    *,
    corrupt: CorruptImages,
    console: Console,
) -> Figures:
    device = next(segmenter.parameters()).device
    return measure(
        segmenter,
        watched(testing_loader(pairs, recipe), "measure", console),
        recipe,
        device=device,
        autocast=partial(autocast, device, pick_dtype(recipe.precision, device)),
        corrupt=corrupt,
    )


def _save(module: SegmentationModule, folder: RunFolder) -> str:
    backbone, recipe = module.final.backbone, module.recipe
    card = Card(
        architecture=f"upernet:{backbone.name}",
        num_classes=len(recipe.class_names),
        resolution=recipe.crop,
        mean=tuple(backbone.mean.flatten().tolist()),
        std=tuple(backbone.std.flatten().tolist()),
        classes=recipe.class_names,
    )
    return save_weights(folder.path / _WEIGHTS, module.final, card)


def _in_words(figures: Figures, recipe: Segmentation) -> dict[str, Any]:
    iou = {
        name: None if value is None else round(value, 3)
        for name, value in zip(recipe.class_names, figures.iou, strict=True)
    }
    return {"miou": round(figures.miou, 3), "pixel_accuracy": round(figures.pixel_accuracy, 3), "iou": iou}


def _corrupt(recipe: Segmentation, console: Console) -> CorruptImages:
    return CorruptImages(recipe.max_corrupt, partial(console.print, highlight=False, soft_wrap=True, markup=False))


def _read_step(checkpoint: Path) -> int:
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise UserError(
            f"resume: {checkpoint} cannot be read ({type(error).__name__}); start anew with --overwrite"
        ) from error
