"""`scalekd inspect`."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.recipes import load

_IMAGENET = 1_281_167


@with_recipe_flags(
    "method", "views", "tpp", "stages", "projector", "query", "heads", "stem", "stem_norm", "tail_blocks",
    "feature_share", "lean",
    "teacher_resolution", "teacher_args", "teacher_tokens", "teacher_tail", "student_maps", "student_args",
    "resolution", "batch", "micro_batch", "epochs", "optimizer", "ema", "precision",
    help_texts={
        "precision": "Autocast type of the planned run; auto is bf16, but for --device here as in distill.  "
        "[default: auto]"
    },
)  # fmt: skip
def inspect(
    teacher: Annotated[str | None, typer.Argument(help="timm name or a weights file. Default: the recipe's.")] = None,
    student: Annotated[str | None, typer.Argument(help="As --student of distill. Default: the recipe's.")] = None,
    *,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe for further settings: a shipped recipe's name or a YAML file.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes of the data. Default: the teacher's.")
    ] = None,
    hours: Annotated[bool, typer.Option("--hours", help="Show how the GPU-hours are calculated.")] = False,
    device: Annotated[
        str, typer.Option(help="Device to plan for: here (this machine), a100, h100, h200, l4, l40s, rtx4090, ...")
    ] = "here",
    peak: Annotated[
        float | None,
        typer.Option(help="Peak of the device in TFLOP/s. Default: from its data sheet, or measured here."),
    ] = None,
    utilisation: Annotated[float, typer.Option(help="Fraction of the peak that a run reaches.")] = 0.35,
    images: Annotated[int, typer.Option(help="Number of training images. Default: ImageNet-1K's.")] = _IMAGENET,
    measured: Annotated[bool, typer.Option("--measure", help="Also run and measure a few steps here.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    flags: Flags,
) -> None:
    """Show how a pair would be joined and what training it would cost: stages, projectors, FLOPs, memory, speed, hours.

    Nothing is downloaded: models are built with random weights.

    Examples:
        scalekd inspect swin_large_patch4_window7_224 resnet50
        scalekd inspect --recipe imagenet/swin_large-resnet50 --device a100 --hours
        scalekd inspect vit_tiny_patch16_224 resnet18 --batch 32 --measure
    """
    models = {key: value for key, value in (("teacher", teacher), ("student", student)) if value is not None}
    settings = load(recipe, flags | models, partial(typer.echo, err=True), lambda _recipe: images)
    from scalekd.commands.inspect import run

    run(
        settings,
        num_classes=num_classes,
        hours=hours,
        device=device,
        peak=peak,
        utilisation=utilisation,
        images=images,
        measured=measured,
        as_json=as_json,
    )
