"""What a command's MODEL stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalekd.errors import UserError
from scalekd.export.timm_folder import WEIGHTS, is_timm_folder, read_timm_folder
from scalekd.models import Classifier
from scalekd.models.sources import PYTHON
from scalekd.training import RunFolder
from scalekd.training.adapt import FILE as TEACHER_FILE

HELP = "A run's, adapt's or timm folder, a weights file, or a timm name."


@dataclass(frozen=True)
class Named:
    """A model that the user named.

    Attributes:
        classifier: The model, in eval mode.
        weights: The file that it was read from; None for a name without one.
        run: The run that left it, where one did.
    """

    classifier: Classifier
    weights: Path | None
    run: RunFolder | None = None

    @property
    def keys(self) -> dict[str, Any]:
        """The run's recipe; nothing without a run."""
        return {} if self.run is None else self.run.stored_keys()


def read_model(model: str, weights: Path | None = None) -> Named:
    """The model that a folder, a file or a name stands for.

    Raises:
        UserError: If it stands for none, or cannot be built.
    """
    path = Path(model)
    if is_timm_folder(path):
        return Named(read_timm_folder(path).eval(), path / WEIGHTS)
    if (path / TEACHER_FILE).is_file():
        return Named(Classifier(path / TEACHER_FILE).eval(), path / TEACHER_FILE)
    if path.is_dir():
        run = RunFolder(path)
        keys = run.stored_keys()
        if not run.student.is_file():
            raise UserError(f"model: {path} has no {run.student.name} yet; the run has not validated once")
        if str(keys["student"]).startswith(PYTHON):  # which only the recipe may name, not the weights
            return Named(Classifier(keys["student"], weights=run.student).eval(), run.student, run)
        return Named(Classifier(run.student).eval(), run.student, run)
    return Named(Classifier(model, weights=weights).eval(), weights or (path if path.is_file() else None))
