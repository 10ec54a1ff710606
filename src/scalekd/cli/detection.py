"""`scalekd transfer detection`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalekd.cli.options import AsJson, Flags, Overwrite, RecipeName, Resume, with_recipe_flags
from scalekd.cli.running import train_or_evaluate
from scalekd.tasks.detection import GROUPS, Detection

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = {"boxes": "box AP", "masks": "mask AP"}


@with_recipe_flags(groups=GROUPS)
def detection(
    *,
    output: Annotated[Path, typer.Option(help="Folder for weights, logs, pictures and checkpoints.")],
    recipe: RecipeName = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Only measure the detector in the output folder."),
    ] = False,
    as_json: AsJson = False,
    flags: Flags,
) -> None:
    r"""Train Mask R-CNN on a student's features, and measure its average precision on boxes and masks.

    Flags are recipe keys and override the recipe. Data is in COCO's format; if no object has a mask, Faster R-CNN is
    trained on the boxes. Without a recipe, the schedule is the usual 12 epochs for COCO.

    Examples:
        scalekd transfer detection --recipe detection/maskrcnn-resnet50 \
            --backbone runs/resnet50 --data COCO --output runs/coco
        scalekd transfer detection --evaluate --output runs/coco
    """
    result = train_or_evaluate(
        "detection", Detection, output, flags, recipe=recipe, resume=resume, overwrite=overwrite, evaluate=evaluate
    )
    if result is None:
        return
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console

    console = Console()
    console.print(_by_class(result))
    console.print(_overall(result))
    typer.echo(f"detector in {output / result['detector']}, pictures in {output / 'pictures'}")


def _by_class(result: dict[str, Any]) -> Table:
    """Return a table with the AP of each class that occurs."""
    from rich.table import Table

    table = Table("class", box=None, pad_edge=False)
    measured = {column: result[kind]["per_class"] for kind, column in _COLUMNS.items() if kind in result}
    for column in measured:
        table.add_column(column, justify="right")
    for name, value in measured["box AP"].items():
        if value is not None:
            table.add_row(name, *(_shown(values[name]) for values in measured.values()))
    return table


def _overall(result: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("", *result["boxes"]["figures"], box=None, pad_edge=False)
    for kind in _COLUMNS:
        if kind in result:
            table.add_row(kind, *map(_shown, result[kind]["figures"].values()))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
