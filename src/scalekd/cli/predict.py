"""`scalekd predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import MODEL, Flags, with_recipe_flags
from scalekd.errors import UserError
from scalekd.recipes import load

_BATCH = 32  # images at once: an answer should not wait for hundreds of images to be read


@with_recipe_flags(
    "batch", "workers", "max_pixels", "precision", "accelerator",
    told={
        "batch": f"Images at once.  [default: {_BATCH}]",
        "precision": "Autocast type; auto takes bf16 where the hardware multiplies matrices in it. Default: the run's, "
        "or auto.",
    },
)  # fmt: skip
def predict(
    model: Annotated[str, typer.Argument(help=f"{MODEL} Or an .onnx file of `scalekd export`.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Images, and folders of images (in any subfolders).")
    ],
    *,
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 5,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a timm name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line, one for each image.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image, rank, class, index, probability.")] = False,
    flags: Flags,
) -> None:
    """Name the most probable classes of images.

    Images that cannot be read are listed on standard error at the end, and the exit code is then 1; the rest is done.
    Exit code 2 is for wrong input, as everywhere. Results go to standard output, in the order of the images.

    Examples:
        scalekd predict runs/mobilenet PHOTOS
        scalekd predict runs/mobilenet a.jpg b.jpg --top 1 --csv > answers.csv
    """
    if as_json and as_csv:
        raise UserError("csv: --json and --csv exclude each other; give one of them")
    flags = {"batch": _BATCH} | flags
    load(None, flags)  # refuses wrong values before torch is imported
    from scalekd.commands.predict import run

    run(model, images, flags, top=top, weights=weights, as_json=as_json, as_csv=as_csv)
