"""`scalekd distill`: train, resume or try out, and print the result."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from scalekd.commands.launch import launch
from scalekd.engine.launcher import launched, restarted
from scalekd.engine.processes import Processes, joined
from scalekd.errors import UserError, printable
from scalekd.evaluation import main_metric
from scalekd.progress import plain_lines
from scalekd.recipes import Recipe, load, load_resumed
from scalekd.report.live import live_figures
from scalekd.report.verdict import beside_teacher
from scalekd.runs.group import RunGroup
from scalekd.tasks.distill import Pilot, distill, distill_students, dry_run, run_pilot
from scalekd.tasks.distill.inputs import count_images
from scalekd.tasks.distill.no_learning import ENOUGH_STEPS

_say = partial(typer.echo, err=True)


def run(
    output: Path,
    recipe: str | None,
    flags: dict[str, Any],
    students: list[str],
    *,
    resume: bool,
    auto_resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train and print each result; see the command for the arguments."""
    with joined() as processes:
        found = processes.from_first(lambda: _found(output)) if auto_resume or restarted() else None
        if found == "finished" and not overwrite:
            results = processes.from_first(lambda: _results(recipe, flags, students, output))
        else:
            resume, overwrite = resume or found == "unfinished", overwrite and found != "unfinished"
            results = _train(
                processes,
                recipe,
                flags,
                students,
                output,
                resume=resume,
                overwrite=overwrite,
                may_be_longer=not auto_resume,
            )
        if not processes.first:
            return
    if as_json:
        typer.echo(json.dumps(results.get("", results)))
    else:
        typer.echo("\n".join(_line(output / name, result, name or "student") for name, result in results.items()))
        for result in results.values():
            metric = main_metric(result)
            accuracy, teacher = result[metric], result.get(f"teacher_{metric}")
            if accuracy is not None and teacher is not None and (advice := beside_teacher(accuracy, teacher)):
                _say(f"note      {advice}")


def dry_run_command(settings: Recipe, *, as_json: bool) -> None:
    """Take one step with the recipe's pair on generated images, and print its losses."""
    checked = dry_run(settings)
    terms = ", ".join(f"{name} {value:.3f}" for name, value in checked["losses"].items())
    moved = f"{checked['student_parameters_moved']} of {checked['student_parameters']}"
    typer.echo(json.dumps(checked) if as_json else f"check     one step: {terms}; {moved} student parameters changed")


