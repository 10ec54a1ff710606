"""`scalekd distill`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.errors import UserError, printable
from scalekd.recipes import load
from scalekd.training import Group, distill_students
from scalekd.training import check as try_out
from scalekd.training import distill as run

_STUDENT = (
    "timm name, torchvision:NAME, python:module.callable (your own code), or a weights file written by scalekd. Given "
    "several times, these are trained beside each other with one teacher, each in a folder of its own in OUTPUT."
)


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
    student: Annotated[list[str] | None, typer.Option(help=_STUDENT, rich_help_panel="Student")] = None,
    flags: Flags,
) -> None:
    """Train a student, taught by a frozen vision transformer or alone.

    Flags are recipe keys and win over the recipe. The weights in OUTPUT/student.safetensors are plain timm weights.
    """
    say = partial(typer.echo, err=True)
    students = student or []
    if len(students) == 1:
        flags = flags | {"student": students[0]}
    if check:
        if resume or overwrite or output is not None:
            raise UserError("check: writes nothing; leave out --output, --resume and --overwrite")
        if len(students) > 1:
            raise UserError(f"check: tries one student at a time, not {len(students)}; give one --student")
        checked = try_out(load(recipe, flags, say))
        terms = ", ".join(f"{name} {value:.3f}" for name, value in checked["losses"].items())
        moved = f"{checked['student_parameters_moved']} of {checked['student_parameters']}"
        typer.echo(json.dumps(checked) if as_json else f"check     one step: {terms}; {moved} student parameters moved")
        return
    if output is None:
        raise UserError("output: none is given; give --output (a folder for weights, logs and checkpoints)")
    if resume and not students:
        students = Group.stored_students(output)
    group = Group(output, students)
    settings = load(group.stored_keys() if resume and recipe is None else recipe, flags, say)
    if group.students:
        results = distill_students(settings, students, output, resume=resume, overwrite=overwrite)
        typer.echo(json.dumps(results) if as_json else "\n".join(_line(output / n, r, n) for n, r in results.items()))
        return
    result = run(settings, output, resume=resume, overwrite=overwrite)
    typer.echo(json.dumps(result) if as_json else _line(output, result, "student"))


def _line(folder: Path, result: dict[str, Any], name: str) -> str:
    """A run's result for people."""
    top1 = "not measured" if result["top1"] is None else f"{result['top1']:.2f}%"
    top5 = f", top5 {result['top5']:.2f}%" if "top5" in result else ""
    return f"{name}   top1 {top1}{top5}; weights in {printable(folder / result['student'])}"
