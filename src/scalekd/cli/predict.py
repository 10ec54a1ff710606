"""`scalekd predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import MODEL, Flags, Weights, with_recipe_flags
from scalekd.errors import UserError
from scalekd.recipes import load

_BATCH = 32  # a small batch: the first answers should not wait until hundreds of images are read


@with_recipe_flags(
    "batch", "workers", "max_pixels", "precision", "accelerator",
    help_texts={
        "batch": f"Number of images at once.  [default: {_BATCH}]",
        "precision": "Autocast type; auto uses bf16 if the hardware multiplies matrices in it. Default: the run's, "
        "or auto.",
    },
)  # fmt: skip
def predict(
    model: Annotated[str, typer.Argument(help=f"{MODEL} Or an .onnx file from `scalekd export`.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Images, and folders of images (in any subfolders).")
    ],
    *,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of classes to print for each image, at most. Default: 5, or all with --threshold."
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Print only classes of this probability or more, such as 0.5.")
    ] = None,
    weights: Weights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image, one per line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image, rank, class, index, probability.")] = False,
    flags: Flags,
) -> None:
    """Print the most probable classes of images.

    Of a model with several labels per image, each class has a probability of its own (add --threshold 0.5).

    Results go to standard output, in the order of the images. Images that cannot be read are skipped and listed on
    standard error at the end, and the exit code is then 1. Exit code 2 means wrong input, as for all commands.

    Examples:
        scalekd predict runs/mobilenet PHOTOS
        scalekd predict runs/mobilenet a.jpg b.jpg --top 1 --csv > answers.csv
    """
    if as_json and as_csv:
        raise UserError("csv: --json and --csv exclude each other; pass one of them")
    flags = {"batch": _BATCH} | flags
    load(None, flags)  # refuses wrong values before torch is imported
    from scalekd.commands.predict import run

    run(model, images, flags, top=top, threshold=threshold, weights=weights, as_json=as_json, as_csv=as_csv)
