"""Reads the model that a command's MODEL argument specifies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from scalekd.errors import UserError, printable
from scalekd.exports.timm_folder import is_timm_folder, read_timm_folder
from scalekd.models import Classifier
from scalekd.models.folders import TEACHER, WEIGHTS
from scalekd.models.sources import MODULE, PYTHON
from scalekd.runs.folder import RunFolder


@dataclass(frozen=True)
class Named:
    """A model that the user specified.

    Attributes:
        classifier: The model, in eval mode.
        weights: The file that it was read from; None for a name without one.
        run: The run that wrote it; None if there is none.
    """

    classifier: Classifier
    weights: Path | None
    run: RunFolder | None = None


def find_run(model: str) -> RunFolder | None:
    """Return the run in a folder or of a checkpoint; None for any other model.

    Raises:
        UserError: If the folder holds nothing.
    """
    path = Path(model)
    if path.suffix == ".ckpt" and path.is_file():
        return RunFolder(path.absolute().parent.parent)
    if not path.is_dir() or is_timm_folder(path) or (path / TEACHER).is_file():
        return None
    return RunFolder(path)


def read_model(
    model: str, weights: Path | None = None, *, resolution: int | None = None, args: dict[str, Any] | None = None
) -> Named:
    """Read the model that a folder, a file or a name specifies.

    Args:
        model: As the user specified it.
        weights: A safetensors file for a name.
        resolution: Image side in pixels; by default that of the weights.
        args: Further arguments of `timm.create_model`.

    Raises:
        UserError: If there is no such model, or it cannot be built.
    """
    named = _read(model, weights, resolution, args or {})
    for note in named.classifier.notes:
        typer.echo(f"weights: {printable(named.weights)}: {printable(note)}", err=True)
    return named


def _read(model: str, weights: Path | None, resolution: int | None, args: dict[str, Any]) -> Named:
    path, run = Path(model), find_run(model)
    if weights is not None and (run is not None or path.is_dir()):
        raise UserError(f"weights: {model} has its own weights; leave --weights out")
    if is_timm_folder(path):
        return Named(read_timm_folder(path, resolution).eval(), path / WEIGHTS)
    if run is not None:
        student = str(run.stored_keys().get("student"))
        if student == "None":
            raise UserError(f"model: the run in {run.path} has trained no classifier; see its own weights there")
        if not run.student.is_file():
            raise UserError(f"model: {run.path} has no {run.student.name} yet; the first validation writes it")
        if not run.finished:
            typer.echo(
                f"model: the run in {printable(run.path)} has not ended; using its student as last saved", err=True
            )
        if student.startswith(MODULE):
            raise UserError(
                f"model: {student} was passed to scalekd.distill as a module and cannot be built from its name; its "
                f"weights are in {run.student}"
            )
        # The user's own code is specified by the recipe only, never by a weights file.
        named = {"model": student, "weights": run.student} if student.startswith(PYTHON) else {"model": run.student}
        return Named(Classifier(**named, resolution=resolution, **args).eval(), run.student, run)
    classifier = Classifier(model, weights=weights, resolution=resolution, **args).eval()
    return Named(classifier, classifier.weights)
