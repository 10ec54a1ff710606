"""`scalekd adapt`: fit a head to a teacher or fine-tune it, and print its accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from scalekd.errors import UserError, printable
from scalekd.evaluation import main_metric
from scalekd.models.folders import TEACHER
from scalekd.recipes import Recipe, load
from scalekd.runs.folder import RunFolder
from scalekd.tasks.adapt import finetune, probe


def run(
    teacher: str,
    output: Path,
    flags: dict[str, Any],
    defaults: Mapping[str, Any],
    *,
    mode: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Adapt a teacher and print its accuracy; see `adapt` for the arguments."""
    result = adapt(teacher, output, flags, defaults, mode=mode, resume=resume, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(result))
        return
    role, use = ("teacher", "--teacher") if result["teaches"] else ("student", "`scalekd evaluate` and `export` of")
    file, metric = printable(output / TEACHER), main_metric(result)
    typer.echo(f"{role}   {metric} {result[metric]:.2f}% on the validation images; use it with {use} {file}")


def adapt(
    teacher: str,
    output: Path,
    flags: dict[str, Any],
    defaults: Mapping[str, Any],
    *,
    mode: str,
    resume: bool,
    overwrite: bool,
    console: Console | None = None,
) -> dict[str, Any]:
    """Adapt a teacher; return its accuracy and how it was adapted.

    Args:
        teacher: The teacher.
        output: Folder for teacher.safetensors.
        flags: Keys that the user passed.
        defaults: The mode's defaults of other keys; a resumed run has its own.
        mode: `probe` or `finetune`.
        resume: Whether to resume the fine-tuning in `output`.
        overwrite: Whether to replace the result in `output`.
        console: Where to print; standard error by default.

    Raises:
        UserError: For any wrong input.
    """
    folder = RunFolder(output)
    if resume and folder.exists:
        folder.check_given(Recipe, flags)
        defaults = folder.stored_keys()
    given = {**defaults, **flags}
    recipe = load(None, given | {"teacher": teacher})
    resolution = recipe.resolution if "resolution" in given else None
    file = output / TEACHER
    if file.exists() and not (overwrite or resume):
        raise UserError(f"output: {file} exists; add --overwrite to replace it")
    if mode == "finetune":
        return finetune(recipe, output, resolution=resolution, resume=resume, overwrite=overwrite, console=console)
    return probe(recipe, output, resolution=resolution, console=console)
