"""Draws conclusions from runs: whether the teacher paid off, compared with training alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from scalekd.methods.registry import METHODS
from scalekd.report.record import Record
from scalekd.runs.folder import settings_of

NOISE = 2.0  # points: a single run that differs from another by no more is not distinguished from it


class _Side(NamedTuple):
    """Finished runs that differ in nothing but the seed."""

    records: list[Record]

    @property
    def accuracies(self) -> list[float]:
        return [record.accuracy or 0.0 for record in self.records]

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def variance(self) -> float:
        """Squared standard error of the mean; 0 for a single run, whose error is not known."""
        count = len(self.accuracies)
        return statistics.variance(self.accuracies) / count if count > 1 else 0.0

    @property
    def seconds(self) -> float | None:
        """Mean training time; None if it is not known."""
        known = [record.seconds for record in self.records if record.seconds is not None]
        return statistics.mean(known) if known else None

    @property
    def names(self) -> str:
        return ", ".join(record.name for record in self.records)

    def __str__(self) -> str:
        """The accuracy with its spread, human-readable."""
        if len(self.accuracies) == 1:
            return f"{self.mean:.1f}%"
        return f"{self.mean:.1f} ± {statistics.stdev(self.accuracies):.1f}% ({len(self.accuracies)} runs)"


def beside_teacher(accuracy: float, teacher: float) -> str:
    """Say what may help if a student is at least as good as its teacher (both in percent); empty if it is not."""
    if accuracy < teacher:
        return ""
    return (
        f"the student ({accuracy:.1f}%) is as good as its teacher ({teacher:.1f}%): a stronger teacher, or this one "
        "fine-tuned (scalekd adapt --mode finetune), may teach it more"
    )


def verdicts(records: Sequence[Record]) -> list[str]:
    """Compare the finished runs with those that learned from labels only, on the same validation images and student.

    Runs that differ in the seed only are averaged. If there are runs on labels only with several settings, those whose
    training time is nearest are taken.

    Returns:
        A sentence for each setting that can be compared, and how to make a comparison if there is none.
    """
    finished = [record for record in records if record.finished and record.accuracy is not None]
    settings = [list(same) for _, same in groupby(sorted(finished, key=_student), key=_student)]
    found, incomparable = [], False
    for same in settings:
        sides = [_Side(list(of)) for _, of in groupby(sorted(same, key=_settings), key=_settings)]
        alone = [side for side in sides if side.records[0].method == "none"]
        taught = [side for side in sides if side not in alone]
        whose = f"{Path(str(same[0].keys.get('student'))).name}: " if len(settings) > 1 else ""
        incomparable |= bool(taught) and not alone
        found += [whose + _compare(side, _nearest(side, alone)) for side in taught if alone]
    if incomparable:
        found.append(
            "What the teacher adds is not known: compare with the same student on labels only for the same time "
            "(--method none, more epochs)."
        )
    return found


def _student(record: Record) -> tuple[str, ...]:
    """Return what two runs must share to be compared: validation images, resolution, and student with its weights."""
    inputs = (record.inputs.get(name) for name in ("validation data", "student weights"))
    keys = (record.keys.get(key) for key in ("resolution", "student", "student_args", "student_pretrained"))
    return tuple(map(str, (*inputs, *keys)))


def _settings(record: Record) -> str:
    """Return all settings that affect the result, apart from the seed, and the training images."""
    keys = settings_of(record.keys)
    return json.dumps([keys, record.inputs.get("training data")], sort_keys=True, default=str)


def _nearest(taught: _Side, alone: Sequence[_Side]) -> _Side:
    def distance(side: _Side) -> float:
        if not taught.seconds or not side.seconds:
            return math.inf
        return abs(math.log(side.seconds / taught.seconds))

    return min(alone, key=distance)


def _name(side: _Side) -> str:
    """Name a side by its method, the lean form by its own name, and the names of its runs."""
    first = side.records[0]
    label = METHODS[first.method].label if first.method in METHODS else first.method
    lean = ", lean" if first.keys.get("lean") and first.method == "scalekd" else ""
    return f"{label}{lean} ({side.names})"


def _compare(taught: _Side, alone: _Side) -> str:
    """Say by how much a setting is better or worse than labels only, and at how many times its training time."""
    images = [side.records[0].training_images for side in (taught, alone)]
    differ = images[0] and images[1] and images[0] != images[1]
    of = f", of {images[0]:,} against {images[1]:,} training images" if differ else ""
    said = f"{_name(taught)}: {taught} against {alone} of {_name(alone)}{of}{_times(taught, alone)}. "
    gap = taught.mean - alone.mean
    single = min(len(taught.accuracies), len(alone.accuracies)) == 1
    if abs(gap) <= max(NOISE if single else 0.0, 2 * math.sqrt(taught.variance + alone.variance)):
        return f"{said}They are not distinguished: the difference of {abs(gap):.1f} points is within the noise."
    if gap < 0:
        return f"{said}Labels only is {-gap:.1f} points better here."
    return f"{said}That is {gap:.1f} points better."


def _times(taught: _Side, alone: _Side) -> str:
    if not taught.seconds or not alone.seconds:
        return ""
    ratio = taught.seconds / alone.seconds
    return f", in {ratio:,.1f} times the training time (without fitting the teacher and filling a cache)"
