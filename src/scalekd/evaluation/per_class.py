"""Precision, recall and F1 of each class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassFigures:
    """How well a model recognises one class, in percent.

    Attributes:
        name: The class.
        images: Number of images of the class.
        precision: Share of the images with this answer that are of the class; None if no image has this answer.
        recall: Share of the images of the class with this answer; None without images.
        f1: Harmonic mean of both, that is 2 TP / (2 TP + FP + FN); None if the class is neither there nor answered.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


def class_figures(names: Sequence[str], counts: Iterable[tuple[int, int, int]]) -> tuple[ClassFigures, ...]:
    """Compute the figures of each class.

    Args:
        names: The classes.
        counts: For each class its images with the right answer, other images with the same answer, and all its images.
    """
    return tuple(
        ClassFigures(
            name,
            images,
            _percent(right, right + wrong),
            _percent(right, images),
            _percent(2 * right, right + wrong + images),
        )
        for name, (right, wrong, images) in zip(names, counts, strict=True)
    )


def balanced_accuracy(classes: Iterable[ClassFigures]) -> float:
    """Return the mean recall of the classes that have images, in percent: each class counts the same."""
    recalls = [each.recall for each in classes if each.recall is not None]
    return sum(recalls) / len(recalls) if recalls else 0.0


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
