"""Shared body of the `transfer` commands: train a run, or measure an existing one. The commands print the result."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import typer

from scalekd.cli.options import Flags
from scalekd.engine.launched import launched
from scalekd.errors import UserError
from scalekd.recipes import load_as
from scalekd.tasks.transfer.keys import Transfer


class Runs(Protocol):
    """Interface of a task's module, such as `scalekd.tasks.detection.run`."""

    def train(self, recipe: Any, output: Path, *, resume: bool, overwrite: bool) -> dict[str, Any]: ...

    def evaluate(self, recipe: Any, output: Path) -> dict[str, Any]: ...


def train_or_evaluate(
    task: str,
    schema: type[Transfer],
    output: Path,
    flags: Flags,
    *,
    recipe: str | None,
    resume: bool,
    overwrite: bool,
    evaluate: bool,
) -> dict[str, Any] | None:
    """Train or measure a run of `transfer`, in these processes or in as many new ones as `devices` specifies.

    Args:
        task: Name of its package in `scalekd.tasks`.
        schema: The class of the recipe.
        output: The run folder.
        flags: Keys that the user passed; they override the recipe's.
        recipe: A shipped recipe's name or a YAML file.
        resume: Whether to resume the run in `output`.
        overwrite: Whether to delete a run that is in `output`.
        evaluate: Whether to only measure the run in `output`.

    Returns:
        The result; None in all but the first process, which is the one that prints.

    Raises:
        UserError: For any wrong input.
    """
    if evaluate and (resume or overwrite or recipe):
        raise UserError("evaluate: measures the run in the output folder; leave out --recipe, --resume and --overwrite")
    if not (evaluate or resume):  # refuses wrong values without torch; an existing run has its own keys
        load_as(schema, recipe, flags)
    from scalekd.commands.launch import launch
    from scalekd.engine.processes import joined
    from scalekd.runs.folder import RunFolder

    runs: Runs = import_module(f"scalekd.tasks.{task}.run")  # raises if it needs an extra that is not installed
    if resume:
        RunFolder(output).check_given(schema, flags)
    stored = RunFolder(output).stored_keys() if evaluate or (resume and recipe is None) else recipe
    settings = load_as(schema, stored, flags, partial(typer.echo, err=True))
    if evaluate:
        return runs.evaluate(settings, output)
    if settings.devices > 1 and not launched():
        raise SystemExit(launch(settings.devices, sys.argv[1:]))
    with joined() as processes:
        result = runs.train(settings, output, resume=resume, overwrite=overwrite)
        return result if processes.first else None
