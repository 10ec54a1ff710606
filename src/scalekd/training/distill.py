"""Runs, from a recipe to a folder with each trained student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from scalekd.recipes import Recipe
from scalekd.recipes.schema import validate
from scalekd.training.fit import fit
from scalekd.training.group import Group
from scalekd.training.logs import quieten_lightning
from scalekd.training.setup import Setup
from scalekd.training.stopping import Stop


def distill(
    recipe: Recipe,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a student as the recipe says.

    Args:
        recipe: The run's settings, `data` and `student` among them.
        output: Folder for everything the run leaves (see `RunFolder`).
        resume: Whether to go on with the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        console: Where to print; standard error by default.

    Returns:
        What `result.json` holds: accuracies, the weights' hash, time and samples.

    Raises:
        UserError: For any wrong input.
        Interrupted: If a signal stopped the run; in training, the checkpoint is written.
    """
    return _distill([recipe], Group(output), resume, overwrite, console)[0]


def distill_students(
    recipe: Recipe,
    students: Sequence[str],
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Train several students beside each other, with one forward of the teacher a batch; each as it would be alone.

    Args:
        recipe: The settings of all; its `student` is not read.
        students: Two or more, each as the recipe's `student`.
        output: Folder for a run folder each and their common checkpoint (see `Group`).
        resume: Whether to go on with the group in `output`.
        overwrite: Whether to delete what is in `output`.
        console: Where to print; standard error by default.

    Returns:
        By the name of its folder, what `result.json` of each holds.

    Raises:
        UserError: For any wrong input.
        Interrupted: If a signal stopped the runs; in training, the checkpoint is written.
    """
    group = Group(output, students)
    recipes = [recipe.model_copy(update={"student": student}) for student in students]
    return dict(zip(group.names, _distill(recipes, group, resume, overwrite, console), strict=True))


def _distill(
    recipes: list[Recipe], group: Group, resume: bool, overwrite: bool, console: Console | None
) -> list[dict[str, Any]]:
    quieten_lightning()
    if resume and recipes[0].micro_batch is None:  # what fitted when the run was started
        stored = {key: value for key, value in group.stored_keys().items() if key in ("batch", "micro_batch")}
        at_once = {"micro_batch": validate(stored, f"run: {group.runs[0].recipe}").micro_batch}
        recipes = [recipe.model_copy(update=at_once) for recipe in recipes]
    setup = Setup(recipes, group, console or Console(stderr=True))
    with Stop() as stop, group.claimed(setup.say, resume=resume):
        group.check(recipes, resume=resume, overwrite=overwrite)
        setup.build()
        setup.announce()
        # Last: what cannot start must not delete another run.
        group.prepare(setup.recipes, setup.inputs(), resume=resume)
        return fit(setup, stop, resume=resume)
