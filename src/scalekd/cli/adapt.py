"""`scalekd adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scalekd.cli.options import AsJson, Flags, with_recipe_flags
from scalekd.recipes import SourceKeys, load
from scalekd.recipes.command_options import ADAPT, check_mode

_TRAINING = {
    "epochs": "finetune: passes over the training images.  [default: 5]",
    "lr": "finetune: peak learning rate.  [default: 5e-05]",
    "weight_decay": "finetune: weight decay.  [default: 0.05]",
    "warmup_epochs": "finetune: epochs of linear warm-up.  [default: 1]",
    "crop_scale": "finetune: range of the random crop's area, as a share of the image.  [default: 0.4,1]",
}


@with_recipe_flags(
    "data", *SourceKeys.model_fields, "class_weights", "resolution", "crop_fraction", "teacher_weights",
    "teacher_args", "workers",
    "max_corrupt", "max_pixels", "data_patience", "batch", "seed", "precision", "accelerator", *_TRAINING,
    help_texts=_TRAINING | {
        "batch": "Number of images at once; finetune: images per optimiser step.  [default: 64]",
        "resolution": "Image side in pixels. Default: that of the weights or the architecture.",
    },
)  # fmt: skip
def adapt(
    teacher: Annotated[str, typer.Argument(help="timm name, a weights file written by scalekd, or a run's folder.")],
    *,
    output: Annotated[Path, typer.Option(help="Folder for teacher.safetensors.")],
    mode: Annotated[
        Literal["probe", "finetune"],
        typer.Option(help="probe: fit a linear head on frozen features. finetune: train the whole model."),
    ] = "probe",
    resume: Annotated[bool, typer.Option("--resume", help="Resume the fine-tuning in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the result in the output folder.")] = False,
    as_json: AsJson = False,
    flags: Flags,
) -> None:
    r"""Fit a head for your classes to a teacher, and save a file for `distill --teacher`.

    A feature-only teacher (DINO, CLIP) or one with other classes has no logits for your data; probe takes one pass
    over the images. A student that was trained without labels gets a head in the same way: pass its weights file.

    Examples:
        scalekd adapt vit_small_patch14_dinov2.lvd142m --data DATA --output runs/t
        scalekd adapt deit_small_patch16_224 --mode finetune --data DATA --output t
        scalekd distill --teacher runs/t/teacher.safetensors --student resnet18 \
            --data DATA --output runs/a
    """
    check_mode(mode, flags, resume=resume)
    defaults = ADAPT[mode]
    if not resume:  # refuses wrong values before torch is imported; a resumed run has its own keys
        load(None, defaults | flags | {"teacher": teacher})
    from scalekd.commands.adapt import run

    run(teacher, output, flags, defaults, mode=mode, resume=resume, overwrite=overwrite, as_json=as_json)
