"""`scalekd distill`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scalekd.cli.launch import launch
from scalekd.cli.options import Flags, with_recipe_flags
from scalekd.engine.processes import Processes, joined, launched, restarted
from scalekd.errors import UserError, printable
from scalekd.recipes import Recipe, load
from scalekd.report.live import live_figures
from scalekd.runs.group import RunGroup
from scalekd.tasks.distill import check as try_out
from scalekd.tasks.distill import distill as run
from scalekd.tasks.distill import distill_students

_say = partial(typer.echo, err=True)
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
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in the output folder.")] = False,
    auto_resume: Annotated[
        bool,
        typer.Option(
            "--auto-resume",
            help="Start, or go on with the run in the output folder; a finished one only gives its result. For "
            "schedulers that run the same command again.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a run in the output folder first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    student: Annotated[list[str] | None, typer.Option(help=_STUDENT, rich_help_panel="Student")] = None,
    flags: Flags,
) -> None:
    r"""Train a student, taught by a frozen vision transformer or alone.

    Flags are recipe keys and win over the recipe. The weights in OUTPUT/student.safetensors are plain timm weights.
    CAP is the cross attention projector from a student's map to tokens like the teacher's, DFM the dual-view feature
    mimicking that compares them, TPP the teacher parameter perception: a path through the teacher's own last stage (its
    tail). docs/method.md has the equations.

    Examples:
        scalekd distill --teacher TEACHER --student vit_tiny_patch16_224 \
            --data DATA --epochs 50 --output runs/a
        scalekd distill --recipe imagenette --method kd --data DATA --output runs/kd
        scalekd distill --method none --student resnet18 --data DATA --output runs/b
        scalekd distill --resume --output runs/a
        tensorboard --logdir runs    # watch all of them
    """
    students = student or []
    if len(students) == 1:
        flags = flags | {"student": students[0]}
    if check:
        if resume or auto_resume or overwrite or output is not None:
            raise UserError("check: writes nothing; leave out --output, --resume, --auto-resume and --overwrite")
        _try_out(recipe, flags, students, as_json)
        return
    if output is None:
        raise UserError("output: none is given; give --output (a folder for weights, logs and checkpoints)")
    if auto_resume and (resume or overwrite):
        raise UserError("auto-resume: decides by itself; leave out --resume and --overwrite")
    with joined() as processes:
        found = processes.first_says(lambda: _found(output)) if auto_resume or restarted() else None
        if found == "finished" and not overwrite:
            results = processes.first_says(lambda: _results(recipe, flags, students, output))
        else:
            resume, overwrite = resume or found == "unfinished", overwrite and found != "unfinished"
            results = _train(processes, recipe, flags, students, output, resume=resume, overwrite=overwrite)
        if not processes.first:
            return
    if as_json:
        typer.echo(json.dumps(results.get("", results)))
    else:
        typer.echo("\n".join(_line(output / name, result, name or "student") for name, result in results.items()))


def _try_out(recipe: str | None, flags: Flags, students: list[str], as_json: bool) -> None:
    if len(students) > 1:
        raise UserError(f"check: tries one student at a time, not {len(students)}; give one --student")
    checked = try_out(load(recipe, flags, _say))
    terms = ", ".join(f"{name} {value:.3f}" for name, value in checked["losses"].items())
    moved = f"{checked['student_parameters_moved']} of {checked['student_parameters']}"
    typer.echo(json.dumps(checked) if as_json else f"check     one step: {terms}; {moved} student parameters moved")


def _train(
    processes: Processes,
    recipe: str | None,
    flags: Flags,
    students: list[str],
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
) -> dict[str, dict[str, Any]]:
    """Train in these processes, or in those that `devices` asks for; results by folder, '' for a single run's."""
    if resume and not students:
        students = processes.first_says(lambda: RunGroup.stored_students(output))
    group = RunGroup(output, students)
    if resume:
        processes.first_says(lambda: _check_given(group, flags))
    stored = processes.first_says(group.stored_keys) if resume and recipe is None else recipe
    settings = load(stored, flags, _say if processes.first else lambda _line: None)
    if settings.devices > 1 and not launched():
        raise SystemExit(launch(settings.devices, sys.argv[1:]))
    if group.students:
        return distill_students(settings, students, output, resume=resume, overwrite=overwrite, live=live_figures)
    return {"": run(settings, output, resume=resume, overwrite=overwrite, live=live_figures)}


def _check_given(group: RunGroup, flags: Flags) -> None:
    """Make sure that the flags are those of the runs that are to go on; the first one's stand for all."""
    group.stored_keys()  # of these students?
    group.runs[0].check_given(Recipe, flags)


def _found(output: Path) -> str | None:
    """What is in a folder: a finished run or group, an unfinished one, or neither."""
    group = RunGroup(output, RunGroup.stored_students(output))
    if all(run.finished for run in group.runs):
        return "finished"
    return "unfinished" if group.started else None


def _results(recipe: str | None, flags: Flags, students: list[str], output: Path) -> dict[str, dict[str, Any]]:
    """The results of a finished run, or of each of a group, by the folder's name, if it is the one that is wanted."""
    group = RunGroup(output, students or RunGroup.stored_students(output))
    _check_given(group, flags)
    stored = group.stored_keys()
    settings = load(stored if recipe is None else recipe, flags, _say)
    if settings.micro_batch is None:  # it was what fitted
        settings = settings.model_copy(update={"micro_batch": stored.get("micro_batch")})
    wanted = [settings.model_copy(update={"student": student}) for student in group.students] or [settings]
    for folder, its in zip(group.runs, wanted, strict=True):
        folder.check_same(its)
    return dict(zip(group.names, [run.stored_result() for run in group.runs], strict=True))


def _line(folder: Path, result: dict[str, Any], name: str) -> str:
    """A run's result for people."""
    top1 = "not measured" if result["top1"] is None else f"{result['top1']:.2f}%"
    top5 = f", top5 {result['top5']:.2f}%" if "top5" in result else ""
    return f"{name}   top1 {top1}{top5}; weights in {printable(folder / result['student'])}"
