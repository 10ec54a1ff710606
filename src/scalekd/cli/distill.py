"""`scalekd distill`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.errors import UserError
from scalekd.recipes import load
from scalekd.training import RunFolder
from scalekd.training import check as try_out
from scalekd.training import distill as run


@with_recipe_flags()
def distill(
    *,
    output: Annotated[Path | None, typer.Option(help="Folder for weights, logs and checkpoints.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A shipped recipe's name or a YAML file.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only try it out: random weights, one step on 2 generated images.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a run in the output folder first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    flags: Flags,
) -> None:
    """Train a student, taught by a frozen vision transformer or alone.

    Flags are recipe keys and win over the recipe. The weights in OUTPUT/student.safetensors are plain timm weights.
    """
    say = partial(typer.echo, err=True)
    if check:
        if resume or overwrite or output is not None:
            raise UserError("check: writes nothing; leave out --output, --resume and --overwrite")
        checked = try_out(load(recipe, flags, say))
        terms = ", ".join(f"{name} {value:.3f}" for name, value in checked["losses"].items())
        moved = f"{checked['student_parameters_moved']} of {checked['student_parameters']}"
        typer.echo(json.dumps(checked) if as_json else f"check     one step: {terms}; {moved} student parameters moved")
        return
    if output is None:
        raise UserError("output: none is given; give --output (a folder for weights, logs and checkpoints)")
    stored = RunFolder(output).stored_keys() if resume and recipe is None else None
    settings = load(stored or recipe, flags, say)
    result = run(settings, output, resume=resume, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(result))
        return
    top1 = "not measured" if result["top1"] is None else f"{result['top1']:.2f}%"
    top5 = f", top5 {result['top5']:.2f}%" if "top5" in result else ""
    typer.echo(f"student   top1 {top1}{top5}; weights in {output / result['student']}")
