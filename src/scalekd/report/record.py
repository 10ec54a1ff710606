"""Reads run folders for a report, without their models or data. The run may still be in progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalekd.errors import UserError
from scalekd.recipes import Recipe
from scalekd.recipes.schema import validate
from scalekd.report.series import Line, training_seconds
from scalekd.runs.folder import RunFolder, read_json
from scalekd.runs.group import RunGroup


@dataclass(frozen=True)
class Record:
    """A run as read from its folder.

    Attributes:
        name: Name on the page.
        folder: The run folder.
        keys: The recipe as stored.
        recipe: The validated recipe, without keys that this revision does not know. None if a value is wrong.
        inputs: Fingerprints of the data and hashes of the weights.
        environment: Versions, revision and hardware.
        result: Final figures; empty until the run is finished.
        lines: Lines of the log, oldest first.
        notes: What could not be read, one line each.
    """

    name: str
    folder: RunFolder
    keys: dict[str, Any]
    recipe: Recipe | None
    inputs: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return bool(self.result)

    @property
    def method(self) -> str:
        """The recipe's method."""
        return str(self.keys["method"])

    @property
    def batch(self) -> int:
        """The global batch."""
        return int(self.keys.get("batch") or 1)

    @property
    def training_images(self) -> int | None:
        """Number of images in the training split; None if the run did not record it."""
        return _count(self.inputs.get("training data"))

    @property
    def validation_images(self) -> int | None:
        """Number of images in the validation split; None if the run did not record it."""
        return _count(self.inputs.get("validation data"))

    @property
    def steps_an_epoch(self) -> int | None:
        """Optimiser steps per epoch; None if the number of images is unknown."""
        images = self.training_images
        return None if not images else max(images // self.batch, 1)

    @property
    def step(self) -> int:
        """Optimiser steps taken, according to the log."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def samples(self) -> int:
        """Images viewed; an image counts each time it is seen."""
        return self.step * self.batch

    @property
    def epochs_done(self) -> float | None:
        """Passes over the training images so far; None if the number of images is unknown."""
        return None if self.steps_an_epoch is None else self.step / self.steps_an_epoch

    @property
    def seconds(self) -> float | None:
        """Seconds of training.

        From the result, which includes validations; for an unfinished run an estimate from the logged speeds.
        """
        measured = self.result.get("seconds")
        return float(measured) if measured is not None else training_seconds(self.lines, self.batch)

    @property
    def metric(self) -> str:
        """Name of the main figure of a validation: `top1`, or `map` with several labels per image."""
        return "map" if self.keys.get("multi_label") else "top1"

    @property
    def accuracy(self) -> float | None:
        """The main figure of the last validation in percent; None if there was none."""
        return self.last(f"val/{self.metric}")

    @property
    def teacher_accuracy(self) -> float | None:
        """The teacher's main figure in percent on the validation images; recorded when a run ends."""
        value = self.result.get(f"teacher_{self.metric}")
        return None if value is None else float(value)

    def last(self, key: str) -> float | None:
        """Return the last logged value of a figure; None if it was never logged."""
        return next((line[key] for line in reversed(self.lines) if key in line), None)


def _count(fingerprint: Any) -> int | None:
    """Return the number of images that a split's fingerprint starts with; None if there is no number."""
    number = str(fingerprint or "").partition(" ")[0]
    return int(number) if number.isdecimal() else None


def read_runs(paths: Sequence[str | Path]) -> list[Record]:
    """Read the runs in these folders; the folder of a group of students stands for all of its runs.

    Raises:
        UserError: If a folder holds no run of `distill`, or is given twice.
    """
    folders: list[Path] = []
    for path in paths:
        students = RunGroup.stored_students(path)
        folders += [run.path for run in RunGroup(path, students).runs] if students else [Path(path)]
    absolute = [folder.absolute() for folder in folders]
    for folder in absolute:
        if absolute.count(folder) > 1:
            raise UserError(f"report: {folder} is given twice; give each run once")
    return [_read(path, name) for path, name in zip(folders, _names(absolute), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest suffixes of the paths, equally long, that are all different."""
    length = 1
    while len({folder.parts[-length:] for folder in folders}) < len(folders):
        length += 1
    return ["/".join(folder.parts[-length:]) for folder in folders]


def _read(path: Path, name: str) -> Record:
    folder, notes = RunFolder(path), list[str]()
    keys = folder.stored_keys()
    if "method" not in keys:
        raise UserError(f"report: {path} holds a run of transfer; reports are of runs of distill")
    left: dict[str, dict[str, Any]] = {}
    for file in (folder.inputs, folder.environment):
        try:
            left[file.stem] = read_json(file)
        except UserError:
            left[file.stem] = {}
            notes.append(f"{file.name} is missing or corrupt; its content is left out.")
    return Record(
        name=name,
        folder=folder,
        keys=keys,
        recipe=_recipe(keys, notes),
        inputs=left["inputs"],
        environment=left["environment"],
        result=folder.stored_result() if folder.finished else {},
        lines=_lines(folder.metrics, notes),
        notes=notes,
    )


def _recipe(keys: dict[str, Any], notes: list[str]) -> Recipe | None:
    """Validate the stored recipe against this revision's schema; problems become notes."""
    foreign = [key for key in keys if key not in Recipe.model_fields]
    if foreign:
        notes.append(
            f"The run was made by another revision of scalekd; unknown recipe keys were ignored: {', '.join(foreign)}."
        )
    try:
        return validate(Recipe, {key: value for key, value in keys.items() if key not in foreign})
    except UserError as error:
        notes.append(f"The models cannot be rebuilt from the recipe: {error}.")
        return None


def _lines(file: Path, notes: list[str]) -> list[Line]:
    """Read the log's lines; the last one may be incomplete."""
    texts = file.read_bytes().splitlines() if file.is_file() else []
    lines = [line for line in map(_line, texts) if line is not None]
    if len(lines) < len(texts):
        notes.append(f"{len(texts) - len(lines)} line(s) of {file.name} cannot be read and are left out.")
    return lines


def _line(text: bytes) -> Line | None:
    """Parse a line of the log; None if it is corrupt."""
    try:
        line = {key: float(value) for key, value in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return line if "step" in line else None
