"""Turns a run's log into curves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Line = dict[str, float]  # a line of the log: `step` and figures by name
Points = list[tuple[float, float]]
MOST_POINTS = 300


def points(lines: Sequence[Line], key: str) -> Points:
    """Return step and value of a figure, in the order of the log."""
    return [(line["step"], line[key]) for line in lines if key in line]


def thin(curve: Points, most: int = MOST_POINTS) -> Points:
    """Reduce a curve to at most `most` points by averaging consecutive points; the last point is kept as is."""
    if len(curve) <= most:
        return curve
    size = -(-(len(curve) - 1) // (most - 1))
    parts = [curve[first : min(first + size, len(curve) - 1)] for first in range(0, len(curve) - 1, size)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [*means, curve[-1]]


def epoch_means(curve: Points, steps_an_epoch: int) -> Points:
    """Return the mean over each epoch, at its last logged step.

    With `n` steps per epoch, step `s` (from 1) belongs to epoch `(s - 1) // n`.
    """
    epochs: dict[int, Points] = {}
    for step, value in curve:
        epochs.setdefault((int(step) - 1) // steps_an_epoch, []).append((step, value))
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in epochs.values()]


def training_seconds(lines: Sequence[Line], batch: int) -> float | None:
    """Estimate how many seconds the steps have taken, without validations; None if no speed was logged.

    Each logged speed is the mean since the previous one. Steps after the last logged speed are assumed to run at it.
    """
    speeds = [(step, speed) for step, speed in points(lines, "images_per_second") if speed > 0]
    if not speeds:
        return None
    end = max(line["step"] for line in lines)
    spans = pairwise([(0.0, 1.0), *speeds, (end, speeds[-1][1])])
    return sum((step - before) * batch / speed for (before, _), (step, speed) in spans)
