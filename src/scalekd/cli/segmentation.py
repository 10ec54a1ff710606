"""`scalekd transfer segmentation`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import AsJson, Flags, Overwrite, RecipeName, Resume, with_recipe_flags
from scalekd.cli.running import train_or_evaluate
from scalekd.tasks.segmentation import GROUPS, Segmentation


@with_recipe_flags(groups=GROUPS)
def segmentation(
    *,
    output: Annotated[Path, typer.Option(help="Folder for weights, logs, pictures and checkpoints.")],
    recipe: RecipeName = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Only measure the model in the output folder."),
    ] = False,
    as_json: AsJson = False,
    flags: Flags,
) -> None:
    r"""Train UPerNet on a student's features, and measure its mIoU.

    Flags are recipe keys and override the recipe. Label images hold one class number per pixel;
    --map-values assigns classes to other values or to colours.

    Examples:
        scalekd transfer segmentation --recipe segmentation/upernet-resnet50 \
            --backbone runs/resnet50 --data ADEChallengeData2016 --output runs/ade
        scalekd transfer segmentation --evaluate --output runs/ade
    """
    result = train_or_evaluate(
        "segmentation",
        Segmentation,
        output,
        flags,
        recipe=recipe,
        resume=resume,
        overwrite=overwrite,
        evaluate=evaluate,
    )
    if result is None:
        return
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("IoU", justify="right")
    for name, value in result["iou"].items():
        table.add_row(name, "does not occur" if value is None else f"{value:.2f}%")
    Console().print(table)
    number, total = result["miou_classes"], len(result["iou"])
    over = f"{total} classes" if number == total else f"{number} of {total} classes"
    typer.echo(
        f"mIoU {result['miou']:.2f}% over {over}, pixel accuracy {result['pixel_accuracy']:.2f}%; "
        f"pictures in {output}/pictures"
    )