def pilot_command(settings: Recipe, minutes: float, *, as_json: bool) -> None:
    """Compare a few settings of the recipe in short runs; print a table, and the flags of the best."""
    found = run_pilot(settings, minutes, plain_lines())
    flags = _as_flags(found.best.keys)
    if as_json:
        typer.echo(json.dumps(asdict(found) | {"best": found.best.keys, "clear": found.clear, "flags": flags}))
        return
    table = Table()
    for column in ("setting", "top1", "time, first = 1"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for trial in found.trials:
        top1 = "failed" if trial.top1 is None else f"{trial.top1:.1f} +- {found.error(trial):.1f}"
        time = f"{trial.seconds / found.trials[0].seconds:.2f}" if trial.seconds and found.trials[0].seconds else ""
        table.add_row(_as_flags(trial.keys), top1, time)
    Console().print(table)
    typer.echo(_pilot_advice(found, flags))


def _as_flags(keys: dict[str, Any]) -> str:
    """Format recipe keys as they would be typed."""
    flags = ((f"--{name.replace('_', '-')}", value) for name, value in keys.items())
    return " ".join(flag if value is True else f"{flag} {value:g}" for flag, value in flags)


def _pilot_advice(found: Pilot, flags: str) -> str:
    """Say which flags to take, and how far the figures support it."""
    lines = [f"best      {flags}"]
    if not found.clear:
        lines.append("note      the two best differ by less than their errors; a longer pilot says more")
    if found.steps < ENOUGH_STEPS:
        lines.append(f"note      {found.steps} steps a run are few: this says little about a long run")
    rates, best = [trial.keys["lr"] for trial in found.trials], found.best.keys["lr"]
    if best in (min(rates), max(rates)):
        lines.append(f"note      {best:g} is at the end of the range; repeat the pilot with --lr {best:g}")
    return "\n".join(lines)


def _train(
    processes: Processes,
    recipe: str | None,
    flags: dict[str, Any],
    students: list[str],
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    may_be_longer: bool,
) -> dict[str, dict[str, Any]]:
    """Train in these processes, or in as many as `devices` specifies; return results by folder, '' for a single run."""
    if resume and not students:
        students = processes.from_first(lambda: RunGroup.stored_students(output))
    group = RunGroup(output, students)
    if resume:
        processes.from_first(lambda: _check_given(group, flags, may_be_longer=may_be_longer))
    named = {"student": students[0]} if students else {}  # for sizes that depend on whether it starts from weights
    say = _say if processes.first else lambda _line: None
    if resume:
        settings = load_resumed(recipe, processes.from_first(group.stored_keys), flags, say)
    else:
        settings = load(recipe, flags | named, say, count_images)
    if resume and not may_be_longer:  # nor may a recipe's file
        processes.from_first(lambda: _check_given(group, {"epochs": settings.epochs}))
    if settings.devices > 1 and not launched():
        raise SystemExit(launch(settings.devices, sys.argv[1:]))
    if group.students:
        return distill_students(settings, students, output, resume=resume, overwrite=overwrite, live=live_figures)
    return {"": distill(settings, output, resume=resume, overwrite=overwrite, live=live_figures)}


def _check_given(group: RunGroup, flags: dict[str, Any], *, may_be_longer: bool = False) -> None:
    """Check that the flags are those of the runs to resume; the first run is representative of all."""
    epochs, stored = str(flags.get("epochs", "")), group.stored_keys().get("epochs")
    if not may_be_longer and epochs.isdecimal() and isinstance(stored, int) and int(epochs) > stored:
        raise UserError(
            f"resume: epochs is {epochs} but the run in {group.path} was started with {stored}; "
            "--resume (not --auto-resume) continues it for more epochs"
        )
    group.stored_keys()  # raises if the group has other students
    group.runs[0].check_given(Recipe, flags, may_be_longer=may_be_longer)


def _found(output: Path) -> str | None:
    """Return whether a folder holds a "finished" or an "unfinished" run or group; None if neither."""
    group = RunGroup(output, RunGroup.stored_students(output))
    if all(run.finished for run in group.runs):
        return "finished"
    return "unfinished" if group.started else None


def _results(recipe: str | None, flags: dict[str, Any], students: list[str], output: Path) -> dict[str, dict[str, Any]]:
    """Return the results of a finished run or group by folder name, after checking that it has the same settings."""
    group = RunGroup(output, students or RunGroup.stored_students(output))
    _check_given(group, flags)
    stored = group.stored_keys()
    settings = load_resumed(recipe, stored, flags, _say)
    if settings.micro_batch is None:  # the stored one was chosen to fit in memory
        settings = settings.model_copy(update={"micro_batch": stored.get("micro_batch")})
    wanted = [settings.model_copy(update={"student": student}) for student in group.students] or [settings]
    for folder, its in zip(group.runs, wanted, strict=True):
        folder.check_same(its)
    return dict(zip(group.names, [run.stored_result() for run in group.runs], strict=True))


def _line(folder: Path, result: dict[str, Any], name: str) -> str:
    """Format a run's result, human-readable."""
    metric = main_metric(result)
    accuracy = "not measured" if result[metric] is None else f"{result[metric]:.2f}%"
    more = "".join(f", {key} {result[key]:.2f}%" for key in ("top5", "f1") if key in result)
    return f"{name}   {metric} {accuracy}{more}; weights in {printable(folder / result['student'])}"
