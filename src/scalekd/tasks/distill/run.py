"""Runs a distillation: from a recipe to a run folder with the trained student, or one folder per student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scalekd.engine.context import run_context
from scalekd.engine.processes import Processes
from scalekd.recipes import Recipe
from scalekd.recipes.schema import validate
from scalekd.runs.folder import cut_freely
from scalekd.runs.group import RunGroup
from scalekd.runs.services import check_installed
from scalekd.tasks.distill.build import with_files
from scalekd.tasks.distill.describing import describe_run
from scalekd.tasks.distill.fit import fit
from scalekd.tasks.distill.given import Given
from scalekd.tasks.distill.inputs import check_output
from scalekd.tasks.distill.live import Live
from scalekd.tasks.distill.preflight import check_cache, check_inputs, check_teacher, check_training
from scalekd.tasks.distill.setup import build_run
from scalekd.tasks.distill.starting_point import describe_starting_points


def distill(
    recipe: Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    live: Live | None = None,
    resume_with: str | None = None,
    given: Given | None = None,
) -> dict[str, Any]:
    """Train a student according to the recipe.

    Args:
        recipe: The run's settings, `data` and `student` among them.
        output: The run folder (see `RunFolder`).
        resume: Whether to resume the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.
        live: Creates pictures for TensorBoard at each validation, such as `scalekd.report.live.live_figures`.
        resume_with: What resumes the run, for the message when it is stopped. Default: the command.
        given: Objects in place of what the recipe names.

    Returns:
        The content of `result.json`: accuracies, the weights' hash, time, energy and samples.

    Raises:
        UserError: For any wrong input.
        Interrupted: If a signal stopped the run; in training, the checkpoint is written.
    """
    group = RunGroup(output)
    (result,) = _distill(
        [recipe],
        group,
        resume=resume,
        overwrite=overwrite,
        console=console,
        live=live,
        resume_with=resume_with,
        given=given,
    )
    return result


def distill_students(
    recipe: Recipe,
    students: Sequence[str],
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    live: Live | None = None,
) -> dict[str, dict[str, Any]]:
    """Train several students concurrently, with one forward of the teacher per batch; each as if it were trained alone.

    Args:
        recipe: The settings of all students; its `student` is ignored.
        students: Two or more, each as the recipe's `student`.
        output: Folder that contains a run folder per student and the common checkpoint (see `RunGroup`).
        resume: As in `distill`, for all students.
        overwrite: As in `distill`, for all students.
        console: As in `distill`.
        live: As in `distill`.

    Returns:
        The content of each `result.json`, by the name of its run folder.

    Raises:
        UserError: For any wrong input.
        Interrupted: If a signal stopped the runs; in training, the checkpoint is written.
    """
    group = RunGroup(output, students)
    recipes = [recipe.model_copy(update={"student": student}) for student in students]
    results = _distill(recipes, group, resume=resume, overwrite=overwrite, console=console, live=live)
    return dict(zip(group.names, results, strict=True))


def _distill(
    recipes: list[Recipe],
    group: RunGroup,
    *,
    resume: bool,
    overwrite: bool,
    console: Console | None,
    live: Live | None,
    resume_with: str | None = None,
    given: Given | None = None,
) -> list[dict[str, Any]]:
    """Train the students of a group, or the only one, and return their results; see `distill` for the arguments."""
    check_output(recipes[0], group.path)
    check_installed(recipes[0].logger)
    recipes = [with_files(recipe) for recipe in recipes]
    with run_context(group, recipes[0].devices, resume=resume, console=console) as context:
        processes, say = context.processes, context.say
        if resume and recipes[0].micro_batch is None:
            at_once = {"micro_batch": processes.from_first(lambda: _stored_micro_batch(group, recipes[0], processes))}
            recipes = [recipe.model_copy(update=at_once) for recipe in recipes]
        processes.from_first(lambda: group.check(recipes, resume=resume, overwrite=overwrite))
        if resume and recipes[0].cache is not None and recipes[0].augmentation_epochs is None:
            views = {"augmentation_epochs": processes.from_first(lambda: _stored_views(group, recipes[0]))}
            recipes = [recipe.model_copy(update=views) for recipe in recipes]
        run = build_run(recipes, context, given or Given())
        for line in (*check_training(run), *describe_run(run)):
            say(line)
        for line in check_cache(run):
            say(line)
        teacher_accuracy = check_teacher(run)
        if teacher_accuracy is not None:
            say(f"teacher   {teacher_accuracy.metric} {teacher_accuracy.main:.2f}% on the validation images")
        for line in describe_starting_points(run, teacher_accuracy):
            say(line)
        inputs = check_inputs(run)
        if resume and processes.from_first(lambda: context.folder.continues(run.recipe)):
            processes.from_first(lambda: bool(group.checkpoints.newest(say)))  # raises before the result is deleted
            say(f"resume    for {run.recipe.epochs} epochs in all; the learning rate follows their schedule")
        # Last, so that a run that cannot start does not delete another.
        processes.from_first(lambda: group.prepare(run.recipes, inputs, resume=resume))
        if resume and (packages := processes.from_first(context.folder.changed_packages)):
            say(f"warning: other packages than at the start, so figures may differ: {', '.join(packages)}")
        return fit(run, teacher_accuracy, live, resume_with)


def _stored_views(group: RunGroup, recipe: Recipe) -> int | None:
    """Return the views of a run from a cache that continues for more epochs, which repeat; None if it does not."""
    folder = group.runs[0]
    return int(folder.stored_keys()["epochs"]) if folder.is_longer(recipe) else None


def _stored_micro_batch(group: RunGroup, recipe: Recipe, processes: Processes) -> int | None:
    """Return the micro-batch of the stored recipe; None if it no longer divides the batch and may be chosen again."""
    keys = {key: value for key, value in group.stored_keys().items() if key in ("batch", "micro_batch")}
    stored = validate(Recipe, keys, f"run: {group.runs[0].recipe}").micro_batch
    return None if stored is None or (cut_freely(recipe) and recipe.batch % (stored * processes.count)) else stored
