"""Runs, from a recipe to a folder with each trained student."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from scalekd.engine.launched import launched
from scalekd.engine.optimisation import quieten_timm
from scalekd.engine.processes import Processes, joined
from scalekd.engine.signals import Stop
from scalekd.errors import UserError
from scalekd.recipes import Recipe
from scalekd.recipes.schema import validate
from scalekd.runs.folder import cut_freely
from scalekd.runs.group import Group
from scalekd.tasks.distill.build import with_files
from scalekd.tasks.distill.fit import fit
from scalekd.tasks.distill.inputs import check_output
from scalekd.tasks.distill.live import Live
from scalekd.tasks.distill.setup import Setup


def distill(
    recipe: Recipe,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    live: Live | None = None,
) -> dict[str, Any]:
    """Train a student as the recipe says.

    Args:
        recipe: The run's settings, `data` and `student` among them.
        output: Folder for everything the run leaves (see `RunFolder`).
        resume: Whether to resume the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.
        live: What shows more than figures in TensorBoard at each validation, as `scalekd.report.live.live_figures`.

    Returns:
        What `result.json` holds: accuracies, the weights' hash, time, energy and samples.

    Raises:
        UserError: For any wrong input.
        Interrupted: If a signal stopped the run; in training, the checkpoint is written.
    """
    (result,) = _distill([recipe], Group(output), resume=resume, overwrite=overwrite, console=console, live=live)
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
    """Train several students beside each other, with one forward of the teacher a batch; each as it would be alone.

    Args:
        recipe: The settings of all; its `student` is not read.
        students: Two or more, each as the recipe's `student`.
        output: Folder for a run folder each and their common checkpoint (see `Group`).
        resume: Whether to resume the group in `output`.
        overwrite: Whether to delete what is in `output`.
        console: Where to print; standard error by default.
        live: What shows more than figures in TensorBoard at each validation, as `scalekd.report.live.live_figures`.

    Returns:
        By the name of its folder, what `result.json` of each holds.

    Raises:
        UserError: For any wrong input.
        Interrupted: If a signal stopped the runs; in training, the checkpoint is written.
    """
    group = Group(output, students)
    recipes = [recipe.model_copy(update={"student": student}) for student in students]
    results = _distill(recipes, group, resume=resume, overwrite=overwrite, console=console, live=live)
    return dict(zip(group.names, results, strict=True))


def _distill(
    recipes: list[Recipe],
    group: Group,
    *,
    resume: bool,
    overwrite: bool,
    console: Console | None,
    live: Live | None,
) -> list[dict[str, Any]]:
    quieten_timm()
    check_output(recipes[0], group.path)
    recipes = [with_files(recipe) for recipe in recipes]
    if recipes[0].devices > 1 and not launched():
        raise UserError(f"devices: {recipes[0].devices} need as many processes; start them with torchrun")
    with Stop() as stop, joined() as processes, ExitStack() as stack:
        if resume and recipes[0].micro_batch is None:
            at_once = {"micro_batch": processes.first_says(lambda: _stored_micro_batch(group, recipes[0], processes))}
            recipes = [recipe.model_copy(update=at_once) for recipe in recipes]
        console = (console or Console(stderr=True)) if processes.first else Console(quiet=True)
        setup = Setup(recipes, group, console, processes)
        if processes.first:
            stack.enter_context(group.claimed(setup.say, resume=resume))
        processes.first_says(lambda: group.check(recipes, resume=resume, overwrite=overwrite))
        setup.build()
        setup.try_training()
        setup.announce()
        inputs = setup.inputs()
        # Last: what cannot start must not delete another run.
        processes.first_says(lambda: group.prepare(setup.recipes, inputs, resume=resume))
        if resume and (packages := processes.first_says(group.runs[0].changed_packages)):
            setup.say(f"warning: other packages than at the start, so figures may differ: {', '.join(packages)}")
        return fit(setup, stop, resume=resume, live=live)


def _stored_micro_batch(group: Group, recipe: Recipe, processes: Processes) -> int | None:
    """What fitted when the run was started; None to look anew where it bears on nothing and no longer fits."""
    keys = {key: value for key, value in group.stored_keys().items() if key in ("batch", "micro_batch")}
    stored = validate(Recipe, keys, f"run: {group.runs[0].recipe}").micro_batch
    return None if stored is None or (cut_freely(recipe) and recipe.batch % (stored * processes.count)) else stored
