"""`scalekd export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scalekd.cli.options import MODEL, AsJson, Flags, Weights, with_recipe_flags
from scalekd.recipes import DATA_KEYS, load
from scalekd.recipes.command_options import check_format


@with_recipe_flags(
    *DATA_KEYS, "workers", "max_corrupt", "max_pixels", "data_patience",
    help_texts={
        "data": "Images on which the export is checked, as --data of distill. Default: the run's, or generated ones.",
        "train_split": "--int8: name of the split for calibration. Default: the run's, or train.",
        "val_split": "Name of the split for the check. Default: the run's, or val.",
        "workers": "--int8: number of processes that load images.  [default: 2]",
        "max_corrupt": "--int8: number of unreadable images to skip before it stops. Default: the run's, or 10.",
        "max_pixels": "Largest number of pixels of an image; larger images count as unreadable. Default: the run's, or "
        "178956970.",
        "data_patience": "Seconds to wait if the folder of the images disappears (a network disk, for example). "
        "Default: the run's, or 60.",
    },
)  # fmt: skip
def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    *,
    format_: Annotated[
        Literal["timm", "onnx", "torch-export"],
        typer.Option(
            "--format",
            help="timm: a folder for timm and the hub. onnx: a file for onnxruntime, say. torch-export: a .pt2 file.",
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Folder or file to write. Default: in RUN/export.")] = None,
    weights: Weights = None,
    opset: Annotated[int | None, typer.Option(help="onnx: opset version. Default: torch's choice.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also write FILE.int8.onnx, calibrated on training images.")
    ] = False,
    input_: Annotated[
        Literal["float", "uint8"],
        typer.Option(
            "--input",
            help="onnx: what the file takes. float: cropped images in [0, 1]. uint8: decoded RGB images of any size, "
            "[batch, height, width, 3]; resizing and cropping are in the file.",
        ),
    ] = "float",
    hub: Annotated[str | None, typer.Option("--push-to-hub", help="timm: upload the folder as USER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository on the hub private.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    as_json: AsJson = False,
    flags: Flags,
) -> None:
    """Write a model in another format, and check on validation images that its answers are the same.

    ONNX and .pt2 files take RGB images in [0, 1], [batch, 3, side, side] (or, with --input uint8, decoded ones): they
    include the normalisation. The images for the check are those of --data or of the run; without either, generated
    images are used, and this is reported.

    Examples:
        scalekd export runs/mobilenet --format timm
        scalekd export runs/mobilenet --format onnx --int8
        scalekd export runs/mobilenet --format onnx --input uint8 --overwrite
        scalekd export runs/mobilenet --format timm --push-to-hub USER/NAME
    """
    check_format(format_, int8=int8, opset=opset, hub=hub, pixels=input_ == "uint8")
    load(None, flags)  # refuses wrong values before torch is imported
    from scalekd.commands.export import run

    run(
        model,
        format_=format_,
        output=output,
        weights=weights,
        opset=opset,
        int8=int8,
        pixels=input_ == "uint8",
        hub=hub,
        private=private,
        overwrite=overwrite,
        as_json=as_json,
        flags=flags,
    )
