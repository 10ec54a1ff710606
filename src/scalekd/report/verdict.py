"""Draws conclusions from runs: whether the teacher paid off, compared with training alone, and what to try next."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from scalekd.methods.registry import METHODS
from scalekd.report.record import Record

NOISE = 2.0  # points: two single runs that differ by less are not distinguished


class _Side(NamedTuple):
    """The finished runs of one method on the same data with the same student.

    Attributes:
        name: The method's name in a report.
        top1: Last top-1 of each run in percent.
        seconds: Training time of each run whose time is known.
    """

    name: str
    top1: list[float]
    seconds: list[float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)

    def __str__(self) -> str:
        """The accuracy with its spread, human-readable."""
        if len(self.top1) == 1:
            return f"{self.mean:.1f}%"
        return f"{self.mean:.1f} ± {statistics.stdev(self.top1):.1f}% ({len(self.top1)} runs)"


def beside_teacher(top1: float, teacher: float) -> str:
    """Say what to do if a student is at least as good as its teacher (both in percent); empty if it is not."""
    if top1 < teacher:
        return ""
    return (
        f"the student ({top1:.1f}%) is as good as its teacher ({teacher:.1f}%): fine-tune the teacher first "
        "(scalekd adapt --mode finetune), take a stronger one, or train alone (--method none)"
    )


def verdicts(records: Sequence[Record]) -> list[str]:
    """Compare the finished runs with those that learned from labels only, on the same data with the same student.

    Returns:
        One sentence for each method that can be compared, and how to make a comparison where there is none.
    """
    finished = [record for record in records if record.finished and record.last("val/top1") is not None]
    found = []
    for _, same in groupby(sorted(finished, key=_setting), key=_setting):
        sides = [_side(name, list(of)) for name, of in groupby(sorted(same, key=method_name), key=method_name)]
        alone = next((side for side in sides if side.name == METHODS["none"].label), None)
        taught = [side for side in sides if side is not alone]
        if alone is not None:
            found += [_compare(side, alone) for side in taught]
        elif taught:
            found.append(
                "What the teacher adds is not known: compare with the same student on labels only for the same time "
                "(--method none, more epochs)."
            )
    return found


def method_name(record: Record) -> str:
    """Return the name of a run's method; the lean form has its own."""
    label = METHODS[record.method].label if record.method in METHODS else record.method
    return f"{label}, lean" if record.keys.get("lean") and record.method == "scalekd" else label


def _setting(record: Record) -> tuple[str, ...]:
    """Return what two runs must share to be compared: validation images, resolution, and student with its weights."""
    inputs = (record.inputs.get(name) for name in ("validation data", "student weights"))
    keys = (record.keys.get(key) for key in ("resolution", "student", "student_pretrained"))
    return tuple(map(str, (*inputs, *keys)))


def _side(name: str, records: Sequence[Record]) -> _Side:
    seconds = [record.seconds for record in records if record.seconds is not None]
    return _Side(name, [record.last("val/top1") or 0.0 for record in records], seconds)


def _compare(taught: _Side, alone: _Side) -> str:
    """Say by how much a method is better or worse than labels only, and at how many times its time."""
    gap = taught.mean - alone.mean
    time = ""
    if taught.seconds and alone.seconds and statistics.mean(alone.seconds):
        time = f", in {statistics.mean(taught.seconds) / statistics.mean(alone.seconds):.2g} times the time"
    figures = f"{taught} against {alone} on labels only{time}"
    if abs(gap) < NOISE and min(len(taught.top1), len(alone.top1)) == 1:
        return f"{taught.name}: {figures}. Single runs that differ by less than {NOISE:g} points are not distinguished."
    if gap <= 0:
        return f"{taught.name}: {figures}. Training alone is {-gap:.1f} points better here."
    return f"{taught.name}: {figures}, {gap:.1f} points better."
