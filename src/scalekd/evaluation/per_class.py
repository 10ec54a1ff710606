"""Precision, recall and F1 of each class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


class ClassCounts:
    """Counts answers, labels and right answers of each class; takes memory for the classes only, not for their pairs.

    With several labels per image, a probability above 0.5 is an answer.

    Args:
        classes: Number of classes.
        device: Where the counts are kept.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._counts = torch.zeros(3, classes, dtype=torch.long, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch of logits `[B, K]` and labels, `[B]` or `[B, K]`."""
        if labels.ndim > 1:
            answered, known = logits > 0, labels >= 0
            for row, found in enumerate((answered & (labels > 0), answered & known, labels > 0)):
                self._counts[row] += found.sum(0)
            return
        answers, classes = logits.argmax(1), self._counts.shape[1]
        for row, found in enumerate((labels[answers == labels], answers, labels)):
            self._counts[row] += torch.bincount(found, minlength=classes)

    def figures(self, names: Sequence[str]) -> tuple[ClassFigures, ...]:
        """Return the figures of all classes."""
        right, answers, images = self._counts.tolist()
        return class_figures(names, [(r, a - r, n) for r, a, n in zip(right, answers, images, strict=True)])


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
