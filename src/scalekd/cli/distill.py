"""`scalekd distill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.recipes import load
from scalekd.training import RunFolder
from scalekd.training import distill as run


@with_recipe_flags()
def distill(
    output: Annotated[Path, typer.Option(help="Folder for weights, logs and checkpoints.")],
    recipe: Annotated[str | None, typer.Option(help="A shipped recipe's name or a YAML file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a run in the output folder first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    *,
    flags: Flags,
) -> None:
    """Train a student, taught by a frozen vision transformer or alone.

    Flags are recipe keys and win over the recipe. The weights in OUTPUT/student.safetensors are plain timm weights.
    """
    stored = RunFolder(output).stored_keys() if resume and recipe is None else {}
    settings = load(recipe, stored | flags)
    result = run(settings, output, resume=resume, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(result))
        return
    top5 = f", top5 {result['top5']:.2f}%" if "top5" in result else ""
    typer.echo(f"student   top1 {result['top1']:.2f}%{top5}; plain timm weights in {output / result['student']}")
