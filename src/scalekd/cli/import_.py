"""`scalekd import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import ModelArgs, parse_mapping
from scalekd.errors import UserError
from scalekd.recipes import load


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth file of mmpretrain or mmcls.")],
    *,
    model: Annotated[str, typer.Option(help="timm name of the model in it, such as resnet50d.")],
    output: Annotated[Path, typer.Option(help=".safetensors file to write.")],
    model_args: ModelArgs = "{}",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Convert a checkpoint of the authors' framework to plain timm weights.

    Supported are ResNet (plain and D), Swin, ViT and DeiT, ConvNeXt, MLP-Mixer and MobileNet-V1, and whole distillers,
    whose student is converted. Names or shapes that do not match are refused. The pickle is read without running code.

    Examples:
        scalekd import resnet50.pth --model resnet50d --output resnet50d.safetensors
        scalekd evaluate resnet50d --weights resnet50d.safetensors --data IMAGENET
    """
    if output.suffix != ".safetensors":
        raise UserError(f"output: {output} is not a .safetensors file; weights are written in that format only")
    if output.exists() and not overwrite:
        raise UserError(f"output: {output} exists; add --overwrite to replace it")
    arguments = load(None, {"student_args": parse_mapping("model_args", model_args)}).student_args
    from scalekd.commands.import_ import run

    run(checkpoint, model, output, arguments)
