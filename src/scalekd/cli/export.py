"""`scalekd export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from scalekd.cli.options import MODEL, Flags, with_recipe_flags
from scalekd.errors import UserError
from scalekd.recipes import DATA_KEYS, load

_INT8_OPSET = 13  # the first whose DequantizeLinear takes a scale for each channel


@with_recipe_flags(
    *DATA_KEYS, "workers", "max_corrupt", "max_pixels", "data_patience",
    told={
        "data": "Images that the export is checked on, as --data of distill. Default: the run's, or generated ones.",
        "train_split": "--int8: name of the split that it is calibrated on. Default: the run's, or train.",
        "val_split": "Name of the split that it is checked on. Default: the run's, or val.",
        "workers": "--int8: processes that load images.  [default: 2]",
        "max_corrupt": "--int8: unreadable images to skip before it stops. Default: the run's, or 10.",
        "max_pixels": "Pixels an image may have; larger ones count as unreadable. Default: the run's, or 178956970.",
        "data_patience": "Seconds to wait for images whose folder is gone, as a network disk may be. Default: the "
        "run's, or 60.",
    },
)  # fmt: skip
def export(
    model: Annotated[str, typer.Argument(help=MODEL)],
    *,
    format_: Annotated[
        Literal["timm", "onnx", "torch-export"],
        typer.Option(
            "--format",
            help="timm: a folder for timm and the hub. onnx: a file, for onnxruntime say. torch-export: a .pt2 file.",
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="The folder or file to write. Default: in RUN/export.")] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for a timm name.")] = None,
    opset: Annotated[int | None, typer.Option(help="onnx: version of the operators. Default: torch's choice.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also write FILE.int8.onnx, calibrated on training images.")
    ] = False,
    hub: Annotated[str | None, typer.Option("--push-to-hub", help="timm: upload it as USER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Whether a new repository of the hub is private.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    flags: Flags,
) -> None:
    """Write a model for use elsewhere, and check that it answers as before on validation images.

    ONNX and .pt2 files take RGB images in [0, 1], [batch, 3, side, side]: their normalisation is inside. The images are
    those of --data, or of the run's own data. Without any, generated ones are taken and it is said.

    Examples:
        scalekd export runs/mobilenet --format timm
        scalekd export runs/mobilenet --format onnx --int8
        scalekd export runs/mobilenet --format timm --push-to-hub USER/NAME
    """
    if format_ != "onnx" and (int8 or opset is not None):
        raise UserError(f"format: --int8 and --opset are for onnx, not {format_}")
    if int8 and opset is not None and opset < _INT8_OPSET:
        raise UserError(f"opset: --int8 needs {_INT8_OPSET} or above, where a scale a channel begins; {opset} is given")
    if hub is not None and format_ != "timm":
        raise UserError(f"push_to_hub: uploads timm folders; give --format timm, not {format_}")
    load(None, flags)  # refuses wrong values before torch is imported
    from scalekd.commands.export import run

    run(
        model,
        format_=format_,
        output=output,
        weights=weights,
        opset=opset,
        int8=int8,
        hub=hub,
        private=private,
        overwrite=overwrite,
        as_json=as_json,
        flags=flags,
    )
