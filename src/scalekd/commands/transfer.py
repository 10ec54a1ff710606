"""`scalekd transfer`: train or measure a run of any task. The tasks' own commands print the result."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import typer
from rich.console import Console

from scalekd.commands.launch import launch
from scalekd.engine.launcher import launched
from scalekd.engine.processes import joined
from scalekd.recipes import load_as
from scalekd.runs.folder import RunFolder
from scalekd.tasks.transfer.keys import Transfer


class Runs(Protocol):
    """Interface of a task's module, such as `scalekd.tasks.detection.run`."""

    def train(
        self,
        recipe: Any,
        output: Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        console: Console | None = None,
    ) -> dict[str, Any]:
        """Train a model on a student's maps according to the recipe, and measure it.

        Args:
            recipe: The run's settings, `backbone` and `data` among them.
            output: The run folder (see `RunFolder`).
            resume: Whether to resume the run in `output`.
            overwrite: Whether to delete a run that is in `output`.
            console: Where to print; standard error by default.

        Returns:
            The content of `result.json`.

        Raises:
            UserError: For any wrong input.
            Interrupted: If a signal stopped the run; in training, the checkpoint is written.
        """

    def evaluate(self, recipe: Any, output: Path, *, console: Console | None = None) -> dict[str, Any]:
        """Measure the model of a run, and draw its pictures again.

        Args:
            recipe: The run's settings; the data and the keys of evaluation may differ from those of the training.
            output: The run folder.
            console: Where the progress bar is shown; standard error by default.

        Returns:
            The figures, as in `result.json`.

        Raises:
            UserError: If there is no trained model, or the data does not match it or the recipe.
        """


def run(
    task: str,
    schema: type[Transfer],
    output: Path,
    flags: dict[str, Any],
    *,
    recipe: str | None,
    resume: bool,
    overwrite: bool,
    evaluate: bool,
) -> dict[str, Any] | None:
    """Train or measure a run; see `scalekd.cli.running.train_or_evaluate` for the arguments and the result."""
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
