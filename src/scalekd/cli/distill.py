"""`scalekd distill`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from scalekd.cli.options import AsJson, Flags, Overwrite, RecipeName, Resume, with_recipe_flags
from scalekd.errors import UserError
from scalekd.recipes import load

_STUDENT = (
    "timm name, torchvision:NAME, python:module.callable (your own code), or a weights file written by scalekd. If "
    "passed several times, the students are trained concurrently with one teacher, each in its own folder in OUTPUT."
)


_FIRST = (
    "method", "lean", "teacher", "cache", "student_pretrained", "data", "val_share", "multi_label", "resolution",
    "epochs", "batch", "lr",
)  # fmt: skip


@with_recipe_flags(first=_FIRST)
def distill(
    *,
    output: Annotated[Path | None, typer.Option(help="Folder for weights, logs and checkpoints.")] = None,
    recipe: RecipeName = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only try the recipe: random weights, one step on 2 generated images.")
    ] = False,
    pilot: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            min=0,
            help="Only compare a few settings, in short runs on a part of the training images that take about this "
            "many minutes together: learning rates, slower projectors, the lean form. Prints the flags to take.",
        ),
    ] = None,
    resume: Resume = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Start a run, or resume the run in the output folder; of a finished run, only print the result. For "
            "schedulers that run the same command again.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    student: Annotated[list[str] | None, typer.Option(help=_STUDENT, rich_help_panel="Student")] = None,
    flags: Flags,
) -> None:
    r"""Train a student, with a frozen vision transformer as its teacher or on labels only.

    Flags are recipe keys (docs/keys.md) and override the recipe. The weights in OUTPUT/student.safetensors are plain
    timm weights. CAP is the cross attention projector from a student's map to tokens like the teacher's, DFM the
    dual-view feature mimicking that compares them, TPP the teacher parameter perception: a path through the teacher's
    own last stage (its tail). docs/method.md has the equations.

    Examples:
        scalekd distill --teacher TEACHER --student vit_tiny_patch16_224 \
            --data DATA --epochs 50 --output runs/a
        scalekd distill --recipe imagenette --method kd --data DATA --output runs/kd
        scalekd distill --method none --student resnet18 --data DATA --output runs/b
        scalekd distill --teacher TEACHER --student resnet18 --data DATA --pilot 20
        scalekd distill --resume --output runs/a
        scalekd distill --resume --epochs 100 --output runs/a    # more epochs
        tensorboard --logdir runs    # watch all of them
    """
    students = student or []
    if len(students) == 1:
        flags = flags | {"student": students[0]}
    if check or pilot is not None:
        mode = "check" if check else "pilot"
        if check and pilot is not None:
            raise UserError("check: and --pilot are two ways to try a recipe; pass one of them")
        if resume or auto_resume or overwrite or output is not None:
            raise UserError(f"{mode}: writes nothing; leave out --output, --resume, --auto-resume and --overwrite")
        if len(students) > 1:
            raise UserError(f"{mode}: tries one student at a time, not {len(students)}; pass one --student")
        load(recipe, flags)  # refuses wrong values without torch
        from scalekd.commands.distill import dry_run_command, pilot_command
        from scalekd.tasks.distill.inputs import count_images

        settings = load(recipe, flags, partial(typer.echo, err=True), None if check else count_images)

        if pilot is None:
            dry_run_command(settings, as_json=as_json)
        else:
            pilot_command(settings, pilot, as_json=as_json)
        return
    if output is None:
        raise UserError("output: none is given; pass --output (a folder for weights, logs and checkpoints)")
    if auto_resume and (resume or overwrite):
        raise UserError("auto-resume: decides by itself; leave out --resume and --overwrite")
    if not (resume or auto_resume):  # refuses wrong values without torch; a resumed run has its own keys
        load(recipe, flags)
    from scalekd.commands.distill import run

    run(output, recipe, flags, students, resume=resume, auto_resume=auto_resume, overwrite=overwrite, as_json=as_json)
