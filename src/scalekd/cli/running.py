"""Shared start of the `transfer` commands: the arguments' check. The commands print the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scalekd.cli.options import Flags
from scalekd.errors import UserError
from scalekd.recipes import load_as
from scalekd.tasks.transfer.keys import Transfer


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
    from scalekd.commands.transfer import run

    return run(task, schema, output, flags, recipe=recipe, resume=resume, overwrite=overwrite, evaluate=evaluate)
